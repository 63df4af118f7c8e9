"""Which processes descend from the first one of their container, and which came in from outside.

This is Tetragon's ``in_init_tree`` (its bpf/process/bpf_process_event.h, ``set_in_init_tree``): the first process of a
pid namespace, and what it started. A ``kubectl exec``, an exec probe or an nsenter is forked by the runtime or on the
host, and is not in it.

Beyond Tetragon, the tree ends where a container does. A node that is itself a container (kind, docker in docker) has
the runtime of its own containers in its init tree, and by Tetragon's rule an exec into one of those would be in it too.

As in Tetragon, in a pod whose containers share a pid namespace only the sandbox's process is its first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_procmon.lineage.entry import same_container

if TYPE_CHECKING:
    from otel_procmon.events import Process
    from otel_procmon.lineage.image import Image


def in_init_tree(process: Process, parent: Image | None) -> bool:
    """Whether `process`, whose parent image (or the one before it in the same process) is `parent`, is in the tree.

    What the source itself tells goes first. Where the lineage is not known back to the first process, it is not.
    """
    if process.in_init_tree is not None:
        return process.in_init_tree
    # Pid 1 of the host is no container's.
    if process.vpid == 1 and process.pid != 1:
        return True
    return (
        parent is not None and parent.in_init_tree and same_container(process.container_id, parent.process.container_id)
    )
