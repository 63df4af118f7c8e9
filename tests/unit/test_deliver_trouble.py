"""Failures in words."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl

import pytest

from otel_procmon.deliver.trouble import shown, unreachable


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://localhost:4318/v1/traces", "http://localhost:4318"),
        ("https://user:secret@c.example/v1/logs?key=secret", "https://c.example"),
        ("localhost:4317", "localhost:4317"),
    ],
)
def test_endpoints_are_shown_without_secrets(endpoint: str, expected: str) -> None:
    assert shown(endpoint) == expected


def nested(inner: BaseException) -> Exception:
    """As urllib3 and requests wrap it."""
    middle = RuntimeError("Max retries exceeded")
    middle.reason = inner  # type: ignore[attr-defined]
    return OSError(middle)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "connection refused"),
        (nested(OSError(errno.EHOSTUNREACH, "x")), "no route to host"),
        (nested(socket.gaierror(-2, "Name or service not known")), "name or service not known"),
        (TimeoutError(), "no answer in time"),
        (nested(ValueError("certificate verify failed")), "certificate verify failed"),
    ],
)
def test_causes(cause: Exception, words: str) -> None:
    said = unreachable("http://c:1/v1/logs", cause)
    assert said == f"cannot reach http://c:1 ({words}): start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("details", "words"),
    [
        # Since 1.80, and before.
        ("Failed to connect to remote host: Connection refused", "connection refused"),
        ("Failed to connect to remote host: connect: Connection refused (111)", "connection refused"),
        (
            "DNS resolution failed for c:1: C-ares status is not ARES_SUCCESS: Domain name not found]",
            "domain name not found",
        ),
        ("something else", "something else"),
    ],
)
def test_details_of_grpc(details: str, words: str) -> None:
    details = (
        f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: {details}"
        if "remote" in details
        else details
    )
    said = unreachable("http://c:1", details)
    assert said == f"cannot reach http://c:1 ({words}): start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT"


def test_exceptions_tied_in_a_ring_end() -> None:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert "two" in unreachable("http://c:1", one)


def test_the_port_of_grpc_is_recognised() -> None:
    """The Collector closes the connection without a word."""
    cause = http.client.RemoteDisconnected("Remote end closed connection without response")
    assert (
        "closed the connection before it had answered: set OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTO"
        in (unreachable("http://c:4317/v1/logs", cause))
    )
    assert unreachable("http://c:4318/v1/logs", cause).endswith("had answered: look into the receiver's log")


def test_openssl_has_numbers_of_its_own() -> None:
    """An SSLEOFError has the errno 8, which is ENOEXEC."""
    assert "exec format" not in unreachable("https://c", ssl.SSLEOFError(8, "EOF occurred in violation of protocol"))
