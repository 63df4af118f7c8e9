"""Failures of sending, in words: what is wrong with which endpoint, and what to do about it."""

from __future__ import annotations

import os
import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_CHARACTERS: Final = 300

_START: Final = "start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT"
_HEADERS: Final = "set OTEL_EXPORTER_OTLP_HEADERS as it wants them"
_PORT: Final = (
    "set OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL to match (as a rule port 4318 is http/protobuf "
    "and 4317 grpc)"
)
_SMALLER: Final = "raise the receiver's message limit, or lower OTEL_BSP_ and OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"
_ITS_LOG: Final = "look into the receiver's log"
_ITS_LOG_OR_CERTIFICATE: Final = (
    "look into the receiver's log, and if it wants a certificate of ours, set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE "
    "and OTEL_EXPORTER_OTLP_CLIENT_KEY"
)
_BEHIND: Final = "start the receiver that is behind it"
_TLS: Final = "write https:// in OTEL_EXPORTER_OTLP_ENDPOINT"

_REMEDY_BY_STATUS: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: _HEADERS,
    HTTPStatus.FORBIDDEN: _HEADERS,
    HTTPStatus.NOT_FOUND: _PORT,
    HTTPStatus.METHOD_NOT_ALLOWED: _PORT,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: _PORT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: _SMALLER,
    # They come from a proxy.
    HTTPStatus.BAD_GATEWAY: _BEHIND,
    HTTPStatus.GATEWAY_TIMEOUT: _BEHIND,
}
_REMEDY_BY_CODE: Final = {
    "UNAUTHENTICATED": _HEADERS,
    "PERMISSION_DENIED": _HEADERS,
    "UNIMPLEMENTED": _PORT,
    "RESOURCE_EXHAUSTED": _SMALLER,
}


# What the exceptions of ssl, http.client and urllib3 say, and the details of gRPC, whose TLS library words alike: a
# pattern, what is wrong with the place, and what to do. A more exact one goes before a vaguer one.
_CAUSES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), what, remedy)
    for pattern, what, remedy in (
        (
            "certificate is not valid for|not in peer certificate|Hostname Verification Check failed",
            "has a certificate for another name",
            "write a name in OTEL_EXPORTER_OTLP_ENDPOINT that its certificate has",
        ),
        ("certificate has expired", "has a certificate that has expired", "renew it"),
        (
            r"CERTIFICATE_VERIFY_FAILED(?:\] certificate verify failed)?: (?P<why>[\w -]*\w)",
            "has a certificate that is not trusted",
            "let OTEL_EXPORTER_OTLP_CERTIFICATE name the file with the certificate of who issued it",
        ),
        (
            # Only who has looked at a client's certificate does not know its issuer.
            "ALERT_(?P<why>(?:BAD|UNSUPPORTED|NO)_CERTIFICATE|CERTIFICATE_[A-Z]+|UNKNOWN_CA)",
            "wants another certificate of ours, or one at all",
            "set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY",
        ),
        (
            "WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|PACKET_LENGTH_TOO_LONG",
            "does not speak TLS",
            "write http:// in OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            "EOF|RemoteDisconnected|IncompleteRead|InvalidChunk|Connection ?reset|Broken ?pipe|Socket closed|recvmsg",
            "closed the connection before it had answered",
            _ITS_LOG,
        ),
        (r"\[SSL: (?P<why>\w+)\]|routines:\w+:(?P<other>\w+)", "cannot agree with us on TLS", _ITS_LOG),
        ("Failed parsing HTTP/2|Trying to connect an http1", "does not speak gRPC", _PORT),
        ("BadStatusLine|UnknownProtocol|LineTooLong|got more than", "does not speak HTTP", _PORT),
        (
            "ReadTimeoutError|aborted.*TimeoutError|DEADLINE_EXCEEDED",
            "does not answer in time",
            f"{_ITS_LOG}, or raise OTEL_EXPORTER_OTLP_TIMEOUT",
        ),
    )
)
# gRPC's words around the ones of the operating system and of the resolver. Before 1.80 they named the system call, too,
# and the error's number.
_GRPC_WORDS: Final = re.compile(
    r"(?:remote host|lookup failed for [^\]]*?|DNS resolution failed[^\]]*?): (?:connect: )?"
    r"(?P<why>[^:\]]+?)(?: \(\d+\))?\]?$"
)


def shown(endpoint: str) -> str:
    """`endpoint` without path and without a password that stands in it."""
    try:
        url = urlsplit(endpoint)
    except ValueError:
        # Receivers name others in redirects.
        return endpoint.rpartition("@")[2]
    host = url.netloc.rpartition("@")[2]
    return f"{url.scheme}://{host}" if host else endpoint


