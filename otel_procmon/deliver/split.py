"""Takes a batch apart that is larger than its receiver takes."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_procmon.deliver.batch import Batch


def split(batch: Batch) -> list[Batch]:
    """Two batches, each with about half of its records; none if it has only one record."""
    if batch.records < 2:
        return []
    half = batch.records // 2
    return [
        Batch(batch.signal, half, _part(batch, 0, half)),
        Batch(batch.signal, batch.records - half, _part(batch, half, batch.records)),
    ]


def _part(batch: Batch, begin: int, end: int) -> bytes:
    """The request with its records from number `begin` to before `end` only, in their order."""
    message: Any = ExportTraceServiceRequest if batch.signal == "traces" else ExportLogsServiceRequest
    names = ("resource_spans", "scope_spans", "spans")
    if batch.signal == "logs":
        names = ("resource_logs", "scope_logs", "log_records")
    request = message.FromString(batch.body)
    entries = getattr(request, names[0])
    number = 0
    for entry in entries:
        for scope in getattr(entry, names[1]):
            records = getattr(scope, names[2])
            count = len(records)
            del records[max(0, min(count, end - number)) :]
            del records[: max(0, min(count, begin - number))]
            number += count
    for index in reversed(range(len(entries))):
        if not any(getattr(scope, names[2]) for scope in getattr(entries[index], names[1])):
            del entries[index]
    body: bytes = request.SerializeToString()
    return body
