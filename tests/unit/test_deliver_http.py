"""Sending over HTTP to real receivers on localhost: each outcome, and its sentence."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_procmon import __version__
from otel_procmon.deliver.batch import Accepted, Batch, Outcome, Refused, TooLarge, Unavailable
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.http import HttpTransport, retry_after_s
from otel_procmon.deliver.settings import Otlp
from tests.unit.otlp_receiver import (
    BOUND_S,
    Authority,
    Received,
    answer,
    deaf_port,
    grpc_receiver,
    hangs,
    http_receiver,
    make_authority,
    raw_receiver,
    refusing_port,
    resets,
    says,
    server_context,
    trickles,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOGS = Batch("logs", 3, b"three log records")
SPANS = Batch("traces", 3, b"three spans")
LARGE = Batch("logs", 3, os.urandom(8_000_000))
NOW = 1_700_000_000


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def receiver() -> Iterator[Received]:
    with http_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ca"), "ca")


def otlp(port: int, **fields: Any) -> Otlp:
    given: dict[str, Any] = {"endpoint": f"http://127.0.0.1:{port}/v1/logs", "timeout_s": BOUND_S}
    return Otlp(protocol="http/protobuf", **(given | fields))


def send(port: int, batch: Batch = LOGS, **fields: Any) -> Outcome:
    transport = HttpTransport(otlp(port, **fields), clock=lambda: NOW)
    try:
        return transport.send(batch)
    finally:
        transport.close()


def trouble_of(outcome: Outcome, kind: type[Refused | TooLarge | Unavailable]) -> str:
    assert isinstance(outcome, kind), outcome
    said: str = outcome.trouble
    assert said.isprintable()
    return said


# What goes out


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_a_batch_arrives_as_it_is(receiver: Received, compression: str) -> None:
    outcome = send(receiver.port, LARGE, compression=compression, headers={"x-key": "secret", "content-type": "x"})
    assert outcome == Accepted()
    (request,) = receiver.requests
    assert request.path == "/v1/logs"
    assert request.body == LARGE.body
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers.get("content-encoding", "none") == compression
    assert request.headers["x-key"] == "secret"
    assert request.headers["user-agent"].startswith(f"otel-procmon/{__version__} Python/3.")


def test_connections_are_kept(receiver: Received) -> None:
    transport = HttpTransport(otlp(receiver.port))
    receiver.answers = [answer(), answer(503), answer(400, b"x" * 500), answer(200, b"y")]
    for _ in range(5):
        transport.send(LOGS)
    transport.close()
    assert len({request.connection for request in receiver.requests}) == 1


def test_several_are_in_flight(receiver: Received) -> None:
    together = threading.Barrier(8)

    def when_all_are_here(handler: Any) -> None:
        together.wait(BOUND_S)
        answer()(handler)

    receiver.answer = when_all_are_here
    transport = HttpTransport(otlp(receiver.port))
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(transport.send(LOGS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert outcomes == [Accepted()] * 8
    receiver.answer = answer()
    for _ in range(8):
        transport.send(LOGS)
    transport.close()
    assert len({request.connection for request in receiver.requests}) == 8


def test_a_kept_connection_that_the_receiver_closes_costs_no_failure(receiver: Received) -> None:
    """It closes when the next request has come, so that no look at the socket before that would have told."""
    transport = HttpTransport(otlp(receiver.port))
    receiver.answers = [answer(), says(b""), answer(), resets]
    assert [transport.send(LOGS) for _ in range(3)] == [Accepted()] * 3
    transport.close()
    assert len(receiver.requests) == 5


def test_proxies_of_the_environment(receiver: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{receiver.port}")
    assert send(1, endpoint="http://collector.invalid/v1/logs") == Accepted()
    assert receiver.requests[0].path == "http://collector.invalid/v1/logs"
    assert receiver.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpzZWNyZXQ="
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert send(receiver.port) == Accepted()
    assert receiver.requests[1].path == "/v1/logs"


# Success


def test_partial_success(receiver: Received) -> None:
    logs, spans = ExportLogsServiceResponse(), ExportTraceServiceResponse()
    logs.partial_success.rejected_log_records, logs.partial_success.error_message = 2, "too old"
    spans.partial_success.rejected_spans = 1
    warning = ExportLogsServiceResponse()
    warning.partial_success.error_message = "soon"
    more = ExportLogsServiceResponse()
    more.partial_success.rejected_log_records = 1 << 40
    empty, less = ExportLogsServiceResponse(), ExportLogsServiceResponse()
    empty.partial_success.SetInParent()
    less.partial_success.rejected_log_records = -5
    for batch, body, expected in (
        (LOGS, logs, Accepted(2, "too old")),
        (SPANS, spans, Accepted(1)),
        (LOGS, warning, Accepted(0, "soon")),
        (LOGS, more, Accepted(3)),
        (LOGS, less, Accepted(0)),
        (LOGS, empty, Accepted(0)),
    ):
        receiver.answer = answer(200, body.SerializeToString())
        assert send(receiver.port, batch) == expected


def test_partial_success_in_json(receiver: Received) -> None:
    for batch, body, expected in (
        (LOGS, b"{}", Accepted()),
        (LOGS, b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}', Accepted(2, "too old")),
        (SPANS, b'{"partialSuccess":{"rejectedSpans":1}}', Accepted(1)),
    ):
        receiver.answer = answer(200, body, content_type="application/json; charset=utf-8")
        assert send(receiver.port, batch) == expected


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<!doctype html>", "text/html"),
        (b"[" * 50_000, "application/json"),
        (b"[1]", "application/json"),
        (b'{"partialSuccess":{"rejectedLogRecords":1e999}}', "application/json"),
        (b"\xff", None),
    ],
)
def test_success_that_no_receiver_of_otlp_would_give(receiver: Received, body: bytes, content_type: str | None) -> None:
    receiver.answer = answer(202, body, content_type=content_type)
    assert send(receiver.port) == Accepted(
        0,
        f"http://127.0.0.1:{receiver.port} does not answer as a receiver of OTLP ({content_type or 'no content type'}): set "
        "OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL to match (as a rule port 4318 is http/protobuf and "
        "4317 grpc)",
    )


def test_answers_are_read_to_a_bound(receiver: Received) -> None:
    """A megabyte of a valid message: read in part only, and so not understood; the connection is not used again."""
    response = ExportLogsServiceResponse()
    response.partial_success.error_message = "x" * 1_000_000
    receiver.answers = [answer(200, response.SerializeToString())]
    transport = HttpTransport(otlp(receiver.port))
    first = transport.send(LOGS)
    assert isinstance(first, Accepted)
    assert "does not answer as a receiver" in first.message
    assert transport.send(LOGS) == Accepted()
    transport.close()
    assert len({request.connection for request in receiver.requests}) == 2


# Failures with an answer


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retryable(receiver: Received, status: int) -> None:
    receiver.answer = answer(status, Status(message="queue full\x1b[2J\n").SerializeToString())
    outcome = send(receiver.port)
    said = trouble_of(outcome, Unavailable)
    assert said.startswith(f"http://127.0.0.1:{receiver.port} cannot take the records now ({status} ")
    assert "queue full [2J)" in said
    assert outcome == Unavailable(said, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Tuesday, 14-Nov-23 22:13:25 GMT", 5.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("", None),
        ("Tue, 99 Nov 2023 22:13:25 GMT", None),
    ],
)
def test_retry_after(receiver: Received, value: str, expected: float | None) -> None:
    assert retry_after_s(value, NOW) == expected
    receiver.answer = answer(429, headers={"Retry-After": value})
    outcome = send(receiver.port)
    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after_s == expected


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "400 Bad Request: no such tenant): look into the receiver's log"),
        (401, "401 Unauthorized: no such tenant): set OTEL_EXPORTER_OTLP_HEADERS as it wants them"),
        (403, "403 Forbidden: no such tenant): set OTEL_EXPORTER_OTLP_HEADERS as it wants them"),
        (
            404,
            "404 Not Found: no such tenant): set OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL to match",
        ),
        (408, "408 Request Timeout: no such tenant)"),
        (500, "500 Internal Server Error: no such tenant)"),
        (599, "599: no such tenant)"),
    ],
)
def test_refused(receiver: Received, status: int, words: str) -> None:
    receiver.answer = answer(status, Status(message="no such tenant").SerializeToString())
    said = trouble_of(send(receiver.port), Refused)
    assert said.startswith(f"http://127.0.0.1:{receiver.port} refused the records ({words}")


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b'{"code":3,"message":"not you"}', "application/json", ": not you)"),
        (b"entry too old\n", "text/plain; charset=utf-8", ": entry too old)"),
        (b"entry too old\xff", None, ": entry too old\N{REPLACEMENT CHARACTER})"),
        (b"<html><body>nginx", "text/html", "Bad Request)"),
        (b"\xff\xff", "application/x-protobuf", "Bad Request)"),
        (b"[]", "application/json", "Bad Request)"),
        (b"x" * 100_000, "text/plain", f": {'x' * 300}…)"),
    ],
)
def test_what_the_receiver_says(receiver: Received, body: bytes, content_type: str | None, words: str) -> None:
    receiver.answer = answer(400, body, content_type=content_type)
    assert words in trouble_of(send(receiver.port), Refused)


def test_too_large(receiver: Received) -> None:
    """By the specification's status, and as the Collector's receiver says it."""
    receiver.answer = answer(413)
    said = trouble_of(send(receiver.port), TooLarge)
    assert said.startswith(f"http://127.0.0.1:{receiver.port} takes smaller messages only (413 ")
    assert "raise the receiver's message limit" in said
    receiver.answer = answer(400, Status(message="http: request body too large").SerializeToString())
    assert "400 Bad Request: http: request body too large" in trouble_of(send(receiver.port), TooLarge)


# Redirects


@pytest.mark.parametrize("status", [307, 308])
def test_redirects_that_keep_the_records_are_followed(receiver: Received, status: int) -> None:
    receiver.answers = [answer(status, headers={"Location": "/other"}), answer()]
    assert send(receiver.port, headers={"x-key": "secret"}) == Accepted()
    assert [(r.path, r.body, r.headers.get("x-key")) for r in receiver.requests] == [
        ("/v1/logs", LOGS.body, "secret"),
        ("/other", LOGS.body, "secret"),
    ]


def test_another_place_does_not_get_the_headers(receiver: Received) -> None:
    with http_receiver() as other:
        receiver.answer = answer(308, headers={"Location": f"http://127.0.0.1:{other.port}/v1/logs"})
        assert send(receiver.port, headers={"authorization": "secret"}) == Accepted()
        assert "authorization" not in other.requests[0].headers
        assert other.requests[0].headers["content-type"] == "application/x-protobuf"


def test_redirects_that_are_not_followed(receiver: Received) -> None:
    for status, location, words in (
        (301, "http://c/v1/logs", "redirects to http://c (301 Moved Permanently): set OTEL_EXPORTER_OTLP_ENDPOINT"),
        (302, "https://u:secret@login/", "redirects to https://login (302 Found)"),
        (308, "", "redirects to nowhere (308 Permanent Redirect)"),
        (308, "ftp://c/", "redirects to ftp://c (308"),
        (308, "http://[", "(308 Permanent Redirect)"),
        (304, "", "redirects to nowhere (304 Not Modified)"),
    ):
        receiver.answer = answer(status, headers={"Location": location} if location else None)
        said = trouble_of(send(receiver.port), Unavailable)
        assert words in said
        assert "secret" not in said
    receiver.requests.clear()
    receiver.answer = answer(307, headers={"Location": "/round"})
    assert "redirects to /round (307" in trouble_of(send(receiver.port), Unavailable)
    assert len(receiver.requests) == 5


# Failures without an answer


def test_nobody_is_there() -> None:
    with refusing_port() as port:
        assert send(port) == Unavailable(
            f"cannot reach http://127.0.0.1:{port} (connection refused): start a Collector there or set "
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )


def test_no_such_name() -> None:
    said = trouble_of(send(1, endpoint="http://no-such-host.invalid:1/v1/logs"), Unavailable)
    assert said.startswith("cannot reach http://no-such-host.invalid:1 (")
    assert said.endswith("): start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT")


def test_no_connection_in_time() -> None:
    with deaf_port() as port:
        said = trouble_of(send(port, timeout_s=0.3), Unavailable)
    assert said.startswith(f"cannot reach http://127.0.0.1:{port} (connection timed out)")


@pytest.mark.parametrize(
    "slow",
    [
        hangs,
        trickles(b"", b"HTTP/1.1 200 OK\r\n"),
        trickles(b"HTTP/1.1 200 OK\r\n", b"x-y: z\r\n"),
        trickles(b"HTTP/1.1 503 Service Unavailable\r\nx: ", b"y"),
    ],
)
def test_no_answer_in_time(receiver: Received, slow: Callable[[Any], None]) -> None:
    """Also when single bytes keep coming."""
    receiver.answer = slow
    assert send(receiver.port, timeout_s=0.3) == Unavailable(
        f"http://127.0.0.1:{receiver.port} does not answer in time: look into the receiver's log, or raise "
        "OTEL_EXPORTER_OTLP_TIMEOUT"
    )


def test_a_receiver_that_does_not_read() -> None:
    with raw_receiver(lambda _: None) as port:
        said = trouble_of(send(port, LARGE, timeout_s=0.3), Unavailable)
    assert said.startswith(f"http://127.0.0.1:{port} does not answer in time")


def test_a_status_whose_body_does_not_come_in_time_is_enough(receiver: Received) -> None:
    receiver.answer = trickles(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 100000\r\n\r\n", b"x")
    assert "(400 Bad Request)" in trouble_of(send(receiver.port, timeout_s=0.3), Refused)


@pytest.mark.parametrize("end", [resets, says(b""), says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1234")])
def test_the_connection_ends_before_the_answer(receiver: Received, end: Callable[[Any], None]) -> None:
    receiver.answer = end
    assert send(receiver.port) == Unavailable(
        f"http://127.0.0.1:{receiver.port} closed the connection before it had answered: look into the receiver's log"
    )
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_answer_that_comes_before_the_request_was_read(authority: Authority, scheme: str) -> None:
    """As Go's net/http does it with a request that is too large: it answers, and closes with most of it unread."""
    context = server_context(authority.issue("server"))

    def early(connection: socket.socket) -> None:
        # Or Nagle's algorithm would hold the answer back until it is too late.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if scheme == "https":
            connection = context.wrap_socket(connection, server_side=True)
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        connection.close()

    with raw_receiver(early) as port:
        outcome = send(port, LARGE, endpoint=f"{scheme}://localhost:{port}/", certificate=authority.certificate)
        trouble_of(outcome, TooLarge)


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\xff" * 500, b"HTTP/1.1 \r\n\r\n", b"HTTP/9\r\n" * 9]
)
def test_garbage(receiver: Received, garbage: bytes) -> None:
    receiver.answer = says(garbage)
    said = trouble_of(send(receiver.port), Unavailable)
    assert said.startswith(f"http://127.0.0.1:{receiver.port} does not speak HTTP: set OTEL_EXPORTER_OTLP_ENDPOINT and")


