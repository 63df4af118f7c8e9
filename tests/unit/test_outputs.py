"""Lines for people and programs: whole ones, counted, and no drama when nobody takes them."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon import outputs
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.records import Resource
from otel_procmon.convert.resource import Resources
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.file import FileDelivery
from otel_procmon.ledger import Ledger
from otel_procmon.outputs import LineOutput, Output, RecordOutput
from tests.unit.happenings import exited, image, opened, started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_procmon.lineage.image import Happening

PLACE = "output.compact"
WRITTEN, LOST = (PLACE, "written"), (PLACE, "lost: cannot be written")


def numbered() -> Callable[[Happening], bytes | None]:
    """``line 1``, ``line 2``, …; none for an opening span."""
    count = iter(range(1, 1_000_000))
    return lambda happening: f"line {next(count)}".encode() if hasattr(happening, "event") else None


def output(path: Path | None, ledger: Ledger, render: Any = None) -> LineOutput:
    return LineOutput("compact", path, render or numbered(), ledger)


def is_closed(out: Output) -> bool:
    return out.closed


def happenings(count: int) -> list[Happening]:
    return [started(image()) for _ in range(count)]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipe in the place of standard output: (readable, writable)."""
    ends = os.pipe()
    monkeypatch.setattr(outputs, "_STDOUT", ends[1])
    open_ends = set(ends)
    yield ends, open_ends
    for end in open_ends:
        os.close(end)


def test_lines_are_appended_to_a_file_of_its_owner(tmp_path: Path) -> None:
    ledger, path = Ledger(), tmp_path / "out"
    out = output(path, ledger)
    out.put([started(image()), opened(image()), exited(image())])
    assert path.read_bytes() == b"line 1\nline 2\n"
    out.put([opened(image())])
    out.put([])
    out.close(0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = output(path, ledger)
    again.put(happenings(1))
    again.close(0)
    assert path.read_bytes() == b"line 1\nline 2\nline 1\n"
    assert ledger.counts() == {WRITTEN: 3}


def test_what_comes_after_the_close_is_counted_as_lost(tmp_path: Path) -> None:
    ledger = Ledger()
    out = output(tmp_path / "out", ledger)
    out.close(0)
    out.close(0)
    out.put(happenings(2))
    assert ledger.counts() == {LOST: 2}


@pytest.mark.parametrize("name", ["missing/out", ".", "a\0b"])
def test_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeliveryError, match=r"cannot write to .*; name a file that can be written"):
        output(tmp_path / name, Ledger())


def test_standard_output_is_never_closed(pipe: Any) -> None:
    (_, writable), _ = pipe
    out = output(None, Ledger())
    out.close(0)
    os.fstat(writable)


def test_reader_that_has_gone(pipe: Any) -> None:
    (readable, _), open_ends = pipe
    ledger = Ledger()
    out = output(None, ledger)
    out.put(happenings(2))
    assert os.read(readable, 100) == b"line 1\nline 2\n"
    assert not is_closed(out)
    os.close(readable)
    open_ends.remove(readable)
    out.put(happenings(3))
    assert is_closed(out)
    out.put(happenings(4))
    assert ledger.counts() == {WRITTEN: 2, LOST: 7}


def test_full_disk_is_said_once_until_there_was_room_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    out = output(tmp_path / "out", ledger)
    real = os.dup(out._file)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, out._file)
        for _ in range(3):
            out.put(happenings(2))
        assert not is_closed(out), "there may be room later"
        os.dup2(real, out._file)
        out.put(happenings(1))
        os.dup2(full, out._file)
        out.put(happenings(1))
    finally:
        os.close(full)
        os.close(real)
        out.close(0)
    said = f"cannot write to {tmp_path}/out (no space left on device): lines are lost until there is room again"
    assert [record.message.startswith(said) for record in caplog.records] == [True, True]
    assert ledger.counts() == {WRITTEN: 1, LOST: 7}
    assert (tmp_path / "out").read_bytes() == b"line 7\n"


def test_line_that_was_cut_short_does_not_take_the_next_one_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for a line and a half."""
    ledger = Ledger()
    out = output(tmp_path / "out", ledger)
    room = [10]
    real = os.write

    def write(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = real(file, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    out.put(happenings(3))
    assert ledger.counts() == {WRITTEN: 1, LOST: 2}
    out.put(happenings(1))
    room[0] = 1
    out.put(happenings(1))
    assert ledger.counts() == {WRITTEN: 1, LOST: 4}
    room[0] = 1000
    out.put(happenings(1))
    out.close(0)
    assert (tmp_path / "out").read_bytes() == b"line 1\nlin\nline 6\n"
    assert ledger.counts() == {WRITTEN: 2, LOST: 4}


def test_short_writes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = output(tmp_path / "out", Ledger())
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
    out.put(happenings(4))
    assert (tmp_path / "out").read_bytes() == b"line 1\nline 2\nline 3\nline 4\n"


def test_standard_output_that_another_process_made_non_blocking(pipe: Any) -> None:
    (readable, writable), open_ends = pipe
    os.set_blocking(writable, False)
    fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
    ledger = Ledger()
    out = output(None, ledger, lambda _: b"x" * 99)
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(readable, 1000):
            got.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    out.put(happenings(1000))
    os.close(writable)
    open_ends.remove(writable)
    reader.join()
    assert b"".join(got) == (b"x" * 99 + b"\n") * 1000
    assert ledger.counts() == {WRITTEN: 1000}


def records(*deliveries: Any) -> RecordOutput:
    converter = Converter(
        Resources(Resource({"host.name": "here"}, SCHEMA_URL)),
        body=lambda _: None,
        life_span_id=lambda _: bytes(8),
        user_name=None,
    )
    return RecordOutput(converter, deliveries, wait=True)


def test_records_go_to_every_delivery(tmp_path: Path) -> None:
    ledger = Ledger()
    out = records(FileDelivery(tmp_path / "a", ledger), FileDelivery(tmp_path / "b", ledger))
    out.put([started(image()), exited(image())])
    out.close(1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    told = {(place.rpartition(".")[2], outcome): count for (place, outcome), count in ledger.counts().items()}
    assert told == {("logs", "exported"): 4, ("traces", "exported"): 2}
    assert not is_closed(out)


def test_records_are_closed_when_nobody_reads_any_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    monkeypatch.setattr("otel_procmon.deliver.file._STDOUT", writable)
    ledger = Ledger()
    piped, filed = FileDelivery(None, ledger), FileDelivery(tmp_path / "a", ledger)
    only, both = records(piped), records(piped, filed)
    os.close(readable)
    assert not is_closed(only)
    only.put([started(image())])
    assert is_closed(only)
    assert not is_closed(both)
    os.close(writable)
