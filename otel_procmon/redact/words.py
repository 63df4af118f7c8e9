"""A script, or arguments that were joined to one text, as words with their places.

Not a shell's parser: no word's meaning is needed, only where it begins and ends. Quotes may be left open, because
arguments are cut, and whatever is between a quote and the end is then one word. Time and memory grow with the length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PIECE = re.compile(r"[ \t\r\f\v]+|\\|[\"'\n;|&()<>`]|[^\s\"'\\;|&()<>`]+")
_DOUBLE = re.compile(r"[\"\\]")


class Word(NamedTuple):
    """A word of a text, quotes included."""

    text: str
    begin: int
    """Where in the whole text it stands."""


def script_words(text: str) -> list[list[Word]]:
    """The words of each command in a shell's script."""
    commands: list[list[Word]] = [[]]
    position = begin = 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        sign = text[position]
        if piece is None:
            # A blank that only Unicode knows is none for a shell.
            position += 1
        elif sign == "\\":
            position += 2
        elif sign == "'":
            end = text.find("'", position + 1)
            position = len(text) if end < 0 else end + 1
        elif sign == '"':
            position = quoted_end(text, position + 1, '"')
        elif sign in "\n;|&()<>`" or sign.isspace():
            if position > begin:
                commands[-1].append(Word(text[begin:position], begin))
            position = begin = piece.end()
            if sign in "\n;|&(`" and commands[-1]:
                commands.append([])
        else:
            position = piece.end()
    if begin < len(text):
        commands[-1].append(Word(text[begin:], begin))
    return commands


def joined_words(text: str) -> list[Word]:
    """The words of Tetragon's ``arguments``, where an argument with a space in it stands in ``"…"``.

    Quotation marks inside of an argument are not escaped there. So a mark begins an argument only after a space, and
    ends it only before one.
    """
    words = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        if text[position] == '"':
            end = text.find('" ', position + 1)
            end = len(text) if end < 0 else end + 1
        else:
            end = text.find(" ", position)
            end = len(text) if end < 0 else end
        words.append(Word(text[position:end], position))
        position = end
    return words


def quoted_end(text: str, begin: int, quote: str) -> int:
    """Index behind the `quote` that ends what begins at `begin`, past those with a backslash; the end if none does."""
    position = begin
    while True:
        found = text.find(quote, position)
        if found < 0:
            return len(text)
        before = found
        while before > position and text[before - 1] == "\\":
            before -= 1
        if (found - before) % 2 == 0:
            return found + len(quote)
        position = found + 1


def unquoted(text: str) -> tuple[str, int]:
    """What is inside of the quotes that a whole word stands in, and where that begins; else the word itself, and 0."""
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        return text[1:-1], 1
    if text[:1] in ("'", '"'):
        # Its end was cut off.
        end = text.find(text[0], 1)
        if end < 0:
            return text[1:], 1
    return text, 0
