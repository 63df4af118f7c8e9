"""What receivers of OTLP answer, read from protobuf; nothing here raises on any bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_procmon.deliver.batch import Accepted

if TYPE_CHECKING:
    from otel_procmon.deliver.batch import Batch

# A full success; the Collector's has an empty partial_success in it.
_PLAIN_SUCCESS: Final = frozenset((b"", b"\n\x00"))


def accepted(batch: Batch, body: bytes) -> Accepted | None:
    """What an Export…ServiceResponse says has become of `batch`; None if `body` is not one."""
    if body in _PLAIN_SUCCESS:
        return Accepted()
    try:
        if batch.signal == "traces":
            spans = ExportTraceServiceResponse.FromString(body).partial_success
            return _accepted(batch, spans.rejected_spans, spans.error_message)
        logs = ExportLogsServiceResponse.FromString(body).partial_success
        return _accepted(batch, logs.rejected_log_records, logs.error_message)
    except DecodeError:
        return None


def accepted_json(batch: Batch, body: bytes) -> Accepted | None:
    """The same in JSON. The specification wants the request's encoding, and not every receiver does as it says."""
    try:
        partial = json.loads(body).get("partialSuccess") or {}
        rejected = partial.get("rejectedSpans" if batch.signal == "traces" else "rejectedLogRecords")
        # protobuf's JSON writes 64-bit integers as strings.
        return _accepted(batch, int(rejected or 0), str(partial.get("errorMessage") or ""))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def status_message(body: bytes) -> str:
    """The message in a google.rpc.Status, empty if there is none."""
    # Imported when something fails: most runs never need it.
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        return str(Status.FromString(body).message)
    except DecodeError:
        return ""


def status_message_json(body: bytes) -> str:
    """The same in JSON."""
    try:
        message = json.loads(body).get("message")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return message if isinstance(message, str) else ""


def retry_delay_s(status: bytes) -> float | None:
    """RetryInfo's delay in the details of a google.rpc.Status; None without RetryInfo. Never negative."""
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # noqa: PLC0415
    from google.rpc.status_pb2 import Status  # noqa: PLC0415

    info = RetryInfo()
    try:
        for detail in Status.FromString(status).details:
            if detail.Is(RetryInfo.DESCRIPTOR) and detail.Unpack(info):
                return float(max(0.0, info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
    except DecodeError:
        pass
    return None


def _accepted(batch: Batch, rejected: int, message: str) -> Accepted:
    # A receiver that says that it rejected more than it got must not upset the ledger.
    return Accepted(min(max(rejected, 0), batch.records), message)
