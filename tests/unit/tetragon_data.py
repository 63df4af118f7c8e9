"""Where tests find events that a real Tetragon wrote, and small helpers around them."""

import os
from pathlib import Path

from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.events import Event, Exec, Exit
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import Ended, Happening, Image, SpanRef, Started
from otel_procmon.source.json_stream import JsonSplitter
from tests.kernel.truth.running import cannot_run

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_EVENTS = Path(__file__).parent / "data" / "tetragon-events.jsonl"


def real_data(name: str) -> Path:
    """A file in the directory that PROCMON_TETRAGON_DATA names; skips where it is missing, fails if it is required."""
    directory = Path(os.environ.get("PROCMON_TETRAGON_DATA", REPOSITORY.parent / "shared" / "data"))
    path = directory / name
    if not path.exists():
        cannot_run("data", f"{path} is missing: set PROCMON_TETRAGON_DATA to a directory with it")
    return path


def events_in(path: Path, ledger: Ledger | None = None) -> list[Event]:
    splitter = JsonSplitter(path.name)
    texts = splitter.feed(path.read_bytes()) + splitter.end()
    decoded = [decode_tetragon(text, 1, ledger or Ledger()) for text in texts]
    return [event for event in decoded if event is not None]


def image_of(event: Event) -> Image:
    """The image that lineage would make of `event`, if it were the only one."""
    assert isinstance(event, Exec | Exit)
    assert event.process is not None
    image = Image(event.process, SpanRef(bytes(16), bytes(8)))
    image.parent_exec_id = event.parent_exec_id
    return image


def happening_of(event: Event) -> Happening:
    image = image_of(event)
    if isinstance(event, Exit):
        image.ended = "exit"
        return Ended(image, event, event.observed_unix_ns)
    assert isinstance(event, Exec)
    return Started(image, event)
