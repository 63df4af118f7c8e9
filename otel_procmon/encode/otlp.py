"""Records as OTLP's protobuf messages, written byte by byte.

The messages are those of opentelemetry-proto 1.x (``logs.proto``, ``trace.proto``, ``common.proto``; the numbers below
are theirs), and a test holds what is written against what the SDK's own encoder writes for the same records. Written by
hand because of its price: most of a record is the same as in the record before, and is copied here as bytes.

One value that OTLP cannot hold costs that value, which is counted, and nothing else.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgspec

from otel_procmon import __version__
from otel_procmon.convert import attributes as names
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import Span
from otel_procmon.convert.text import encodable
from otel_procmon.encode.otlp_json import SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_procmon.convert.records import AttributeValue, LogRecord, Record, Resource, Shared
    from otel_procmon.ledger import Ledger

PLACE: Final = "encode"
"""Where in the ledger values that cannot be encoded are counted."""


def _tag(number: int, wire_type: int) -> int:
    """The one byte before a field whose number is below 16."""
    return number << 3 | wire_type


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_SMALL: Final = [bytes((number,)) for number in range(128)]


def _varint(number: int) -> bytes:
    """An unsigned number of up to 64 bits, seven bits a byte."""
    if number < 128:
        return _SMALL[number]
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, a string or a message."""
    return bytes((_tag(number, _BYTES),)) + _varint(len(content)) + content


# LogRecord: time 1, severity 2, flags 8, trace id 9, span id 10, observed time 11; SAMPLED is the flag.
_LOG_HEAD: Final = struct.Struct("<BQ BQ BB BI BB16s BB8s")
_SAMPLED: Final = 1
# Span: trace id 1, span id 2, start 7, end 8, kind 6 (INTERNAL is 1), flags 16 (a tag of two bytes).
_SPAN_HEAD: Final = struct.Struct("<BB16s BB8s BQ BQ BB BBI")
_INTERNAL: Final = 1
_CONTEXT_HAS_IS_REMOTE: Final = 0x100
"""It is known whether the parent is remote: it is not."""
_PARENT: Final = bytes((_tag(4, _BYTES), 8))
_STATUS_ERROR: Final = _field(15, bytes((_tag(3, _VARINT), 2)))
# Link: trace id 1, span id 2, flags 6.
_LINK: Final = struct.Struct("<BB16s BB8s BI")

_LOG_ATTRIBUTE: Final = bytes((_tag(6, _BYTES),))
_SPAN_ATTRIBUTE: Final = bytes((_tag(9, _BYTES),))
_RESOURCE_ATTRIBUTE: Final = bytes((_tag(1, _BYTES),))

_BODY, _EVENT_NAME, _SPAN_NAME = (bytes((_tag(number, _BYTES),)) for number in (5, 12, 5))
_STRING_VALUE: Final = bytes((_tag(1, _BYTES),))
_BOOL_VALUE: Final = {truth: bytes((_tag(2, _VARINT), truth)) for truth in (False, True)}
_INT_VALUE: Final = bytes((_tag(3, _VARINT),))
_DOUBLE_VALUE: Final = struct.Struct("<Bd")
_ARRAY_VALUE: Final = bytes((_tag(5, _BYTES),))
_ARRAY_ITEM: Final = bytes((_tag(1, _BYTES),))
_VALUE: Final = bytes((_tag(2, _BYTES),))

_INT64: Final = range(-(2**63), 2**63)
_UINT64_MASK: Final = 2**64 - 1

_TIMES: Final = ("time_unix_ns", "observed_unix_ns", "start_unix_ns", "end_unix_ns")
_NEVER_AGAIN: Final = frozenset(
    {
        names.PROCESS_PID,
        names.PROCESS_VPID,
        names.PROCESS_CREATION_TIME,
        names.PROCESS_EXIT_TIME,
        names.PROCMON_EXEC_ID,
        names.PROCMON_USAGE_MAX_RSS,
        names.PROCMON_USAGE_IO_READ,
        names.PROCMON_USAGE_IO_WRITTEN,
    }
)
"""Attributes whose values hardly come twice: to remember them would drive out the others."""
_REMEMBERED_MAX: Final = 8192
_REMEMBERED_BYTES: Final = 128
_RESOURCES_MAX: Final = 4096


