"""Each row of the table in docs/otlp.md, against a real receiver."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon.deliver.batch import Accepted, Batch, Outcome, Unavailable
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.settings import Signal, read_settings
from otel_procmon.deliver.transport import transport
from tests.unit.otlp_receiver import (
    BOUND_S,
    Authority,
    Received,
    counting_relay,
    grpc_receiver,
    hangs,
    http_receiver,
    make_authority,
    server_context,
    server_credentials,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMON = "OTEL_EXPORTER_OTLP_"
BODY = b"x" * 1_000_000
PROTOCOLS = ("http/protobuf", "grpc")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=["traces", "logs"])
def signal(request: pytest.FixtureRequest) -> Signal:
    found: Signal = request.param
    return found


@pytest.fixture(params=["common", "own"])
def form(request: pytest.FixtureRequest, signal: Signal) -> str:
    """What a variable begins with: for all signals, or for this one."""
    return COMMON if request.param == "common" else f"{COMMON}{signal.upper()}_"


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def receiver(protocol: str) -> Iterator[Received]:
    with grpc_receiver() if protocol == "grpc" else http_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ca"), "ca")


def send(environ: dict[str, Any], signal: Signal) -> Outcome:
    otlp = read_settings({name: str(value) for name, value in environ.items()}, signal).otlp
    assert otlp is not None
    way = transport(otlp, signal)
    try:
        return way.send(Batch(signal, 1, BODY))
    finally:
        way.close()


def other(form: str, signal: Signal) -> str:
    """The form of the same variable that is of no account: the other signal's, or the common one."""
    return f"{COMMON}{'LOGS' if signal == 'traces' else 'TRACES'}_" if form == COMMON else COMMON


def to(received: Received, protocol: str, scheme: str = "http") -> dict[str, Any]:
    return {f"{COMMON}ENDPOINT": f"{scheme}://localhost:{received.port}", f"{COMMON}PROTOCOL": protocol}


def test_endpoint(receiver: Received, protocol: str, signal: Signal, form: str) -> None:
    endpoint = f"http://127.0.0.1:{receiver.port}/base"
    environ = {
        f"{form}ENDPOINT": endpoint,
        f"{other(form, signal)}ENDPOINT": "http://127.0.0.1:1",
        f"{COMMON}PROTOCOL": protocol,
    }
    assert send(environ, signal) == Accepted()
    (request,) = receiver.requests
    if protocol == "grpc":
        assert request.path.startswith(f"/opentelemetry.proto.collector.{signal.removesuffix('s')}")
    else:
        assert request.path == (f"/base/v1/{signal}" if form == COMMON else "/base")


def test_endpoint_with_user_and_query(receiver: Received, protocol: str, signal: Signal, form: str) -> None:
    environ = {
        f"{form}ENDPOINT": f"http://us%20er:pass@127.0.0.1:{receiver.port}/base/?key=1#part",
        f"{COMMON}PROTOCOL": protocol,
    }
    assert send(environ, signal) == Accepted()
    (request,) = receiver.requests
    assert request.headers["authorization"] == "Basic dXMgZXI6cGFzcw=="
    if protocol != "grpc":
        assert request.path == (f"/base/v1/{signal}?key=1" if form == COMMON else "/base/?key=1")


def test_protocol(receiver: Received, protocol: str, signal: Signal, form: str) -> None:
    environ = {
        f"{COMMON}ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        f"{form}PROTOCOL": protocol,
        f"{other(form, signal)}PROTOCOL": "http/protobuf" if protocol == "grpc" else "grpc",
    }
    assert send(environ, signal) == Accepted()


def test_insecure(signal: Signal, form: str) -> None:
    with grpc_receiver() as received:
        environ = {f"{COMMON}ENDPOINT": f"localhost:{received.port}", f"{COMMON}PROTOCOL": "grpc"}
        assert send(environ | {f"{form}INSECURE": "True"}, signal) == Accepted()
        for value in ("", "false"):
            outcome = send(environ | {f"{form}INSECURE": value}, signal)
            assert isinstance(outcome, Unavailable)
            assert "does not speak TLS" in outcome.trouble
        # A scheme goes before it, in both directions.
        environ[f"{COMMON}ENDPOINT"] = f"https://localhost:{received.port}"
        assert isinstance(send(environ | {f"{form}INSECURE": "true"}, signal), Unavailable)
        environ[f"{COMMON}ENDPOINT"] = f"http://localhost:{received.port}"
        assert send(environ | {f"{form}INSECURE": "false"}, signal) == Accepted()


def test_headers(receiver: Received, protocol: str, signal: Signal, form: str) -> None:
    environ = to(receiver, protocol) | {
        f"{form}HEADERS": " X-Key = a%2Cb%3D , authorization=Bearer%20s=,,empty=",
        f"{other(form, signal)}HEADERS": "other=1",
    }
    assert send(environ, signal) == Accepted()
    headers = receiver.requests[0].headers
    assert (headers["x-key"], headers["authorization"], headers["empty"]) == ("a,b=", "Bearer s=", "")
    assert "other" not in headers


