"""The BPF program's records as events: every field, every oddity, and any bytes at all."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_procmon.decode.errors import DecodeError
from otel_procmon.decode.kernel import KernelDecoder, scaled_cpu_times, signal_name
from otel_procmon.events import Container, Discovered, Event, Exec, Exit, Fork, Process, Usage
from otel_procmon.lineage.ids import make_exec_id
from otel_procmon.wire import (
    EXEC_STRUCT,
    TASK_STRUCT,
    Fact,
    Field,
    Head,
    Kind,
    Strings,
    pack_task,
    read_head,
    split_tasks,
)
from tests.unit.wire_records import (
    BOOT_NS,
    HEAD,
    NODE,
    START_NS,
    exec_record,
    exit_record,
    fork_record,
    head,
    strings,
)

EPOCH_NS = 1_700_000_000_000_000_000
OBSERVED = EPOCH_NS + 42
OWN_ID = make_exec_id(NODE, START_NS, 4, 500)
FORK_ID = make_exec_id(NODE, START_NS, 3, 500)
PARENT_ID = make_exec_id(NODE, 800_000_000_000, 3, 400)


def decoder() -> KernelDecoder:
    return KernelDecoder(NODE, unix_ns=lambda ns: EPOCH_NS + ns, observed_unix_ns=lambda: OBSERVED, page_bytes=4096)


def decoded(record: bytes) -> Event:
    return decoder().decode(record)


def process_of(texts: Strings | None = None, **fields: Any) -> Process:
    event = decoded(exec_record(texts, **fields))
    assert isinstance(event, Exec)
    return event.process


TOLD: dict[str, Any] = {
    "node": NODE,
    "boot_start_ns": START_NS,
    "creation_unix_ns": EPOCH_NS + START_NS,
    "vpid": 5,
    "name": "ls",
    "session_id": 390,
    "tty": False,
    "uid": 1000,
    "gid": 1001,
    "euid": 0,
    "egid": 1,
    "auid": 1002,
}
"""What forks and exits tell alike, of `wire_records.HEAD`."""


def test_fork() -> None:
    assert decoded(fork_record()) == Fork(
        time_unix_ns=EPOCH_NS + BOOT_NS,
        exec_id=FORK_ID,
        parent_exec_id=PARENT_ID,
        pid=500,
        parent_pid=400,
        **TOLD,
    )


def test_exec() -> None:
    assert decoded(exec_record()) == Exec(
        time_unix_ns=EPOCH_NS + BOOT_NS,
        observed_unix_ns=OBSERVED,
        process=Process(
            exec_id=OWN_ID,
            pid=500,
            binary="/bin/ls",
            start_unix_ns=EPOCH_NS + BOOT_NS,
            creation_unix_ns=EPOCH_NS + START_NS,
            boot_start_ns=START_NS,
            flags=("execve", "clone"),
            argv=("ls", "-l"),
            args_count=2,
            cwd="/home/user",
            parent_pid=400,
            vpid=5,
            session_id=390,
            tty=False,
            uid=1000,
            gid=1001,
            euid=0,
            egid=1,
            auid=1002,
            cgroup="/system.slice/a.service",
            cgroup_id=77,
            node=NODE,
        ),
        parent_exec_id=PARENT_ID,
        previous_exec_id=FORK_ID,
        previous_is_fork=True,
    )


def test_exec_again() -> None:
    event = decoded(exec_record(generation=9))
    assert isinstance(event, Exec)
    assert event.process.flags == ("execve",)
    assert (event.previous_exec_id, event.previous_is_fork) == (make_exec_id(NODE, START_NS, 8, 500), False)
    # The first exec of all, init's.
    event = decoded(exec_record(generation=0, parent_pid=0))
    assert isinstance(event, Exec)
    assert (event.previous_exec_id, event.parent_exec_id, event.process.parent_pid) == (None, None, None)


def test_task_of_the_iterator() -> None:
    event = decoded(exec_record(kind=Kind.TASK))
    assert isinstance(event, Discovered)
    assert event.process.flags == ("procFS",)
    assert event.process.start_unix_ns == event.process.creation_unix_ns == EPOCH_NS + START_NS
    assert event.time_unix_ns == EPOCH_NS + BOOT_NS
    assert (event.parent_exec_id, event.forked_only) == (PARENT_ID, False)
    event = decoded(exec_record(kind=Kind.TASK, generation=3))
    assert isinstance(event, Discovered)
    assert event.forked_only


def test_kernel_thread() -> None:
    event = decoded(exec_record(strings(filename=b"", cwd=b"", args=b""), kind=Kind.TASK, facts=Fact.KERNEL_THREAD))
    assert isinstance(event, Discovered)
    process = event.process
    assert process.kernel_thread
    assert (process.binary, process.name, process.argv, process.cwd, process.args_count) == ("", "ls", None, None, None)
    assert process.flags == ("procFS",)


def test_exit() -> None:
    event = decoded(exit_record(0x2A00))
    assert isinstance(event, Exit)
    assert event == Exit(
        time_unix_ns=EPOCH_NS + BOOT_NS,
        observed_unix_ns=OBSERVED,
        exec_id=OWN_ID,
        pid=500,
        code=42,
        usage=Usage(cpu_user_ns=6, cpu_system_ns=2, max_rss_bytes=40960, read_bytes=11, written_bytes=12),
        parent_exec_id=PARENT_ID,
        parent_pid=400,
        cgroup_id=77,
        **TOLD,
    )
    event = decoded(exit_record(generation=3))
    assert isinstance(event, Exit)
    assert event.forked_only


@pytest.mark.parametrize(
    ("wait_status", "expected"),
    [
        (0x0000, (0, None, None, None)),
        (0x0100, (1, None, None, None)),
        (0xFF00, (255, None, None, None)),
        (0x0009, (None, "SIGKILL", False, False)),
        (0x000B, (None, "SIGSEGV", False, False)),
        (0x008B, (None, "SIGSEGV", True, False)),
        (0x0086, (None, "SIGABRT", True, False)),
        (34, (None, "SIGRTMIN", False, False)),
        (37, (None, "SIGRTMIN+3", False, False)),
        (64, (None, "SIGRTMIN+30", False, False)),
        (32, (None, "SIG32", False, False)),
        (33 | 0x80, (None, "SIG33", True, False)),
        (0x7F, (None, "SIG127", False, False)),
        # What no kernel writes: only the low bits count.
        (0xFFFF_0100, (1, None, None, None)),
    ],
)
def test_wait_status(wait_status: int, expected: Any) -> None:
    event = decoded(exit_record(wait_status))
    assert isinstance(event, Exit)
    assert (event.code, event.signal, event.core_dumped, event.oom_killed) == expected


@given(st.integers(0, 255), st.sampled_from([0, *range(1, 32), *range(34, 65)]), st.booleans())
def test_wait_status_is_read_as_waitpid_reads_it(code: int, number: int, core: bool) -> None:
    status = number | (core << 7) if number else code << 8
    event = decoded(exit_record(status))
    assert isinstance(event, Exit)
    if os.WIFSIGNALED(status):
        assert event.code is None
        assert event.signal == signal_name(os.WTERMSIG(status))
        assert event.core_dumped is os.WCOREDUMP(status)
    else:
        assert (event.code, event.signal) == (os.WEXITSTATUS(status), None)


def test_oom_victim() -> None:
    event = decoded(exit_record(9, facts=Fact.OOM_VICTIM))
    assert isinstance(event, Exit)
    assert event.oom_killed is True
    # It was chosen, but ended by itself before it was killed.
    event = decoded(exit_record(15, facts=Fact.OOM_VICTIM))
    assert isinstance(event, Exit)
    assert event.oom_killed is False


def test_signal_names_are_those_of_the_system() -> None:
    assert [signal_name(number) for number in (1, 2, 15, 31)] == ["SIGHUP", "SIGINT", "SIGTERM", "SIGSYS"]
    for number in signal.valid_signals():
        assert signal_name(number).startswith("SIG")


@pytest.mark.parametrize(
    ("utime", "stime", "runtime", "expected"),
    [
        (0, 0, 0, (0, 0)),
        (0, 0, 500, (500, 0)),
        (7, 0, 500, (500, 0)),
        (0, 7, 500, (0, 500)),
        (1, 1, 501, (251, 250)),
        (4_000_000, 4_000_000, 1_000, (500, 500)),
        (2**64 - 1, 2**64 - 1, 2**64 - 1, (2**63, 2**63 - 1)),
    ],
)
def test_cpu_times(utime: int, stime: int, runtime: int, expected: tuple[int, int]) -> None:
    assert scaled_cpu_times(utime, stime, runtime) == expected


u64 = st.integers(0, 2**64 - 1)


@given(u64, u64, u64)
def test_cpu_times_add_up(utime: int, stime: int, runtime: int) -> None:
    user, system = scaled_cpu_times(utime, stime, runtime)
    assert user >= 0
    assert system >= 0
    assert user + system == runtime


def test_usage_that_could_not_be_read() -> None:
    event = decoded(exit_record(unread=Field.USAGE_IO))
    assert isinstance(event, Exit)
    assert event.usage is not None
    assert (event.usage.read_bytes, event.usage.written_bytes) == (None, None)
    event = decoded(exit_record(cut=Field.USAGE_CPU | Field.USAGE_IO))
    assert isinstance(event, Exit)
    assert event.truncated == ("usage",)


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        (b"", ()),
        (b"\0", ("",)),
        (b"\0\0", ("", "")),
        (b"a\0", ("a",)),
        (b"a\0\0", ("a", "")),
        (b"\0a\0", ("", "a")),
        (b"a\0b\0\0\0", ("a", "b", "", "")),
        (b"a", ("a",)),
        (b"a\0bc", ("a", "bc")),
        (b"a\nb\t\x1b[31m\0", ("a\nb\t\x1b[31m",)),
        ("grün\0🚀\0".encode(), ("grün", "🚀")),
        (b"\xff\xfe\0\xc3\0", ("\udcff\udcfe", "\udcc3")),
    ],
)
def test_arguments(args: bytes, argv: tuple[str, ...]) -> None:
    process = process_of(strings(args=args), args_count=len(argv))
    assert (process.argv, process.args_count) == (argv, len(argv))
    assert b"\0".join(argument.encode("utf-8", "surrogateescape") for argument in argv) == args.removesuffix(b"\0")


def test_arguments_that_were_cut() -> None:
    process = process_of(strings(args=b"cat\0" + b"x" * 100), args_count=4000, cut=Field.ARGS)
    assert process.argv == ("cat", "x" * 100)
    assert process.args_count == 4000, "how many there were"
    assert process.truncated == ("args",)
    assert process.flags == ("execve", "clone", "truncArgs")


def test_arguments_that_could_not_be_read() -> None:
    process = process_of(strings(args=b""), args_count=3, unread=Field.ARGS)
    assert (process.argv, process.args_count) == (None, None)
    assert process.flags == ("execve", "clone", "errorArgs")


@pytest.mark.parametrize(
    ("filename", "cwd", "binary"),
    [
        (b"/bin/ls", b"home/", "/bin/ls"),
        (b"ls", b"user/home/", "/home/user/ls"),
        (b"./ls", b"user/home/", "/home/user/ls"),
        (b"../ls", b"user/home/", "/home/user/../ls"),
        (b"a/b", b"", "/a/b"),
        (b"./a", b"", "/a"),
        (b"a b\n\xff", b"home/", "/home/a b\n\udcff"),
        (b"", b"home/", ""),
    ],
)
def test_binary(filename: bytes, cwd: bytes, binary: str) -> None:
    assert process_of(strings(filename=filename, cwd=cwd)).binary == binary


def test_relative_binary_stays_relative_without_a_working_directory() -> None:
    process = process_of(strings(filename=b"./ls", cwd=b""), unread=Field.CWD)
    assert (process.binary, process.cwd) == ("./ls", None)
    assert process.flags == ("execve", "clone", "errorCWD")


def test_working_directory() -> None:
    assert process_of().cwd == "/home/user"
    root = process_of(strings(cwd=b""))
    assert (root.cwd, root.flags) == ("/", ("execve", "clone", "rootcwd"))
    gone = process_of(strings(filename=b"ls"), facts=Fact.CWD_DELETED)
    assert (gone.cwd, gone.binary) == ("/home/user (deleted)", "/home/user/ls")
    cut = process_of(cut=Field.CWD)
    assert (cut.cwd, cut.truncated) == ("/home/user", ("cwd",))
    hostile = process_of(strings(cwd=b"\n\x1b/\xff/"))
    assert hostile.cwd == "/\udcff/\n\x1b"


def test_what_execveat_was_given_a_descriptor_of() -> None:
    memfd = process_of(
        strings(filename=b"/dev/fd/5", executable=b"memfd:payload/", args=b"x\0"), facts=Fact.EXECUTABLE_DELETED
    )
    assert (memfd.binary, memfd.executable, memfd.executable_deleted) == ("/dev/fd/5", "/memfd:payload", True)
    relative = process_of(strings(filename=b"/dev/fd/5/tool", executable=b"tool/bin/opt/"))
    assert relative.executable == "/opt/bin/tool"
    script = process_of(strings(filename=b"/dev/fd/5", interpreter=b"/bin/sh", executable=b"dash/bin/usr/"))
    assert (script.executable, script.interpreter) == (None, "/bin/sh"), "that is the interpreter's"
    unread = process_of(strings(filename=b"/dev/fd/5", executable=b""), unread=Field.EXECUTABLE)
    assert unread.executable is None


def test_deleted_binary_and_script() -> None:
    assert process_of(facts=Fact.EXECUTABLE_DELETED).executable_deleted
    script = process_of(strings(filename=b"/opt/run.sh", interpreter=b"/bin/bash"))
    assert (script.binary, script.interpreter) == ("/opt/run.sh", "/bin/bash")


def test_container_and_pod_of_the_cgroup() -> None:
    name = b"c" * 64
    uid = b"pod11111111-2222-3333-4444-555555555555"
    process = process_of(strings(cgroup=name + b"/" + uid + b"/kubepods/"))
    assert process.cgroup == f"/kubepods/{uid.decode()}/{'c' * 64}"
    assert (process.container_id, process.pod_uid) == ("c" * 64, "11111111-2222-3333-4444-555555555555")
    assert process.container == Container(id="c" * 64)
    unread = process_of(strings(cgroup=b""), unread=Field.CGROUP)
    assert (unread.cgroup, unread.container_id) == (None, None)
    assert process_of(strings(cgroup=b"")).cgroup == "/"


def test_what_is_not_there_is_none() -> None:
    process = process_of(auid=2**32 - 1, session_id=0, vpid=0, cgroup_id=0, parent_pid=0)
    assert (process.auid, process.vpid, process.cgroup_id, process.parent_pid) == (None,) * 4
    assert process.session_id == 0
    assert process_of(uid=0, euid=0, auid=0).auid == 0
    fork = decoded(fork_record(auid=2**32 - 1, session_id=0, vpid=0, parent_pid=0, comm=bytes(16)))
    assert isinstance(fork, Fork)
    assert (fork.auid, fork.session_id, fork.vpid, fork.parent_exec_id, fork.name) == (None, 0, None, "", None)


def test_facts_and_cut() -> None:
    assert process_of(facts=Fact.TTY).tty is True
    fork = decoded(fork_record(facts=Fact.TTY | Fact.PARENT_KERNEL_THREAD | Fact.VFORK))
    assert isinstance(fork, Fork)
    assert (fork.tty, fork.parent_is_kernel_thread) == (True, True)
    every = process_of(cut=Field(0xFFFFFFFF), unread=0)
    assert every.truncated == ("args", "binary", "interpreter", "executable", "cwd", "cgroup", "usage")
    assert process_of(unread=Field.FILENAME).flags == ("execve", "clone", "errorFilename")
    assert process_of(cut=Field.FILENAME).flags == ("execve", "clone", "truncFilename")


def test_names_with_any_bytes() -> None:
    fork = decoded(fork_record(comm=b"\xff\xfea b\n\0xxxxxxxxx"))
    assert isinstance(fork, Fork)
    assert fork.name == "\udcff\udcfea b\n"
    fork = decoded(fork_record(comm=b"0123456789abcdef"))
    assert isinstance(fork, Fork)
    assert fork.name == "0123456789abcdef"


def test_a_ring_may_pad_a_record() -> None:
    assert decoded(exec_record() + bytes(7)) == decoded(exec_record())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "record 1: unknown kind 0"),
        (b"\1", "record 1: 1 bytes, too short for its kind 1"),
        (fork_record()[:-1], "record 1: 119 bytes, too short for its kind 1"),
        (exit_record()[:-1], "too short for its kind 3"),
        (exec_record()[:150], "too short for its kind 2"),
        (exec_record()[:-1], "but its strings end at"),
        (fork_record(kind=9), "record 1: unknown kind 9"),
        (fork_record(version=2), "record 1: version 2 of the wire, not 1"),
    ],
)
def test_malformed_records(record: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decoded(record)


def test_error_names_the_record() -> None:
    one = decoder()
    one.decode(fork_record())
    with pytest.raises(DecodeError, match=r"^record 2: "):
        one.decode(b"")


kinds = st.sampled_from([int(kind) for kind in Kind])
u32 = st.integers(0, 2**32 - 1)
SIZE = EXEC_STRUCT.size


@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda kind, rest: kind.to_bytes(4, "little") + b"\1\0\0\0" + rest,
            kinds,
            st.binary(min_size=100, max_size=600),
        ),
    )
)
@example(b"\2\0\0\0\1\0\0\0" + b"\xff" * 400)
def test_any_bytes_are_an_event_or_a_decode_error(record: bytes) -> None:
    try:
        event = decoded(record)
    except DecodeError:
        return
    assert isinstance(event, Fork | Exec | Exit | Discovered)
    assert event.time_unix_ns >= EPOCH_NS


@given(
    kinds,
    st.tuples(*[u64] * 6, *[u32] * 12, st.binary(min_size=16, max_size=16)),
    st.tuples(*[st.binary(max_size=40)] * 6),
    st.tuples(u32, *[u64] * 6),
    u32,
)
def test_any_fields_round_trip(kind: int, fields: Any, texts: Any, usage: Any, count: int) -> None:
    made = Head(kind, 1, *fields)
    if kind == Kind.FORK:
        record = TASK_STRUCT.pack(*made)
    elif kind == Kind.EXIT:
        record = exit_record(usage[0], usage[1:], **made._asdict())
    else:
        record = pack_task(made, Strings(*texts), len(texts[-1]), count)
    assert read_head(record) == made
    one = decoder()
    event = one.decode(record)
    kinds_of_events: dict[int, type[Event]] = {1: Fork, 2: Exec, 3: Exit, 4: Discovered}
    assert type(event) is kinds_of_events[kind]
    exec_id = event.exec_id if isinstance(event, Fork | Exit) else event.process.exec_id
    assert exec_id == one.exec_id(record) == make_exec_id(NODE, made.start_ns, made.generation, made.pid)


@given(st.lists(st.tuples(st.binary(max_size=60), u32), max_size=6))
def test_the_iterators_output_is_split_into_its_records(tasks: list[tuple[bytes, int]]) -> None:
    records = [
        pack_task(head(kind=Kind.TASK, pid=pid), Strings(b"", b"", b"", b"", cgroup, b""), 0, 0)
        for cgroup, pid in tasks
    ]
    assert split_tasks(b"".join(records)) == records
    assert all(
        read_head(record).pid == pid for record, (_, pid) in zip(split_tasks(b"".join(records)), tasks, strict=True)
    )


def test_the_iterators_output_that_breaks_off() -> None:
    record = pack_task(head(kind=Kind.TASK), Strings(b"", b"", b"", b"", b"abc/", b""), 0, 0)
    for end in range(len(record)):
        for piece in split_tasks(record + record[:end])[1:]:
            with pytest.raises(DecodeError):
                decoded(piece)


def test_records_of_this_file_are_whole() -> None:
    assert read_head(fork_record()) == HEAD._replace(generation=3)
    assert len(exec_record()) > SIZE
