"""What /proc tells of processes that run: this test's own children."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon.events import Discovered
from otel_procmon.source import command_lines as module
from otel_procmon.source.command_lines import command_lines
from otel_procmon.source.kernel import PROC
from otel_procmon.source.procfs import read_strings
from otel_procmon.wire import Fact, Field, Kind, pack_task
from tests.unit.test_decode_kernel import decoded
from tests.unit.wire_records import head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_procmon.events import Process
    from otel_procmon.wire import Head, Strings

SLEEP = os.path.realpath(shutil.which("sleep") or "/bin/sleep")
LIMIT = 65536


@contextlib.contextmanager
def running(*argv: str | bytes, **how: Any) -> Iterator[int]:
    """The pid of a child that runs `argv`."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, **how) as child:
        try:
            # Popen returns when the new program has the process; where its arguments are, the kernel notes a bit later.
            while not (PROC / str(child.pid) / "cmdline").read_bytes():
                time.sleep(0.001)
            yield child.pid
        finally:
            child.kill()


def read(pid: int, cgroup: bytes = b"", limit: int = LIMIT, proc: Path = PROC) -> tuple[Head, Strings, int]:
    with command_lines(limit) as read_command_line:
        return read_strings(proc, head(kind=Kind.TASK, pid=pid), cgroup, read_command_line)


def process_of(pid: int, limit: int = LIMIT) -> Process:
    now, texts, count = read(pid, limit=limit)
    event = decoded(pack_task(now, texts, len(texts.args), count))
    assert isinstance(event, Discovered)
    return event.process


def test_child(tmp_path: Path) -> None:
    with running("sleep", "60", executable=SLEEP, cwd=tmp_path) as pid:
        now, texts, count = read(pid, b"a/b/")
        process = process_of(pid)
    assert (now.facts, now.unread, now.cut) == (0, 0, 0)
    assert texts.filename == SLEEP.encode()
    assert (texts.args, count) == (b"sleep\x0060\0", 2)
    assert (texts.cgroup, texts.interpreter, texts.executable) == (b"a/b/", b"", b"")
    assert (process.binary, process.argv, process.cwd) == (SLEEP, ("sleep", "60"), os.path.realpath(tmp_path))


def test_working_directory_at_the_root() -> None:
    with running(SLEEP, "60", cwd="/") as pid:
        process = process_of(pid)
    assert (process.cwd, process.flags) == ("/", ("procFS", "rootcwd"))


def test_deleted_working_directory_and_program(tmp_path: Path) -> None:
    program, directory = tmp_path / "program", tmp_path / "wörk dir"
    shutil.copy(SLEEP, program)
    directory.mkdir()
    with running(str(program), "60", cwd=directory) as pid:
        directory.rmdir()
        program.unlink()
        now, _, _ = read(pid)
        process = process_of(pid)
    assert now.facts == Fact.EXECUTABLE_DELETED | Fact.CWD_DELETED
    assert process.binary == os.path.realpath(tmp_path) + "/program"
    assert process.cwd == f"{os.path.realpath(tmp_path)}/wörk dir (deleted)"
    assert process.executable_deleted


def test_memfd() -> None:
    program = os.memfd_create("payload", 0)
    try:
        with open(SLEEP, "rb") as source:  # noqa: PTH123
            os.write(program, source.read())
        with running("payload", "60", executable=f"/proc/self/fd/{program}", pass_fds=[program]) as pid:
            process = process_of(pid)
    finally:
        os.close(program)
    assert (process.binary, process.executable_deleted) == ("/memfd:payload", True)


@pytest.mark.parametrize(
    "argv",
    [
        ["sleep", "60", ""],
        ["", "60"],
        ["sleep\n\x1b[31m", "60"],
        [b"\xff\xfe", b"60"],
        ["s" * 3000, "60"],
    ],
)
def test_odd_arguments(argv: list[Any]) -> None:
    script = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", *argv]
    with running(*script, stdout=subprocess.PIPE) as pid:
        _, texts, count = read(pid)
        process = process_of(pid)
    assert count == len(argv) + 3
    assert texts.args.endswith(b"\0")
    assert process.argv is not None
    assert process.argv[3:] == tuple(os.fsdecode(argument) for argument in argv)


def test_arguments_beyond_the_limit() -> None:
    with running("sleep", "60", executable=SLEEP) as pid:
        now, texts, count = read(pid, limit=7)
        process = process_of(pid, limit=7)
        whole, _, _ = read(pid, limit=9)
    assert (texts.args, count, now.cut) == (b"sleep\x006", 2, Field.ARGS)
    assert (process.argv, process.truncated, process.flags) == (("sleep", "6"), ("args",), ("procFS", "truncArgs"))
    assert whole.cut == 0


def test_process_that_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
        zombie_or_none, texts, count = read(child.pid)
    assert zombie_or_none.unread == Field.FILENAME | Field.CWD | Field.ARGS
    assert (texts.filename, texts.cwd, texts.args, count) == (b"", b"", b"", 0)


def test_zombie() -> None:
    """It has no memory and no directory any more, but its files can be opened."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        now, texts, _ = read(child.pid)
        assert now.unread & (Field.FILENAME | Field.CWD) == Field.FILENAME | Field.CWD
        assert (texts.filename, texts.args) == (b"", b"")
    finally:
        child.wait()


def test_proc_of_another_pid_namespace_or_none(tmp_path: Path) -> None:
    now, _, _ = read(os.getpid(), proc=tmp_path)
    assert now.unread == Field.FILENAME | Field.CWD | Field.ARGS
    event = decoded(pack_task(*read(os.getpid(), proc=tmp_path)[:2], 0, 0))
    assert isinstance(event, Discovered)
    assert (event.process.binary, event.process.name, event.process.argv) == ("", "ls", None)
    assert event.process.flags == ("procFS", "errorCWD", "errorArgs", "errorFilename")


def test_what_was_known_of_the_head_stays(tmp_path: Path) -> None:
    before = head(kind=Kind.TASK, pid=1, facts=int(Fact.TTY), unread=int(Field.VPID), cut=int(Field.CGROUP))
    now, _, _ = read_strings(tmp_path, before, b"", lambda _: None)
    assert now.facts & Fact.TTY
    assert now.unread & Field.VPID
    assert now.cut == Field.CGROUP


def test_command_lines_that_nobody_can_read_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a process's memory is a file of its own: a pipe to which nobody writes lets its reader wait as well."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(module, "STUCK_MAX", 3)
    pipes = [tmp_path / f"pipe-{number}" for number in range(4)]
    for pipe in pipes:
        os.mkfifo(pipe)
    good = tmp_path / "good"
    good.write_bytes(b"a\0b\0")
    with command_lines(3) as read_command_line:
        assert read_command_line(good) == (b"a\0b", True)
        assert read_command_line(pipes[0]) is None
        assert read_command_line(good) == (b"a\0b", True)
        assert read_command_line(tmp_path / "none") is None
        assert read_command_line(pipes[1]) is None
        assert read_command_line(pipes[2]) is None
        assert read_command_line(good) is None, "too many are stuck"
    with command_lines(4) as read_command_line:
        assert read_command_line(good) == (b"a\0b\0", False)
    for pipe in pipes[:3]:
        # Those that were stuck go on, and end.
        os.close(os.open(pipe, os.O_WRONLY))
