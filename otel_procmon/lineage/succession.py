"""What is known of a process when it forks, runs another program, or ends: from its own event and from before."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from otel_procmon.events import Exit, Fork, Process

if TYPE_CHECKING:
    from otel_procmon.lineage.image import Image

_HOW_IT_BEGAN: Final = frozenset({"execve", "clone", "procFS"})
"""Flags that tell how an image began; the others tell what could not be read, and hold for a fork of it too."""


def forked(event: Fork, parent: Process | None) -> Process:
    """What a fork runs: its parent's program."""
    own = _identity(event) | _session_and_users(event)
    if parent is None or parent.kernel_thread:
        return Process(binary="", name=event.name, flags=("clone",), **own)
    return replace(parent, flags=_cloned(parent.flags), kernel_thread=False, **own)


def start_unix_ns(event: Fork | Exit) -> int:
    """When an image began of which the kernel told no exec: when its process was forked, as far as that is known."""
    return event.time_unix_ns if event.creation_unix_ns is None else event.creation_unix_ns


def _identity(event: Fork | Exit) -> dict[str, Any]:
    return {
        "exec_id": event.exec_id,
        "pid": event.pid,
        "start_unix_ns": start_unix_ns(event),
        "creation_unix_ns": event.creation_unix_ns,
        "boot_start_ns": event.boot_start_ns,
        # 0: the kernel's own.
        "parent_pid": event.parent_pid or None,
        "vpid": event.vpid,
        "node": event.node,
    }


def _session_and_users(event: Fork | Exit) -> dict[str, Any]:
    return {
        "session_id": event.session_id,
        "tty": event.tty,
        "uid": event.uid,
        "gid": event.gid,
        "euid": event.euid,
        "egid": event.egid,
        "auid": event.auid,
    }


@lru_cache(maxsize=64)
def _cloned(flags: tuple[str, ...]) -> tuple[str, ...]:
    return ("clone", *(flag for flag in flags if flag not in _HOW_IT_BEGAN))


def executed(process: Process, parent_pid: int | None, *, first: bool) -> Process:
    """`process` with what is known better from before: whose child it is (None: not known), and how it began.

    The event itself tells the parent at the moment of the exec, which is a reaper's where the parent has gone.
    """
    changes: dict[str, Any] = {}
    if parent_pid is not None and process.parent_pid != parent_pid:
        changes["parent_pid"] = parent_pid
    if ("clone" in process.flags) != first and process.boot_start_ns is not None:
        rest = tuple(flag for flag in process.flags if flag not in _HOW_IT_BEGAN)
        changes["flags"] = ("execve", "clone", *rest) if first else ("execve", *rest)
    return replace(process, **changes) if changes else process


def contained(process: Process, parent: Process) -> Process:
    """`process` in the container of its parent, or of what ran before, where the kernel did not tell its cgroup."""
    if process.cgroup is not None or process.boot_start_ns is None or parent.container_id is None:
        return process
    return replace(process, container_id=parent.container_id, container=parent.container, pod_uid=parent.pod_uid)


def exited(event: Exit) -> Process:
    """What is known of a process by its exit alone."""
    if event.process is not None:
        return event.process
    return Process(
        binary="",
        flags=("clone",) if event.forked_only else (),
        executable_deleted=event.executable_deleted,
        name=event.name,
        cgroup_id=event.cgroup_id,
        truncated=event.truncated,
        **_identity(event),
        **_session_and_users(event),
    )


def at_exit(image: Image, event: Exit) -> Process:
    """The process of an image at its end: what a fork became in the meantime, and metadata that came late."""
    process, last = image.process, event.process
    changes: dict[str, Any] = {}
    if last is not None:
        if process.pod is None and last.pod is not None:
            changes.update(
                pod=last.pod,
                pod_uid=last.pod_uid,
                container=last.container,
                container_id=last.container_id,
                vpid=last.vpid,
            )
    elif image.forked_only and event.boot_start_ns is not None:
        changes |= _session_and_users(event)
    if event.truncated:
        changes["truncated"] = (*process.truncated, *event.truncated)
    return replace(process, **changes) if changes else process
