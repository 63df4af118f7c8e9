"""Delivery through the SDK's exporters to real receivers on the loopback interface."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from otel_procmon import __version__
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import LogRecord, Resource, Span
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.sdk import SdkDelivery
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import SpanRef

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND_S = 30.0
RESOURCE = Resource({"service.name": "s", "container.image.tags": ("latest",)}, SCHEMA_URL)
REFERENCE = SpanRef(b"\xab" * 16, b"\xcd" * 8)
OTHER = SpanRef(b"\x01" * 16, b"\x02" * 8)


def span(name: str = "curl", **fields: Any) -> Span:
    return Span(
        **{
            "resource": RESOURCE,
            "name": name,
            "span": REFERENCE,
            "parent_span_id": b"\xef" * 8,
            "start_unix_ns": 1_700_000_000_000_000_001,
            "end_unix_ns": 1_700_000_000_000_000_009,
            "error": True,
            "attributes": {"process.pid": 7, "process.command_args": ("curl", "ä\n")},
            "links": (OTHER,),
            **fields,
        }
    )


def log(body: str = "line", **fields: Any) -> LogRecord:
    return LogRecord(
        **{
            "resource": RESOURCE,
            "event_name": "process.exec",
            "time_unix_ns": 1_700_000_000_000_000_001,
            "observed_unix_ns": 1_700_000_000_000_000_002,
            "severity_number": 9,
            "body": body,
            "attributes": {"process.pid": 7},
            "span": REFERENCE,
            **fields,
        }
    )


class Received:
    """What a receiver got, and how it is to answer."""

    def __init__(self) -> None:
        self.traces: list[trace_pb.ExportTraceServiceRequest] = []
        self.logs: list[logs_pb.ExportLogsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.status: Any = None
        self.asked = threading.Event()

    def spans(self) -> list[Any]:
        return [s for r in self.traces for e in r.resource_spans for scope in e.scope_spans for s in scope.spans]

    def records(self) -> list[Any]:
        return [s for r in self.logs for e in r.resource_logs for scope in e.scope_logs for s in scope.log_records]


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def http_port(received: Received) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.headers.append({key.lower(): value for key, value in self.headers.items()})
            received.asked.set()
            if received.status is not None:
                self.send_response(received.status)
            elif self.path == "/v1/traces":
                received.traces.append(trace_pb.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
            elif self.path == "/v1/logs":
                received.logs.append(logs_pb.ExportLogsServiceRequest.FromString(body))
                self.send_response(200)
            else:
                self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(BOUND_S)


@pytest.fixture
def grpc_port(received: Received) -> Iterator[int]:
    def answer(context: Any) -> None:
        received.headers.append({key: str(value) for key, value in context.invocation_metadata()})
        received.asked.set()
        if received.status is not None:
            context.abort(received.status, "as asked")

    class Traces(trace_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
            answer(context)
            received.traces.append(request)
            return trace_pb.ExportTraceServiceResponse()

    class Logs(logs_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
            answer(context)
            received.logs.append(request)
            return logs_pb.ExportLogsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
    logs_grpc.add_LogsServiceServicer_to_server(Logs(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait(BOUND_S)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's exporters look at it too."""
    for name in [*os.environ]:
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def delivery_to(port: int, ledger: Ledger, **environ: str) -> SdkDelivery:
    return SdkDelivery({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", **environ}, ledger)


@pytest.fixture(params=["http/protobuf", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def port(request: pytest.FixtureRequest, protocol: str) -> int:
    return int(request.getfixturevalue("grpc_port" if protocol == "grpc" else "http_port"))


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_records_arrive(port: int, protocol: str, compression: str, received: Received) -> None:
    ledger = Ledger()
    delivery = delivery_to(
        port,
        ledger,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_COMPRESSION=compression,
        OTEL_EXPORTER_OTLP_HEADERS="x-key=secret",
    )
    delivery.put([log(), span(), log("second", severity_number=13)])
    assert delivery.flush(BOUND_S)
    assert delivery.shutdown(BOUND_S)
    assert ledger.counts() == {("delivery.logs", "exported"): 2, ("delivery.traces", "exported"): 1}

    (one,) = received.spans()
    assert (one.name, one.kind, one.status.code, one.status.message) == ("curl", 1, 2, "")
    assert (one.trace_id, one.span_id, one.parent_span_id) == (*REFERENCE, b"\xef" * 8)
    assert (one.start_time_unix_nano, one.end_time_unix_nano) == (1_700_000_000_000_000_001, 1_700_000_000_000_000_009)
    assert [(link.trace_id, link.span_id) for link in one.links] == [tuple(OTHER)]
    arguments = next(a.value.array_value for a in one.attributes if a.key == "process.command_args")
    assert [value.string_value for value in arguments.values] == ["curl", "ä\n"]

    first, second = received.records()
    assert (first.event_name, first.body.string_value, first.severity_number) == ("process.exec", "line", 9)
    assert (first.trace_id, first.span_id, first.flags) == (*REFERENCE, 1)
    assert first.time_unix_nano == 1_700_000_000_000_000_001
    assert first.observed_time_unix_nano == 1_700_000_000_000_000_002
    assert second.severity_number == 13

    (entry,) = received.traces[0].resource_spans
    assert entry.schema_url == entry.scope_spans[0].schema_url == SCHEMA_URL
    assert (entry.scope_spans[0].scope.name, entry.scope_spans[0].scope.version) == ("otel_procmon", __version__)
    assert [a.key for a in entry.resource.attributes] == ["service.name", "container.image.tags"]
    assert all(headers["x-key"] == "secret" for headers in received.headers)
    if compression == "gzip" and protocol == "http/protobuf":
        assert received.headers[0]["content-encoding"] == "gzip"


def test_a_record_that_cannot_be_encoded_costs_itself_only(port: int, protocol: str, received: Received) -> None:
    ledger = Ledger()
    delivery = delivery_to(port, ledger, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    delivery.put([span("a"), span("\ud800"), span("b", span=SpanRef(b"x" * 17, b"y" * 8)), span("c")])
    delivery.put([log("a"), log("\udcff"), log("c", time_unix_ns=-1), log("d")])
    assert delivery.flush(BOUND_S)
    delivery.shutdown(BOUND_S)
    assert [s.name for s in received.spans()] == ["a", "c"]
    assert [r.body.string_value for r in received.records()] == ["a", "d"]
    assert ledger.counts() == {
        ("delivery.logs", "exported"): 2,
        ("delivery.logs", "lost: cannot be encoded"): 2,
        ("delivery.traces", "exported"): 2,
        ("delivery.traces", "lost: cannot be encoded"): 2,
    }


def test_signals_can_go_to_different_places(http_port: int, grpc_port: int, received: Received) -> None:
    delivery = SdkDelivery(
        {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{grpc_port}",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "signal=traces",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"http://127.0.0.1:{http_port}/v1/logs",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "signal=logs",
        },
        Ledger(),
    )
    delivery.put([span(), log()])
    assert delivery.shutdown(BOUND_S)
    assert (len(received.spans()), len(received.records())) == (1, 1)
    assert sorted(headers["signal"] for headers in received.headers) == ["logs", "traces"]


def test_unreachable_is_said_in_words_and_counted(
    closed_port: int, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    # Too short for the exporter to wait for another try, which it does for 0.8 s at least.
    delivery = delivery_to(
        closed_port,
        ledger,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_TIMEOUT="750",
        OTEL_TRACES_EXPORTER="none",
    )
    with caplog.at_level(logging.DEBUG):
        delivery.put([log(), log()])
        assert delivery.flush(BOUND_S)
        delivery.put([log()])
        assert delivery.flush(BOUND_S)
        delivery.shutdown(BOUND_S)
    assert ledger.counts() == {("delivery.logs", "lost: export failed"): 3}
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.name for r in said] == ["otel_procmon.deliver.lane"], "the SDK's own words are held back"
    assert said[0].getMessage() == (
        f"delivery.logs: cannot reach http://127.0.0.1:{closed_port} (connection refused): start a Collector there or set "
        "OTEL_EXPORTER_OTLP_ENDPOINT; 2 records were lost"
    )


@pytest.mark.parametrize(
    ("protocol", "status", "words"),
    [
        ("http/protobuf", 401, ["401 Unauthorized", "OTEL_EXPORTER_OTLP_HEADERS"]),
        ("http/protobuf", 404, ["404 Not Found", "OTEL_EXPORTER_OTLP_PROTOCOL", "4317"]),
        ("http/protobuf", 400, ["400 Bad Request", "receiver's log"]),
        ("http/protobuf", 503, ["Service Unavailable"]),
        ("grpc", grpc.StatusCode.UNAUTHENTICATED, ["UNAUTHENTICATED: as asked", "OTEL_EXPORTER_OTLP_HEADERS"]),
        ("grpc", grpc.StatusCode.UNIMPLEMENTED, ["UNIMPLEMENTED", "OTEL_EXPORTER_OTLP_PROTOCOL"]),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, ["RESOURCE_EXHAUSTED", "BATCH_SIZE"]),
    ],
)
def test_a_receiver_that_refuses(
    port: int, protocol: str, status: Any, words: list[str], received: Received, caplog: pytest.LogCaptureFixture
) -> None:
    received.status = status
    ledger = Ledger()
    retried = status in {503, grpc.StatusCode.RESOURCE_EXHAUSTED}
    timeout_ms = "750" if retried else "30000"
    delivery = delivery_to(port, ledger, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_EXPORTER_OTLP_TIMEOUT=timeout_ms)
    delivery.put([span(), span()])
    assert delivery.flush(BOUND_S)
    assert ledger.counts() == {("delivery.traces", "lost: export failed"): 2}
    for word in (f"http://127.0.0.1:{port} ", *words):
        assert word in caplog.text
    received.status = None
    if retried:
        delivery.shutdown(BOUND_S)
        return
    delivery.put([span()])
    assert delivery.shutdown(BOUND_S)
    assert ledger.get("delivery.traces", "exported") == 1
    assert "sending works again" in caplog.text


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_shutdown_interrupts_a_retry(port: int, protocol: str, received: Received) -> None:
    """With an hour to retry in, only an interruption ends this."""
    received.status = grpc.StatusCode.UNAVAILABLE if protocol == "grpc" else 503
    ledger = Ledger()
    delivery = delivery_to(
        port,
        ledger,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_TIMEOUT="3600000",
        OTEL_BSP_EXPORT_TIMEOUT="3600000",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1",
    )
    delivery.put([span() for _ in range(50)])
    assert received.asked.wait(BOUND_S)
    done = threading.Event()
    result: list[bool] = []

    def end() -> None:
        result.append(delivery.shutdown(0.1))
        done.set()

    threading.Thread(target=end, daemon=True).start()
    assert done.wait(BOUND_S)
    assert result == [False]
    assert sum(number for (place, _), number in ledger.counts().items() if place == "delivery.traces") == 50
    assert ledger.lost() == 50


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def test_a_receiver_that_never_answers(silent_port: int, protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    delivery = delivery_to(silent_port, ledger, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_EXPORTER_OTLP_TIMEOUT="200")
    delivery.put([span()])
    assert delivery.flush(BOUND_S)
    delivery.shutdown(BOUND_S)
    assert ledger.counts() == {("delivery.traces", "lost: export failed"): 1}
    words = "DEADLINE_EXCEEDED" if protocol == "grpc" else "no answer in time"
    assert f"cannot reach http://127.0.0.1:{silent_port} ({words}" in caplog.text


def test_shutdown_gives_up_a_receiver_that_never_answers(silent_port: int, protocol: str) -> None:
    """With an hour to wait in, only giving up ends this."""
    ledger = Ledger()
    delivery = delivery_to(
        silent_port,
        ledger,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_TIMEOUT="3600000",
        OTEL_BLRP_EXPORT_TIMEOUT="3600000",
        OTEL_BLRP_SCHEDULE_DELAY="0",
    )
    delivery.put([log(), log()])
    ending = threading.Thread(target=delivery.shutdown, args=(0.1,), daemon=True)
    ending.start()
    ending.join(BOUND_S)
    assert not ending.is_alive()
    assert ledger.lost() == 2


def test_no_exporter_and_disabled() -> None:
    ledger = Ledger()
    delivery = SdkDelivery({"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, ledger)
    delivery.put([span(), log()])
    assert delivery.shutdown(BOUND_S)
    delivery = SdkDelivery({"OTEL_SDK_DISABLED": "true"}, ledger)
    delivery.put([span()])
    assert delivery.flush(BOUND_S)
    assert delivery.shutdown(BOUND_S)
    assert ledger.counts() == {
        ("delivery.logs", "not sent: OTEL_LOGS_EXPORTER=none"): 1,
        ("delivery.traces", "not sent: OTEL_SDK_DISABLED=true"): 1,
        ("delivery.traces", "not sent: OTEL_TRACES_EXPORTER=none"): 1,
    }
    assert ledger.lost() == 0


def test_console() -> None:
    console, ledger = io.StringIO(), Ledger()
    delivery = SdkDelivery(
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_LOGS_EXPORTER": "console"}, ledger, console=console
    )
    delivery.put([span(), span("\ud800")])
    assert delivery.flush(BOUND_S)
    delivery.put([log("a\x1b[2J")])
    assert delivery.shutdown(BOUND_S)
    text = console.getvalue()
    assert "\x1b" not in text
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    assert found[0] == {
        "span": "curl",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "parent_span_id": "ef" * 8,
        "start": "2023-11-14T22:13:20.000000001Z",
        "end": "2023-11-14T22:13:20.000000009Z",
        "status": "Error",
        "attributes": {"process.pid": 7, "process.command_args": ["curl", "ä\n"]},
        "links": [{"trace_id": "01" * 16, "span_id": "02" * 8}],
        "resource": {"service.name": "s", "container.image.tags": ["latest"]},
    }
    assert found[1]["log"] == "process.exec"
    assert found[1]["body"] == "a\x1b[2J"
    assert ledger.counts() == {
        ("delivery.logs.console", "exported"): 1,
        ("delivery.traces.console", "exported"): 1,
        ("delivery.traces.console", "lost: cannot be encoded"): 1,
    }


def test_console_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    console, ledger = io.StringIO(), Ledger()
    console.close()
    delivery = SdkDelivery({"OTEL_TRACES_EXPORTER": "console", "OTEL_LOGS_EXPORTER": "none"}, ledger, console=console)
    delivery.put([span()])
    assert delivery.shutdown(BOUND_S)
    assert ledger.counts() == {("delivery.traces.console", "lost: export failed"): 1}
    assert "cannot write to the console" in caplog.text


def test_both_exporters_get_everything(http_port: int, received: Received) -> None:
    console, ledger = io.StringIO(), Ledger()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http_port}", "OTEL_TRACES_EXPORTER": "otlp,console"}
    delivery = SdkDelivery(environ, ledger, console=console)
    delivery.put([span()])
    assert delivery.shutdown(BOUND_S)
    assert len(received.spans()) == 1
    assert json.loads(console.getvalue())["span"] == "curl"


def test_settings_that_cannot_work_fail_at_the_start() -> None:
    for environ in (
        {"OTEL_LOGS_EXPORTER": "stdout"},
        {"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"},
    ):
        with pytest.raises(DeliveryError):
            SdkDelivery(environ, Ledger())


def test_grpc_is_imported_only_when_it_is_asked_for() -> None:
    script = (
        "import sys; from otel_procmon.deliver.sdk import SdkDelivery; from otel_procmon.ledger import Ledger; "
        "SdkDelivery({'OTEL_EXPORTER_OTLP_PROTOCOL': sys.argv[1]}, Ledger()); print('grpc' in sys.modules)"
    )
    for protocol, imported in (("http/protobuf", "False"), ("grpc", "True")):
        result = subprocess.run(
            [sys.executable, "-c", script, protocol], capture_output=True, text=True, check=True, timeout=BOUND_S
        )
        assert result.stdout.strip() == imported
