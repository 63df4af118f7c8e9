"""Lines into files and pipes: whole ones, none lost unsaid, and no drama when nobody takes them."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon.deliver import line_file
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.line_file import LineFile

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipe in the place of standard output: (readable, writable), and those of them that are open."""
    ends = os.pipe()
    monkeypatch.setattr(line_file, "_STDOUT", ends[1])
    open_ends = set(ends)
    yield ends, open_ends
    for end in open_ends:
        os.close(end)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A size limit lets the kernel write a part of a line and then refuse, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def is_closed(file: LineFile) -> bool:
    return file.closed


def test_lines_are_appended_to_a_file_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for _ in range(2):
        file = LineFile("here", path)
        assert file.write(b"one\ntwo\n", 2) == 2
        assert not is_closed(file)
        file.close()
        file.close()
        assert is_closed(file)
        assert file.write(b"late\n", 1) == 0
    assert path.read_bytes() == b"one\ntwo\n" * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", ".", "missing/out.jsonl", "nul\0"])
def test_a_place_that_cannot_be_written_fails_at_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeliveryError, match=r"^cannot write to .*; name a file that can be written$"):
        LineFile("here", Path(os.fspath(tmp_path) + "/" + name))


def test_a_full_disk_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    file = LineFile("here", Path("/dev/full"))
    for _ in range(3):
        assert file.write(b"one\ntwo\n", 2, records=10) == 0
    assert not is_closed(file), "there may be room later"
    assert caplog.messages == [
        "here: cannot write to /dev/full (no space left on device): make room, or name another file; 20 records were lost"
    ]


def test_a_disk_that_is_full_again_and_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Short lines still fit where longer ones do not."""
    path, now = tmp_path / "out", [0.0]
    file = LineFile("here", path, lambda: now[0])
    trouble = f"here: cannot write to {path} (file too large): make room, or name another file"
    works = f"here: writing to {path} works again"
    for now[0] in (0.0, 10.0, 50.0, 61.0):
        with largest_file(path.stat().st_size):
            assert file.write(b"one\n", 1) == 0
        assert file.write(b"two\n", 1) == 1
    assert path.read_bytes() == b"two\n" * 4
    assert caplog.messages == [f"{trouble}; 1 records were lost", works, f"{trouble}; 3 records were lost", works]


def test_after_a_line_that_was_cut_the_next_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out"
    file = LineFile("here", path)
    assert file.write(b"whole\n", 1) == 1
    with largest_file(path.stat().st_size + 10):
        assert file.write(b"two\nthree, which is longer\nfour\n", 3) == 1
        assert file.write(b"five\n", 1) == 0
    with largest_file(path.stat().st_size + 1):
        assert file.write(b"six\n", 1) == 0
    assert file.write(b"seven\n", 1) == 1
    assert file.write(b"eight\n", 1) == 1
    assert path.read_bytes() == b"whole\ntwo\nthree,\nseven\neight\n"
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"here: cannot write to {path}",
        f"here: writing to {path} works again; 2 more records were lost",
    ]


def test_short_writes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LineFile("here", tmp_path / "out")
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
    assert file.write(b"line 1\nline 2\nline 3\n", 3) == 3
    assert (tmp_path / "out").read_bytes() == b"line 1\nline 2\nline 3\n"


def test_standard_output_is_never_closed(pipe: Any) -> None:
    (_, writable), _ = pipe
    LineFile("here", None).close()
    os.fstat(writable)


def test_a_reader_that_has_gone(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    (readable, _), open_ends = pipe
    file = LineFile("here", None)
    assert file.write(b"one\ntwo\n", 2) == 2
    assert os.read(readable, 100) == b"one\ntwo\n"
    assert not is_closed(file)
    os.close(readable)
    open_ends.remove(readable)
    assert file.write(b"three\n", 1) == 0
    assert is_closed(file)
    assert file.write(b"four\n", 1) == 0
    assert not caplog.messages


def test_standard_output_that_another_process_made_non_blocking(pipe: Any) -> None:
    (readable, writable), open_ends = pipe
    os.set_blocking(writable, False)
    fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(readable, 1000):
            got.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    file = LineFile("here", None)
    lines = (b"x" * 99 + b"\n") * 1000
    assert file.write(lines, 1000) == 1000
    os.close(writable)
    open_ends.remove(writable)
    reader.join()
    assert b"".join(got) == lines
