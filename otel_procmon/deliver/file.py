"""Delivery into a file, or to standard output, as OTLP JSON lines that the Collector can read back."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from otel_procmon.convert.records import LogRecord, Span
from otel_procmon.deliver.delivery import EXPORT_FAILED, EXPORTED, NOT_ENCODABLE, NOT_IN_TIME, DeliveryError
from otel_procmon.encode.otlp_json import encode_logs, encode_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otel_procmon.convert.records import Record
    from otel_procmon.ledger import Ledger

_log = logging.getLogger(__name__)

_STDOUT: Final = 1


class FileDelivery:
    """A `Delivery` that appends lines to a file. They are written at once, in the caller's thread.

    A pipe whose reader is slow makes `put` wait, as with any command in a pipeline.
    """

    def __init__(self, path: Path | None, ledger: Ledger) -> None:
        """Open `path`, with mode 0600 if it is new; None is standard output.

        Counts under ``output.otlp-json.traces`` and ``output.otlp-json.logs``. Raises DeliveryError.
        """
        self._ledger = ledger
        self._lock = threading.Lock()
        self._told = False
        self._broken = False
        """The last line was cut short by an error: the next one must not become part of it."""
        self._closed = False
        self.closed = False
        """Whether nobody reads it any more: a pipe without a reader."""
        self._name = "standard output" if path is None else str(path)
        if path is None:
            self._file = _STDOUT
            return
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DeliveryError(f"cannot write to {path} ({why}); name a file that can be written") from error

    def put(self, records: Sequence[Record], *, wait: bool = False) -> None:  # noqa: ARG002 - it always waits
        """See `Delivery.put`."""
        spans = [record for record in records if isinstance(record, Span)]
        logs = [record for record in records if isinstance(record, LogRecord)]
        with self._lock:
            self._write("output.otlp-json.traces", spans, encode_spans)
            self._write("output.otlp-json.logs", logs, encode_logs)

    def mark(self) -> object:
        """See `Delivery.mark`."""
        return None

    def is_safe(self, mark: object) -> bool:  # noqa: ARG002 - what was put is in the file
        """See `Delivery.is_safe`."""
        return True

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing is kept back
        """See `Delivery.flush`."""
        return True

    def shutdown(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing is kept back
        """See `Delivery.shutdown`."""
        with self._lock:
            if not self._closed and self._file != _STDOUT:
                os.close(self._file)
            self._closed = True
        return True

    def _write(self, place: str, records: Sequence[Any], encode: Callable[[Sequence[Any]], bytes]) -> None:
        if not records:
            return
        if self._closed:
            self._ledger.count(place, NOT_IN_TIME, len(records))
            return
        batches = [records]
        try:
            lines = [encode(records)]
        except UnicodeEncodeError:
            batches, lines = _singly(records, encode)
            self._ledger.count(place, NOT_ENCODABLE, len(records) - len(batches))
        for batch, line in zip(batches, lines, strict=True):
            self._ledger.count(place, EXPORTED if self._append(line) else EXPORT_FAILED, len(batch))

    def _append(self, line: bytes) -> bool:
        """Write a whole line; False if it was not."""
        if self._broken:
            line = b"\n" + line
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:] if written else line)
        except OSError as error:
            self._broken = self._broken if not written else written > 1 or not self._broken
            self.closed = isinstance(error, BrokenPipeError)
            if not self._told and not self.closed:
                self._told = True
                _log.error(
                    "cannot write to %s (%s): records are lost until there is room again, or another file is named",
                    self._name,
                    (error.strerror or str(error)).lower(),
                )
            return False
        self._broken = False
        if self._told:
            self._told = False
            _log.warning("writing to %s works again", self._name)
        return True


def _singly(
    records: Sequence[Any], encode: Callable[[Sequence[Any]], bytes]
) -> tuple[list[Sequence[Any]], list[bytes]]:
    """Those of `records` that can be encoded, each as a batch of its own, and their lines."""
    batches: list[Sequence[Any]] = []
    lines: list[bytes] = []
    for record in records:
        try:
            lines.append(encode([record]))
        except UnicodeEncodeError:
            continue
        batches.append([record])
    return batches, lines
