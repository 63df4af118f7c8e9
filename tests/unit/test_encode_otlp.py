"""OTLP written byte by byte, against opentelemetry-proto's own parser and the SDK's own encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs as sdk_encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import LogRecord, Resource, Span
from otel_procmon.convert.text import encodable
from otel_procmon.deliver.sdk import SdkRecords
from otel_procmon.encode.otlp import OtlpEncoder, encode_request
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import SpanRef
from tests.unit.otlp_records import some_logs, some_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.convert.records import Record

DROPPED = ("encode", "dropped: a value that OTLP cannot hold")


def request(records: Sequence[Record], encoder: OtlpEncoder) -> bytes:
    """The records as one request, grouped as the SDK groups them: by Resource, in the order of their first record."""
    groups: dict[int, tuple[bytes, str, list[bytes]]] = {}
    for record in records:
        resource = record.resource
        group = groups.setdefault(id(resource), (encoder.resource(resource), resource.schema_url, []))
        group[2].append(encoder.encode(record))
    return encode_request(groups.values())


def equal(ours: Any, theirs: Any) -> bool:
    """Messages as their bytes, since a NaN equals nothing."""
    return bool(ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True))


@given(some_logs)
def test_logs_are_what_the_sdk_encodes(records: list[LogRecord]) -> None:
    convert, ledger = SdkRecords(), Ledger()
    theirs = sdk_encode_logs([convert.log(record) for record in records])
    encoder = OtlpEncoder(ledger)
    for _ in range(2):  # the second time from what it remembers
        assert equal(ExportLogsServiceRequest.FromString(request(records, encoder)), theirs)
    assert not ledger.counts()


@given(some_spans)
def test_spans_are_what_the_sdk_encodes(records: list[Span]) -> None:
    convert, ledger = SdkRecords(), Ledger()
    theirs = sdk_encode_spans([convert.span(record) for record in records])
    encoder = OtlpEncoder(ledger)
    for _ in range(2):
        assert equal(ExportTraceServiceRequest.FromString(request(records, encoder)), theirs)
    assert not ledger.counts()


def log_of(**fields: Any) -> LogRecord:
    return LogRecord(
        **{
            "resource": Resource({"service.name": "s"}, SCHEMA_URL),
            "event_name": "process.exec",
            "time_unix_ns": 1,
            "observed_unix_ns": 2,
            "severity_number": 9,
            "body": "line",
            "attributes": {},
            "span": SpanRef(b"\xab" * 16, b"\xcd" * 8),
            **fields,
        }
    )


def decoded(record: LogRecord, ledger: Ledger) -> Any:
    parsed = ExportLogsServiceRequest.FromString(request([record], OtlpEncoder(ledger)))
    return parsed.resource_logs[0].scope_logs[0].log_records[0]


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_arrives_as_valid_utf8(name: str, text: str) -> None:
    record = decoded(log_of(body=text, event_name=text, attributes={name: text, "list": (text,)}), Ledger())
    assert record.body.string_value == record.event_name == encodable(text)
    assert record.attributes[0].key == encodable(name)
    assert record.attributes[-1].value.array_value.values[0].string_value == encodable(text)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, None, object(), (1,), {"a": 1}, b"x"])
def test_a_value_that_otlp_cannot_hold_costs_itself_only(value: Any) -> None:
    ledger = Ledger()
    record = decoded(log_of(attributes={"before": 1, "bad": value, "after": "x"}), ledger)
    assert [attribute.key for attribute in record.attributes] == ["before", "after"]
    assert ledger.counts() == {DROPPED: 1}


@pytest.mark.parametrize(("time", "held"), [(-1, 0), (2**64, 2**64 - 1), (-(2**70), 0)])
def test_a_time_that_otlp_cannot_hold_becomes_the_nearest(time: int, held: int) -> None:
    ledger = Ledger()
    assert decoded(log_of(time_unix_ns=time), ledger).time_unix_nano == held
    assert ledger.counts() == {("encode", "changed: a time that OTLP cannot hold"): 1}


def test_what_is_remembered_is_bounded_and_right() -> None:
    ledger = Ledger()
    encoder = OtlpEncoder(ledger)
    for number in range(20_000):
        record = log_of(attributes={"n": str(number), f"key{number}": True})
        parsed = ExportLogsServiceRequest.FromString(request([record], encoder))
        (first, second) = parsed.resource_logs[0].scope_logs[0].log_records[0].attributes
        assert (first.key, first.value.string_value) == ("n", str(number))
        assert (second.key, second.value.bool_value) == (f"key{number}", True)
    kept = [len(encoder._names), len(encoder._event_names), len(encoder._resources)]
    assert max(kept) <= 8192
