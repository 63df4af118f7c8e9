"""Delivery through the OpenTelemetry SDK's own OTLP exporters, over gRPC or HTTP, and to the console.

The exporters are used without the SDK's batch processors: those drop without counting. Of what the exporters do,
retrying within their time limit is relied upon; what they log is caught and said once a minute, in words
(`deliver.trouble`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from opentelemetry._logs import LogRecord as ApiLogRecord
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
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
from otel_procmon.convert.records import LogRecord, Span
from otel_procmon.deliver.console import ConsoleWriter
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.lane import Lane, Sent
from otel_procmon.deliver.settings import read_settings
from otel_procmon.deliver.trouble import sentence
from otel_procmon.encode.otlp_json import SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from otel_procmon.convert.records import Record, Resource
    from otel_procmon.deliver.settings import Otlp, Settings, Signal
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import SpanRef

SCOPE: Final = InstrumentationScope(SCOPE_NAME, __version__, SCHEMA_URL)

_OK: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class SdkDelivery:
    """A `Delivery` as the OTEL_ variables ask for it: one lane for each signal and exporter."""

    def __init__(self, environ: Mapping[str, str], ledger: Ledger, *, console: TextIO | None = None) -> None:
        """Set the exporters up. Raises DeliveryError.

        Args:
            environ: Where the OTEL_ variables are.
            ledger: Counts under ``delivery.traces`` and ``delivery.logs``, for the console ``delivery.traces.console``.
            console: Where the console exporter writes; standard output if None.
        """
        self._ledger = ledger
        settings = {signal: read_settings(environ, signal) for signal in _SIGNALS}
        self._unsent = {s.signal: f"not sent: {s.unsent_because}" for s in settings.values() if not s.exporters}
        # All senders first: one that fails must not leave another's thread behind.
        senders = [
            (s, exporter, _otlp_sender(s) if exporter == "otlp" else ConsoleWriter(console or sys.stdout))
            for s in settings.values()
            for exporter in s.exporters
        ]
        self._lanes: dict[Signal, list[Lane]] = {signal: [] for signal in _SIGNALS}
        for s, exporter, sender in senders:
            place = f"delivery.{s.signal}" if exporter == "otlp" else f"delivery.{s.signal}.{exporter}"
            self._lanes[s.signal].append(Lane(place, sender.send, sender.interrupt, s.batching, ledger))

    def put(self, records: Sequence[Record], *, wait: bool = False) -> None:
        """See `Delivery.put`."""
        sorted_: dict[Signal, list[Record]] = {"traces": [], "logs": []}
        for record in records:
            sorted_["traces" if isinstance(record, Span) else "logs"].append(record)
        for signal, group in sorted_.items():
            if group and signal in self._unsent:
                self._ledger.count(f"delivery.{signal}", self._unsent[signal], len(group))
            for lane in self._lanes[signal] if group else ():
                lane.put(group, wait=wait)

    def mark(self) -> object:
        """See `Delivery.mark`."""
        return [lane.entered() for lane in self._all_lanes()]

    def is_safe(self, mark: object) -> bool:
        """See `Delivery.is_safe`."""
        assert isinstance(mark, list)
        return all(lane.settled() >= entered for lane, entered in zip(self._all_lanes(), mark, strict=True))

    def flush(self, timeout_s: float) -> bool:
        """See `Delivery.flush`."""
        deadline = time.monotonic() + timeout_s
        results = [lane.flush(max(0.0, deadline - time.monotonic())) for lane in self._all_lanes()]
        return all(results)

    def shutdown(self, timeout_s: float) -> bool:
        """See `Delivery.shutdown`. It takes at most a second more for each lane whose receiver does not answer."""
        deadline = time.monotonic() + timeout_s
        for lane in self._all_lanes():
            lane.close()
        results = [lane.shutdown(max(0.0, deadline - time.monotonic())) for lane in self._all_lanes()]
        return all(results)

    def _all_lanes(self) -> list[Lane]:
        return [lane for lanes in self._lanes.values() for lane in lanes]


_SIGNALS: Final[tuple[Signal, ...]] = ("traces", "logs")


class _Exporter(Protocol):
    """What the SDK's exporters of both signals and both protocols have in common."""

    def export(self, batch: Sequence[Any], /) -> object: ...

    def shutdown(self) -> None: ...