def test_a_flood_of_headers(receiver: Received) -> None:
    for flood in (b"x: y\r\n" * 200_000, b"x" * 1_000_000):
        receiver.answer = says(b"HTTP/1.1 200 OK\r\n" + flood)
        assert "does not speak HTTP" in trouble_of(send(receiver.port), Unavailable)


def test_a_receiver_of_grpc() -> None:
    with grpc_receiver() as received:
        said = trouble_of(send(received.port), Unavailable)
    assert said.startswith(f"http://127.0.0.1:{received.port} does not speak HTTP: ")


# The end


def test_close_interrupts_who_waits(receiver: Received) -> None:
    receiver.answer = hangs
    transport = HttpTransport(otlp(receiver.port, timeout_s=3600.0))
    outcomes: list[Outcome] = []
    sending = threading.Thread(target=lambda: outcomes.append(transport.send(LOGS)), daemon=True)
    sending.start()
    receiver.wait_for(1)
    transport.close()
    sending.join(BOUND_S)
    expected = Unavailable(f"sending to http://127.0.0.1:{receiver.port} was given up at the end")
    assert outcomes == [expected]
    assert transport.send(LOGS) == expected
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_close_interrupts_who_sends_or_shakes_hands(scheme: str) -> None:
    begun = threading.Event()

    def silent(connection: socket.socket) -> None:
        connection.recv(1)
        begun.set()

    with raw_receiver(silent) as port:
        transport = HttpTransport(otlp(port, endpoint=f"{scheme}://127.0.0.1:{port}/", timeout_s=3600.0))
        outcomes: list[Outcome] = []
        sending = threading.Thread(target=lambda: outcomes.append(transport.send(LARGE)), daemon=True)
        sending.start()
        assert begun.wait(BOUND_S)
        transport.close()
        sending.join(BOUND_S)
        assert "given up at the end" in trouble_of(outcomes[0], Unavailable)