def test_compression(receiver: Received, protocol: str, signal: Signal, form: str) -> None:
    for value in ("", "none", "GZIP", *(() if protocol == "grpc" else ("deflate",))):
        with counting_relay(receiver.port) as (port, sizes):
            environ = to(receiver, protocol) | {
                f"{COMMON}ENDPOINT": f"http://127.0.0.1:{port}",
                f"{form}COMPRESSION": value,
            }
            assert send(environ, signal) == Accepted()
        assert (sum(sizes) < len(BODY) / 10) == (value in {"GZIP", "deflate"})
    assert {request.body for request in receiver.requests} == {BODY}


def test_timeout(receiver: Received, protocol: str, signal: Signal, form: str) -> None:
    def never(_: Any) -> bytes:
        receiver.ended.wait(BOUND_S)
        return b""

    receiver.answer = never if protocol == "grpc" else hangs
    # Were it seconds, nothing here would wait for it.
    environ = to(receiver, protocol) | {f"{form}TIMEOUT": 300, f"{other(form, signal)}TIMEOUT": 3_600_000}
    outcome = send(environ, signal)
    assert isinstance(outcome, Unavailable)
    assert "does not answer in time" in outcome.trouble


def test_certificates(protocol: str, signal: Signal, form: str, authority: Authority, tmp_path: Path) -> None:
    """CERTIFICATE, CLIENT_CERTIFICATE and CLIENT_KEY."""
    unknown = make_authority(tmp_path, "unknown")
    server, (certificate, key) = authority.issue("server"), authority.issue("client")
    receiving = (
        grpc_receiver(server_credentials(server, authority))
        if protocol == "grpc"
        else http_receiver(server_context(server, authority))
    )
    with receiving as received:
        environ = to(received, protocol, "https") | {
            f"{form}CERTIFICATE": authority.certificate,
            f"{other(form, signal)}CERTIFICATE": unknown.certificate,
            f"{form}CLIENT_CERTIFICATE": certificate,
            f"{form}CLIENT_KEY": key,
        }
        assert send(environ, signal) == Accepted()
        for name in ("CERTIFICATE", "CLIENT_CERTIFICATE"):
            without = environ | {f"{form}{name}": ""}
            if name == "CERTIFICATE":
                assert isinstance(send(without, signal), Unavailable)
            else:
                with pytest.raises(DeliveryError):
                    send(without, signal)
        assert isinstance(
            send(environ | {f"{form}CLIENT_CERTIFICATE": "", f"{form}CLIENT_KEY": ""}, signal), Unavailable
        )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HEADERS", "s3cret", ["without a name or '='", "name=value"]),
        ("HEADERS", "=s3cret", ["without a name"]),
        ("HEADERS", "a b=s3cret", ["'a b'", "no name of a header"]),
        ("HEADERS", "key=s3cret%0D%0Ax:y", ["'key'", "printable ASCII"]),
        ("HEADERS", "key=s3crét", ["'key'", "printable ASCII"]),
        ("INSECURE", "yes", ["'yes'", "true or false"]),
        ("ENDPOINT", "http://us:s3cret@", ["URL such as http://localhost:431"]),
        ("ENDPOINT", "https://us:s3cret@c:99999", ["URL such as"]),
        ("ENDPOINT", "http://c d", ["URL such as"]),
        ("TIMEOUT", "10s", ["whole number"]),
        ("COMPRESSION", "zstd", ["none or gzip"]),
        ("CLIENT_KEY", "/nonexistent/key", ["/nonexistent/key", "cannot be read"]),
    ],
)
def test_bad_values(protocol: str, variable: str, value: str, words: list[str]) -> None:
    with pytest.raises(DeliveryError) as failure:
        read_settings({f"{COMMON}PROTOCOL": protocol, f"{COMMON}LOGS_{variable}": value}, "logs")
    for word in (f"{COMMON}LOGS_{variable}", *words):
        assert word in str(failure.value)
    assert "s3cr" not in str(failure.value)


@pytest.mark.parametrize("name", ["grpc-timeout", "key-bin", "k$y"])
def test_headers_that_grpc_does_not_take(name: str) -> None:
    environ = {f"{COMMON}HEADERS": f"{name}=1"}
    assert read_settings(environ, "logs").otlp is not None
    with pytest.raises(DeliveryError) as failure:
        read_settings(environ | {f"{COMMON}PROTOCOL": "grpc"}, "logs")
    assert f"{name!r}, which is no name of a header that can be sent over grpc" in str(failure.value)


def test_the_table_has_a_row_for_each() -> None:
    text = (Path(__file__).parents[2] / "docs" / "otlp.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| .* \| .* \| `.*` \|$", text, re.MULTILINE)
    assert rows == [
        "ENDPOINT",
        "PROTOCOL",
        "INSECURE",
        "HEADERS",
        "COMPRESSION",
        "TIMEOUT",
        "CERTIFICATE",
        "CLIENT_CERTIFICATE",
        "CLIENT_KEY",
    ]
