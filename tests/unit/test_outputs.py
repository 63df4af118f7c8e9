"""Lines for people and programs: whole ones, counted, and no drama when nobody takes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.records import Resource
from otel_procmon.convert.resource import Resources
from otel_procmon.deliver.file import FileDelivery
from otel_procmon.ledger import Ledger
from otel_procmon.outputs import LineOutput, Output, RecordOutput
from tests.unit.happenings import exited, image, opened, started

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

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


def test_a_line_for_what_is_rendered(tmp_path: Path) -> None:
    ledger, path = Ledger(), tmp_path / "out"
    out = output(path, ledger)
    out.put([started(image()), opened(image()), exited(image())])
    assert path.read_bytes() == b"line 1\nline 2\n"
    out.put([opened(image())])
    out.put([])
    out.close(0)
    assert path.read_bytes() == b"line 1\nline 2\n"
    assert ledger.counts() == {WRITTEN: 2}


def test_what_cannot_be_written_is_counted_as_lost() -> None:
    ledger = Ledger()
    out = output(Path("/dev/full"), ledger)
    out.put(happenings(2))
    assert not is_closed(out), "there may be room later"
    out.close(0)
    assert ledger.counts() == {LOST: 2}


def test_what_comes_after_the_close_is_counted_as_lost(tmp_path: Path) -> None:
    ledger = Ledger()
    out = output(tmp_path / "out", ledger)
    out.close(0)
    out.close(0)
    out.put(happenings(2))
    assert ledger.counts() == {LOST: 2}


def test_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    monkeypatch.setattr("otel_procmon.deliver.line_file._STDOUT", writable)
    ledger = Ledger()
    out = output(None, ledger)
    out.put(happenings(2))
    assert os.read(readable, 100) == b"line 1\nline 2\n"
    assert not is_closed(out)
    os.close(readable)
    out.put(happenings(3))
    assert is_closed(out)
    out.put(happenings(4))
    assert ledger.counts() == {WRITTEN: 2, LOST: 7}
    os.close(writable)


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
    assert not is_closed(out)
    out.close(1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    told = {(place.rpartition(".")[2], outcome): count for (place, outcome), count in ledger.counts().items()}
    assert told == {("logs", "exported"): 4, ("traces", "exported"): 2}


def test_records_are_closed_when_nobody_reads_any_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    monkeypatch.setattr("otel_procmon.deliver.line_file._STDOUT", writable)
    ledger = Ledger()
    piped, filed = FileDelivery(None, ledger), FileDelivery(tmp_path / "a", ledger)
    only, both = records(piped), records(piped, filed)
    os.close(readable)
    assert not is_closed(only)
    only.put([started(image())])
    assert is_closed(only)
    assert not is_closed(both)
    os.close(writable)
