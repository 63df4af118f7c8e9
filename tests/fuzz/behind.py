"""What stands behind the decoders, as one: lineage, views, conversion and encoding, each held to what it promises.

Called for everything that happened, whatever the input was. What it checks is what a reader of the output relies on:
that a line is one line and drives no terminal, that JSON is JSON, that OTLP is what OpenTelemetry's own messages read.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.host import host_resource
from otel_procmon.convert.records import LogRecord, Span
from otel_procmon.convert.resource import Resources
from otel_procmon.encode.otlp import OtlpEncoder, encode_request
from otel_procmon.encode.otlp_json import encode_logs, encode_spans
from otel_procmon.ledger import Ledger
from otel_procmon.view.compact import compact_line
from otel_procmon.view.quote import valid_unicode
from otel_procmon.view.tetragon_json import tetragon_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as LogMessage
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

    from otel_procmon.convert.records import Record, Resource
    from otel_procmon.lineage.ids import SpanIds
    from otel_procmon.lineage.image import Happening

COLOUR = re.compile(r"\x1b\[[0-9]{1,2}m")


@lru_cache(maxsize=1)
def host() -> Resource:
    """A host without anything to say."""
    return host_resource({}, Path("/nonexistent"), host_name="here", machine="x86_64")


class Behind:
    """The stages behind one decoder."""

    def __init__(self, ids: SpanIds) -> None:
        self._converter = Converter(
            Resources(host()),
            body=lambda happening: compact_line(happening, colour=False),
            life_span_id=ids.life_span_id,
        )
        self._encoder = OtlpEncoder(Ledger())

    def take(self, happenings: Sequence[Happening]) -> None:
        """Make all outputs of `happenings`, and read them again."""
        records: list[Record] = []
        for happening in happenings:
            line_is_one_line(compact_line(happening, colour=False))
            line_is_one_line(compact_line(happening, colour=True))
            document = tetragon_json(happening)
            if document is not None:
                assert b"\n" not in document
                json.loads(document)
            records += self._converter.convert(happening)
        logs = [record for record in records if isinstance(record, LogRecord)]
        spans = [record for record in records if isinstance(record, Span)]
        assert len(logs) + len(spans) == len(records)
        if logs:
            self._logs(logs)
        if spans:
            self._spans(spans)

    def _logs(self, records: Sequence[LogRecord]) -> None:
        messages = [
            message
            for group in ExportLogsServiceRequest.FromString(self._request(records)).resource_logs
            for scope in group.scope_logs
            for message in scope.log_records
        ]
        assert len(messages) == len(records)
        for record, message in zip(records, messages, strict=True):
            assert message.event_name == record.event_name
            assert message.body.string_value
            message_is_whole(message)
        in_json = json.loads(encode_logs(records))
        assert sum(len(s["logRecords"]) for g in in_json["resourceLogs"] for s in g["scopeLogs"]) == len(records)

    def _spans(self, records: Sequence[Span]) -> None:
        messages = [
            message
            for group in ExportTraceServiceRequest.FromString(self._request(records)).resource_spans
            for scope in group.scope_spans
            for message in scope.spans
        ]
        assert len(messages) == len(records)
        for message in messages:
            assert message.name
            assert message.start_time_unix_nano <= message.end_time_unix_nano
            message_is_whole(message)
        in_json = json.loads(encode_spans(records))
        assert sum(len(s["spans"]) for g in in_json["resourceSpans"] for s in g["scopeSpans"]) == len(records)

    def _request(self, records: Sequence[Record]) -> bytes:
        return encode_request(
            (self._encoder.resource(one.resource), one.resource.schema_url, [self._encoder.encode(one)])
            for one in records
        )


def message_is_whole(message: LogMessage | SpanMessage) -> None:
    """Ids are there and not zero, and no attribute is there twice, nameless or without a value."""
    assert len(message.trace_id) == 16
    assert any(message.trace_id)
    assert len(message.span_id) == 8
    assert any(message.span_id)
    names = [attribute.key for attribute in message.attributes]
    assert len(set(names)) == len(names)
    assert all(names)
    assert all(attribute.value.WhichOneof("value") for attribute in message.attributes)


def line_is_one_line(line: str | None) -> None:
    """Nothing in `line` but colours does anything to a terminal, or ends the line."""
    if line is not None:
        plain = COLOUR.sub("", line)
        assert valid_unicode(plain).isprintable(), plain
