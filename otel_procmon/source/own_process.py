"""What ``/proc`` tells of this process, and the kernel's memory has to tell as well, if read at the right places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from otel_procmon.wire import Head

_OWN_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_INITIAL_NAMESPACES: Final = {"pid": 0xEFFFFFFC, "time": 0xEFFFFFFA}
"""``PROC_PID_INIT_INO`` and ``PROC_TIME_INIT_INO`` of include/linux/proc_ns.h: their inodes, for ever."""


def host_pid(own: Path = _OWN_PID_NAMESPACE) -> int | None:
    """This process's id, as the kernel has it in events; None in a pid namespace, where it is called otherwise."""
    return os.getpid() if _is_initial("pid", own) else None


def _is_initial(kind: str, namespace: Path) -> bool:
    try:
        return namespace.stat().st_ino == _INITIAL_NAMESPACES[kind]
    except OSError:
        return False


class SelfTold(NamedTuple):
    """What ``/proc`` tells of this process."""

    pid: int
    parent_pid: int
    start_ticks: int
    ticks_per_s: int
    comm: bytes
    uid: int

    def is_of(self, head: Head) -> bool:
        """Whether a record's head tells the same."""
        start_ticks = head.start_ns * self.ticks_per_s // 1_000_000_000
        return (head.pid, head.parent_pid, start_ticks, head.comm.partition(b"\0")[0], head.uid) == (
            self.pid,
            self.parent_pid,
            self.start_ticks,
            self.comm,
            self.uid,
        )


def read_self(proc: Path) -> SelfTold | None:
    """What `proc` tells of this process; None where its pids and times are those of other namespaces."""
    if not all(_is_initial(kind, proc / "self/ns" / kind) for kind in _INITIAL_NAMESPACES):
        return None
    try:
        stat = (proc / "self/stat").read_bytes()
    except OSError:
        return None
    # proc(5): the name stands in parentheses and may hold any bytes.
    pid, _, rest = stat.partition(b" (")
    comm, _, rest = rest.rpartition(b") ")
    fields = rest.split()
    return SelfTold(int(pid), int(fields[1]), int(fields[19]), os.sysconf("SC_CLK_TCK"), comm, os.getuid())
