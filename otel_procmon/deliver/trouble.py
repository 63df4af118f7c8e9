"""Failures of sending, in words: what is wrong with which endpoint, and what to do about it."""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator, Sequence

_MOST_CHARACTERS: Final = 300

_START: Final = "start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT"
_HEADERS: Final = "set OTEL_EXPORTER_OTLP_HEADERS as it wants them"
_PORT: Final = (
    "set OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL to match (as a rule port 4318 is http/protobuf "
    "and 4317 grpc)"
)
_SMALLER: Final = "raise the receiver's message limit, or lower OTEL_BSP_ and OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"
_ITS_LOG: Final = "look into the receiver's log"

_REMEDY_BY_STATUS: Final = {
    HTTPStatus.UNAUTHORIZED: _HEADERS,
    HTTPStatus.FORBIDDEN: _HEADERS,
    HTTPStatus.NOT_FOUND: _PORT,
    HTTPStatus.METHOD_NOT_ALLOWED: _PORT,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: _PORT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: _SMALLER,
}
_REMEDY_BY_CODE: Final = {
    "UNAUTHENTICATED": _HEADERS,
    "PERMISSION_DENIED": _HEADERS,
    "UNIMPLEMENTED": _PORT,
    "RESOURCE_EXHAUSTED": _SMALLER,
}
_UNREACHABLE_CODES: Final = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}


def shown(endpoint: str) -> str:
    """`endpoint` without path and without a password that stands in it."""
    url = urlsplit(endpoint)
    host = url.netloc.rpartition("@")[2]
    return f"{url.scheme}://{host}" if host else endpoint


def sentence(endpoint: str, heard: Sequence[logging.LogRecord], cause: Exception | int | None = None) -> str:
    """What was wrong: `cause`, an exception or an HTTP status, or else what the SDK's exporter logged.

    The exporters' results say nothing. The log records of the gRPC one carry the cause as arguments: a status code, and
    details at the end.
    """
    place = shown(endpoint)
    for arguments in _arguments(heard, cause):
        for argument in arguments:
            if isinstance(argument, Exception):
                return f"cannot reach {place} ({_cause(argument)}): {_START}"
            if isinstance(argument, int) and not isinstance(argument, bool) and argument in _STATUSES:
                status = HTTPStatus(argument)
                remedy = _REMEDY_BY_STATUS.get(status, _ITS_LOG)
                return f"{place} refused the records ({argument} {status.phrase}): {remedy}"
            code = getattr(argument, "name", None)
            if isinstance(code, str) and type(argument).__name__ == "StatusCode":
                details = _short(str(arguments[-1]))
                if code in _UNREACHABLE_CODES:
                    why = "connection refused" if "Connection refused" in details else f"{code}: {details}"
                    return f"cannot reach {place} ({why}): {_START}"
                return f"{place} refused the records ({code}: {details}): {_REMEDY_BY_CODE.get(code, _ITS_LOG)}"
    said = _short(heard[-1].getMessage()) if heard else "the exporter does not say why"
    return f"cannot send to {place} ({said}): {_START}"


_STATUSES: Final = frozenset(status.value for status in HTTPStatus)


def _arguments(heard: Sequence[logging.LogRecord], cause: Exception | int | None) -> Iterator[tuple[object, ...]]:
    if cause is not None:
        yield (cause,)
    for record in reversed(heard):
        if isinstance(record.args, tuple):
            yield record.args


def _cause(error: BaseException) -> str:
    """The operating system's words for the error at the bottom of `error`, or else its own."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting and len(seen) < 32:
        current = waiting.pop()
        if any(current is other for other in seen):
            continue
        seen.append(current)
        if isinstance(current, OSError) and current.errno:
            # A resolver's errno is none of the operating system's.
            words = current.strerror if type(current).__name__ == "gaierror" else os.strerror(current.errno)
            return (words or str(current)).lower()
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        waiting += [item for item in inner if isinstance(item, BaseException)]
    if any("Timeout" in type(item).__name__ for item in seen):
        return "no answer in time"
    return _short(str(seen[-1]) or type(seen[-1]).__name__)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
