r"""Text from hostile processes, made safe for a terminal and for one line, as Go's ``strconv.Quote`` does it.

What Go's ``strconv.IsPrint`` lets through (letters, marks, numbers, punctuation, symbols and the ASCII space) is just
what `str.isprintable` lets through. So C0 and C1 controls, escape sequences, line and paragraph separators, zero-width
and bidirectional formatting characters are all escaped. The two can only differ in characters that one side's version
of Unicode does not know yet.

Bytes that were not valid UTF-8 may be here as lone surrogates. Those of Python's ``surrogateescape`` become ``\x80`` to
``\xff``, as Go quotes the byte itself; others U+FFFD, as Go treats a number that is no character.
"""

from __future__ import annotations

import re

_ESCAPES = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    "\\": r"\\",
    '"': r"\"",
}
_UNUSUAL = re.compile(r"[^ !#-\[\]-~]")
"""All but what stands for itself in any case."""
_SURROGATES = re.compile("[\ud800-\udfff]+")


def quote(text: str) -> str:
    """`text` as a Go string literal in double quotation marks."""
    return f'"{_UNUSUAL.sub(lambda match: _quoted_character(match[0]), text)}"'


def quote_unless_plain(text: str) -> str:
    """`text` itself if it is one visible word, quoted if it is empty or holds a space or an unprintable character."""
    return text if text.isprintable() and " " not in text and text else quote(text)


def quote_unless_printable(text: str) -> str:
    """`text` itself if it is printable, spaces included; quoted otherwise."""
    return text if text.isprintable() else quote(text)


def valid_unicode(text: str) -> str:
    """`text` with each run of lone surrogates replaced by one U+FFFD, as Tetragon does with invalid bytes."""
    return _SURROGATES.sub("\ufffd", text)


def _quoted_character(character: str) -> str:
    escaped = _ESCAPES.get(character)
    if escaped is not None:
        return escaped
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if 0xD800 <= code <= 0xDFFF:
        return "\\ufffd"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
