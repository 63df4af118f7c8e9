"""Delivery into a file, or to standard output, as OTLP JSON lines that the Collector can read back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from otel_procmon.convert.records import LogRecord, Span
from otel_procmon.deliver.delivery import EXPORT_FAILED, EXPORTED, NOT_ENCODABLE, NOT_IN_TIME
from otel_procmon.deliver.line_file import LineFile
from otel_procmon.encode.otlp_json import encode_logs, encode_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otel_procmon.convert.records import Record
    from otel_procmon.ledger import Ledger

_PLACE: Final = "output.otlp-json"


class FileDelivery:
    """A `Delivery` that appends lines to a file. They are written at once, in the caller's thread."""

    def __init__(self, path: Path | None, ledger: Ledger) -> None:
        """Open `path`, with mode 0600 if it is new; None is standard output.

        Counts under ``output.otlp-json.traces`` and ``output.otlp-json.logs``. Raises DeliveryError.
        """
        self._ledger = ledger
        self._lock = threading.Lock()
        self._file = LineFile(_PLACE, path)
        self._ended = False

    @property
    def closed(self) -> bool:
        """Whether nobody reads it any more."""
        return self._file.closed

    def put(self, records: Sequence[Record], *, wait: bool = False) -> None:  # noqa: ARG002 - it always waits
        """See `Delivery.put`."""
        spans = [record for record in records if isinstance(record, Span)]
        logs = [record for record in records if isinstance(record, LogRecord)]
        with self._lock:
            self._write(f"{_PLACE}.traces", spans, encode_spans)
            self._write(f"{_PLACE}.logs", logs, encode_logs)

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
            self._file.close()
            self._ended = True
        return True

    def _write(self, place: str, records: Sequence[Any], encode: Callable[[Sequence[Any]], bytes]) -> None:
        if not records:
            return
        if self._ended:
            self._ledger.count(place, NOT_IN_TIME, len(records))
            return
        batches = [records]
        try:
            lines = [encode(records)]
        except UnicodeEncodeError:
            batches, lines = _singly(records, encode)
            self._ledger.count(place, NOT_ENCODABLE, len(records) - len(batches))
        for batch, line in zip(batches, lines, strict=True):
            written = self._file.write(line, 1, records=len(batch))
            self._ledger.count(place, EXPORTED if written else EXPORT_FAILED, len(batch))


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
