"""Records as OTLP's protobuf messages, written byte by byte.

The messages are those of opentelemetry-proto 1.x (``logs.proto``, ``trace.proto``, ``common.proto``; the numbers below
are theirs), and a test holds what is written against what the SDK's own encoder writes for the same records. Written by
hand because of its price: most of a record is the same as in the record before, and is copied here as bytes.

One value that OTLP cannot hold costs that value, which is counted, and nothing else.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from otel_procmon import __version__
from otel_procmon.convert import attributes as names
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import Span
from otel_procmon.convert.text import encodable
from otel_procmon.encode.otlp_json import SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from otel_procmon.convert.records import LogRecord, Record, Resource
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
_LOG_TIMES: Final = struct.Struct("<BQBQ")
_SEVERITY: Final = [bytes((_tag(2, _VARINT), number)) for number in range(128)]
_FLAGS_AND_TRACE: Final = bytes((_tag(8, _FIXED32), 1, 0, 0, 0, _tag(9, _BYTES), 16))
_LOG_SPAN: Final = bytes((_tag(10, _BYTES), 8))
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
        names.PROCESS_COMMAND_ARGS,
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
_EVENT_NAMES_MAX: Final = 16


class OtlpEncoder:
    """Encodes records of one kind after another. Not thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._names: dict[str, _Name] = {}
        self._remembered = 0
        """How many attributes all of them remember."""
        self._event_names: dict[str, bytes] = {}
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
        name = self._event_names.get(record.event_name)
        if name is None:
            name = _EVENT_NAME + _sized(_utf8(record.event_name))
            # There are three of them.
            if len(self._event_names) < _EVENT_NAMES_MAX:
                self._event_names[record.event_name] = name
        parts = [
            _LOG_TIMES.pack(0x09, record.time_unix_ns, 0x59, record.observed_unix_ns),
            _SEVERITY[record.severity_number],
            _FLAGS_AND_TRACE,
            trace_id,
            _LOG_SPAN,
            span_id,
            _BODY,
            _sized(_STRING_VALUE + _sized(_utf8(record.body))),
            name,
        ]
        self._add_attributes(parts, _LOG_ATTRIBUTE, record)
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
        self._add_attributes(parts, _SPAN_ATTRIBUTE, record)
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
            content = _fields(_RESOURCE_ATTRIBUTE, self._encoded(resource.attributes))
            # The entry keeps the Resource alive, and so its id from being another's.
            known = self._resources[id(resource)] = (resource, _field(1, content))
        return known[1]

    def _add_attributes(self, parts: list[bytes], tag: bytes, record: Record) -> None:
        """Add all attributes of `record` to its `parts`, as fields with this `tag`."""
        for part in record.shared:
            fields = part.otlp_fields.get(tag)
            if fields is None:
                if part.otlp is None:
                    part.otlp = self._encoded(part.attributes)
                fields = part.otlp_fields[tag] = _fields(tag, part.otlp)
            parts.append(fields)
        if record.attributes:
            parts.append(_fields(tag, self._encoded(record.attributes)))

    def _encoded(self, attributes: Mapping[str, Any]) -> list[bytes]:
        """KeyValue messages, each with its length before it.

        The values are `AttributeValue` as a rule; whatever else comes is counted.
        """
        result = []
        names_ = self._names
        for name, value in attributes.items():
            known = names_.get(name)
            if known is None:
                known = self._name(name)
            values = known.values
            # Of other types, values that are equal are not always the same: True is 1.
            kind = type(value)
            if values is None or (kind is not str and kind is not int and kind is not tuple):
                encoded = _key_value(known, value)
            else:
                encoded = values.get(value)
                if encoded is None:
                    encoded = _key_value(known, value)
                    if encoded is not None and len(encoded) <= _REMEMBERED_BYTES:
                        self._remember(values, value, encoded)
            if encoded is None:
                self._ledger.count(PLACE, "dropped: a value that OTLP cannot hold")
            else:
                result.append(encoded)
        return result

    def _name(self, name: str) -> _Name:
        if len(self._names) >= _REMEMBERED_MAX:
            self._names.clear()
        key = _field(1, _utf8(name)) + _VALUE
        known = self._names[name] = _Name(key, len(key), None if name in _NEVER_AGAIN else {})
        return known

    def _remember(self, values: dict[str | int | tuple[str, ...], bytes], value: Any, encoded: bytes) -> None:
        if self._remembered >= _REMEMBERED_MAX:
            # What is in use comes back soon.
            for known in self._names.values():
                if known.values is not None:
                    known.values.clear()
            self._remembered = 0
        values[value] = encoded
        self._remembered += 1


def _fields(tag: bytes, attributes: list[bytes]) -> bytes:
    """KeyValue messages as a repeated field, each after `tag`."""
    return tag + tag.join(attributes) if attributes else b""


class _Name(NamedTuple):
    """What is the same for all attributes of one name."""

    key: bytes
    """The field ``key`` of KeyValue, and the tag of ``value``."""
    size: int
    """Of that, in bytes."""
    values: dict[str | int | tuple[str, ...], bytes] | None
    """Attributes that were encoded before. None where to remember them is no use."""


def _key_value(name: _Name, value: Any) -> bytes | None:
    """A KeyValue message with its length before it; None for a value that OTLP cannot hold."""
    key, size, _ = name
    # Most are short texts and numbers, whose lengths take a byte each: for these the general way, below, is too long.
    if type(value) is str:
        text = _utf8(value)
        length = len(text)
        if length + size < 125:
            return _SMALL[size + 3 + length] + key + _STRING_HEAD[length] + text
    elif type(value) is int and value in _INT64:
        number = _varint(value & _UINT64_MASK)
        length = len(number)
        if size < 112:
            return _SMALL[size + 2 + length] + key + _INT_HEAD[length] + number
    content = _any_value(value)
    return None if content is None else _sized(key + _sized(content))


_STRING_HEAD: Final = [bytes((length + 2, _tag(1, _BYTES), length)) for length in range(126)]
"""By length of a short text: the length of its AnyValue, and what that begins with."""
_INT_HEAD: Final = [bytes((length + 1, _tag(3, _VARINT))) for length in range(11)]
_ITEM_HEAD: Final = [bytes((_tag(1, _BYTES), length + 2, _tag(1, _BYTES), length)) for length in range(126)]
"""The same for an item of an array."""


def _any_value(value: Any) -> bytes | None:
    """An AnyValue message; None for what it cannot hold."""
    if isinstance(value, str):
        return _STRING_VALUE + _sized(_utf8(value))
    if isinstance(value, bool):
        return _BOOL_VALUE[value]
    if isinstance(value, int):
        return _INT_VALUE + _varint(value & _UINT64_MASK) if value in _INT64 else None
    if isinstance(value, float):
        return _DOUBLE_VALUE.pack(0x21, value)
    if isinstance(value, tuple | list):
        return _array_value(value)
    return None


def _array_value(items: Sequence[Any]) -> bytes | None:
    parts: list[bytes] = []
    for item in items:
        if not isinstance(item, str):
            return None
        text = _utf8(item)
        length = len(text)
        parts += (_ITEM_HEAD[length], text) if length < 126 else (_ARRAY_ITEM, _sized(_STRING_VALUE + _sized(text)))
    return _ARRAY_VALUE + _sized(b"".join(parts))


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
