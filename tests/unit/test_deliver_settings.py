"""OpenTelemetry's variables."""

from __future__ import annotations

from typing import Any

import pytest

from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.settings import Batching, Otlp, read_settings


def otlp(signal: Any = "traces", **environ: str) -> Otlp:
    found = read_settings({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()}, signal).otlp
    assert found is not None
    return found


def test_defaults() -> None:
    traces, logs = read_settings({}, "traces"), read_settings({}, "logs")
    assert traces.exporters == logs.exporters == ("otlp",)
    assert traces.batching == Batching(queue_size=32_768, batch_size=512, delay_s=5.0)
    assert logs.batching == Batching(queue_size=32_768, batch_size=512, delay_s=1.0)
    assert traces.otlp == Otlp("http/protobuf", "http://localhost:4318/v1/traces", 10.0, insecure=True)
    assert logs.otlp == Otlp("http/protobuf", "http://localhost:4318/v1/logs", 10.0, insecure=True)


@pytest.mark.parametrize("value", ["", "  "])
def test_empty_is_unset(value: str) -> None:
    variables = (
        "OTEL_TRACES_EXPORTER",
        "OTEL_SDK_DISABLED",
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    )
    assert read_settings(dict.fromkeys(variables, value), "traces") == read_settings({}, "traces")


@pytest.mark.parametrize(
    ("value", "exporters"),
    [("otlp", ("otlp",)), ("none", ()), ("console, otlp", ("console", "otlp")), ("otlp,otlp", ("otlp",))],
)
def test_exporters(value: str, exporters: tuple[str, ...]) -> None:
    settings = read_settings({"OTEL_LOGS_EXPORTER": value, "OTEL_TRACES_EXPORTER": "zipkin"}, "logs")
    assert settings.exporters == exporters
    assert (settings.otlp is not None) == ("otlp" in exporters)


def test_disabled() -> None:
    settings = read_settings({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "console"}, "traces")
    assert (settings.exporters, settings.unsent_because) == ((), "OTEL_SDK_DISABLED=true")
    assert read_settings({"OTEL_SDK_DISABLED": "1"}, "traces").exporters == ("otlp",)


def test_endpoints() -> None:
    assert otlp(ENDPOINT="https://c:1/base/").endpoint == "https://c:1/base/v1/traces"
    assert otlp("logs", ENDPOINT="http://c").endpoint == "http://c/v1/logs"
    assert otlp(TRACES_ENDPOINT="http://c:1/x", ENDPOINT="http://d").endpoint == "http://c:1/x"
    assert otlp("logs", TRACES_ENDPOINT="http://c:1/x").endpoint == "http://localhost:4318/v1/logs"


def test_grpc() -> None:
    assert otlp(PROTOCOL="grpc") == Otlp("grpc", "http://localhost:4317", 10.0, insecure=True)
    assert not otlp(PROTOCOL="grpc", ENDPOINT="https://c:1", INSECURE="true").insecure
    assert not otlp(PROTOCOL="grpc", ENDPOINT="c:1").insecure
    assert otlp(PROTOCOL="grpc", ENDPOINT="c:1", TRACES_INSECURE="true").insecure
    assert otlp("logs", PROTOCOL="grpc", LOGS_PROTOCOL="http/protobuf").protocol == "http/protobuf"


def test_timeouts_are_milliseconds() -> None:
    assert otlp(TIMEOUT="2500").timeout_s == 2.5
    assert otlp("logs", TIMEOUT="2500", LOGS_TIMEOUT="100").timeout_s == 0.1
    found = read_settings({"OTEL_BSP_EXPORT_TIMEOUT": "3000"}, "traces").otlp
    assert found is not None
    assert found.timeout_s == 3.0


def test_headers_and_compression() -> None:
    found = otlp(HEADERS="a=b,Authorization=Basic%20eA==", COMPRESSION="gzip", LOGS_HEADERS="x=y")
    assert found.headers == {"a": "b", "authorization": "Basic eA=="}
    assert found.compression == "gzip"


def test_batching() -> None:
    environ = {
        "OTEL_BLRP_MAX_QUEUE_SIZE": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "0",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7",
    }
    assert read_settings(environ, "logs").batching == Batching(queue_size=100, batch_size=100, delay_s=0.0)
    assert read_settings(environ, "traces").batching == Batching(queue_size=32_768, batch_size=7, delay_s=5.0)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", ["'zipkin'", "otlp, console or none"]),
        ("OTEL_TRACES_EXPORTER", "otlp,none", ["none cannot be combined"]),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", ["grpc or http/protobuf", "not supported"]),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "udp", ["grpc or http/protobuf"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", ["URL", "http://localhost:4318"]),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[", ["URL"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:99999", ["URL"]),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", ["'10s'", "whole number"]),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", ["1 or more"]),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", ["none or gzip or deflate"]),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem", ["/nonexistent/ca.pem", "cannot be read"]),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", ["whole number"]),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "99999", ["more than the queue", "OTEL_BSP_MAX_QUEUE_SIZE"]),
    ],
)
def test_bad_values_fail_with_the_variable_and_what_it_may_be(variable: str, value: str, words: list[str]) -> None:
    with pytest.raises(DeliveryError) as failure:
        read_settings({variable: value}, "traces")
    for word in (variable, *words):
        assert word in str(failure.value)


def test_grpc_has_no_deflate_and_wants_an_endpoint_without_spaces() -> None:
    for environ in ({"COMPRESSION": "deflate"}, {"ENDPOINT": "http:// c"}):
        with pytest.raises(DeliveryError):
            otlp(PROTOCOL="grpc", **environ)
