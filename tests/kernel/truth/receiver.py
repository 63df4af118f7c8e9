"""A real OTLP receiver on localhost, over gRPC or HTTP/protobuf, that keeps what arrives."""

from __future__ import annotations

import gzip
import http.server
import re
import socket
import threading
from concurrent import futures
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from tests.kernel.truth.otlp import Log, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Protocol = Literal["grpc", "http/protobuf"]

HOST = "127.0.0.1"
STOP_SECONDS = 10
# A message of gRPC: one byte that says that it is compressed, four of length, and gzip's magic.
GZIP_MESSAGE = re.compile(rb"\x01.{4}\x1f\x8b\x08", re.DOTALL)


class Received:
    """What has arrived so far. Other threads append to the lists."""

    def __init__(self) -> None:
        self.port = 0
        self.logs: list[Log] = []
        self.spans: list[Span] = []
        self.metrics = 0
        """Requests with metrics."""
        self.compressed: list[bool] = []
        """Of each request, in the order in which they came; for gRPC of each connection that carried any."""
        self.problems: list[str] = []
        """Requests that no receiver would take."""


def _logs(request: logs_pb.ExportLogsServiceRequest) -> list[Log]:
    return [
        Log(
            event_name=record.event_name,
            time_unix_ns=record.time_unix_nano,
            observed_unix_ns=record.observed_time_unix_nano,
            severity_number=record.severity_number,
            body=_value(record.body),
            trace_id=record.trace_id.hex(),
            span_id=record.span_id.hex(),
            attributes=_attributes(record.attributes),
            resource=_attributes(group.resource.attributes),
        )
        for group in request.resource_logs
        for scope in group.scope_logs
        for record in scope.log_records
    ]


def _spans(request: trace_pb.ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_span_id=span.parent_span_id.hex(),
            kind=span.kind,
            start_unix_ns=span.start_time_unix_nano,
            end_unix_ns=span.end_time_unix_nano,
            status=span.status.code,
            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
            attributes=_attributes(span.attributes),
            resource=_attributes(group.resource.attributes),
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(element) for element in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for pair in pairs:
        assert pair.key not in result, f"the attribute {pair.key} comes twice"
        result[pair.key] = _value(pair.value)
    return result


@contextmanager
def receiver(protocol: Protocol, port: int = 0, host: str = HOST) -> Iterator[Received]:
    """A receiver that listens on `port` of localhost, or on a free one that is then `Received.port`.

    Over HTTP it may be another address than localhost.
    """
    received = Received()
    with _grpc(received, port) if protocol == "grpc" else _http(received, port, host):
        yield received


@contextmanager
def _http(received: Received, port: int, host: str) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            compressed = self.headers.get("Content-Encoding") == "gzip"
            received.compressed.append(compressed)
            if compressed:
                body = gzip.decompress(body)
            if self.headers["Content-Type"] != "application/x-protobuf":
                received.problems.append(f"Content-Type {self.headers['Content-Type']}")
            answer = b""
            if self.path == "/v1/traces":
                received.spans += _spans(trace_pb.ExportTraceServiceRequest.FromString(body))
                answer = trace_pb.ExportTraceServiceResponse().SerializeToString()
            elif self.path == "/v1/logs":
                received.logs += _logs(logs_pb.ExportLogsServiceRequest.FromString(body))
                answer = logs_pb.ExportLogsServiceResponse().SerializeToString()
            elif self.path == "/v1/metrics":
                # The agent's own; they are not looked at here.
                metrics_pb.ExportMetricsServiceRequest.FromString(body)
                received.metrics += 1
                answer = metrics_pb.ExportMetricsServiceResponse().SerializeToString()
            else:
                received.problems.append(f"path {self.path}")
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            pass

    connections: list[socket.socket] = []

    class Server(http.server.ThreadingHTTPServer):
        # A connection that the agent keeps open must not keep the test.
        daemon_threads = True
        block_on_close = False

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            connections.append(connection)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """The receiver may be gone before it has answered."""

    server = Server((host, port), Handler)
    received.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(STOP_SECONDS)
        # Or their threads would go on receiving.
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _grpc(received: Received, port: int) -> Iterator[None]:
    class Traces(trace_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - the service's names
            received.spans += _spans(request)
            return trace_pb.ExportTraceServiceResponse()

    class Logs(logs_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - the service's names
            received.logs += _logs(request)
            return logs_pb.ExportLogsServiceResponse()

    class Metrics(metrics_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - the service's names
            received.metrics += 1
            return metrics_pb.ExportMetricsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
    trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
    logs_grpc.add_LogsServiceServicer_to_server(Logs(), server)  # type: ignore[no-untyped-call]
    inner = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        # The library does not tell whether a message came compressed, so the bytes are looked at on their way.
        with _relay(received, port, inner):
            yield
    finally:
        server.stop(None).wait(STOP_SECONDS)


@contextmanager
def _relay(received: Received, port: int, inner: int) -> Iterator[None]:
    """Passes every connection on to the port `inner`."""
    listening = socket.create_server((HOST, port))
    received.port = listening.getsockname()[1]
    ends: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket, seen: list[bytes] | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if seen is not None:
                    seen.append(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if seen is not None:
            received.compressed.append(GZIP_MESSAGE.search(b"".join(seen)) is not None)

    def accept() -> None:
        with suppress(OSError):
            while True:
                outside, _ = listening.accept()
                inside = socket.create_connection((HOST, inner))
                ends.extend((outside, inside))
                threading.Thread(target=pump, args=(outside, inside, []), daemon=True).start()
                threading.Thread(target=pump, args=(inside, outside, None), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # close() alone would leave accept() waiting.
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(STOP_SECONDS)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        # So that a receiver can listen on it right afterwards.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, 0))
        yield bound.getsockname()[1]
