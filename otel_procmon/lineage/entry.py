"""Entries: the images at which a new trace begins.

A trace is one activity that someone started, small enough for backends to show. The rules look only at what is the same
after a restart of the agent (when processes were forked, their sessions and containers), as far as that is possible, so
that an image is found in the same trace again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_procmon.config import TraceOptions
    from otel_procmon.events import Fork, Process
    from otel_procmon.lineage.image import EntryReason, Image

_INIT_PID = 1


def entry_reason(
    process: Process,
    began_unix_ns: int,
    parent: Image | None,
    at_fork: Process | Fork | None,
    options: TraceOptions,
    *,
    replaces: bool = False,
) -> EntryReason | None:
    """Why a trace begins at the image of `process`; None where it joins its parent's.

    Args:
        process: What the image is.
        began_unix_ns: When its process was forked; for a program that took another's place, when it did.
        parent: The parent image, if it is known.
        at_fork: The image as its fork left it: its session and terminal are what its parent's were at that moment.
        options: The thresholds.
        replaces: The parent is what ran before in the same process. Such a change of the program is no activity of its
            own: after a restart nobody knows of it any more.
    """
    if parent is None:
        return "init_parent" if process.parent_pid == _INIT_PID else "unknown_parent"
    if parent.process.kernel_thread:
        return "kernel_parent"
    if parent.process.pid == _INIT_PID:
        return "init_parent"
    if not same_container(process.container_id, parent.process.container_id):
        return "container"
    parent_then = parent.process if at_fork is None else at_fork
    if parent_then.tty is False:
        sessions = (process.session_id, parent_then.session_id)
        if None not in sessions and sessions[0] != sessions[1] and not (replaces and parent.began_trace):
            return "session"
        if not replaces and began_unix_ns - began(parent.process) > options.service_age_ns:
            return "service"
    if began_unix_ns - parent.trace_start_unix_ns > options.max_age_ns or parent.trace_images[0] >= options.max_spans:
        return "limit"
    return None


def began(process: Process) -> int:
    """When `process` was forked, or as near as the source tells."""
    return process.start_unix_ns if process.creation_unix_ns is None else process.creation_unix_ns


def same_container(one: str | None, other: str | None) -> bool:
    """Whether two container ids are one container's, or both None.

    Tetragon tells a container's whole id with the pod; where it does not know that yet, the first 31 characters.
    """
    if not one or not other:
        return one == other
    return one.startswith(other) or other.startswith(one)