class OtlpEncoder:
    """Encodes records of one kind after another. Not thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._keys: dict[str, bytes] = {}
        self._known: dict[tuple[str, str | int], bytes] = {}
        self._resources: dict[int, tuple[Resource, bytes]] = {}

    def encode(self, record: Record) -> bytes:
        """One LogRecord or Span message, without the field around it."""
        try:
            return self._encode(record)
        except struct.error:
            # A time before 1970, or beyond 64 bits. It becomes the nearest one that there is.
            self._ledger.count(PLACE, "changed: a time that OTLP cannot hold")
            times = {name: getattr(record, name) for name in _TIMES if hasattr(record, name)}
            held = {name: min(max(value, 0), _UINT64_MASK) for name, value in times.items()}
            return self._encode(msgspec.structs.replace(record, **held))

    def _encode(self, record: Record) -> bytes:
        return self.span(record) if isinstance(record, Span) else self.log(record)

    def log(self, record: LogRecord) -> bytes:
        """One ``LogRecord`` message."""
        trace_id, span_id = record.span
        body = _STRING_VALUE + _sized(_utf8(record.body))
        name = _utf8(record.event_name)
        head = _LOG_HEAD.pack(
            0x09,
            record.time_unix_ns,
            0x59,
            record.observed_unix_ns,
            0x10,
            record.severity_number,
            0x45,
            _SAMPLED,
            0x4A,
            16,
            trace_id,
            0x52,
            8,
            span_id,
        )
        attributes = self._attributes(record.shared, record.attributes)
        parts = [head, _BODY, _sized(body), _EVENT_NAME, _sized(name)]
        if attributes:
            parts += (_LOG_ATTRIBUTE, _LOG_ATTRIBUTE.join(attributes))
        return b"".join(parts)

    def span(self, record: Span) -> bytes:
        """One ``Span`` message."""
        trace_id, span_id = record.span
        head = _SPAN_HEAD.pack(
            0x0A,
            16,
            trace_id,
            0x12,
            8,
            span_id,
            0x39,
            record.start_unix_ns,
            0x41,
            record.end_unix_ns,
            0x30,
            _INTERNAL,
            0x85,
            0x01,
            _CONTEXT_HAS_IS_REMOTE,
        )
        parts = [head, _SPAN_NAME, _sized(_utf8(record.name))]
        if record.parent_span_id is not None:
            parts += (_PARENT, record.parent_span_id)
        attributes = self._attributes(record.shared, record.attributes)
        if attributes:
            parts += (_SPAN_ATTRIBUTE, _SPAN_ATTRIBUTE.join(attributes))
        for link in record.links:
            content = _LINK.pack(0x0A, 16, link.trace_id, 0x12, 8, link.span_id, 0x35, _CONTEXT_HAS_IS_REMOTE)
            parts.append(_field(13, content))
        parts.append(_STATUS_ERROR if record.error else _STATUS_UNSET)
        return b"".join(parts)

    def resource(self, resource: Resource) -> bytes:
        """The ``resource`` field of ResourceLogs and ResourceSpans, tag and length included."""
        known = self._resources.get(id(resource))
        if known is None:
            if len(self._resources) >= _RESOURCES_MAX:
                self._resources.clear()
            attributes = self._encoded(resource.attributes)
            content = _RESOURCE_ATTRIBUTE + _RESOURCE_ATTRIBUTE.join(attributes) if attributes else b""
            # The entry keeps the Resource alive, and so its id from being another's.
            known = self._resources[id(resource)] = (resource, _field(1, content))
        return known[1]

    def _attributes(self, shared: tuple[Shared, ...], own: Mapping[str, AttributeValue]) -> list[bytes]:
        """KeyValue messages, each with its length before it."""
        encoded = []
        for part in shared:
            if part.otlp is None:
                part.otlp = self._encoded(part.attributes)
            encoded += part.otlp
        return encoded + self._encoded(own) if own else encoded

    def _encoded(self, attributes: Mapping[str, AttributeValue]) -> list[bytes]:
        result = []
        for name, value in attributes.items():
            known = None
            # Of other types, values that are equal are not always the same: True is 1.
            is_simple = type(value) is str or type(value) is int
            if is_simple:
                known = self._known.get((name, value))  # type: ignore[arg-type]
            if known is None:
                known = self._attribute(name, value)
                if known is None:
                    self._ledger.count(PLACE, "dropped: a value that OTLP cannot hold")
                    continue
                if is_simple and name not in _NEVER_AGAIN and len(known) <= _REMEMBERED_BYTES:
                    if len(self._known) >= _REMEMBERED_MAX:
                        self._known.clear()
                    self._known[name, value] = known  # type: ignore[index]
            result.append(known)
        return result

    def _attribute(self, name: str, value: AttributeValue) -> bytes | None:
        """A KeyValue message with its length; None for a value that OTLP cannot hold."""
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= _REMEMBERED_MAX:
                self._keys.clear()
            key = self._keys[name] = _field(1, _utf8(name)) + _VALUE
        content = _any_value(value)
        return None if content is None else _sized(key + _sized(content))


def _any_value(value: AttributeValue) -> bytes | None:
    """An AnyValue message; None for what it cannot hold."""
    if isinstance(value, str):
        return _STRING_VALUE + _sized(_utf8(value))
    if isinstance(value, bool):
        return _BOOL_VALUE[value]
    if isinstance(value, int):
        return _INT_VALUE + _varint(value & _UINT64_MASK) if value in _INT64 else None
    if isinstance(value, float):
        return _DOUBLE_VALUE.pack(0x21, value)
    if isinstance(value, tuple | list) and all(isinstance(item, str) for item in value):
        items = [_sized(_STRING_VALUE + _sized(_utf8(item))) for item in value]
        return _ARRAY_VALUE + _sized(_ARRAY_ITEM + _ARRAY_ITEM.join(items) if items else b"")
    return None


_STATUS_UNSET: Final = _field(15, b"")


def _sized(content: bytes) -> bytes:
    length = len(content)
    return (_SMALL[length] if length < 128 else _varint(length)) + content


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return encodable(text).encode()


# ScopeLogs and ScopeSpans: scope 1 (name 1, version 2), items 2, schema URL 3. ResourceLogs and ResourceSpans: resource
# 1, scopes 2, schema URL 3. The requests (and LogsData and TracesData): one repeated field 1.
_SCOPE: Final = _field(1, _field(1, SCOPE_NAME.encode()) + _field(2, __version__.encode()))
_SCOPE_END: Final = _field(3, SCHEMA_URL.encode())
_ITEM: Final = bytes((_tag(2, _BYTES),))


def encode_request(groups: Iterable[tuple[bytes, str, list[bytes]]]) -> bytes:
    """An ExportLogsServiceRequest or ExportTraceServiceRequest: on the wire both are the same.

    Args:
        groups: For each Resource its field (`OtlpEncoder.resource`), its schema URL, and the messages below it.
    """
    parts: list[bytes] = []
    for resource, schema_url, items in groups:
        scope = b"".join([_SCOPE, *[_ITEM + _sized(item) for item in items], _SCOPE_END])
        content = b"".join((resource, _ITEM, _sized(scope), _field(3, schema_url.encode()) if schema_url else b""))
        parts += (b"\x0a", _sized(content))
    return b"".join(parts)
