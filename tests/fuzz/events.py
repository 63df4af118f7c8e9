"""Targets: Tetragon's JSON, as a stream of bytes and as events whose fields are wrong."""

from __future__ import annotations

import contextlib
import copy
import re
from functools import lru_cache
from typing import Any

import msgspec

from otel_procmon.capture import TetragonCapture
from otel_procmon.config import Config
from otel_procmon.decode.errors import DecodeError
from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.events import Exec, Exit
from otel_procmon.ledger import Ledger
from otel_procmon.source.json_stream import JsonSplitter, JsonText
from otel_procmon.source.tetragon import TetragonSource
from tests.fuzz import seeds
from tests.fuzz.behind import Behind
from tests.fuzz.choices import EDGES, TEXTS, Choices
from tests.fuzz.records import in_memory

LIMIT_BYTES = 2048

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    {},
    [],
    [[]],
    {"": None},
    -1,
    0.5,
    1e300,
    -0.0,
    "-1",
    "٣",
    "7",
    "0" * 30,
    "9" * 20,
    "NaN",
    "2024-03-01T08:10:01Z",
    "2262-04-11T23:47:16.854775807Z",
    "1970-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999-23:59",
    "execve clone",
    "procFS auid rootcwd",
    "aGVyZToxOjA=",
    "aGVyZToxMDAwMDAwMDAwOjE=",
    "Og==",
    "<kernel>",
    "<enomem>",
    "lost",
    "SIGKILL",
    "docker://",
    "://x",
    *EDGES,
    *map(str, EDGES[-4:]),
    *(text.decode("utf-8", "replace") for text in TEXTS),
    [{"key": "PASSWORD", "value": "x1"}, {"key": 1}, "A=b"],
)


def stream(data: bytes) -> None:
    """Any bytes in pieces of any size: the same objects, and each of them an event or a `DecodeError`."""
    choices = Choices(data)
    step = 1 + choices.below(64)
    text = choices.rest()
    whole = JsonSplitter("f", LIMIT_BYTES)
    pieces = whole.feed(text) + whole.end()
    stepwise = JsonSplitter("f", LIMIT_BYTES)
    again = [piece for at in range(0, len(text), step) for piece in stepwise.feed(text[at : at + step])]
    again += stepwise.end()
    if len(text) <= LIMIT_BYTES:
        assert again == pieces
    assert sum(len(piece.text) for piece in pieces) <= len(text)
    for piece in pieces:
        with contextlib.suppress(DecodeError):
            decode_tetragon(piece, 1, Ledger())


def one_event(data: bytes) -> None:
    """An event some of whose fields are wrong: what is decoded has the types that it promises, or it is an error."""
    document = event(Choices(data))
    ledger = Ledger()
    try:
        decoded = decode_tetragon(JsonText(msgspec.json.encode(document), "f:1"), 1, ledger)
    except DecodeError as error:
        assert str(error).startswith("f:1: ")  # noqa: PT017 - a target is no test
        return
    if decoded is None:
        return
    assert isinstance(decoded, Exec | Exit)
    assert 0 <= decoded.time_unix_ns < 2**63
    for process in (decoded.process, decoded.parent):
        if process is not None:
            for name in ("pid", "parent_pid", "vpid", "uid", "gid", "euid", "egid", "auid"):
                number = getattr(process, name)
                assert number is None or (type(number) is int and 0 <= number < 2**32)
            for name in ("exec_id", "binary", "arguments", "cwd", "container_id", "pod_uid", "node"):
                text = getattr(process, name)
                assert text is None or type(text) is str


EVENT_INSIDE = re.compile(rb'.\{"process_?[a-z]+":\{', re.IGNORECASE)


def sequence(data: bytes) -> None:
    """Several such events through everything: nothing raises, and none of them is unaccounted for."""
    choices = Choices(data)
    texts = [msgspec.json.encode(event(choices)) for _ in range(1 + choices.below(6))]
    ends = choices.of((b"\n", b"\r\n", b"\n\n", b"", b"\0\n"))
    # Where an event is inside of another one, half of that one was lost, as far as the splitter can know.
    whole = ends != b"" and not any(map(EVENT_INSIDE.search, texts))
    through(ends.join(texts) + ends, expected=len(texts) if whole else None)


def through(text: bytes, *, expected: int | None = None) -> None:
    """`text` as a file through everything."""
    source = TetragonSource(in_memory(text), follow=False)
    source.open()
    ledger = Ledger()
    capture = TetragonCapture(source, Config(), ledger, live=False)
    behind = Behind(capture.ids)
    try:
        while (happenings := capture.step()) is not None:
            behind.take(happenings)
        behind.take(capture.stop())
    finally:
        capture.close()
    counts = ledger.counts()
    read = counts.get(("source", "read"), 0)
    assert expected is None or read == expected
    passed_by = sum(n for (place, what), n in counts.items() if what.startswith("passed by"))
    malformed = counts.get(("decode.tetragon", "lost: malformed"), 0)
    lineage = sum(
        n
        for (place, what), n in counts.items()
        if place == "lineage"
        and what.startswith(("told: exec", "told: exit", "dropped: told twice", "noted: exit of a kernel thread"))
    )
    assert read == passed_by + malformed + lineage, counts


@lru_cache(maxsize=1)
def _documents() -> tuple[tuple[bytes, tuple[tuple[str, ...], ...]], ...]:
    return tuple((line, tuple(_paths(msgspec.json.decode(line)))) for line in seeds.tetragon_lines())


def _paths(value: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, child in value.items():
        found.append((*path, name))
        if isinstance(child, dict):
            found += _paths(child, (*path, name))
    return found


def event(choices: Choices) -> dict[str, Any]:
    """An event of the seeds with a few changes."""
    known = _documents()
    original, paths = choices.of(known)
    document: dict[str, Any] = msgspec.json.decode(original)
    for _ in range(choices.below(5)):
        *above, last = choices.of(paths)
        place: Any = document
        for name in above:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            continue
        what = choices.below(8)
        if what == 0:
            place.pop(last, None)
        elif what == 1:
            place[last] = choices.text().decode("utf-8", "replace")
        elif what == 2:
            place[choices.text().decode("utf-8", "replace")] = copy.deepcopy(choices.of(VALUES))
        elif what == 3:
            other, _ = choices.of(known)
            place[last] = msgspec.json.decode(other)
        elif what == 4:
            place[last] = _nested(choices.below(200))
        else:
            place[last] = copy.deepcopy(choices.of(VALUES))
    return document


def _nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value
