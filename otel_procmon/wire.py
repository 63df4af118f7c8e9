"""The wire contract with the BPF program: the records of ``bpf/procmon.h``, as they stand in the ring buffer.

`source.ebpf` hands them on as bytes, `decode.kernel` makes events of them. A test holds what is here against the type
information in the compiled object.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

WIRE_VERSION: Final = 1

Layout = tuple[tuple[str, str], ...]
"""Names and `struct` formats of fields, in the order of the wire."""

TASK: Final[Layout] = (
    ("kind", "I"),
    ("version", "I"),
    ("time_ns", "Q"),
    ("start_ns", "Q"),
    ("generation", "Q"),
    ("parent_start_ns", "Q"),
    ("parent_generation", "Q"),
    ("cgroup_id", "Q"),
    ("pid", "I"),
    ("parent_pid", "I"),
    ("vpid", "I"),
    ("session_id", "I"),
    ("uid", "I"),
    ("gid", "I"),
    ("euid", "I"),
    ("egid", "I"),
    ("auid", "I"),
    ("facts", "I"),
    ("unread", "I"),
    ("cut", "I"),
    ("comm", "16s"),
)
EXEC_TAIL: Final[Layout] = (
    ("args_bytes", "Q"),
    ("args_count", "I"),
    ("filename_bytes", "I"),
    ("interpreter_bytes", "I"),
    ("executable_bytes", "I"),
    ("cwd_bytes", "I"),
    ("cgroup_bytes", "I"),
    ("args_kept_bytes", "I"),
    ("reserved", "I"),
)
EXIT_TAIL: Final[Layout] = (
    ("wait_status", "I"),
    ("reserved", "I"),
    ("utime_ns", "Q"),
    ("stime_ns", "Q"),
    ("runtime_ns", "Q"),
    ("max_rss_pages", "Q"),
    ("read_bytes", "Q"),
    ("written_bytes", "Q"),
)


class Kind(IntEnum):
    """``enum procmon_kind``."""

    FORK = 1
    EXEC = 2
    EXIT = 3
    TASK = 4


class Field(IntFlag):
    """``enum procmon_field``."""

    ARGS = 1 << 0
    FILENAME = 1 << 1
    INTERPRETER = 1 << 2
    EXECUTABLE = 1 << 3
    CWD = 1 << 4
    CGROUP = 1 << 5
    PARENT = 1 << 6
    VPID = 1 << 7
    SESSION = 1 << 8
    AUID = 1 << 9
    USAGE_CPU = 1 << 10
    USAGE_IO = 1 << 11


class Fact(IntFlag):
    """``enum procmon_fact``."""

    TTY = 1 << 0
    KERNEL_THREAD = 1 << 1
    PARENT_KERNEL_THREAD = 1 << 2
    EXECUTABLE_DELETED = 1 << 3
    CWD_DELETED = 1 << 4
    CGROUP_V1 = 1 << 5
    OOM_VICTIM = 1 << 6
    VFORK = 1 << 7


def _compiled(layout: Layout) -> struct.Struct:
    return struct.Struct("<" + "".join(format_ for _, format_ in layout))


TASK_STRUCT: Final = _compiled(TASK)
EXEC_STRUCT: Final = _compiled(TASK + EXEC_TAIL)
EXIT_STRUCT: Final = _compiled(TASK + EXIT_TAIL)


class Head(NamedTuple):
    """``struct procmon_task``."""

    kind: int
    version: int
    time_ns: int
    start_ns: int
    generation: int
    parent_start_ns: int
    parent_generation: int
    cgroup_id: int
    pid: int
    parent_pid: int
    vpid: int
    session_id: int
    uid: int
    gid: int
    euid: int
    egid: int
    auid: int
    facts: int
    unread: int
    cut: int
    comm: bytes


def read_head(record: bytes) -> Head:
    """The head of a record. Raises `struct.error` if `record` is too short for one."""
    return Head._make(TASK_STRUCT.unpack_from(record))


class Strings(NamedTuple):
    """The variable part of PROCMON_EXEC and PROCMON_TASK."""

    filename: bytes
    interpreter: bytes
    executable: bytes
    """Components leaf first, each followed by ``/``; so `cwd` and `cgroup`."""
    cwd: bytes
    cgroup: bytes
    args: bytes


def pack_task(head: Head, strings: Strings, args_bytes: int, args_count: int) -> bytes:
    """A record of `head` with `strings` behind it: what the iterator gave, with what ``/proc`` added."""
    tail = (args_bytes, args_count, *map(len, strings), 0)
    return EXEC_STRUCT.pack(*head, *tail) + b"".join(strings)


def split_tasks(stream: bytes) -> list[bytes]:
    """The task iterator's output as records. Of the strings only the cgroup is there."""
    records = []
    position = 0
    while position + EXEC_STRUCT.size <= len(stream):
        (cgroup_bytes,) = struct.unpack_from("<I", stream, position + _CGROUP_BYTES_AT)
        end = position + EXEC_STRUCT.size + cgroup_bytes
        records.append(stream[position:end])
        position = end
    return records


_CGROUP_BYTES_AT: Final = _compiled(
    TASK + EXEC_TAIL[: next(i for i, (name, _) in enumerate(EXEC_TAIL) if name == "cgroup_bytes")]
).size
