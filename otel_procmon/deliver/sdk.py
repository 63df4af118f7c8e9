"""Exporters of the Python ecosystem: found by the SDK's entry points, given the SDK's objects.

They are used without the SDK's batch processors: those drop without counting.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import LogRecord as ApiLogRecord
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from otel_procmon import __version__
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.lane import Sent
from otel_procmon.encode.otlp_json import SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.convert.records import LogRecord, Record, Resource, Span
    from otel_procmon.deliver.settings import Signal
    from otel_procmon.lineage.image import SpanRef

_log = logging.getLogger(__name__)

SCOPE: Final = InstrumentationScope(SCOPE_NAME, __version__, SCHEMA_URL)

_OK: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class SdkSender:
    """Sends records of one signal with the exporter that an installed package calls `exporter`."""

    def __init__(self, signal: Signal, exporter: str) -> None:
        """Load and make the exporter, which reads its own variables. Raises DeliveryError."""
        self._name = exporter
        convert = SdkRecords()
        self._convert: Any = convert.span if signal == "traces" else convert.log
        self._success = SpanExportResult.SUCCESS if signal == "traces" else LogRecordExportResult.SUCCESS
        try:
            (entry,) = entry_points(group=f"opentelemetry_{signal}_exporter", name=exporter)
            self._exporter: Any = entry.load()()
        except Exception as error:
            raise DeliveryError(
                f"the exporter {exporter} of {signal} cannot be set up ({error}); see its own documentation for the "
                f"variables that it reads, or set OTEL_{signal.upper()}_EXPORTER=otlp"
            ) from error

    def send(self, records: Sequence[Record]) -> Sent:
        """Export a batch. Exporters do not say how many of its records they took: all or none."""
        try:
            result = self._exporter.export([self._convert(record) for record in records])
        except Exception as error:  # noqa: BLE001 - whatever somebody else's exporter raises
            return Sent(0, failed=len(records), trouble=f"the exporter {self._name} failed: {error!r}")
        if result is not self._success:
            return Sent(0, failed=len(records), trouble=f"the exporter {self._name} failed; see what it logs")
        return Sent(len(records))

    def interrupt(self) -> None:
        """Shut the exporter down."""
        try:
            self._exporter.shutdown()
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("the exporter %s did not shut down in order: %r", self._name, error)


class _SharedResource(SdkResource):
    """A Resource that is compared by identity. The SDK's own hashes its JSON once for every record."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class SdkRecords:
    """Turns records into the SDK's objects. One for each thread."""

    _MOST_RESOURCES: Final = 4096

    def __init__(self) -> None:
        # An entry keeps its Resource alive, and so its id from being another's.
        self._resources: OrderedDict[int, tuple[Resource, SdkResource]] = OrderedDict()

    def span(self, record: Span) -> ReadableSpan:
        """A span as the SDK's exporters take it."""
        parent = record.parent_span_id
        return ReadableSpan(
            name=record.name,
            context=_context(record.span),
            parent=None if parent is None else _context(record.span._replace(span_id=parent)),
            resource=self._resource(record.resource),
            attributes=record.all_attributes,
            links=[Link(_context(link)) for link in record.links],
            kind=SpanKind.INTERNAL,
            status=_ERROR if record.error else _OK,
            start_time=record.start_unix_ns,
            end_time=record.end_unix_ns,
            instrumentation_scope=SCOPE,
        )

    def log(self, record: LogRecord) -> ReadableLogRecord:
        """A log record as the SDK's exporters take it."""
        return ReadableLogRecord(
            ApiLogRecord(
                timestamp=record.time_unix_ns,
                observed_timestamp=record.observed_unix_ns,
                context=set_span_in_context(NonRecordingSpan(_context(record.span)), Context()),
                severity_number=SeverityNumber(record.severity_number),
                body=record.body,
                attributes=record.all_attributes,
                event_name=record.event_name,
            ),
            self._resource(record.resource),
            SCOPE,
        )

    def _resource(self, resource: Resource) -> SdkResource:
        known = self._resources.get(id(resource))
        if known is None:
            known = (resource, _SharedResource(dict(resource.attributes), resource.schema_url))
            self._resources[id(resource)] = known
        self._resources.move_to_end(id(resource))
        while len(self._resources) > self._MOST_RESOURCES:
            self._resources.popitem(last=False)
        return known[1]


def _context(span: SpanRef) -> SpanContext:
    return SpanContext(
        trace_id=int.from_bytes(span.trace_id, "big"),
        span_id=int.from_bytes(span.span_id, "big"),
        is_remote=False,
        trace_flags=_SAMPLED,
    )