def test_close_interrupts_who_connects() -> None:
    with deaf_port() as port:
        transport = HttpTransport(otlp(port, timeout_s=3600.0))
        outcomes: list[Outcome] = []
        sending = threading.Thread(target=lambda: outcomes.append(transport.send(LOGS)), daemon=True)
        sending.start()
        # Nobody can see that it connects; if it does not yet, it fails at once, which is as good.
        transport.close()
        sending.join(BOUND_S)
        assert "given up at the end" in trouble_of(outcomes[0], Unavailable)


# TLS


def test_tls(authority: Authority) -> None:
    with http_receiver(server_context(authority.issue("server"))) as received:
        transport = HttpTransport(
            otlp(
                received.port, endpoint=f"https://localhost:{received.port}/v1/logs", certificate=authority.certificate
            )
        )
        assert [transport.send(batch) for batch in (LOGS, LARGE, LOGS)] == [Accepted()] * 3
        transport.close()
    assert [request.body for request in received.requests] == [LOGS.body, LARGE.body, LOGS.body]
    assert len({request.connection for request in received.requests}) == 1


def test_tls_answers_in_time(authority: Authority) -> None:
    with http_receiver(server_context(authority.issue("server"))) as received:
        received.answer = trickles(b"HTTP/1.1 200 OK\r\n", b"x-y: z\r\n")
        said = trouble_of(
            send(
                received.port,
                endpoint=f"https://localhost:{received.port}/",
                certificate=authority.certificate,
                timeout_s=0.5,
            ),
            Unavailable,
        )
    assert "does not answer in time" in said


