"""OTLP JSON against opentelemetry-proto's own parser and the SDK's own encoder."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs as sdk_encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode_spans
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from otel_procmon import __version__
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import LogRecord, Resource, Span
from otel_procmon.deliver.sdk import SdkRecords
from otel_procmon.encode.otlp_json import encode_logs, encode_spans
from otel_procmon.lineage.image import SpanRef
from tests.unit.otlp_records import some_logs, some_spans


def parsed(line: bytes, message: Any) -> Any:
    """`line` as a message. OTLP's only difference to protojson is undone: ids are hexadecimal there, base64 here."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1

    def ids(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base64.b64encode(bytes.fromhex(item)).decode()
                if key in {"traceId", "spanId", "parentSpanId"}
                else ids(item)
                for key, item in value.items()
            }
        return [ids(item) for item in value] if isinstance(value, list) else value

    return json_format.ParseDict(ids(json.loads(line)), message)


def equal(ours: Any, theirs: Any) -> bool:
    """Messages as their bytes, since a NaN equals nothing."""
    return bool(ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True))


@given(some_logs)
def test_logs_are_what_the_sdk_encodes(records: list[LogRecord]) -> None:
    convert = SdkRecords()
    theirs = sdk_encode_logs([convert.log(record) for record in records])
    assert equal(parsed(encode_logs(records), LogsData()), theirs)


@given(some_spans)
def test_spans_are_what_the_sdk_encodes(records: list[Span]) -> None:
    convert = SdkRecords()
    theirs = sdk_encode_spans([convert.span(record) for record in records])
    assert equal(parsed(encode_spans(records), TracesData()), theirs)


def log_of(**fields: Any) -> LogRecord:
    return LogRecord(
        **{
            "resource": Resource({"service.name": "s"}, SCHEMA_URL),
            "event_name": "process.exec",
            "time_unix_ns": 1_700_000_000_000_000_001,
            "observed_unix_ns": 2,
            "severity_number": 9,
            "body": "line",
            "attributes": {},
            "span": SpanRef(b"\xab" * 16, b"\xcd" * 8),
            **fields,
        }
    )


def test_values_that_are_equal_stay_different() -> None:
    """Attributes that come again are not encoded again."""
    values = [0, False, 0.0, -0.0, 1, True, 1.0, 0.0]
    said = []
    for value in values:
        line = json.loads(encode_logs([log_of(attributes={"x": value})]))
        (attribute,) = line["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["attributes"]
        said.append(json.dumps(attribute["value"]))
    kinds = [
        "intValue",
        "boolValue",
        "doubleValue",
        "doubleValue",
        "intValue",
        "boolValue",
        "doubleValue",
        "doubleValue",
    ]
    texts = ['"0"', "false", "0.0", "-0.0", '"1"', "true", "1.0", "0.0"]
    assert said == [f'{{"{kind}": {text}}}' for kind, text in zip(kinds, texts, strict=True)]


def test_form_of_a_line() -> None:
    assert json.loads(encode_logs([log_of(attributes={"i": 5, "b": True, "d": 0.5, "a": ("x",), "s": "t"})])) == {
        "resourceLogs": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "s"}}]},
                "scopeLogs": [
                    {
                        "scope": {"name": "otel_procmon", "version": __version__},
                        "logRecords": [
                            {
                                "timeUnixNano": "1700000000000000001",
                                "observedTimeUnixNano": "2",
                                "severityNumber": 9,
                                "body": {"stringValue": "line"},
                                "attributes": [
                                    {"key": "i", "value": {"intValue": "5"}},
                                    {"key": "b", "value": {"boolValue": True}},
                                    {"key": "d", "value": {"doubleValue": 0.5}},
                                    {"key": "a", "value": {"arrayValue": {"values": [{"stringValue": "x"}]}}},
                                    {"key": "s", "value": {"stringValue": "t"}},
                                ],
                                "flags": 1,
                                "traceId": "ab" * 16,
                                "spanId": "cd" * 8,
                                "eventName": "process.exec",
                            }
                        ],
                        "schemaUrl": SCHEMA_URL,
                    }
                ],
                "schemaUrl": SCHEMA_URL,
            }
        ]
    }


def test_one_entry_for_each_resource_object_in_order() -> None:
    one, two = Resource({"n": "1"}, SCHEMA_URL), Resource({"n": "2"}, SCHEMA_URL)
    records = [log_of(resource=r, body=b) for r, b in ((one, "a"), (two, "b"), (one, "c"))]
    entries = json.loads(encode_logs(records))["resourceLogs"]
    bodies = [[r["body"]["stringValue"] for r in e["scopeLogs"][0]["logRecords"]] for e in entries]
    assert bodies == [["a", "c"], ["b"]]


@pytest.mark.parametrize(
    ("number", "text"), [(math.nan, '"NaN"'), (math.inf, '"Infinity"'), (-math.inf, '"-Infinity"')]
)
def test_numbers_that_json_does_not_have(number: float, text: str) -> None:
    assert f'"doubleValue":{text}' in encode_logs([log_of(attributes={"x": number})]).decode()


def test_newlines_and_controls_stay_inside_of_the_line() -> None:
    line = encode_logs([log_of(body="a\nb\x1b[2J\u2028\x00")])
    assert line.count(b"\n") == 1
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", line)


def test_a_lone_surrogate_is_an_error_for_the_caller_to_handle() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode_logs([log_of(body="\ud800")])
