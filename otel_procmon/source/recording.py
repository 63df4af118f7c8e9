"""Recordings: the kernel's records as they were read, in a file, for tests and bug reports.

The file begins with a magic and one line of JSON (what the decoder has to know of the host), then come batches: one
byte of kind, two times (since boot and since the epoch, in ns), a count, and that many records, each with its length;
all little-endian. A snapshot is followed by the batch of events that were pending then. A recording holds all that
programs were called with: it is as confidential as they are, and its file is readable by its owner only.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final, NamedTuple

import msgspec

from otel_procmon.source.errors import SourceError

_MAGIC: Final = b"otel-procmon recording 1\n"
_BATCH: Final = struct.Struct("<cQQI")
_LENGTH: Final = struct.Struct("<I")
_EVENTS: Final = b"E"
_SNAPSHOT: Final = b"S"
_RECORD_MAX_BYTES: Final = 1024 * 1024
_HEADER_MAX_BYTES: Final = 64 * 1024


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording's decoder has to know of the host that it was made on."""

    node: str
    boot_id: str
    page_bytes: int


class Batch(NamedTuple):
    """Records that were read at one go."""

    boot_ns: int
    """When they were read (for a snapshot: when it began), by CLOCK_BOOTTIME."""
    unix_ns: int
    """The same by CLOCK_REALTIME."""
    records: list[bytes]
    is_snapshot: bool = False


class RecordingWriter:
    """Appends batches to a new file. Raises `SourceError` if it cannot be made, OSError if it cannot be written to."""

    def __init__(self, path: str, host: Host) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SourceError(
                f"The recording {path} cannot be written ({error.strerror}): name a file that can be."
            ) from error
        self._file = os.fdopen(descriptor, "wb")
        self._file.write(_MAGIC + msgspec.json.encode(host) + b"\n")

    def write(self, batch: Batch) -> None:
        """Append `batch`, and see to it that it is in the file."""
        kind = _SNAPSHOT if batch.is_snapshot else _EVENTS
        parts = [_BATCH.pack(kind, batch.boot_ns, batch.unix_ns, len(batch.records))]
        for record in batch.records:
            parts += (_LENGTH.pack(len(record)), record)
        self._file.write(b"".join(parts))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RecordingSource:
    """Reads a recording. Raises `SourceError`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._problem: str | None = None

    def open(self) -> Host:
        """Open the file, and give what it says of its host."""
        try:
            self._file = open(self._path, "rb")  # noqa: PTH123, SIM115 - closed by close()
        except OSError as error:
            raise SourceError(f"The recording {self._path} cannot be read: {error.strerror}.") from error
        try:
            magic, header = self._file.readline(_HEADER_MAX_BYTES), self._file.readline(_HEADER_MAX_BYTES)
        except OSError as error:
            raise SourceError(f"The recording {self._path} cannot be read: {error.strerror}.") from error
        if magic != _MAGIC:
            raise SourceError(f"{self._path} is no recording of otel-procmon, or one of another version.")
        try:
            return msgspec.json.decode(header, type=Host)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SourceError(f"The recording {self._path} has a broken header: {error}.") from error

    @property
    def problem(self) -> str | None:
        """Why reading ended before the end of the file, if it did: one sentence."""
        return self._problem

    def read(self) -> Batch | None:
        """The next batch; None at the end, also where the recording breaks off (see `problem`)."""
        assert self._file is not None
        try:
            return self._batch(self._file)
        except OSError as error:
            raise SourceError(f"The recording {self._path} cannot be read any more: {error.strerror}.") from error
        except _BrokenOffError:
            self._problem = f"The recording {self._path} breaks off before byte {self._file.tell()}."
            return None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def _batch(file: BinaryIO) -> Batch | None:
        head = file.read(_BATCH.size)
        if not head:
            return None
        if len(head) < _BATCH.size:
            raise _BrokenOffError
        kind, boot_ns, unix_ns, count = _BATCH.unpack(head)
        if kind not in (_EVENTS, _SNAPSHOT):
            raise _BrokenOffError
        records = []
        for _ in range(count):
            prefix = file.read(_LENGTH.size)
            if len(prefix) < _LENGTH.size:
                raise _BrokenOffError
            (length,) = _LENGTH.unpack(prefix)
            record = file.read(length) if length <= _RECORD_MAX_BYTES else b""
            if len(record) < length:
                raise _BrokenOffError
            records.append(record)
        return Batch(boot_ns, unix_ns, records, is_snapshot=kind == _SNAPSHOT)


class _BrokenOffError(Exception):
    """A batch is not whole, or is none."""