def test_certificates_that_are_not_trusted(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path, "other")
    with http_receiver(server_context(authority.issue("server"))) as received:
        for host, certificate, words in (
            ("localhost", other.certificate, "has a certificate that is not trusted (unable to get local issuer certificate): let OTEL_EXPORTER_OTLP_CERTIFICATE name the file"),
            ("localhost", None, "has a certificate that is not trusted (unable to get local issuer certificate): let OTEL_EXPORTER_OTLP_CERTIFICATE name the file"),
            ("127.0.0.1", authority.certificate, "has a certificate for another name: write a name in OTEL_EXPORTER_OTLP_ENDPOINT that its certificate has"),
        ):  # fmt: skip
            place = f"https://{host}:{received.port}"
            said = trouble_of(send(1, endpoint=f"{place}/v1/logs", certificate=certificate), Unavailable)
            assert said.startswith(f"{place} {words}")
    assert not received.requests


def test_a_certificate_that_has_expired(authority: Authority) -> None:
    with http_receiver(server_context(authority.issue("expired", days=-1))) as received:
        endpoint = f"https://localhost:{received.port}"
        said = trouble_of(send(1, endpoint=endpoint, certificate=authority.certificate), Unavailable)
    assert said == f"{endpoint} has a certificate that has expired: renew it"


