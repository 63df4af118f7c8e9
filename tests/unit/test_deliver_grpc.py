"""Sending over gRPC to real receivers on localhost: each outcome, and its sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_procmon import __version__
from otel_procmon.deliver.answer import retry_delay_s
from otel_procmon.deliver.batch import Accepted, Batch, Outcome, Refused, TooLarge, Unavailable
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.grpc import GrpcTransport, target
from otel_procmon.deliver.settings import Otlp
from tests.unit.otlp_receiver import (
    BOUND_S,
    HOST,
    Authority,
    Received,
    counting_relay,
    deaf_port,
    fails,
    grpc_receiver,
    http_receiver,
    make_authority,
    raw_receiver,
    refusing_port,
    reset,
    server_credentials,
    succeeds,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOGS = Batch("logs", 3, b"three log records")
SPANS = Batch("traces", 3, b"three spans")
LARGE = Batch("logs", 3, b"x" * 5_000_000)
"""More than the 4 MiB that a receiver takes by default."""
PORTS = (
    "set OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL to match (as a rule port 4318 is http/protobuf and "
    "4317 grpc)"
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def receiver() -> Iterator[Received]:
    with grpc_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ca"), "ca")


def otlp(port: int, **fields: Any) -> Otlp:
    given: dict[str, Any] = {"endpoint": f"http://{HOST}:{port}", "timeout_s": BOUND_S}
    given |= fields
    return Otlp(protocol="grpc", **({"insecure": given["endpoint"].startswith("http:")} | given))


def send(port: int, batch: Batch = LOGS, **fields: Any) -> Outcome:
    transport = GrpcTransport(otlp(port, **fields), batch.signal)
    try:
        return transport.send(batch)
    finally:
        transport.close()


def trouble_of(outcome: Outcome, kind: type[Refused | TooLarge | Unavailable]) -> str:
    assert isinstance(outcome, kind), outcome
    said: str = outcome.trouble
    assert said.isprintable()
    return said


def status(*details: Any) -> bytes:
    packed = []
    for detail in details:
        message = AnyMessage()
        message.Pack(detail)
        packed.append(message)
    body: bytes = Status(code=8, message="slow down", details=packed).SerializeToString()
    return body


def retry_info(seconds: int = 0, nanos: int = 0) -> Any:
    info = RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = seconds, nanos
    return info


# What goes out


def test_batches_arrive_as_they_are(receiver: Received) -> None:
    for batch in (LOGS, SPANS):
        assert send(receiver.port, batch, headers={"x-key": "secret"}) == Accepted()
    logs, spans = receiver.requests
    assert logs.path == "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
    assert spans.path == "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    assert (logs.body, spans.body) == (LOGS.body, SPANS.body)
    assert logs.headers["x-key"] == "secret"
    assert logs.headers["user-agent"].startswith(f"otel-procmon/{__version__} Python/3.")


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_compression(receiver: Received, compression: str) -> None:
    batch = Batch("logs", 3, b"x" * 1_000_000)
    with counting_relay(receiver.port) as (port, sizes):
        assert send(port, batch, compression=compression) == Accepted()
    assert receiver.requests[0].body == batch.body
    assert (sum(sizes) < 50_000) == (compression == "gzip")


def test_several_are_in_flight_over_one_connection(receiver: Received) -> None:
    together = threading.Barrier(8)

    def when_all_are_here(_: Any) -> bytes:
        together.wait(BOUND_S)
        return b""

    receiver.answer = when_all_are_here
    transport = GrpcTransport(otlp(receiver.port), "logs")
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(transport.send(LOGS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    transport.close()
    assert outcomes == [Accepted()] * 8
    assert len({request.connection for request in receiver.requests}) == 1


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://c:4317", "c:4317"),
        ("https://c:4317/path?query", "c:4317"),
        ("http://c", "c:80"),
        ("https://[::1]/", "[::1]:443"),
        ("c:4317", "c:4317"),
        ("dns:///c:4317", "dns:///c:4317"),
        ("unix:///run/otel.sock", "unix:///run/otel.sock"),
    ],
)
def test_targets(endpoint: str, expected: str) -> None:
    assert target(endpoint) == expected


# Success


def test_partial_success(receiver: Received) -> None:
    logs, spans, warning = ExportLogsServiceResponse(), ExportTraceServiceResponse(), ExportLogsServiceResponse()
    logs.partial_success.rejected_log_records, logs.partial_success.error_message = 2, "too old"
    spans.partial_success.rejected_spans = 99
    warning.partial_success.error_message = "soon"
    for batch, body, expected in (
        (LOGS, logs, Accepted(2, "too old")),
        (SPANS, spans, Accepted(3)),
        (LOGS, warning, Accepted(0, "soon")),
    ):
        receiver.answer = succeeds(body.SerializeToString())
        assert send(receiver.port, batch) == expected


@pytest.mark.parametrize("body", [b"\xff", b"x" * 5_000_000])
def test_success_that_no_receiver_of_otlp_would_give(receiver: Received, body: bytes) -> None:
    """Garbage, and more than is read."""
    receiver.answer = succeeds(body)
    outcome = send(receiver.port)
    assert isinstance(outcome, Accepted)
    assert outcome.message.startswith(f"http://{HOST}:{receiver.port} does not answer as a receiver of OTLP (")


# Failures with an answer

RETRYABLE = ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode if code.name != "OK"])
def test_codes_are_retryable_as_the_specification_has_it(receiver: Received, code: str) -> None:
    receiver.answer = fails(grpc.StatusCode[code], "as\x1b[2J asked\n")
    outcome = send(receiver.port)
    place = f"http://{HOST}:{receiver.port}"
    if code == "DEADLINE_EXCEEDED":
        assert trouble_of(outcome, Unavailable).startswith(f"{place} does not answer in time: ")
    elif code in RETRYABLE:
        assert outcome == Unavailable(
            f"{place} cannot take the records now ({code}: as [2J asked): look into the receiver's log"
        )
    else:
        said = trouble_of(outcome, Refused)
        assert said.startswith(f"{place} refused the records ({code}: as [2J asked): ")
        remedy = said.rpartition("): ")[2] if code != "UNIMPLEMENTED" else said.partition("): ")[2]
        assert remedy == {
            "UNAUTHENTICATED": "set OTEL_EXPORTER_OTLP_HEADERS as it wants them",
            "PERMISSION_DENIED": "set OTEL_EXPORTER_OTLP_HEADERS as it wants them",
            "UNIMPLEMENTED": PORTS,
        }.get(code, "look into the receiver's log")


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ((retry_info(7),), 7.0),
        ((BadRequest(), retry_info(1, 500_000_000)), 1.5),
        ((retry_info(),), 0.0),
        ((retry_info(-5),), 0.0),
    ],
)
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_retry_info(receiver: Received, code: str, details: tuple[Any, ...], expected: float) -> None:
    receiver.answer = fails(grpc.StatusCode[code], "slow down", status(*details))
    place = f"http://{HOST}:{receiver.port}"
    assert send(receiver.port) == Unavailable(
        f"{place} cannot take the records now ({code}: slow down): look into the receiver's log", expected
    )


@pytest.mark.parametrize("details", [None, status(), status(BadRequest()), b"\xff\xff"])
def test_exhausted_without_retry_info_is_refused(receiver: Received, details: bytes | None) -> None:
    receiver.answer = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota exceeded", details)
    assert send(receiver.port) == Refused(
        f"http://{HOST}:{receiver.port} refused the records (RESOURCE_EXHAUSTED: quota exceeded): look into the receiver's "
        "log"
    )


def test_retry_info_that_is_broken() -> None:
    detail = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    assert retry_delay_s(Status(details=[detail]).SerializeToString()) is None


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_too_large_for_a_real_receiver(receiver: Received, compression: str) -> None:
    """Unpacked, if it is packed."""
    said = trouble_of(send(receiver.port, LARGE, compression=compression), TooLarge)
    assert said.startswith(f"http://{HOST}:{receiver.port} takes smaller messages only (RESOURCE_EXHAUSTED: ")
    assert "message limit" in said
    assert not receiver.requests


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5000000 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "grpc: received message after decompression larger than max (5000000 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "grpc: message after decompression larger than max (5000000 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 5000000"),
        ("RESOURCE_EXHAUSTED", "Decompressed gRPC message exceeds maximum size 4194304"),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes"),
        ("UNKNOWN", "Received http2 header with status: 413"),
    ],
)
def test_too_large_as_others_say_it(receiver: Received, code: str, details: str) -> None:
    receiver.answer = fails(grpc.StatusCode[code], details)
    assert f"({code}: {details})" in trouble_of(send(receiver.port), TooLarge)


# Failures without an answer


def test_nobody_is_there_and_then_somebody_is() -> None:
    with refusing_port() as port:
        transport = GrpcTransport(otlp(port), "logs")
        for _ in range(3):
            assert transport.send(LOGS) == Unavailable(
                f"cannot reach http://{HOST}:{port} (connection refused): start a Collector there or set "
                "OTEL_EXPORTER_OTLP_ENDPOINT"
            )
    with grpc_receiver(port=port):
        back = threading.Event()

        def go_on() -> None:
            while not isinstance(transport.send(LOGS), Accepted):
                pass
            back.set()

        threading.Thread(target=go_on, daemon=True).start()
        # gRPC by itself would wait longer and longer, up to two minutes.
        assert back.wait(BOUND_S)
    transport.close()


def test_no_such_name() -> None:
    said = trouble_of(send(1, endpoint="http://no-such-host.invalid:1"), Unavailable)
    assert said.startswith("cannot reach http://no-such-host.invalid:1 (")
    assert said.endswith("): start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT")


def test_no_answer_in_time(receiver: Received) -> None:
    def hangs(_: Any) -> bytes:
        receiver.ended.wait(BOUND_S)
        return b""

    receiver.answer = hangs
    with raw_receiver(lambda _: None) as silent, deaf_port() as deaf:
        for port in (receiver.port, silent, deaf):
            assert send(port, timeout_s=0.3) == Unavailable(
                f"http://{HOST}:{port} does not answer in time: look into the receiver's log, or raise "
                "OTEL_EXPORTER_OTLP_TIMEOUT"
            )


def closes(connection: socket.socket) -> None:
    connection.recv(10)
    connection.close()


def resets(connection: socket.socket) -> None:
    connection.recv(10)
    reset(connection)


def closes_in_the_middle(connection: socket.socket) -> None:
    # HTTP/2's SETTINGS and its acknowledgement, then half of a header.
    connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00")
    received = b""
    while b"three log records" not in received:
        received += connection.recv(65536)
    connection.sendall(b"\x00\x00\x10\x01\x04")
    connection.close()


@pytest.mark.parametrize("serve", [closes, resets, closes_in_the_middle])
def test_the_connection_ends_before_the_answer(serve: Callable[[socket.socket], None]) -> None:
    with raw_receiver(serve) as port:
        assert send(port) == Unavailable(
            f"http://{HOST}:{port} closed the connection before it had answered: look into the receiver's log"
        )


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\xff" * 500, b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_garbage(garbage: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(garbage)
        # Until the client has had enough.
        while connection.recv(65536):
            pass

    with raw_receiver(serve) as port:
        said = trouble_of(send(port), Unavailable)
    assert said == f"http://{HOST}:{port} does not speak gRPC: {PORTS}"


def test_a_receiver_of_http() -> None:
    with http_receiver() as received:
        said = trouble_of(send(received.port), Unavailable)
    assert said == f"http://{HOST}:{received.port} does not speak gRPC: {PORTS}"


# The end


def test_close_interrupts_who_waits(receiver: Received) -> None:
    def hangs(_: Any) -> bytes:
        receiver.ended.wait(BOUND_S)
        return b""

    receiver.answer = hangs
    transport = GrpcTransport(otlp(receiver.port, timeout_s=3600.0), "logs")
    outcomes: list[Outcome] = []
    sending = threading.Thread(target=lambda: outcomes.append(transport.send(LOGS)), daemon=True)
    sending.start()
    receiver.wait_for(1)
    transport.close()
    sending.join(BOUND_S)
    expected = Unavailable(f"sending to http://{HOST}:{receiver.port} was given up at the end")
    assert outcomes == [expected]
    assert transport.send(LOGS) == expected
    transport.close()


# TLS


def test_tls(authority: Authority) -> None:
    with grpc_receiver(server_credentials(authority.issue("server"))) as received:
        endpoint = f"https://localhost:{received.port}"
        assert send(1, endpoint=endpoint, certificate=authority.certificate) == Accepted()
        # Without a scheme it is TLS too, unless `insecure` says otherwise.
        bare = f"localhost:{received.port}"
        assert send(1, endpoint=bare, certificate=authority.certificate) == Accepted()
    with grpc_receiver() as received:
        assert send(1, endpoint=f"localhost:{received.port}", insecure=True) == Accepted()


def test_certificates_that_are_not_trusted(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path, "other")
    with grpc_receiver(server_credentials(authority.issue("server"))) as received:
        for host, certificate, words in (
            ("localhost", other.certificate, "has a certificate that is not trusted (unable to get local issuer certificate): let OTEL_EXPORTER_OTLP_CERTIFICATE name the file"),
            ("localhost", None, "has a certificate that is not trusted (unable to get local issuer certificate): let OTEL_EXPORTER_OTLP_CERTIFICATE name the file"),
            (HOST, authority.certificate, "has a certificate for another name: write a name in OTEL_EXPORTER_OTLP_ENDPOINT that its certificate has"),
        ):  # fmt: skip
            endpoint = f"https://{host}:{received.port}"
            said = trouble_of(send(1, endpoint=endpoint, certificate=certificate), Unavailable)
            assert said.startswith(f"{endpoint} {words}")
    assert not received.requests


def test_a_certificate_that_has_expired(authority: Authority) -> None:
    with grpc_receiver(server_credentials(authority.issue("expired", days=-1))) as received:
        endpoint = f"https://localhost:{received.port}"
        said = trouble_of(send(1, endpoint=endpoint, certificate=authority.certificate), Unavailable)
    assert said == f"{endpoint} has a certificate that has expired: renew it"


def test_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path, "other")
    certificate, key = authority.issue("client")
    wrong, wrong_key = other.issue("stranger")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    with grpc_receiver(server_credentials(authority.issue("server"), authority)) as received:
        endpoint = f"https://localhost:{received.port}"
        for ours, our_key in ((certificate, key), (both, None), (None, None), (wrong, wrong_key)):
            outcome = send(
                1,
                endpoint=endpoint,
                certificate=authority.certificate,
                client_certificate=ours,
                client_key=our_key,
            )
            if ours in {certificate, both}:
                assert outcome == Accepted()
            else:
                # gRPC's core does not say more than that the connection was closed.
                assert "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" in trouble_of(outcome, Unavailable)


def test_certificates_are_read_again_when_they_have_changed(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path, "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(other.certificate.read_bytes())
    with grpc_receiver(server_credentials(authority.issue("server"))) as received:
        transport = GrpcTransport(otlp(1, endpoint=f"https://localhost:{received.port}", certificate=trusted), "logs")
        trouble_of(transport.send(LOGS), Unavailable)
        trusted.write_bytes(b"half of a certi")
        trouble_of(transport.send(LOGS), Unavailable)
        trusted.write_bytes(authority.certificate.read_bytes())
        trouble_of(transport.send(LOGS), Unavailable)
        assert transport.send(LOGS) == Accepted()
        transport.close()


def test_tls_on_one_side_only(receiver: Received, authority: Authority) -> None:
    endpoint = f"https://{HOST}:{receiver.port}"
    said = trouble_of(send(1, endpoint=endpoint), Unavailable)
    assert said == f"{endpoint} does not speak TLS: write http:// in OTEL_EXPORTER_OTLP_ENDPOINT"
    with grpc_receiver(server_credentials(authority.issue("server"))) as received:
        said = trouble_of(send(received.port), Unavailable)
    assert said.startswith(f"http://{HOST}:{received.port} closed the connection before it had answered")


def test_files_that_cannot_be_used_fail_at_the_start(authority: Authority, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    certificate, _ = authority.issue("client")
    _, another_key = authority.issue("another")
    for fields, words in (
        ({"certificate": garbage}, [str(garbage), "OTEL_EXPORTER_OTLP_CERTIFICATE"]),
        ({"client_certificate": certificate, "client_key": another_key}, ["key values mismatch", str(another_key)]),
    ):
        with pytest.raises(DeliveryError) as failure:
            GrpcTransport(otlp(1, endpoint="https://localhost:1", **fields), "logs")
        for word in words:
            assert word in str(failure.value)


# What it costs


def test_grpc_is_imported_only_when_it_is_asked_for() -> None:
    script = (
        "import sys; from otel_procmon.deliver.settings import read_settings; "
        "from otel_procmon.deliver.transport import transport; "
        "transport(read_settings({'OTEL_EXPORTER_OTLP_PROTOCOL': sys.argv[1]}, 'logs').otlp, 'logs'); "
        "print('grpc' in sys.modules, 'urllib3' in sys.modules)"
    )
    for protocol, imported in (("http/protobuf", "False True"), ("grpc", "True False")):
        result = subprocess.run(
            [sys.executable, "-c", script, protocol], capture_output=True, text=True, check=True, timeout=BOUND_S
        )
        assert result.stdout.strip() == imported


def test_nothing_is_written_to_standard_error() -> None:
    """gRPC's core would tell there of each handshake that fails."""
    script = (
        "import sys; from otel_procmon.deliver.batch import Batch; from otel_procmon.deliver.settings import Otlp; "
        "from otel_procmon.deliver.grpc import GrpcTransport; "
        "print(GrpcTransport(Otlp('grpc', sys.argv[1], 30.0), 'logs').send(Batch('logs', 1, b'')))"
    )
    with grpc_receiver() as received:
        result = subprocess.run(
            [sys.executable, "-c", script, f"https://{HOST}:{received.port}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=BOUND_S,
        )
    assert "does not speak TLS" in result.stdout
    assert result.stderr == ""
