"""Cutting a stream into JSON objects: shapes, damage, bounds."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.source.json_stream import BROKEN_OFF, NOT_AN_OBJECT, JsonSplitter, JsonText
from tests.unit.tetragon_data import OWN_EVENTS

LINES = OWN_EVENTS.read_bytes().splitlines()
GOOD = LINES[1]


def split(data: bytes, *, chunk: int | None = None, limit: int = 1 << 20) -> list[JsonText]:
    splitter = JsonSplitter("f", limit)
    step = chunk or max(1, len(data))
    pieces = [piece for start in range(0, len(data), step) for piece in splitter.feed(data[start : start + step])]
    return pieces + splitter.end()


def good(pieces: list[JsonText]) -> list[object]:
    """The parsed pieces that parse."""
    return [value for value in map(parsed, pieces) if value is not None]


def parsed(piece: JsonText) -> Any:
    try:
        return msgspec.json.decode(piece.text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def pretty(line: bytes, indent: int | str = 2) -> bytes:
    return json.dumps(json.loads(line), indent=indent, ensure_ascii=False).encode()


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\n \t\n"])
def test_lines(chunk: int | None, end: bytes) -> None:
    pieces = split(end.join(LINES), chunk=chunk)
    assert [json.loads(piece.text) for piece in pieces] == [json.loads(line) for line in LINES]
    assert all(piece.problem is None for piece in pieces)
    step = end.count(b"\n")
    assert [piece.place for piece in pieces] == [f"f:{1 + step * n}" for n in range(len(LINES))]


@pytest.mark.parametrize("chunk", [None, 1, 13])
@pytest.mark.parametrize("indent", [0, 1, 2, 4, "\t"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_pretty_printed_and_mixed(chunk: int | None, indent: int | str, end: bytes) -> None:
    texts = [LINES[0], pretty(LINES[2], indent), pretty(LINES[6], indent), LINES[3], pretty(LINES[1], indent)]
    data = b"\n".join(texts).replace(b"\n", end or b"\n") + end
    pieces = split(data, chunk=chunk)
    assert [json.loads(piece.text) for piece in pieces] == [json.loads(text) for text in texts]
    assert [piece.problem for piece in pieces] == [None] * 5
    assert pieces[1].place == "f:2"
    assert pieces[2].place == f"f:{2 + texts[1].count(10) + 1}"


def test_arrays_of_objects_without_indentation() -> None:
    document = {"process_exec": {"ancestors": [{"a": 1}, {"b": [{"c": 2}, {}]}], "process": {}}, "node_name": "n"}
    pieces = split(json.dumps(document, indent=0).encode() + b"\n" + GOOD)
    assert good(pieces) == [document, json.loads(GOOD)]


def test_several_on_one_line() -> None:
    pieces = split(LINES[0] + LINES[1] + b" \t" + LINES[2] + b"\n" + LINES[3])
    assert [json.loads(piece.text) for piece in pieces] == [json.loads(line) for line in LINES[:4]]
    assert [piece.place for piece in pieces] == ["f:1", "f:1", "f:1", "f:2"]


@pytest.mark.parametrize("arguments", ["}", "{", "}{", '"}', "\\", '\\"', '\\\\"{', '{"process_exec":{', "[[", "a\nb"])
def test_brackets_and_quotes_in_strings_are_text(arguments: str) -> None:
    document = {"process_exec": {"process": {"exec_id": "x", "arguments": arguments}}}
    for text in (json.dumps(document), json.dumps(document, indent=2)):
        pieces = split(text.encode() + b"\n" + GOOD)
        assert [json.loads(piece.text) for piece in pieces] == [document, json.loads(GOOD)]


def test_byte_order_mark_only_at_the_start() -> None:
    assert split(b"\xef\xbb\xbf" + GOOD)[0] == JsonText(GOOD, "f:1")


def test_nul_bytes_that_a_truncated_log_begins_with() -> None:
    assert good(split(b"\0" * 5000 + GOOD + b"\n")) == [json.loads(GOOD)]


def test_garbage_lines_are_pieces_of_their_own() -> None:
    pieces = split(b"level=info msg=x\n" + GOOD + b"\n]\nnull\n" + GOOD)
    assert [(piece.place, piece.problem) for piece in pieces] == [
        ("f:1", NOT_AN_OBJECT),
        ("f:2", None),
        ("f:3", NOT_AN_OBJECT),
        ("f:4", NOT_AN_OBJECT),
        ("f:5", None),
    ]


def test_garbage_behind_an_object() -> None:
    pieces = split(GOOD + b" oops\n" + GOOD)
    assert [piece.problem for piece in pieces] == [None, NOT_AN_OBJECT, None]


def test_a_line_cut_anywhere_costs_only_itself() -> None:
    for cut in range(1, len(GOOD)):
        pieces = split(GOOD[:cut] + b"\n" + LINES[2] + b"\n" + LINES[3])
        assert good(pieces) == [json.loads(LINES[2]), json.loads(LINES[3])], cut
        assert pieces[0].place == "f:1"
        assert pieces[0].problem == BROKEN_OFF
        assert len(pieces) == 3


def test_a_line_cut_anywhere_before_a_pretty_printed_object_costs_only_itself() -> None:
    for cut in range(1, len(LINES[6])):
        assert good(split(LINES[6][:cut] + b"\n" + pretty(LINES[2]))) == [json.loads(LINES[2])], cut


@pytest.mark.parametrize("follower", [LINES[2], pretty(LINES[2])])
def test_a_pretty_printed_object_cut_anywhere_costs_only_itself(follower: bytes) -> None:
    whole = pretty(GOOD)
    for cut in range(1, len(whole)):
        pieces = split(whole[:cut] + b"\n" + follower)
        assert good(pieces)[-1] == json.loads(LINES[2]), cut
        assert pieces[0].place == "f:1"
        assert pieces[0].problem == BROKEN_OFF


def test_half_a_line_that_another_writer_appended_to() -> None:
    """A writer died in the middle of a line, and the next one began right there."""
    for cut in range(1, len(GOOD)):
        pieces = split(GOOD[:cut] + LINES[2] + b"\n" + LINES[3])
        assert good(pieces) == [json.loads(LINES[2]), json.loads(LINES[3])], cut
        assert pieces[0].problem == BROKEN_OFF


def test_the_tail_of_a_pretty_printed_object() -> None:
    tail = b"\n".join(pretty(GOOD).splitlines()[5:])
    pieces = split(tail + b"\n" + LINES[2])
    assert good(pieces)[-1] == json.loads(LINES[2])


def test_an_object_that_is_too_large_is_one_problem_and_nothing_else_is_lost() -> None:
    large = json.dumps({"process_exec": {"x": "y" * 5000}})
    for text in (large, json.dumps(json.loads(large), indent=1), json.dumps({"a": list(range(3000))}, indent=1)):
        for chunk in (None, 64):
            pieces = split(GOOD + b"\n" + text.encode() + b"\n" + GOOD, limit=2000, chunk=chunk)
            assert good(pieces) == [json.loads(GOOD)] * 2
            problems = [piece for piece in pieces if piece.problem]
            assert [(piece.text, piece.place) for piece in problems] == [(b"", "f:2")]
            assert "larger than 2,000 bytes" in str(problems[0].problem)


def test_an_endless_line_is_not_kept() -> None:
    splitter = JsonSplitter("f", limit_bytes=1000)
    pieces = [piece for _ in range(100) for piece in splitter.feed(b"x" * 500)]
    assert len(pieces) == 1
    assert splitter._tail_bytes == 0
    assert good(splitter.feed(b"\n" + GOOD + b"\n")) == [json.loads(GOOD)]


def test_a_new_stream_may_follow_the_end() -> None:
    splitter = JsonSplitter("f")
    splitter.feed(GOOD[:50])
    assert [piece.problem for piece in splitter.end()] == [BROKEN_OFF]
    assert splitter.feed(GOOD + b"\n") == [JsonText(GOOD, "f:1")]


def test_an_object_is_there_as_soon_as_its_line_ends() -> None:
    splitter = JsonSplitter("f")
    assert splitter.feed(GOOD) == []
    assert splitter.feed(b"\n") == [JsonText(GOOD, "f:1")]


JSONISH = st.lists(
    st.one_of(
        st.sampled_from(
            [b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b",", b":", b" ", b"\0", GOOD, b'{"process_exec":{']
        ),
        st.binary(max_size=8),
    ),
    max_size=60,
).map(b"".join)


@given(JSONISH, st.integers(1, 50))
def test_chunks_make_no_difference_and_no_byte_goes_unaccounted(data: bytes, chunk: int | None) -> None:
    pieces = split(data)
    assert split(data, chunk=chunk) == pieces
    blank = b" \t\r\n\0\x1e"
    kept = b"".join(piece.text for piece in pieces).translate(None, blank)
    assert kept == data.removeprefix(b"\xef\xbb\xbf").translate(None, blank)


@given(JSONISH)
def test_a_good_line_after_anything_is_found(data: bytes) -> None:
    assert json.loads(GOOD) in good(split(data + b"\n" + GOOD + b"\n"))
