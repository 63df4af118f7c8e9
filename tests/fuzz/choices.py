"""The bytes of a fuzzer as choices, so that it can build inputs that are nearly right.

Whatever the bytes are, they are choices; where none are left, each choice is the first. So a short input stays a simple
one, and an input that was found can be cut down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

EDGES = (
    0,
    1,
    2,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
"""Numbers at which something may go over."""

TEXTS = (
    b"",
    b" ",
    b"\n",
    b"\r\n\x1b[2J",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x9a\x80",
    b"\xe2\x80\xae",
    b"\x7f\x80\x9b31m",
    b"'\"\\`$(",
    b"a" * 300,
    b"/",
    b"..",
    b"*****",
    b"--password=x1",
    b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    b"://u:p@h/",
)
"""Texts that something may take for more than a text."""


class Choices:
    """Choices made by `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._position

    def byte(self) -> int:
        """0 to 255."""
        position = self._position
        if position >= len(self._data):
            return 0
        self._position = position + 1
        return self._data[position]

    def below(self, bound: int) -> int:
        """0 to `bound` - 1; `bound` is at most 65,536."""
        return self.byte() % bound if bound <= 256 else (self.byte() << 8 | self.byte()) % bound

    def of(self, values: Sequence[T]) -> T:
        """One of `values`."""
        return values[self.below(len(values))]

    def chance(self, one_in: int) -> bool:
        """True once in so many times; not where no bytes are left."""
        return self.byte() % one_in == one_in - 1

    def number(self, size: int = 8) -> int:
        """An unsigned number of `size` bytes, most often one at which something may go over."""
        if not self.chance(3):
            return self.of(EDGES) & ((1 << 8 * size) - 1)
        return int.from_bytes(self.raw(size), "little")

    def raw(self, most: int) -> bytes:
        """The next `most` bytes, as far as there are so many."""
        begin = self._position
        self._position = min(len(self._data), begin + most)
        return self._data[begin : self._position]

    def rest(self) -> bytes:
        """All that is left."""
        return self.raw(self.left())

    def text(self, known: Sequence[bytes] = TEXTS, most: int = 64) -> bytes:
        """A few pieces, known ones and raw bytes; without NUL."""
        return b"".join(
            [
                self.raw(self.below(most)).replace(b"\0", b"") if self.chance(3) else self.of(known)
                for _ in range(1 + self.below(3))
            ]
        )