def test_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path, "other")
    certificate, key = authority.issue("client")
    wrong, wrong_key = other.issue("stranger")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    with http_receiver(server_context(authority.issue("server"), authority)) as received:
        endpoint = f"https://localhost:{received.port}"
        for ours, our_key, words in (
            (certificate, key, None),
            (both, None, None),
            (None, None, "(certificate required)"),
            (wrong, wrong_key, "(unknown ca)"),
        ):
            outcome = send(
                1,
                endpoint=f"{endpoint}/v1/logs",
                certificate=authority.certificate,
                client_certificate=ours,
                client_key=our_key,
            )
            if words is None:
                assert outcome == Accepted()
            else:
                assert trouble_of(outcome, Unavailable) == (
                    f"{endpoint} wants another certificate of ours, or one at all {words}: set "
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY"
                )


def test_certificates_are_read_again_when_they_have_changed(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path, "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(other.certificate.read_bytes())
    with http_receiver(server_context(authority.issue("server"))) as received:
        transport = HttpTransport(
            otlp(received.port, endpoint=f"https://localhost:{received.port}/v1/logs", certificate=trusted)
        )
        trouble_of(transport.send(LOGS), Unavailable)
        trusted.write_bytes(b"half of a certi")
        trouble_of(transport.send(LOGS), Unavailable)
        trusted.write_bytes(authority.certificate.read_bytes())
        trouble_of(transport.send(LOGS), Unavailable)
        assert transport.send(LOGS) == Accepted()
        transport.close()


def test_tls_on_one_side_only(receiver: Received, authority: Authority) -> None:
    endpoint = f"https://127.0.0.1:{receiver.port}"
    said = trouble_of(send(1, endpoint=endpoint), Unavailable)
    assert said == f"{endpoint} does not speak TLS: write http:// in OTEL_EXPORTER_OTLP_ENDPOINT"
    # As Go's net/http says it, and so the Collector.
    receiver.answer = says(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
    said = trouble_of(send(receiver.port), Refused)
    assert said.endswith("to an HTTPS server.): write https:// in OTEL_EXPORTER_OTLP_ENDPOINT")


def test_files_that_cannot_be_used_fail_at_the_start(authority: Authority, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    certificate, key = authority.issue("client")
    _, another_key = authority.issue("another")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-out", locked, "-aes256", "-passout", "pass:x"],
        check=True,
        capture_output=True,
        timeout=BOUND_S,
    )
    for fields, words in (
        ({"certificate": garbage}, [str(garbage), "OTEL_EXPORTER_OTLP_CERTIFICATE"]),
        ({"client_certificate": garbage}, [str(garbage), "the same file", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"]),
        ({"client_certificate": certificate, "client_key": another_key}, ["key values mismatch", str(another_key)]),
        ({"client_certificate": certificate, "client_key": locked}, ["the key has a password"]),
        ({"client_key": key}, ["without a certificate", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"]),
        ({"certificate": tmp_path / "gone"}, ["no such file"]),
    ):
        with pytest.raises(DeliveryError) as failure:
            HttpTransport(otlp(1, endpoint="https://localhost:1", **fields))
        for word in words:
            assert word in str(failure.value)


def test_the_systems_certificates_are_trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(authority.certificate))
    with http_receiver(server_context(authority.issue("server"))) as received:
        assert send(1, endpoint=f"https://localhost:{received.port}/v1/logs") == Accepted()
