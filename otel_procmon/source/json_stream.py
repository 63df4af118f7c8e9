"""A stream of bytes, cut into JSON objects, one by one and whatever lies between them.

Tetragon writes one object a line; people hand on what ``jq`` made of it, many lines an object, and logs that were cut
off, appended to, or mixed with other output. This module finds where objects begin and end without parsing them. What
cannot be an object becomes a piece of its own, so that it is counted and named, and reading goes on right behind it:

- JSON has no line breaks inside strings, so a line that ends inside a string is broken off there.
- Inside an object that goes on over many lines, a ``{`` in the very first column begins a new object: pretty-printers
  indent what is nested. (Where an object's lines have no indentation at all, an element of an array may begin there.)
- ``{"process_exec":{`` with bare quotation marks cannot occur inside a string, so it begins an event even in the middle
  of a line: a writer that died and came back has appended to half a line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_LIMIT_BYTES = 16 * 1024 * 1024
"""What one object may take; Tetragon's own are some kB, with all arguments some hundreds of kB."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n\0\x1e"
"""What may stand around an object: white space, the NULs that a truncated log begins with, RFC 7464's separator."""
_BRACKETS = re.compile(rb'["{}\[\]]')
_ADJACENT = re.compile(rb"\}\s*\{")
_CONTINUATION = re.compile(rb'["{}\[\],:\-0-9]|true\b|false\b|null\b')
_EVENT_START = re.compile(
    rb'\{\s*"process_?(?:exec|exit|kprobe|tracepoint|loader|uprobe|usdt|lsm|throttle)"\s*:(?=\s*\{)', re.IGNORECASE
)

_SALVAGE_ATTEMPTS = 16
"""How many beginnings without an end are looked at in one broken piece, to bound what it costs."""

BROKEN_OFF = "the JSON object breaks off"
NOT_AN_OBJECT = "this is not a JSON object"


class JsonText(NamedTuple):
    """One JSON object's text, or what was found in the place of one."""

    text: bytes
    place: str
    """``FILE:LINE`` of its first byte."""
    problem: str | None = None
    """Why it cannot be an object, where that is known already."""


