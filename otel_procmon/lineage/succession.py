"""What is known of a process when it forks, runs another program, or ends: from its own event and from before."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from otel_procmon.events import Fork, Process

if TYPE_CHECKING:
    from otel_procmon.lineage.image import Image

_HOW_IT_BEGAN: Final = frozenset({"execve", "clone", "procFS"})
"""Flags that tell how an image began; the others tell what could not be read, and hold for a fork of it too."""


def forked(event: Fork, parent: Process | None) -> Process:
    """What a fork runs: its parent's program."""
    own: dict[str, Any] = {
        "exec_id": event.exec_id,
        "pid": event.pid,
        "start_unix_ns": event.time_unix_ns if event.creation_unix_ns is None else event.creation_unix_ns,
        "creation_unix_ns": event.creation_unix_ns,
        "boot_start_ns": event.boot_start_ns,
        "parent_pid": event.parent_pid or None,
        "vpid": event.vpid,
        "session_id": event.session_id,
        "tty": event.tty,
        "uid": event.uid,
        "gid": event.gid,
        "euid": event.euid,
        "egid": event.egid,
        "auid": event.auid,
        "node": event.node,
        "kernel_thread": False,
    }
    if parent is None or parent.kernel_thread:
        return Process(binary="", name=event.name, flags=("clone",), **own)
    return replace(parent, flags=_cloned(parent.flags), **own)


@lru_cache(maxsize=64)
def _cloned(flags: tuple[str, ...]) -> tuple[str, ...]:
    return ("clone", *(flag for flag in flags if flag not in _HOW_IT_BEGAN))


def executed(process: Process, before: Process, *, first: bool) -> Process:
    """`process` with what is known better from the image before: whose child it is, and how it began.

    The event itself tells the parent at the moment of the exec, which is a reaper's where the parent has gone.
    """
    changes: dict[str, Any] = {}
    if before.parent_pid is not None and process.parent_pid != before.parent_pid:
        changes["parent_pid"] = before.parent_pid
    if ("clone" in process.flags) != first and process.boot_start_ns is not None:
        rest = tuple(flag for flag in process.flags if flag not in _HOW_IT_BEGAN)
        changes["flags"] = ("execve", "clone", *rest) if first else ("execve", *rest)
    if process.cgroup is None and process.boot_start_ns is not None and before.container_id is not None:
        changes.update(container_id=before.container_id, container=before.container, pod_uid=before.pod_uid)
    return replace(process, **changes) if changes else process


def contained(process: Process, parent: Process) -> Process:
    """`process` in its parent's container, where the kernel did not tell its cgroup (an exit does not)."""
    if process.cgroup is not None or process.boot_start_ns is None or parent.container_id is None:
        return process
    return replace(process, container_id=parent.container_id, container=parent.container, pod_uid=parent.pod_uid)


def at_exit(image: Image, last: Process | None) -> Process:
    """The process of an image at its end: what a fork became in the meantime, and metadata that came late."""
    process = image.process
    if last is None:
        return process
    if image.forked_only and last.boot_start_ns is not None:
        return replace(
            process,
            session_id=last.session_id,
            tty=last.tty,
            uid=last.uid,
            gid=last.gid,
            euid=last.euid,
            egid=last.egid,
            auid=last.auid,
        )
    if process.pod is None and last.pod is not None:
        return replace(
            process,
            pod=last.pod,
            pod_uid=last.pod_uid,
            container=last.container,
            container_id=last.container_id,
            vpid=last.vpid,
        )
    return process