class _OtlpSender:
    """Sends records of one signal through one of the SDK's exporters."""

    def __init__(
        self,
        exporter: tuple[_Exporter, Callable[[], Exception | int | None]],
        endpoint: str,
        convert: Callable[[Any], object],
        encode: Callable[[Sequence[Any]], Any],
        success: object,
    ) -> None:
        self._exporter, self._cause = exporter
        self._endpoint = endpoint
        self._convert = convert
        self._encode = encode
        self._success = success

    def send(self, records: Sequence[Record]) -> Sent:
        """Export a batch. If it cannot be encoded, only those of its records are lost that cannot."""
        items = [self._convert(record) for record in records]
        with _overheard() as heard:
            trouble = self._export(items, heard)
            if trouble is None:
                return Sent(len(items))
            good = [item for item in items if self._encodable(item)]
            lost = len(items) - len(good)
            if not lost:
                return Sent(0, failed=len(items), trouble=trouble)
            heard.clear()
            trouble = self._export(good, heard) if good else None
        if trouble is not None:
            return Sent(0, failed=len(good), not_encodable=lost, trouble=trouble)
        return Sent(len(good), not_encodable=lost, trouble=f"{lost} of {len(items)} records cannot be encoded")

    def interrupt(self) -> None:
        """Shut the exporter down: a retry that waits gives up, and later exports fail at once."""
        with _overheard():
            self._exporter.shutdown()

    def _export(self, items: Sequence[object], heard: Sequence[logging.LogRecord]) -> str | None:
        """Export, and say what was wrong; None if nothing was."""
        try:
            result = self._exporter.export(items)
        except Exception as error:  # noqa: BLE001 - the gRPC exporter lets errors of encoding and of a closed channel through
            return sentence(self._endpoint, heard, error)
        return None if result is self._success else sentence(self._endpoint, heard, self._cause())

    def _encodable(self, item: object) -> bool:
        try:
            self._encode([item]).SerializeToString()
        except Exception:  # noqa: BLE001 - whatever it is, it would happen again
            return False
        return True


def _otlp_sender(settings: Settings) -> _OtlpSender:
    """The sender for OTLP. The exporters of gRPC are imported only when they are asked for, at 16 MB of memory."""
    otlp = settings.otlp
    assert otlp is not None
    convert = SdkRecords()
    try:
        exporter = _grpc(otlp, settings.signal) if otlp.protocol == "grpc" else _http(otlp, settings.signal)
    except Exception as error:
        raise DeliveryError(
            f"the exporter of {settings.signal} to {otlp.endpoint} cannot be set up ({error}); see the "
            "OTEL_EXPORTER_OTLP_ variables"
        ) from error
    _listen()
    if settings.signal == "traces":
        return _OtlpSender(exporter, otlp.endpoint, convert.span, encode_spans, SpanExportResult.SUCCESS)
    return _OtlpSender(exporter, otlp.endpoint, convert.log, encode_logs, LogRecordExportResult.SUCCESS)


def _http(otlp: Otlp, signal: Signal) -> tuple[_Exporter, Callable[[], Exception | int | None]]:
    import requests  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    class Session(requests.Session):
        """Remembers how the last request failed; the exporter does not tell."""

        cause: Exception | int | None = None

        def request(self, *args: Any, **kwargs: Any) -> Any:
            try:
                response = super().request(*args, **kwargs)
            except Exception as error:
                self.cause = error
                raise
            self.cause = None if response.ok else response.status_code
            return response

    session = Session()
    arguments: dict[str, Any] = {
        "endpoint": otlp.endpoint,
        "session": session,
        "certificate_file": _path(otlp.certificate),
        "client_key_file": _path(otlp.client_key),
        "client_certificate_file": _path(otlp.client_certificate),
        "headers": otlp.headers,
        "timeout": otlp.timeout_s,
        "compression": Compression(otlp.compression),
    }
    exporter: _Exporter = OTLPSpanExporter(**arguments) if signal == "traces" else OTLPLogExporter(**arguments)
    return exporter, lambda: session.cause


def _grpc(otlp: Otlp, signal: Signal) -> tuple[_Exporter, Callable[[], Exception | int | None]]:
    import grpc  # type: ignore[import-untyped]  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    def content(path: Any) -> bytes | None:
        data: bytes | None = None if path is None else path.read_bytes()
        return data

    credentials = None
    if not otlp.insecure:
        credentials = grpc.ssl_channel_credentials(
            content(otlp.certificate), content(otlp.client_key), content(otlp.client_certificate)
        )
    arguments: dict[str, Any] = {
        "endpoint": otlp.endpoint,
        "insecure": otlp.insecure,
        "credentials": credentials,
        "headers": dict(otlp.headers),
        "timeout": otlp.timeout_s,
        "compression": grpc.Compression.Gzip if otlp.compression == "gzip" else grpc.Compression.NoCompression,
    }
    exporter: _Exporter = OTLPSpanExporter(**arguments) if signal == "traces" else OTLPLogExporter(**arguments)
    # It logs the cause.
    return exporter, lambda: None


def _path(path: Any) -> str | None:
    return None if path is None else str(path)


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


_SDK_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.common._internal",
)
_hearing: Final = threading.local()


class _Ear(logging.Filter):
    """Keeps what the SDK logs in a thread that listens, and holds it back; other threads' records pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        heard: list[logging.LogRecord] | None = getattr(_hearing, "records", None)
        if heard is None:
            return True
        heard.append(record)
        return False


_EAR: Final = _Ear()


def _listen() -> None:
    """Put the filter before all others, because the SDK's own drops what it has seen lately. Can be repeated."""
    for name in _SDK_LOGGERS:
        logger = logging.getLogger(name)
        if _EAR not in logger.filters:
            logger.filters.insert(0, _EAR)


@contextmanager
def _overheard() -> Iterator[list[logging.LogRecord]]:
    _hearing.records = []
    try:
        yield _hearing.records
    finally:
        _hearing.records = None
