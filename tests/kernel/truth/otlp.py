"""Reads what `-o otlp-json:PATH` writes: OTLP JSON, one ``resourceLogs`` or ``resourceSpans`` object a line.

Independent of the package on purpose: the file is checked as any other program would read it. The mapping of JSON is
that of the OTLP specification: ids in hexadecimal, 64-bit integers as strings, enumerations as numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = frozenset({"resourceLogs", "resourceSpans"})


@dataclass(frozen=True, slots=True)
class Log:
    """One log record; `attributes` and `resource` as Python values, absent times as 0."""

    event_name: str
    time_unix_ns: int
    observed_unix_ns: int
    severity_number: int
    body: Any
    trace_id: str
    span_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """One span; `links` are (trace id, span id), `status` is 0 unset, 1 ok, 2 error."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    """``""``: none."""
    kind: int
    start_unix_ns: int
    end_unix_ns: int
    status: int
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    resource: dict[str, Any]


def any_value(value: dict[str, Any]) -> Any:
    """An OTLP ``AnyValue`` as str, bool, int, float, bytes in base64 (as str), list, dict or None."""
    if not value:
        return None
    if len(value) != 1:
        raise ValueError(f"an AnyValue of more than one kind: {value}")
    kind, content = next(iter(value.items()))
    if kind in {"stringValue", "boolValue", "bytesValue"}:
        return content
    if kind == "intValue":
        return int(content)
    if kind == "doubleValue":
        return float(content)
    if kind == "arrayValue":
        return [any_value(element) for element in content.get("values", [])]
    if kind == "kvlistValue":
        return attributes(content.get("values", []))
    raise ValueError(f"an AnyValue of unknown kind {kind}")


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of OTLP ``KeyValue`` as a dictionary. Raises ValueError where a key comes twice, which OTLP forbids."""
    result = {pair["key"]: any_value(pair["value"]) for pair in pairs}
    if len(result) != len(pairs):
        keys = [pair["key"] for pair in pairs]
        raise ValueError(f"attributes that come twice: {sorted({key for key in keys if keys.count(key) > 1})}")
    return result


class Records:
    """Reads one file, also while it grows: what was read before is not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lines = 0
        self._logs: list[Log] = []
        self._spans: list[Span] = []

    def logs(self) -> list[Log]:
        """All log records so far, in the order of the file."""
        self._read()
        return self._logs[:]

    def spans(self) -> list[Span]:
        """All spans so far, in the order of the file."""
        self._read()
        return self._spans[:]

    def _read(self) -> None:
        """A last line without a newline is one that is still being written: it is left for the next time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._lines += 1
                parsed = msgspec.json.decode(line)
                if len(parsed) != 1 or not parsed.keys() <= SIGNALS:
                    raise ValueError(
                        f"{self._path}:{self._lines}: neither resourceLogs nor resourceSpans but {sorted(parsed)}"
                    )
                self._logs += logs_of(parsed)
                self._spans += spans_of(parsed)


def logs_of(parsed: dict[str, Any]) -> list[Log]:
    """The log records of one line."""
    return [
        Log(
            event_name=record.get("eventName", ""),
            time_unix_ns=int(record.get("timeUnixNano", 0)),
            observed_unix_ns=int(record.get("observedTimeUnixNano", 0)),
            severity_number=record.get("severityNumber", 0),
            body=any_value(record.get("body", {})),
            trace_id=record.get("traceId", ""),
            span_id=record.get("spanId", ""),
            attributes=attributes(record.get("attributes", [])),
            resource=resource,
        )
        for group in parsed.get("resourceLogs", [])
        for resource in [attributes(group.get("resource", {}).get("attributes", []))]
        for scope in group.get("scopeLogs", [])
        for record in scope.get("logRecords", [])
    ]


def spans_of(parsed: dict[str, Any]) -> list[Span]:
    """The spans of one line."""
    return [
        Span(
            name=span.get("name", ""),
            trace_id=span["traceId"],
            span_id=span["spanId"],
            parent_span_id=span.get("parentSpanId", ""),
            kind=span.get("kind", 0),
            start_unix_ns=int(span.get("startTimeUnixNano", 0)),
            end_unix_ns=int(span.get("endTimeUnixNano", 0)),
            status=span.get("status", {}).get("code", 0),
            links=tuple((link["traceId"], link["spanId"]) for link in span.get("links", [])),
            attributes=attributes(span.get("attributes", [])),
            resource=resource,
        )
        for group in parsed.get("resourceSpans", [])
        for resource in [attributes(group.get("resource", {}).get("attributes", []))]
        for scope in group.get("scopeSpans", [])
        for span in scope.get("spans", [])
    ]


def read_logs(path: Path) -> list[Log]:
    """All log records of a file, in its order; none if it does not exist."""
    return Records(path).logs()


def read_spans(path: Path) -> list[Span]:
    """All spans, likewise."""
    return Records(path).spans()
