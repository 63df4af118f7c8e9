"""Tetragon's JSON from a file, a pipe or standard input, as it becomes available.

``tetragon:-`` is ``kubectl logs … -c export-stdout -f |``; ``tetragon:PATH`` is Tetragon's own log file, usually
``/var/run/cilium/tetragon/tetragon.log``, which it rotates by renaming. A followed file is read from its beginning and
then on, over renamings and truncations, as ``tail -n +1 -F`` does. Two limits come with that: when a file is renamed
twice between two looks (0.1 s), the one in the middle is not seen; and one that was truncated and has grown beyond its
old size in that time looks like one that only grew.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from pathlib import Path

from otel_procmon.source.errors import SourceError
from otel_procmon.source.json_stream import DEFAULT_LIMIT_BYTES, JsonSplitter, JsonText

__all__ = ["JsonText", "TetragonSource"]

_CHUNK_BYTES = 256 * 1024
_LOOK_AGAIN_S = 0.1
_STDIN = 0


class TetragonSource:
    """Pieces of JSON text from `path`; None or ``-`` is standard input.

    `follow` goes on at the end of a file, or when all writers of a named pipe have gone. It means nothing for standard
    input, whose end is the end.
    """

    def __init__(self, path: str | None, *, follow: bool, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._path = None if path in (None, "-", "/dev/stdin") else path
        self._follow = follow and self._path is not None
        self._name = self._path or "stdin"
        self._splitter = JsonSplitter(self._name, limit_bytes)
        self._fd = -1
        self._regular = False
        self._identity = (0, 0)
        self._ended = False
        self._poll: select.poll | None = None

    def open(self) -> None:
        """Open the input. Raises `SourceError`."""
        if self._path is None:
            try:
                status = os.fstat(_STDIN)
            except OSError as error:
                raise SourceError("Standard input is closed: pipe Tetragon's JSON into it, or name a file.") from error
            self._fd = _STDIN
        else:
            try:
                status = Path(self._path).stat()
                if stat.S_ISDIR(status.st_mode):
                    raise SourceError(
                        f"{self._path} is a directory: name a file of Tetragon's JSON in it, such as tetragon.log."
                    )
                self._fd = os.open(self._path, self._open_flags(status.st_mode))
                status = os.fstat(self._fd)
            except OSError as error:
                raise SourceError(_sentence(self._path, error)) from error
        self._ended = False
        self._watch(status)

    def read(self, timeout_s: float) -> list[JsonText] | None:
        """Pieces that became available within `timeout_s` seconds, at once when there are some.

        An empty list when there were none; None at the end of the input. Raises `SourceError` if it cannot be read any
        more.
        """
        if self._ended:
            return None
        if self._fd < 0:
            raise SourceError(f"{self._name} is not open.")
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                pieces = self._read_once(max(0.0, deadline - time.monotonic()))
            except OSError as error:
                raise SourceError(_sentence(self._name, error)) from error
            if pieces or self._ended:
                return pieces or None
            if time.monotonic() >= deadline:
                return []

    def close(self) -> None:
        """Close the input; standard input stays open, it belongs to the whole process."""
        if self._fd > _STDIN:
            os.close(self._fd)
        self._fd = -1
        self._poll = None

    def _open_flags(self, mode: int) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        if self._follow and self._path and stat.S_ISFIFO(mode) and not _only_in_proc(self._path):
            # A reader that is also a writer never sees the end when the last other writer goes (fifo(7)). A pipe that
            # only has a name in /proc, as a shell's <(…), can have no later writer: there the end is the end.
            with contextlib.suppress(OSError):
                os.close(os.open(self._path, flags | os.O_RDWR))
                flags |= os.O_RDWR
        return flags

    def _watch(self, status: os.stat_result) -> None:
        # Without O_NONBLOCK a named pipe could not be opened before its writer comes; a file ignores it.
        self._regular = stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)
        self._identity = (status.st_dev, status.st_ino)
        if not self._regular:
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLIN)

    def _read_once(self, wait_s: float) -> list[JsonText]:
        if self._poll is not None and not self._poll.poll(wait_s * 1000):
            return []
        try:
            data = os.read(self._fd, _CHUNK_BYTES)
        except BlockingIOError:
            return []
        if data:
            return self._splitter.feed(data)
        if self._follow and self._regular:
            return self._at_end_of_file(wait_s)
        self._ended = True
        return self._splitter.end()

    def _at_end_of_file(self, wait_s: float) -> list[JsonText]:
        """A followed file has nothing more for now: see whether another one took its name, or wait a little."""
        assert self._path is not None
        with contextlib.suppress(FileNotFoundError):  # renamed away, the next one is not there yet
            status = Path(self._path).stat()
            if (status.st_dev, status.st_ino) != self._identity:
                return self._change_file()
            if status.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
                os.lseek(self._fd, 0, os.SEEK_SET)
                return self._splitter.end()
        time.sleep(min(wait_s, _LOOK_AGAIN_S))
        return []

    def _change_file(self) -> list[JsonText]:
        """Go over to the file that has the name now, after the last bytes of the old one."""
        pieces: list[JsonText] = []
        # Its writer may have written between our last read and its renaming.
        while data := os.read(self._fd, _CHUNK_BYTES):
            pieces += self._splitter.feed(data)
        pieces += self._splitter.end()
        assert self._path is not None
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(self._fd)
        self._fd = fd
        self._watch(os.fstat(fd))
        return pieces


def _only_in_proc(path: str) -> bool:
    """Whether `path` leads to a pipe without a name of its own, by way of ``/proc/<pid>/fd``."""
    return os.path.realpath(path).startswith("/proc/")


def _sentence(name: str, error: OSError) -> str:
    """What is wrong with the input and what to do."""
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist: name the file that Tetragon exports to (its option --export-filename)."
    if isinstance(error, PermissionError):
        return f"{name} may not be read: run as root, or as a user who may read it."
    return f"{name} cannot be read: {error.strerror or error}."
