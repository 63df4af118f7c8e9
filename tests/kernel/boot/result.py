"""What came of a guest: which tests ran there, and how. Kept as JSON, one file for each guest."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class Case(msgspec.Struct, frozen=True):
    """One test."""

    module: str
    name: str
    outcome: str
    """``passed``, ``failed`` or ``skipped``."""
    seconds: float


class Guest(msgspec.Struct, frozen=True):
    """One guest."""

    kernel: str
    """As it was asked for: ``6.1``, ``backports``."""
    version: str
    loader: str
    seconds: int
    """From the machine's start to its end."""
    complete: bool
    """Whether the tests came to their end, and told of it."""
    tests: list[Case]

    @property
    def outcomes(self) -> Counter[str]:
        """How many tests passed, failed and were skipped."""
        return Counter(test.outcome for test in self.tests)

    @property
    def good(self) -> bool:
        """Whether all has run, and all has passed."""
        return self.complete and bool(self.tests) and set(self.outcomes) == {"passed"}

    def summary(self) -> str:
        """In a line, for people."""
        if not self.complete:
            return f"did not come to its end in {self.seconds} s"
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{told or 'no tests'} in {self.seconds} s"


def write_guest(path: Path, guest: Guest) -> None:
    """Write the account of one guest."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(guest)) + b"\n")


def read_guest(path: Path) -> Guest:
    """The account of one guest. Raises OSError, or `msgspec.DecodeError` with the file's name."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Guest)
    except msgspec.DecodeError as error:
        raise msgspec.DecodeError(f"{path}: {error}") from error


def read_guests(directory: Path) -> list[Guest]:
    """All accounts in a directory. Raises as `read_guest` does."""
    return [read_guest(path) for path in sorted(directory.glob("*.json"))]