def unreachable(endpoint: str, cause: BaseException | str) -> str:
    """Nothing came back that tells what has become of the records.

    Args:
        endpoint: Where they were sent.
        cause: An exception, or the details that gRPC gives.
    """
    place = shown(endpoint)
    if isinstance(cause, str):
        words, found = cause, _GRPC_WORDS.search(cause)
        why = found["why"].lower() if found else _short(cause)
    else:
        words, why = " ".join(f"{type(error).__name__}: {error}" for error in _chain(cause)), _cause(cause)
    for pattern, what, remedy in _CAUSES:
        if match := pattern.search(words):
            # Often a client with a wrong certificate sees no more: the alert is lost with the connection.
            hint = _ITS_LOG_OR_CERTIFICATE if remedy == _ITS_LOG and place.startswith("https:") else remedy
            if remedy == _ITS_LOG and place.endswith(":4317") and not isinstance(cause, str):
                # What the Collector's port for gRPC does with HTTP.
                hint = _PORT
            detail = next((group for group in match.groups() if group), "").replace("_", " ").lower()
            return f"{place} {what}{f' ({detail})' if detail else ''}: {hint}"
    return f"cannot reach {place} ({why}): {_START}"


def busy(endpoint: str, status: int | str, said: str) -> str:
    """The receiver wants the records later.

    Args:
        endpoint: Where they were sent.
        status: HTTP's, or the name of gRPC's code.
        said: The receiver's own words.
    """
    remedy = _REMEDY_BY_STATUS.get(status, _ITS_LOG) if isinstance(status, int) else _ITS_LOG
    return f"{shown(endpoint)} cannot take the records now ({_answer(status, said)}): {remedy}"


def refused(endpoint: str, status: int | str, said: str) -> str:
    """The receiver does not want the records; see `busy`."""
    if isinstance(status, int):
        remedy = _REMEDY_BY_STATUS.get(status, _ITS_LOG)
        if "HTTPS server" in said:
            # Go's words to who speaks plain HTTP to its TLS port.
            remedy = _TLS
    else:
        # What is too large is not refused; RESOURCE_EXHAUSTED is then a quota.
        remedy = _ITS_LOG if status == "RESOURCE_EXHAUSTED" else _REMEDY_BY_CODE.get(status, _ITS_LOG)
    return f"{shown(endpoint)} refused the records ({_answer(status, said)}): {remedy}"


def too_large(endpoint: str, status: int | str, said: str) -> str:
    """The receiver takes smaller messages only; see `busy`."""
    return f"{shown(endpoint)} takes smaller messages only ({_answer(status, said)}): {_SMALLER}"


def moved(endpoint: str, status: int, location: str) -> str:
    """The receiver names another place, where these records are not sent unasked."""
    where = f"to {_short(shown(location))}" if location else "to nowhere"
    return (
        f"{shown(endpoint)} redirects {where} ({_answer(status, '')}): set OTEL_EXPORTER_OTLP_ENDPOINT to where the "
        "receiver is"
    )


def strange(endpoint: str, content_type: str) -> str:
    """The receiver says that all is well, but not as OTLP has it."""
    what = _short(content_type) or "no content type"
    return f"{shown(endpoint)} does not answer as a receiver of OTLP ({what}): {_PORT}"


def given_up(endpoint: str) -> str:
    """The end came first."""
    return f"sending to {shown(endpoint)} was given up at the end"


_STATUSES: Final = frozenset(status.value for status in HTTPStatus)


def _answer(status: int | str, said: str) -> str:
    name = f"{status} {HTTPStatus(status).phrase}" if isinstance(status, int) and status in _STATUSES else str(status)
    said = _short(said)
    return f"{name}: {said}" if said else name


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and all that it comes from or wraps."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting and len(seen) < 32:
        current = waiting.pop()
        if any(current is other for other in seen):
            continue
        seen.append(current)
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        waiting += [item for item in inner if isinstance(item, BaseException)]


def _cause(error: BaseException) -> str:
    """The operating system's words for the error at the bottom of `error`, or else its own."""
    seen: list[BaseException] = []
    for current in _chain(error):
        seen.append(current)
        if isinstance(current, OSError) and current.errno:
            # The errno of a resolver, or of OpenSSL, is none of the operating system's.
            foreign = isinstance(current, socket.gaierror) or type(current).__name__.startswith("SSL")
            return (current.strerror or str(current) if foreign else os.strerror(current.errno)).lower()
    if any("Timeout" in type(item).__name__ for item in seen):
        return "no answer in time"
    return _short(str(seen[-1]) or type(seen[-1]).__name__)


def _short(text: str) -> str:
    """On one line, and without what could drive a terminal: receivers choose their words."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _MOST_CHARACTERS]).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
