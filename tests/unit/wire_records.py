"""Records as the BPF program writes them, with only the fields that a test is about."""

from __future__ import annotations

from typing import Any

from otel_procmon.wire import EXIT_STRUCT, TASK_STRUCT, WIRE_VERSION, Head, Kind, Strings, pack_task

NODE = "here"
BOOT_NS = 1_000_000_000_000
"""When it happened."""
START_NS = 900_000_000_000
"""When the process was forked."""

HEAD = Head(
    kind=Kind.FORK,
    version=WIRE_VERSION,
    time_ns=BOOT_NS,
    start_ns=START_NS,
    generation=4,
    parent_start_ns=800_000_000_000,
    parent_generation=3,
    cgroup_id=77,
    pid=500,
    parent_pid=400,
    vpid=5,
    session_id=390,
    uid=1000,
    gid=1001,
    euid=0,
    egid=1,
    auid=1002,
    facts=0,
    unread=0,
    cut=0,
    comm=b"ls\0garbage\0\0\0\0\0\0",
)


def head(**fields: Any) -> Head:
    return HEAD._replace(**fields)


def fork_record(**fields: Any) -> bytes:
    return TASK_STRUCT.pack(*head(**{"generation": 3, **fields}))


def strings(**fields: bytes) -> Strings:
    known = {
        "filename": b"/bin/ls",
        "interpreter": b"",
        "executable": b"",
        "cwd": b"user/home/",
        "cgroup": b"a.service/system.slice/",
        "args": b"ls\0-l\0",
    }
    return Strings(**{**known, **fields})


def exec_record(texts: Strings | None = None, *, args_count: int = 2, **fields: Any) -> bytes:
    texts = texts or strings()
    return pack_task(head(**{"kind": Kind.EXEC, **fields}), texts, len(texts.args), args_count)


def exit_record(wait_status: int = 0, usage: tuple[int, ...] = (3, 1, 8, 10, 11, 12), **fields: Any) -> bytes:
    return EXIT_STRUCT.pack(*head(**{"kind": Kind.EXIT, **fields}), wait_status, 0, *usage)
