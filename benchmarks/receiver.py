"""An OTLP receiver that costs as little as one can in Python: it takes everything, and answers with an empty message.

    python benchmarks/receiver.py grpc|http [--keep] [--core N] [--port N]

It writes its port on a line. For each line on its standard input it writes one with what has come since the last one,
as JSON: requests, bytes, and with --keep (the bodies are kept until then) log records, spans, and for each log record
the time in it and the time when it came, both in nanoseconds since the Unix epoch. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import gzip
import http.server
import json
import os
import sys
import threading
import time
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

HOST = "127.0.0.1"


class Received:
    """What has come."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._requests = self._bytes = 0
        self._kept: list[tuple[str, int, bytes]] = []

    def take(self, path: str, body: bytes) -> None:
        now_unix_ns = time.time_ns()
        with self._lock:
            self._requests += 1
            self._bytes += len(body)
            if self._keep:
                self._kept.append((path, now_unix_ns, body))

    def report(self) -> dict[str, Any]:
        with self._lock:
            kept, result = self._kept, {"requests": self._requests, "bytes": self._bytes}
            self._reset()
        if not self._keep:
            return result
        times: list[tuple[int, int, str]] = []
        spans = 0
        for path, came_unix_ns, body in kept:
            plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
            if "logs" in path.lower():
                logs = ExportLogsServiceRequest.FromString(plain)
                times += [
                    (record.time_unix_nano, came_unix_ns, record.event_name)
                    for group in logs.resource_logs
                    for scope in group.scope_logs
                    for record in scope.log_records
                ]
            else:
                traces = ExportTraceServiceRequest.FromString(plain)
                spans += sum(len(scope.spans) for group in traces.resource_spans for scope in group.scope_spans)
        return {**result, "logs": len(times), "spans": spans, "times": times}


def serve_grpc(received: Received, port: int) -> int:
    class Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            def take(body: bytes, _: Any) -> bytes:
                received.take(call.method, body)
                return b""

            return grpc.unary_unary_rpc_method_handler(take)

    options = (("grpc.max_receive_message_length", -1),)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=(Anything(),), options=options)
    bound = int(server.add_insecure_port(f"{HOST}:{port}"))
    server.start()
    # It goes on for as long as somebody has it.
    threading.Thread(target=server.wait_for_termination, daemon=True).start()
    return bound


def serve_http(received: Received, port: int) -> int:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            received.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((HOST, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=("grpc", "http"))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--core", type=int)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.core is not None:
        # Before the libraries make their threads.
        os.sched_setaffinity(0, {options.core})
    received = Received(keep=options.keep)
    serve = serve_grpc if options.protocol == "grpc" else serve_http
    print(serve(received, options.port), flush=True)
    for _ in sys.stdin:
        print(json.dumps(received.report()), flush=True)


if __name__ == "__main__":
    main()
