"""Reads command lines of other processes in bounded time.

The kernel takes ``/proc/<pid>/cmdline`` from the process's own memory, for which it has to have the lock of that. Where
a thread of the process holds it and is stuck (a disk or a file server that does not answer), whoever reads waits as
well, ``ps`` too. (Pages from files are refused since Linux 4.17, CVE-2018-1120, and nobody waits for userfaultfd.) So
another thread reads. One that is stuck is left to its wait, and ends with that, or with this process.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    CommandLine = tuple[bytes, bool]
    """The arguments as they are there, each ended by NUL, and whether they were cut."""
    ReadCommandLine = Callable[[Path], CommandLine | None]
    _Requests = SimpleQueue[Path | None]
    _Answers = SimpleQueue[CommandLine | None]

PATIENCE_S: Final = 1.0
LEAST_PATIENCE_S: Final = 0.02
"""How long one may take; where one after another takes longer, each half as long as the one before."""
THREAD_NAME: Final = "command-lines"
STUCK_MAX: Final = 64
"""After so many, no more are read. All of them together take three seconds."""

_TASKS: Final = Path("/proc/self/task")


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
        self._thread: threading.Thread | None = None
        self._stuck = 0

    def read(self, path: Path) -> CommandLine | None:
        if self._stuck >= STUCK_MAX:
            return None
        if self._thread is None:
            self._thread = threading.Thread(
                target=_answer, args=(self._requests, self._answers, self._max_bytes), name=THREAD_NAME, daemon=True
            )
            self._thread.start()
        self._requests.put(path)
        try:
            return self._answers.get(timeout=max(LEAST_PATIENCE_S, PATIENCE_S / 2**self._stuck))
        except Empty:
            self._stuck += 1
            self._requests.put(None)
            self._requests, self._answers, self._thread = SimpleQueue(), SimpleQueue(), None
            return None

    def end(self) -> None:
        self._requests.put(None)
        if self._thread is not None:
            # It is not stuck, and must be gone: privileges are dropped next, which threads would keep.
            self._thread.join()
            # Python calls it ended a moment before the kernel does.
            deadline = time.monotonic() + PATIENCE_S
            while (_TASKS / str(self._thread.native_id)).exists() and time.monotonic() < deadline:
                time.sleep(0.001)


def _answer(requests: _Requests, answers: _Answers, max_bytes: int) -> None:
    while (path := requests.get()) is not None:
        try:
            with path.open("rb") as file:
                args = file.read(max_bytes + 1)
        except OSError:  # noqa: PERF203 - a process that has ended costs its own command line
            answers.put(None)
        else:
            answers.put((args[:max_bytes], len(args) > max_bytes))
