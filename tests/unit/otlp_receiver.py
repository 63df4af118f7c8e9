"""Receivers of OTLP on localhost, over HTTP and gRPC, that answer as a test wants, and misbehave as real ones do."""

from __future__ import annotations

import gzip
import http.server
import os
import socket
import ssl
import struct
import subprocess
import threading
import zlib
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

HOST = "127.0.0.1"
BOUND_S = 30.0
"""More than anything here takes."""


class Request(NamedTuple):
    """What has arrived."""

    path: str
    """For gRPC the method's name."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    """Decompressed."""
    connection: int
    """The client's port: requests of one connection have the same."""


@dataclass
class Received:
    """A receiver, what it got, and how it is to answer. `answers` are used up, then `answer` is."""

    port: int
    answer: Any
    answers: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, request: Request) -> Any:
        """Keep `request`, and say how it is answered."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            return self.answers.pop(0) if self.answers else self.answer

    def wait_for(self, number: int) -> None:
        """Wait until so many requests have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= number, BOUND_S)


# HTTP


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. Answers get it, and may do with it what they want."""

    protocol_version = "HTTP/1.1"
    received: Received

    def handle(self) -> None:
        if isinstance(self.connection, ssl.SSLSocket):
            try:
                self.connection.do_handshake()
            except OSError:
                # To close with something unread would send a reset, which can overtake the alert.
                with suppress(OSError):
                    while os.read(self.connection.fileno(), 65536):
                        pass
                return
        super().handle()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        encoding = self.headers.get("Content-Encoding")
        if encoding is not None:
            body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.received.add(Request(self.path, headers, body, self.client_address[1]))(self)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass


def answer(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    content_type: str | None = "application/x-protobuf",
) -> Callable[[Handler], None]:
    """An orderly answer."""

    def reply(handler: Handler) -> None:
        handler.send_response(status)
        if content_type is not None:
            handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def says(answer: bytes) -> Callable[[Handler], None]:
    """These bytes, then the end of the connection."""

    def reply(handler: Handler) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    return reply


def resets(handler: Handler) -> None:
    """The connection is reset instead of an answer."""
    reset(handler.connection)
    handler.close_connection = True


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # shutdown() comes first in socketserver, and would send a FIN.
    connection.close()


def hangs(handler: Handler) -> None:
    """No answer before the receiver's end."""
    handler.received.ended.wait(BOUND_S)
    handler.close_connection = True


def trickles(begin: bytes, rest: bytes) -> Callable[[Handler], None]:
    """`begin`, then `rest` over and over, a byte now and then, until the client has had enough."""

    def reply(handler: Handler) -> None:
        with suppress(OSError):
            handler.wfile.write(begin)
            while not handler.received.ended.is_set():
                for byte in rest:
                    handler.wfile.write(bytes([byte]))
                    handler.received.ended.wait(0.01)
        handler.close_connection = True

    return reply


@contextmanager
def http_receiver(tls: ssl.SSLContext | None = None) -> Iterator[Received]:
    """A receiver over HTTP, which at first accepts everything."""

    class OwnHandler(Handler):
        pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        # A full queue would make a connection wait for a second.
        request_queue_size = 64

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients go away in the middle here."""

    server = Server((HOST, 0), OwnHandler)
    OwnHandler.received = received = Received(server.server_address[1], answer())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        received.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(BOUND_S)


# gRPC


def fails(code: Any, details: str, status: bytes | None = None) -> Callable[[Any], bytes]:
    """A call that ends with `code`; `status` is a google.rpc.Status."""

    def reply(context: Any) -> bytes:
        if status is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(code, details)
        raise AssertionError

    return reply


def succeeds(body: bytes = b"") -> Callable[[Any], bytes]:
    """A call that ends well."""
    return lambda _: body


@contextmanager
def grpc_receiver(credentials: Any = None, port: int = 0) -> Iterator[Received]:
    """A receiver over gRPC with its default limits, which at first accepts everything."""
    import grpc  # type: ignore[import-untyped]  # noqa: PLC0415 - a test asserts that nobody else has imported it

    class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            def export(body: bytes, context: Any) -> bytes:
                headers = {key: str(value) for key, value in context.invocation_metadata()}
                port = int(context.peer().rpartition(":")[2])
                reply: bytes = received.add(Request(call.method, headers, body, port))(context)
                return reply

            return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), handlers=(Service(),))
    if credentials is None:
        port = server.add_insecure_port(f"{HOST}:{port}")
    else:
        port = server.add_secure_port(f"{HOST}:{port}", credentials)
    received = Received(port, succeeds())
    server.start()
    try:
        yield received
    finally:
        received.ended.set()
        server.stop(None).wait(BOUND_S)


# Below both


@contextmanager
def raw_receiver(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose connections `serve` gets, each in its own thread; they are closed at the end."""
    listening = socket.create_server((HOST, 0))
    connections: list[socket.socket] = []

    def run(connection: socket.socket) -> None:
        with suppress(OSError):
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connections.append(connection)
                threading.Thread(target=run, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        # close() alone would leave accept() waiting.
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(BOUND_S)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextmanager
def counting_relay(port: int) -> Iterator[tuple[int, list[int]]]:
    """Another port that leads to `port`, and the sizes of what clients send through it."""
    sizes: list[int] = []

    def serve(outside: socket.socket) -> None:
        with socket.create_connection((HOST, port)) as inside:
            threading.Thread(target=pump, args=(inside, outside, None), daemon=True).start()
            pump(outside, inside, sizes)

    def pump(source: socket.socket, to: socket.socket, seen: list[int] | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if seen is not None:
                    seen.append(len(data))
                to.sendall(data)

    with raw_receiver(serve) as relay:
        yield relay, sizes


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, 0))
        yield bound.getsockname()[1]


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port where connecting takes forever, because the kernel's queue of connections is full."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen(0)
        waiting = []
        try:
            # Linux takes one more than it is told; a few more do no harm.
            for _ in range(4):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(listening.getsockname())
                waiting.append(client)
            yield listening.getsockname()[1]
        finally:
            for client in waiting:
                client.close()


# TLS


@dataclass(frozen=True)
class Authority:
    """A CA for tests, made with openssl."""

    directory: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.crt"

    @property
    def key(self) -> Path:
        return self.directory / f"{self.name}.key"

    def issue(self, name: str, *, days: int = 2) -> tuple[Path, Path]:
        """A certificate for localhost, good for servers and clients, and its key."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl("req", "-new", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-set_serial", "7"),
            *("-extfile", extensions, "-out", certificate, "-days", str(days)),
        )
        return certificate, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make_authority(directory: Path, name: str) -> Authority:
    """A new CA."""
    authority = Authority(directory, name)
    _openssl(
        *("req", "-x509", *_NEW_KEY, "-keyout", authority.key, "-out", authority.certificate, "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE"),
    )
    return authority


def server_context(server: tuple[Path, Path], client_authority: Authority | None = None) -> ssl.SSLContext:
    """TLS for an HTTP receiver; with an authority it wants a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_authority.certificate)
    return context


def server_credentials(server: tuple[Path, Path], client_authority: Authority | None = None) -> Any:
    """The same for gRPC."""
    import grpc  # noqa: PLC0415 - see above

    certificate, key = server
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        None if client_authority is None else client_authority.certificate.read_bytes(),
        client_authority is not None,
    )


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=BOUND_S)
