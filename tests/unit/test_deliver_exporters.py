"""Delivery by the exporters that the environment names, to real receivers on the loopback interface."""

from __future__ import annotations

import gzip
import http.server
import importlib
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from otel_procmon import __version__
from otel_procmon.config import DeliveryOptions
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import LogRecord, Resource, Span
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.exporters import ExporterDelivery
from otel_procmon.deliver.spool import Spool
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import SpanRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BOUND_S = 30.0
RESOURCE = Resource({"service.name": "s", "container.image.tags": ("latest",)}, SCHEMA_URL)
REFERENCE = SpanRef(b"\xab" * 16, b"\xcd" * 8)
OTHER = SpanRef(b"\x01" * 16, b"\x02" * 8)


def delivery_of(environ: dict[str, str], ledger: Ledger, **options: Any) -> ExporterDelivery:
    """Without a spool: what cannot be sent waits in memory."""
    return ExporterDelivery(environ, ledger, DeliveryOptions(spool_directory=None), **options)


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


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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


def delivery_to(port: int, ledger: Ledger, **environ: str) -> ExporterDelivery:
    return delivery_of({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", **environ}, ledger)


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


def test_a_value_that_cannot_be_encoded_costs_no_record(port: int, protocol: str, received: Received) -> None:
    ledger = Ledger()
    delivery = delivery_to(port, ledger, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    delivery.put([span("a"), span("\ud800"), span("c")])
    delivery.put([log("a"), log("\udcff"), log("c", time_unix_ns=-1), log("d")])
    assert delivery.flush(BOUND_S)
    delivery.shutdown(BOUND_S)
    assert [s.name for s in received.spans()] == ["a", "\ufffd", "c"]
    assert [(r.body.string_value, r.time_unix_nano > 0) for r in received.records()] == [
        ("a", True),
        ("\ufffd", True),
        ("c", False),
        ("d", True),
    ]
    assert ledger.get("delivery.logs", "exported") == 4
    assert ledger.get("delivery.traces", "exported") == 3
    assert ledger.lost() == 0


def test_signals_can_go_to_different_places(http_port: int, grpc_port: int, received: Received) -> None:
    delivery = delivery_of(
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


def test_unreachable_is_said_in_words_and_waits(
    closed_port: int, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    delivery = delivery_to(
        closed_port,
        ledger,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_TRACES_EXPORTER="none",
        OTEL_BLRP_SCHEDULE_DELAY="0",
    )
    with caplog.at_level(logging.DEBUG):
        delivery.put([log(), log()])
        wait_until(lambda: "cannot reach" in caplog.text)
        delivery.put([log()])
        assert not delivery.flush(0.01), "nobody has taken it, and it is nowhere safe"
        assert delivery.waiting() == 3
        assert ledger.counts() == {}, "nothing is lost yet"
        assert not delivery.shutdown(0.0)
    assert ledger.counts() == {("delivery.logs", "lost: not sent before the end"): 3}
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.name for r in said] == ["otel_procmon.teller"], "no library's own words"
    assert said[0].getMessage() == (
        f"delivery.logs: cannot reach http://127.0.0.1:{closed_port} (connection refused): start a Collector there or set "
        "OTEL_EXPORTER_OTLP_ENDPOINT; nothing is lost yet"
    )


@pytest.mark.parametrize(
    ("protocol", "status", "words"),
    [
        ("http/protobuf", 401, ["401 Unauthorized", "OTEL_EXPORTER_OTLP_HEADERS"]),
        ("http/protobuf", 404, ["404 Not Found", "OTEL_EXPORTER_OTLP_PROTOCOL", "4317"]),
        ("http/protobuf", 400, ["400 Bad Request", "receiver's log"]),
        ("grpc", grpc.StatusCode.UNAUTHENTICATED, ["UNAUTHENTICATED: as asked", "OTEL_EXPORTER_OTLP_HEADERS"]),
        ("grpc", grpc.StatusCode.UNIMPLEMENTED, ["UNIMPLEMENTED", "OTEL_EXPORTER_OTLP_PROTOCOL"]),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, ["RESOURCE_EXHAUSTED", "receiver's log"]),
    ],
)
def test_a_receiver_that_refuses(
    port: int, protocol: str, status: Any, words: list[str], received: Received, caplog: pytest.LogCaptureFixture
) -> None:
    received.status = status
    ledger = Ledger()
    delivery = delivery_to(port, ledger, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    delivery.put([span(), span()])
    assert delivery.flush(BOUND_S)
    assert ledger.counts() == {("delivery.traces", "lost: refused by the receiver"): 2}
    for word in (f"http://127.0.0.1:{port} ", *words, "2 records were lost"):
        assert word in caplog.text
    assert len(received.headers) == 1, "what is refused is not sent again"
    received.status = None
    delivery.put([span()])
    assert delivery.shutdown(BOUND_S)
    assert ledger.get("delivery.traces", "exported") == 1
    assert "sending works again" in caplog.text


def test_a_receiver_that_is_busy_gets_it_later(
    port: int, protocol: str, received: Received, caplog: pytest.LogCaptureFixture
) -> None:
    received.status = grpc.StatusCode.UNAVAILABLE if protocol == "grpc" else 503
    ledger = Ledger()
    delivery = delivery_to(port, ledger, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_BSP_SCHEDULE_DELAY="0")
    delivery.put([span(), span()])
    wait_until(lambda: "cannot take the records now" in caplog.text)
    received.status = None
    assert delivery.flush(BOUND_S)
    assert ledger.counts() == {("delivery.traces", "exported"): 2}
    assert len(received.spans()) == 2
    assert delivery.shutdown(BOUND_S)
    assert ledger.lost() == 0
    assert "nothing is lost yet" in caplog.text
    assert "sending works again" in caplog.text


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_shutdown_interrupts_a_retry(port: int, protocol: str, received: Received) -> None:
    """With an hour to send in, only an interruption ends this."""
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
    assert ledger.counts() == {("delivery.traces", "lost: not sent before the end"): 50}


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def test_a_receiver_that_never_answers(silent_port: int, protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    delivery = delivery_to(
        silent_port,
        ledger,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_TIMEOUT="200",
        OTEL_BSP_SCHEDULE_DELAY="0",
    )
    delivery.put([span()])
    wait_until(lambda: bool(caplog.text))
    assert f"http://127.0.0.1:{silent_port} does not answer in time" in caplog.text
    assert "nothing is lost yet" in caplog.text
    delivery.shutdown(0.0)
    assert ledger.counts() == {("delivery.traces", "lost: not sent before the end"): 1}


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
    assert ledger.counts() == {("delivery.logs", "lost: not sent before the end"): 2}


def test_no_exporter_and_disabled() -> None:
    ledger = Ledger()
    delivery = delivery_of({"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, ledger)
    delivery.put([span(), log()])
    assert delivery.shutdown(BOUND_S)
    delivery = delivery_of({"OTEL_SDK_DISABLED": "true"}, ledger)
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
    delivery = delivery_of(
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
    delivery = delivery_of({"OTEL_TRACES_EXPORTER": "console", "OTEL_LOGS_EXPORTER": "none"}, ledger, console=console)
    delivery.put([span()])
    assert delivery.shutdown(BOUND_S)
    assert ledger.counts() == {("delivery.traces.console", "lost: export failed"): 1}
    assert "cannot write to the console" in caplog.text


def test_both_exporters_get_everything(http_port: int, received: Received) -> None:
    console, ledger = io.StringIO(), Ledger()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http_port}", "OTEL_TRACES_EXPORTER": "otlp,console"}
    delivery = delivery_of(environ, ledger, console=console)
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
            delivery_of(environ, Ledger())


def test_what_fails_at_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """No thread, and no lock on the spool."""
    before = set(threading.enumerate())
    options = DeliveryOptions(spool_directory=str(tmp_path / "spool"))
    for environ in ({"OTEL_LOGS_EXPORTER": "stdout"}, {"OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": str(tmp_path / "none")}):
        with pytest.raises(DeliveryError):
            ExporterDelivery(environ, Ledger(), options)
    assert set(threading.enumerate()) == before
    Spool(tmp_path / "spool", 1 << 20, Ledger()).close()


# The spool


def test_both_signals_wait_in_one_spool_and_outlive_the_agent(
    closed_port: int, http_port: int, received: Received, tmp_path: Path
) -> None:
    options = DeliveryOptions(spool_directory=str(tmp_path / "spool"))
    first = Ledger()
    delivery = ExporterDelivery({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{closed_port}"}, first, options)
    delivery.put([log(), span(), log("second")])
    mark = delivery.mark()
    assert not delivery.is_safe(mark)
    assert delivery.flush(BOUND_S), "the spool is as good as a receiver"
    assert delivery.is_safe(mark)
    records, size = delivery.spooled()
    assert (records, delivery.waiting()) == (3, 0)
    assert size > 0
    assert delivery.shutdown(BOUND_S)
    assert first.counts() == {("delivery.logs", "waiting: spooled"): 2, ("delivery.traces", "waiting: spooled"): 1}

    second = Ledger()
    delivery = ExporterDelivery({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http_port}"}, second, options)
    wait_until(lambda: delivery.spooled()[0] == 0)
    assert delivery.shutdown(BOUND_S)
    assert [r.body.string_value for r in received.records()] == ["line", "second"]
    assert [s.name for s in received.spans()] == ["curl"]
    assert second.counts() == {
        ("delivery.logs", "exported"): 2,
        ("delivery.logs", "found: in the spool"): 2,
        ("delivery.traces", "exported"): 1,
        ("delivery.traces", "found: in the spool"): 1,
    }


def test_a_spool_that_cannot_be_used_is_said_in_a_sentence(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    for directory in (occupied, occupied / "below"):
        with pytest.raises(DeliveryError, match=r"^the spool .* cannot be used \(not a directory\); set delivery\."):
            ExporterDelivery({}, Ledger(), DeliveryOptions(spool_directory=str(directory)))


def test_two_agents_cannot_share_a_spool(tmp_path: Path) -> None:
    options = DeliveryOptions(spool_directory=str(tmp_path / "spool"))
    delivery = ExporterDelivery({}, Ledger(), options)
    with pytest.raises(DeliveryError, match=r"is in use by another otel-procmon; stop that one"):
        ExporterDelivery({}, Ledger(), options)
    assert delivery.shutdown(0.0)


def test_without_otlp_there_is_no_spool(tmp_path: Path) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_LOGS_EXPORTER": "none"}
    options = DeliveryOptions(spool_directory=str(tmp_path / "spool"))
    delivery = ExporterDelivery(environ, Ledger(), options, console=io.StringIO())
    assert delivery.shutdown(BOUND_S)
    assert not (tmp_path / "spool").exists()


# Exporters of other packages

PACKAGE = """
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult

exported, ended = [], []
answer = "ok"

class _Own:
    def export(self, batch):
        if answer == "raise":
            raise OSError("no paper")
        exported.append(list(batch))
        return self.results.SUCCESS if answer == "ok" else self.results.FAILURE

    def force_flush(self, timeout_millis=30000):
        return True

    def shutdown(self):
        ended.append(type(self).__name__)
        if answer == "raise":
            raise OSError("jammed")

class Spans(_Own, SpanExporter):
    results = SpanExportResult

class Logs(_Own, LogRecordExporter):
    results = LogRecordExportResult

class Broken(Spans):
    def __init__(self):
        raise RuntimeError("PRINTER_ADDRESS is not set")
"""
ENTRY_POINTS = """
[opentelemetry_traces_exporter]
printer = procmon_test_printer:Spans
broken = procmon_test_printer:Broken
missing = procmon_test_printer:Missing
[opentelemetry_logs_exporter]
printer = procmon_test_printer:Logs
"""


@pytest.fixture
def printer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An installed package with exporters, as pip leaves it behind: its module."""
    site = tmp_path / "site-packages"
    information = site / "procmon_test_printer-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "procmon_test_printer.py").write_text(PACKAGE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: procmon-test-printer\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    yield importlib.import_module("procmon_test_printer")
    del sys.modules["procmon_test_printer"]


PRINTER = {"OTEL_TRACES_EXPORTER": "printer", "OTEL_LOGS_EXPORTER": "printer"}


def test_an_installed_exporter_gets_the_sdks_objects(printer: Any) -> None:
    ledger = Ledger()
    delivery = delivery_of(PRINTER, ledger)
    delivery.put([log(), span(), log("second"), span("root", parent_span_id=None, error=False, links=())])
    assert delivery.flush(BOUND_S)
    mark = delivery.mark()
    assert delivery.is_safe(mark)
    assert delivery.shutdown(BOUND_S)
    assert ledger.counts() == {
        ("delivery.logs.printer", "exported"): 2,
        ("delivery.traces.printer", "exported"): 2,
    }
    assert sorted(printer.ended) == ["Logs", "Spans"]
    (spans,) = [batch for batch in printer.exported if isinstance(batch[0], ReadableSpan)]
    (logs,) = [batch for batch in printer.exported if not isinstance(batch[0], ReadableSpan)]

    one, root = spans
    assert (one.name, one.kind, one.status.status_code) == ("curl", SpanKind.INTERNAL, StatusCode.ERROR)
    assert (one.start_time, one.end_time) == (1_700_000_000_000_000_001, 1_700_000_000_000_000_009)
    assert (one.context.trace_id, one.context.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert (one.parent.trace_id, one.parent.span_id) == (int("ab" * 16, 16), int("ef" * 8, 16))
    assert [(link.context.trace_id, link.context.span_id) for link in one.links] == [
        (int("01" * 16, 16), int("02" * 8, 16))
    ]
    assert dict(one.attributes) == {"process.pid": 7, "process.command_args": ("curl", "ä\n")}
    assert (root.parent, root.status.status_code, list(root.links)) == (None, StatusCode.UNSET, [])
    # The SDK's own rendering takes it for one of its own.
    assert json.loads(one.to_json())["parent_id"] == f"0x{'ef' * 8}"

    first, second = logs
    assert isinstance(first, ReadableLogRecord)
    assert [r.log_record.body for r in logs] == ["line", "second"]
    assert (first.log_record.event_name, first.log_record.severity_number) == ("process.exec", SeverityNumber.INFO)
    assert (first.log_record.timestamp, first.log_record.observed_timestamp) == (
        1_700_000_000_000_000_001,
        1_700_000_000_000_000_002,
    )
    assert (first.log_record.trace_id, first.log_record.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert json.loads(second.to_json())["body"] == "second"
    told: Any
    for told in (one, first):
        assert dict(told.resource.attributes) == {"service.name": "s", "container.image.tags": ("latest",)}
        assert told.resource.schema_url == told.instrumentation_scope.schema_url == SCHEMA_URL
        assert (told.instrumentation_scope.name, told.instrumentation_scope.version) == ("otel_procmon", __version__)


@pytest.mark.parametrize(("answer", "words"), [("raise", "no paper"), ("fail", "see what it logs")])
def test_an_exporter_that_fails_costs_its_batch(
    answer: str, words: str, printer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    printer.answer = answer
    delivery = delivery_of({**PRINTER, "OTEL_LOGS_EXPORTER": "none"}, ledger)
    delivery.put([span(), span()])
    assert delivery.flush(BOUND_S)
    assert ledger.counts() == {("delivery.traces.printer", "lost: export failed"): 2}
    assert (
        f"delivery.traces.printer: the exporter printer failed{'' if answer == 'fail' else ': OSError('}" in caplog.text
    )
    assert words in caplog.text
    assert "2 records were lost" in caplog.text
    printer.answer = "ok"
    delivery.put([span()])
    assert delivery.flush(BOUND_S)
    assert ledger.get("delivery.traces.printer", "exported") == 1
    assert "delivery.traces.printer: sending works again" in caplog.text
    printer.answer = answer
    assert delivery.shutdown(BOUND_S), "whatever it does at the end"
    assert printer.ended == ["Spans"]


def test_an_exporter_beside_otlp_has_its_own_fate(
    http_port: int, received: Received, printer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    printer.answer = "raise"
    delivery = delivery_to(http_port, ledger, OTEL_TRACES_EXPORTER="otlp,printer")
    delivery.put([span()])
    assert delivery.shutdown(BOUND_S)
    assert len(received.spans()) == 1
    assert ledger.counts() == {
        ("delivery.traces", "exported"): 1,
        ("delivery.traces.printer", "lost: export failed"): 1,
    }


def test_exporters_that_cannot_be_had(printer: Any) -> None:
    for name, words in (
        (
            "printe",
            "OTEL_TRACES_EXPORTER has 'printe', and no installed package has an exporter of that name; use otlp",
        ),
        ("broken", "the exporter broken of traces cannot be set up (PRINTER_ADDRESS is not set); see its own"),
        ("missing", "the exporter missing of traces cannot be set up"),
    ):
        with pytest.raises(DeliveryError) as told:
            delivery_of({"OTEL_TRACES_EXPORTER": name}, Ledger())
        assert str(told.value).startswith(words)
        assert "\n" not in str(told.value)


def test_a_library_is_imported_only_when_it_is_asked_for() -> None:
    script = (
        "import sys; from otel_procmon.config import DeliveryOptions; from otel_procmon.ledger import Ledger; "
        "from otel_procmon.deliver.exporters import ExporterDelivery; options = DeliveryOptions(spool_directory=None); "
        "ExporterDelivery({'OTEL_EXPORTER_OTLP_PROTOCOL': sys.argv[1]}, Ledger(), options); "
        "print('grpc' in sys.modules, 'opentelemetry.sdk' in sys.modules)"
    )
    for protocol, imported in (("http/protobuf", "False False"), ("grpc", "True False")):
        result = subprocess.run(
            [sys.executable, "-c", script, protocol], capture_output=True, text=True, check=True, timeout=BOUND_S
        )
        assert result.stdout.strip() == imported
