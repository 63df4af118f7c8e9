"""The ``console`` exporter: records as JSON that a person can read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from otel_procmon.convert.records import LogRecord, Span
from otel_procmon.deliver.lane import Sent
from otel_procmon.rfc3339 import format_rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.convert.records import Record

_WRITING = threading.Lock()
"""Traces and logs go to the same stream, each from its own thread."""


class ConsoleWriter:
    """Writes records to a text stream, one indented JSON object after another."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, which is not closed."""
        self._stream = stream

    def send(self, records: Sequence[Record]) -> Sent:
        """Write `records`. What the stream does not take is reported as failed."""
        texts = [text for record in records if (text := _text(record))]
        lost = len(records) - len(texts)
        try:
            with _WRITING:
                self._stream.write("".join(texts))
                self._stream.flush()
        except (OSError, ValueError) as error:
            return Sent(0, failed=len(texts), not_encodable=lost, trouble=f"cannot write to the console: {error}")
        return Sent(len(texts), not_encodable=lost, trouble=f"{lost} records cannot be encoded" if lost else None)

    def interrupt(self) -> None:
        """Nothing waits here."""


def _text(record: Record) -> str | None:
    try:
        return msgspec.json.format(msgspec.json.encode(readable(record)), indent=2).decode() + "\n"
    except UnicodeEncodeError:
        return None


def readable(record: Record) -> dict[str, Any]:
    """`record` as plain data, with times as RFC 3339 and ids in hexadecimal."""
    ids = {"trace_id": record.span.trace_id.hex(), "span_id": record.span.span_id.hex()}
    if isinstance(record, Span):
        parent = record.parent_span_id
        return {
            "span": record.name,
            **ids,
            "parent_span_id": None if parent is None else parent.hex(),
            "start": format_rfc3339(record.start_unix_ns),
            "end": format_rfc3339(record.end_unix_ns),
            "status": "Error" if record.error else "Unset",
            "attributes": record.all_attributes,
            "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in record.links],
            "resource": dict(record.resource.attributes),
        }
    assert isinstance(record, LogRecord)
    return {
        "log": record.event_name,
        **ids,
        "time": format_rfc3339(record.time_unix_ns),
        "observed": format_rfc3339(record.observed_unix_ns),
        "severity_number": record.severity_number,
        "body": record.body,
        "attributes": record.all_attributes,
        "resource": dict(record.resource.attributes),
    }
