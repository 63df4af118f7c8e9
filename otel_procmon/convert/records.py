"""Log records and spans, ready to be encoded: neutral of any SDK, so that delivery can be replaced by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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


class LogRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One OTLP log record."""

    resource: Resource
    event_name: str
    time_unix_ns: int
    observed_unix_ns: int
    severity_number: int
    """9 INFO, 13 WARN."""
    body: str
    attributes: Attributes
    span: SpanRef


class Span(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One OTLP span, of kind INTERNAL."""

    resource: Resource
    name: str
    span: SpanRef
    parent_span_id: bytes | None
    start_unix_ns: int
    end_unix_ns: int
    error: bool
    """Status Error; otherwise the status is unset."""
    attributes: Attributes
    links: Sequence[SpanRef] = ()


Record = LogRecord | Span
