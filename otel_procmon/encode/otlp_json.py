"""Records as OTLP JSON, in the form of the Collector's file exporter: one line for each batch of one signal.

As the OTLP specification has it: ids in hexadecimal, enums as numbers, 64-bit integers as strings, names in camelCase.
The records of one Resource object stand under one resource entry, in their order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_procmon import __version__
from otel_procmon.convert.attributes import SCHEMA_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from otel_procmon.convert.records import AttributeValue, LogRecord, Resource, Shared, Span
    from otel_procmon.lineage.image import SpanRef

SCOPE_NAME: Final = "otel_procmon"

_SCOPE: Final = {"name": SCOPE_NAME, "version": __version__}
_KIND_INTERNAL: Final = 1
_STATUS_ERROR: Final = 2
_CONTEXT_HAS_IS_REMOTE: Final = 0x100
"""Span flag: it is known whether the parent is remote. It is not."""
_SAMPLED: Final = 1

_Json = dict[str, Any]


def encode_logs(records: Sequence[LogRecord]) -> bytes:
    r"""One line, with its ``\n``, of the form ``{"resourceLogs":[…]}``.

    Raises:
        UnicodeEncodeError: A string holds a lone surrogate.
    """
    return _line("resourceLogs", "scopeLogs", "logRecords", _by_resource(records, _log))


def encode_spans(records: Sequence[Span]) -> bytes:
    r"""One line, with its ``\n``, of the form ``{"resourceSpans":[…]}``.

    Raises:
        UnicodeEncodeError: A string holds a lone surrogate.
    """
    return _line("resourceSpans", "scopeSpans", "spans", _by_resource(records, _span))


def _by_resource(records: Sequence[Any], encode: Callable[[Any], _Json]) -> Iterable[tuple[Resource, list[_Json]]]:
    # Ids are safe as keys here, for the records keep their resources alive.
    groups: dict[int, tuple[Resource, list[_Json]]] = {}
    for record in records:
        groups.setdefault(id(record.resource), (record.resource, []))[1].append(encode(record))
    return groups.values()


def _line(top: str, scope: str, items: str, groups: Iterable[tuple[Resource, list[_Json]]]) -> bytes:
    entries = [
        {
            "resource": {"attributes": _attributes(resource.attributes)},
            scope: [{"scope": _SCOPE, items: encoded, "schemaUrl": SCHEMA_URL}],
            "schemaUrl": resource.schema_url,
        }
        for resource, encoded in groups
    ]
    return msgspec.json.encode({top: entries}) + b"\n"


def _log(record: LogRecord) -> _Json:
    return {
        "timeUnixNano": str(record.time_unix_ns),
        "observedTimeUnixNano": str(record.observed_unix_ns),
        "severityNumber": record.severity_number,
        "body": {"stringValue": record.body},
        "attributes": _attributes(record.attributes, record.shared),
        "flags": _SAMPLED,
        "traceId": record.span.trace_id.hex(),
        "spanId": record.span.span_id.hex(),
        "eventName": record.event_name,
    }


def _span(record: Span) -> _Json:
    encoded: _Json = {
        "traceId": record.span.trace_id.hex(),
        "spanId": record.span.span_id.hex(),
        "flags": _CONTEXT_HAS_IS_REMOTE,
        "name": record.name,
        "kind": _KIND_INTERNAL,
        "startTimeUnixNano": str(record.start_unix_ns),
        "endTimeUnixNano": str(record.end_unix_ns),
        "attributes": _attributes(record.attributes, record.shared),
        "status": {"code": _STATUS_ERROR} if record.error else {},
    }
    if record.parent_span_id is not None:
        encoded["parentSpanId"] = record.parent_span_id.hex()
    if record.links:
        encoded["links"] = [_link(link) for link in record.links]
    return encoded


def _link(link: SpanRef) -> _Json:
    return {"traceId": link.trace_id.hex(), "spanId": link.span_id.hex(), "flags": _CONTEXT_HAS_IS_REMOTE}


def _attributes(attributes: Mapping[str, AttributeValue], shared: tuple[Shared, ...] = ()) -> msgspec.Raw:
    parts = []
    for part in shared:
        if part.otlp_json is None:
            part.otlp_json = b",".join([_attribute(name, value) for name, value in part.attributes.items()])
        if part.otlp_json:
            parts.append(part.otlp_json)
    parts += [_attribute(name, value) for name, value in attributes.items()]
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


_KNOWN_MAX: Final = 16_384
_LONG: Final = 256
_known: Final[dict[tuple[str, type, AttributeValue], bytes]] = {}
"""Attributes as they were encoded before: most of them come again, in the next record or the next batch."""


def _attribute(name: str, value: AttributeValue) -> bytes:
    if isinstance(value, float):
        # 0.0 and -0.0 are equal; and what was measured seldom comes again.
        return _encoded(name, value)
    # The type is part of the key because True and 1 are equal.
    key = (name, type(value), value)
    encoded = _known.get(key)
    if encoded is None:
        encoded = _encoded(name, value)
        if len(encoded) <= _LONG:
            if len(_known) >= _KNOWN_MAX:
                _known.clear()
            _known[key] = encoded
    return encoded


def _encoded(name: str, value: AttributeValue) -> bytes:
    return msgspec.json.encode({"key": name, "value": _value(value)})


def _value(value: AttributeValue) -> _Json:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
    return {"arrayValue": {"values": [{"stringValue": item} for item in value]}}


_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""What protojson writes for numbers that JSON does not have."""
