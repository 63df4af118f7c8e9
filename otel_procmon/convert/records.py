"""Log records and spans, ready to be encoded: neutral of any SDK, so that delivery can be replaced by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otel_procmon.lineage.image import SpanRef

AttributeValue = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, AttributeValue]


class Resource(NamedTuple):
    """The entity that records belong to. One object per container (or host), shared by all its records.

    Compared by identity when records are grouped, so make one and keep it.
    """

    attributes: Mapping[str, AttributeValue]
    schema_url: str


class Shared:
    """Attributes that several records have in common: of one image, of one exit, or of many images.

    Each encoder keeps what it made of them here, so that they are encoded once for all of these records.
    """

    __slots__ = ("attributes", "otlp", "otlp_fields", "otlp_json")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.otlp: list[bytes] | None = None
        self.otlp_fields: dict[bytes, bytes] = {}
        """The same as fields of a record, by their tag, which is another one in a LogRecord than in a Span."""
        self.otlp_json: bytes | None = None


def _all(shared: tuple[Shared, ...], own: Attributes) -> Attributes:
    attributes: Attributes = {}
    for part in shared:
        attributes.update(part.attributes)
    attributes.update(own)
    return attributes


class LogRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One OTLP log record."""

    signal: ClassVar[Literal["logs"]] = "logs"

    resource: Resource
    event_name: str
    time_unix_ns: int
    observed_unix_ns: int
    severity_number: int
    """9 INFO, 13 WARN."""
    body: str
    attributes: Attributes
    """Those that are not shared; no name is in both."""
    shared: tuple[Shared, ...] = ()
    span: SpanRef

    @property
    def all_attributes(self) -> Attributes:
        """The shared ones and its own."""
        return _all(self.shared, self.attributes)


class Span(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One OTLP span, of kind INTERNAL."""

    signal: ClassVar[Literal["traces"]] = "traces"

    resource: Resource
    name: str
    span: SpanRef
    parent_span_id: bytes | None
    start_unix_ns: int
    end_unix_ns: int
    error: bool
    """Status Error; otherwise the status is unset."""
    attributes: Attributes
    """Those that are not shared; no name is in both."""
    shared: tuple[Shared, ...] = ()
    links: Sequence[SpanRef] = ()

    @property
    def all_attributes(self) -> Attributes:
        """The shared ones and its own."""
        return _all(self.shared, self.attributes)


Record = LogRecord | Span