class JsonSplitter:
    """Cuts one stream. `name` is what places are named after; `limit_bytes` bounds the memory for one object."""

    def __init__(self, name: str, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._line_number = 0
        self._tail: list[bytes] = []
        """The line whose end has not come yet, in pieces."""
        self._tail_bytes = 0
        self._dropping_line = False
        """The line that is coming in was given up already."""
        self._skipping = False
        """The object that is coming in was given up already: skip to where another one begins."""
        self._forget_object()

    def feed(self, data: bytes) -> list[JsonText]:
        """Everything that is complete now that `data` has come."""
        pieces: list[JsonText] = []
        first, newline, rest = data.partition(b"\n")
        if self._dropping_line:
            if not newline:
                return pieces
            self._dropping_line = False
            self._line_number += 1
        elif newline:
            self._tail.append(first)
            line = b"".join(self._tail)
            self._tail, self._tail_bytes = [], 0
            self._take_line(line, pieces)
        else:
            rest = first
        if newline:
            lines = rest.split(b"\n")
            rest = lines.pop()
            for line in lines:
                self._take_line(line, pieces)
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            if self._tail_bytes > self._limit_bytes:
                self._give_up_line(pieces)
        return pieces

    def end(self) -> list[JsonText]:
        """What is left at the end of the stream. A new stream (a rotated file) may follow."""
        pieces: list[JsonText] = []
        if self._tail:
            line = b"".join(self._tail)
            self._take_line(line, pieces)
        self._break_off(pieces)
        self._tail, self._tail_bytes = [], 0
        self._dropping_line = self._skipping = False
        self._line_number = 0
        return pieces

    def _place(self, line_number: int) -> str:
        return f"{self._name}:{line_number}"

    def _forget_object(self) -> None:
        self._object: list[bytes] = []
        self._object_bytes = 0
        self._object_line = 0
        self._open = bytearray()
        """The brackets that are open, outermost first."""
        self._indented = False
        self._last_byte = b""

    def _take_line(self, line: bytes, pieces: list[JsonText]) -> None:
        self._line_number += 1
        if self._line_number == 1:
            line = line.removeprefix(_BOM)
        text = line.strip(_BLANK)
        if self._open:
            if not text:
                return
            if self._goes_on(line, text):
                self._indented = self._indented or line[:1] in (b" ", b"\t")
                self._scan(text, pieces)
                return
            self._break_off(pieces)
        if not text:
            return
        if self._skipping:
            if line[:1] != b"{":
                return
            self._skipping = False
        if len(line) > self._limit_bytes:
            self._too_large(self._line_number, pieces)
        elif text[:1] != b"{":
            self._salvage(text, self._line_number, NOT_AN_OBJECT, pieces)
        elif (
            text[-1:] == b"}"
            and text.count(b"{") == text.count(b"}")
            and not _ADJACENT.search(text)
            and not _EVENT_START.search(text, 1)
        ):
            # Almost every line. Were the counts equal only by chance, because of braces in strings, it could only be
            # an object that is broken anyway: the first line of one that goes on does not end like this.
            pieces.append(JsonText(text, self._place(self._line_number)))
        else:
            self._scan(text, pieces)

    def _goes_on(self, line: bytes, text: bytes) -> bool:
        """Whether `line` can belong to the object that is open."""
        if line[:1] == b"{":
            in_array = self._open[-1:] == b"[" and self._last_byte in (b"[", b",")
            return in_array and len(self._object) > 1 and not self._indented
        return _CONTINUATION.match(text) is not None

    def _scan(self, text: bytes, pieces: list[JsonText]) -> None:
        """Follow the brackets of one line, or of its rest, and hand out every object that they close."""
        begin = position = 0
        while (bracket := _BRACKETS.search(text, position)) is not None:
            sign = bracket[0]
            position = bracket.end()
            if sign == b'"':
                end = _string_end(text, position)
                if end < 0:
                    self._hold(text[begin:])
                    self._break_off(pieces)
                    return
                position = end
            elif sign in b"{[":
                self._open += sign
            else:
                if self._open:
                    self._open.pop()
                if not self._open:
                    self._hold(text[begin:position])
                    whole, line_number = b"\n".join(self._object), self._object_line
                    self._forget_object()
                    if _EVENT_START.search(whole, 1):
                        # Half an event with another one in its middle, and the brackets agree only by chance.
                        self._salvage(whole + text[position:], line_number, BROKEN_OFF, pieces)
                        return
                    pieces.append(JsonText(whole, self._place(line_number)))
                    while text[position : position + 1] and text[position] in _BLANK:
                        position += 1
                    if text[position : position + 1] != b"{":
                        if position < len(text):
                            self._salvage(text[position:], self._line_number, NOT_AN_OBJECT, pieces)
                        return
                    begin = position
        self._hold(text[begin:])
        if self._object_bytes > self._limit_bytes:
            line_number = self._object_line
            self._forget_object()
            self._skipping = True
            self._too_large(line_number, pieces)

    def _hold(self, text: bytes) -> None:
        if not self._object:
            self._object_line = self._line_number
        self._object.append(text)
        self._object_bytes += len(text) + 1
        self._last_byte = text[-1:]

    def _break_off(self, pieces: list[JsonText]) -> None:
        """The object that is open will not be closed any more."""
        if not self._object:
            return
        text, line_number = b"\n".join(self._object), self._object_line
        self._forget_object()
        self._salvage(text, line_number, BROKEN_OFF, pieces)

    def _salvage(self, text: bytes, line_number: int, problem: str, pieces: list[JsonText]) -> None:
        """Hand out `text` as a piece with a problem, but whole events inside it as what they are."""
        begin = failures = 0
        cuts: list[tuple[int, int, str | None]] = []
        for start in _EVENT_START.finditer(text):
            if start.start() < begin:
                continue
            end = _object_end(text, start.start())
            # An event in the middle of one: the outer is a half, and its brackets agree only by chance.
            if end >= 0 and not _EVENT_START.search(text, start.end(), end):
                cuts += [(begin, start.start(), problem), (start.start(), end, None)]
                begin = end
            elif (failures := failures + 1) == _SALVAGE_ATTEMPTS:
                break
        cuts.append((begin, len(text), problem))
        for first, last, what in cuts:
            if piece := text[first:last].strip(_BLANK):
                pieces.append(JsonText(piece, self._place(line_number + text.count(b"\n", 0, first)), what))

    def _give_up_line(self, pieces: list[JsonText]) -> None:
        self._tail, self._tail_bytes = [], 0
        self._dropping_line = True
        line_number = self._line_number + 1
        if self._open:
            line_number = self._object_line
            self._skipping = True
            self._forget_object()
        elif self._skipping:
            return
        self._too_large(line_number, pieces)

    def _too_large(self, line_number: int, pieces: list[JsonText]) -> None:
        problem = f"larger than {self._limit_bytes:,} bytes, given up"
        pieces.append(JsonText(b"", self._place(line_number), problem))


def _string_end(text: bytes, position: int) -> int:
    """Index behind the quotation mark that ends the string whose inside begins at `position`; -1 if none does."""
    while (end := text.find(b'"', position)) >= 0:
        before = end
        while before > position and text[before - 1] == 0x5C:
            before -= 1
        if (end - before) % 2 == 0:
            return end + 1
        position = end + 1
    return -1


def _object_end(text: bytes, position: int) -> int:
    """Index behind the object that begins at `position`; -1 if it is not whole."""
    depth = 0
    while (bracket := _BRACKETS.search(text, position)) is not None:
        sign = bracket[0]
        position = bracket.end()
        if sign == b'"':
            position = _string_end(text, position)
            if position < 0:
                return -1
        elif sign in b"{[":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return position
    return -1
