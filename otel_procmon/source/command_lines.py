"""Reads command lines of other processes in bounded time.

The kernel takes ``/proc/<pid>/cmdline`` from the process's own memory. Where a page of that comes from a file of the
process's own (FUSE), or by userfaultfd, whoever reads it waits for as long as the process likes, and so does ``ps``. So
another thread reads. One that is stuck is left to its wait, and ends with that, with the other process, or with this
one.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    CommandLine = tuple[bytes, bool]
    """The arguments as they are there, each ended by NUL, and whether they were cut."""
    ReadCommandLine = Callable[[Path], CommandLine | None]
    _Requests = SimpleQueue[Path | None]
    _Answers = SimpleQueue[CommandLine | None]

PATIENCE_S: Final = 1.0
LEAST_PATIENCE_S: Final = 0.02
"""How long one may take; where one after another takes longer, each half as long as the one before."""
STUCK_MAX: Final = 64
"""After so many, no more are read. All of them together take three seconds."""


@contextmanager
def command_lines(max_bytes: int) -> Iterator[ReadCommandLine]:
    """A function that reads a file, and keeps `max_bytes` of it: None if it cannot, or does not end."""
    reader = _Reader(max_bytes)
    try:
        yield reader.read
    finally:
        reader.end()


class _Reader:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._requests: _Requests = SimpleQueue()
        self._answers: _Answers = SimpleQueue()
        self._running = False
        self._stuck = 0

    def read(self, path: Path) -> CommandLine | None:
        if self._stuck >= STUCK_MAX:
            return None
        if not self._running:
            # Only now: it has the rights that this thread has by now, and not those that it gave up.
            self._running = True
            threading.Thread(
                target=_answer, args=(self._requests, self._answers, self._max_bytes), name="command-lines", daemon=True
            ).start()
        self._requests.put(path)
        try:
            return self._answers.get(timeout=max(LEAST_PATIENCE_S, PATIENCE_S / 2**self._stuck))
        except Empty:
            self._stuck += 1
            self.end()
            self._requests, self._answers, self._running = SimpleQueue(), SimpleQueue(), False
            return None

    def end(self) -> None:
        self._requests.put(None)


def _answer(requests: _Requests, answers: _Answers, max_bytes: int) -> None:
    while (path := requests.get()) is not None:
        try:
            with path.open("rb") as file:
                args = file.read(max_bytes + 1)
        except OSError:  # noqa: PERF203 - a process that has ended costs its own command line
            answers.put(None)
        else:
            answers.put((args[:max_bytes], len(args) > max_bytes))
