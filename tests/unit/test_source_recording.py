"""Recordings: what goes in comes out, and whatever the file holds, reading it ends with a sentence at worst."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.source.errors import SourceError
from otel_procmon.source.recording import Batch, Host, RecordingSource, RecordingWriter

if TYPE_CHECKING:
    from pathlib import Path

HOST = Host(node="wörker:1", boot_id="3e7a5b1c-0000-4000-8000-000000000001", page_bytes=4096)
BATCHES = [
    Batch(1, 2, [b"task"], is_snapshot=True),
    Batch(3, 4, []),
    Batch(2**64 - 1, 2**64 - 1, [b"", b"\0" * 300, bytes(range(256))]),
]
MAGIC = b"otel-procmon recording 1\n"


def write(path: Path, batches: list[Batch], host: Host = HOST) -> bytes:
    writer = RecordingWriter(str(path), host)
    for batch in batches:
        writer.write(batch)
    writer.close()
    return path.read_bytes()


def read(path: Path) -> tuple[Host, list[Batch], str | None]:
    source = RecordingSource(str(path))
    host = source.open()
    batches = []
    while (batch := source.read()) is not None:
        batches.append(batch)
    assert source.read() is None, "the end stays the end"
    source.close()
    return host, batches, source.problem


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "r", BATCHES)
    assert read(tmp_path / "r") == (HOST, BATCHES, None)


u64 = st.integers(0, 2**64 - 1)
batches = st.builds(Batch, u64, u64, st.lists(st.binary(max_size=50), max_size=4), st.booleans())


@given(
    st.lists(batches, max_size=4), st.builds(Host, node=st.text(), boot_id=st.text(), page_bytes=st.integers(1, 2**32))
)
def test_any_records_and_any_host_round_trip(
    tmp_path_factory: pytest.TempPathFactory, made: list[Batch], host: Host
) -> None:
    path = tmp_path_factory.mktemp("recording") / "r"
    write(path, made, host)
    assert read(path) == (host, made, None)


def test_each_batch_is_in_the_file_at_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "r"
    writer = RecordingWriter(str(path), HOST)
    writer.write(BATCHES[0])
    assert read(path) == (HOST, BATCHES[:1], None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    writer.close()


def test_an_older_recording_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "r", BATCHES * 3)
    write(tmp_path / "r", BATCHES[:1])
    assert read(tmp_path / "r") == (HOST, BATCHES[:1], None)


def test_broken_off_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "r"
    data = write(path, BATCHES)
    header = data.index(b"\n", len(MAGIC)) + 1
    ends = [header]
    ends += [len(write(tmp_path / "other", BATCHES[:count])) for count in range(1, len(BATCHES) + 1)]
    assert ends[-1] == len(data)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if length < header - 1:
            with pytest.raises(SourceError):
                read(path)
            continue
        host, whole, problem = read(path)
        assert host == HOST
        assert whole == BATCHES[: max(0, sum(end <= length for end in ends) - 1)]
        assert (problem is None) == (length in (*ends, header - 1))
        if problem is not None:
            assert problem == f"The recording {path} breaks off before byte {length}."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no recording of otel-procmon"),
        (b"\0" * 100, "is no recording of otel-procmon"),
        (b"otel-procmon recording 2\n{}\n", "is no recording of otel-procmon, or one of another version"),
        (b"x" * 200_000, "is no recording"),
        (MAGIC, "has a broken header"),
        (MAGIC + b"\n", "has a broken header"),
        (MAGIC + b"nonsense\n", "has a broken header: JSON is malformed"),
        (MAGIC + b'{"node": "n"}\n', "has a broken header: Object missing required field `boot_id`"),
        (MAGIC + b'{"node": 1, "boot_id": "", "page_bytes": 1}\n', "has a broken header: Expected `str`"),
        (MAGIC + b'{"node": "\xff", "boot_id": "", "page_bytes": 1}\n', "has a broken header"),
        (MAGIC + b'{"node": "\\ud800", "boot_id": "", "page_bytes": 1}\n', "has a broken header"),
        (MAGIC + b'{"node": "n", "boot_id": "", "page_bytes": 1e99}\n', "has a broken header"),
        (MAGIC + b'{"x": ' + b"[" * 60_000 + b"\n", "has a broken header"),
        (MAGIC + b'{"node": "' + b"n" * 70_000 + b'", "boot_id": "", "page_bytes": 1}\n', "has a broken header"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path / "r")
    assert str(tmp_path / "r") in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_after_the_header(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("recording") / "r"
    path.write_bytes(write(path, BATCHES[:1]) + garbage)
    _, got, problem = read(path)
    assert got[0] == BATCHES[0]
    assert problem is not None or sum(21 + sum(4 + len(r) for r in batch.records) for batch in got[1:]) == len(garbage)


def test_a_length_that_is_out_of_the_question_is_not_tried(tmp_path: Path) -> None:
    path = tmp_path / "r"
    data = write(path, [])
    path.write_bytes(data + b"E" + bytes(16) + b"\xff\xff\xff\xff" + b"\xff\xff\xff\xff" + b"x" * 100)
    _, got, problem = read(path)
    assert got == []
    assert problem is not None


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"The recording .*/nothing cannot be read: No such file or directory\."):
        RecordingSource(str(tmp_path / "nothing")).open()
    with pytest.raises(SourceError, match="Is a directory"):
        RecordingSource(str(tmp_path)).open()
    with pytest.raises(
        SourceError, match=r"cannot be written \(No such file or directory\): name a file that can be\."
    ):
        RecordingWriter(str(tmp_path / "a" / "b"), HOST)


def test_file_that_cannot_be_read_on(tmp_path: Path) -> None:
    """What a failing disk gives."""
    source = RecordingSource("/proc/self/mem")
    with pytest.raises(SourceError, match="cannot be read: Input/output error"):
        source.open()
    write(tmp_path / "r", [Batch(1, 1, [b"x" * 100_000])] * 3)
    source = RecordingSource(str(tmp_path / "r"))
    source.open()
    assert source._file is not None
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    os.dup2(memory, source._file.fileno())
    os.close(memory)
    with pytest.raises(SourceError, match="cannot be read any more: Input/output error"):
        source.read()
    source.close()


def test_full_disk_is_an_error_of_the_writer() -> None:
    writer = RecordingWriter("/dev/full", HOST)
    with pytest.raises(OSError, match="No space left"):
        writer.write(BATCHES[0])
