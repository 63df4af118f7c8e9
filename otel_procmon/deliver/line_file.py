"""Lines into a file, or to standard output: whole ones, and trouble in words."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.teller import Teller

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_STDOUT: Final = 1


class LineFile:
    """Appends lines at once, in the caller's thread. Not thread-safe.

    A pipe whose reader is slow makes `write` wait, as with any command in a pipeline.
    """

    def __init__(self, place: str, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Open `path`, with mode 0600 if it is new; None is standard output.

        `place` begins the sentences that are logged; `clock` is `Teller`'s. Raises DeliveryError.
        """
        name = "standard output" if path is None else str(path)
        self._name = name
        self._teller = Teller(place, clock, over=f"writing to {name} works again")
        self._cut = False
        """The last line was cut short by an error: the next one must not become part of it."""
        self.closed = False
        """Whether nobody reads it any more: a pipe without a reader, or `close` was called."""
        self._file = _STDOUT
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise DeliveryError(f"cannot write to {path} ({why}); name a file that can be written") from error

    def write(self, data: bytes, lines: int, *, records: int = 1) -> int:
        """Append the `lines` lines of `data`, with `records` records each; how many of the lines were written."""
        if self.closed:
            return 0
        rest = b"\n" + data if self._cut else data
        try:
            while rest:
                try:
                    written = os.write(self._file, rest)
                except BlockingIOError:
                    # A terminal or pipe that another process has set to this; it is slow, not broken.
                    select.select((), (self._file,), ())
                    continue
                self._cut = rest[written - 1 : written] != b"\n"
                rest = rest[written:]
        except BrokenPipeError:
            self.close()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            self._teller.trouble(
                f"cannot write to {self._name} ({why}): make room, or name another file",
                records * _lines_in(rest, lines),
            )
        else:
            self._teller.works()
        return lines - _lines_in(rest, lines)

    def close(self) -> None:
        """Nothing is kept back; standard output stays open."""
        if not self.closed and self._file != _STDOUT:
            os.close(self._file)
        self.closed = True


def _lines_in(rest: bytes, lines: int) -> int:
    """How many of `lines` lines end in `rest`, which may begin with the end of one before them."""
    return min(lines, rest.count(b"\n"))
