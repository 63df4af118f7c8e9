"""OTLP over HTTP, in protobuf: one POST for a batch, over connections that are kept.

What answers mean is the OTLP specification's to say (1.11, "OTLP/HTTP Response"); where it leaves something to HTTP, a
batch is rather sent again than lost.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import re
import socket
import ssl
import threading
import time
import weakref
import zlib
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.util.wait import wait_for_write

from otel_procmon.deliver import tls, trouble
from otel_procmon.deliver.answer import accepted, accepted_json, status_message, status_message_json
from otel_procmon.deliver.batch import Accepted, Outcome, Refused, TooLarge, Unavailable
from otel_procmon.deliver.transport import USER_AGENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.deliver.batch import Batch
    from otel_procmon.deliver.settings import Otlp

_RETRYABLE: Final = frozenset(
    (
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
)
# The others turn a POST into a GET, which leaves the records behind (RFC 9110, 15.4).
_FOLLOWED: Final = frozenset((HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT))
_MOST_REDIRECTS: Final = 5
_MOST_ANSWER_BYTES: Final = 64 * 1024
_MOST_IDLE: Final = 16
"""How many connections are kept while nothing is sent over them."""
_GZIP_LEVEL: Final = 1
"""Half the time of zlib's default, for a seventh more bytes."""


class HttpTransport:
    """A `Transport` to one endpoint. It may have any number of batches in flight, each over its own connection.

    ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` are honoured, as by every other exporter of OpenTelemetry's.
    """

    def __init__(self, otlp: Otlp, *, clock: Callable[[], float] = time.time) -> None:
        """Connects only when something is sent. Raises DeliveryError if a certificate or key cannot be used.

        Args:
            otlp: Where to send, and how.
            clock: Seconds since the epoch; a date in Retry-After is compared with it.
        """
        self._otlp = otlp
        self._clock = clock
        self._live = _Live()
        self._tls_stamp = tls.stamp(otlp)
        self._pool = self._new_pool()
        self._renewal = threading.Lock()
        self._headers = {
            "user-agent": USER_AGENT,
            **otlp.headers,
            "content-type": "application/x-protobuf",
            "accept-encoding": "identity",
        }
        if otlp.compression != "none":
            self._headers["content-encoding"] = otlp.compression

    def send(self, batch: Batch) -> Outcome:
        """See `Transport.send`."""
        pool = self._pool
        try:
            self._live.check()
            return self._judge(batch, self._exchange(pool, _compressed(batch.body, self._otlp.compression)))
        except Exception as error:  # noqa: BLE001 - a library's surprise must cost this try only
            if self._live.ended:
                return Unavailable(trouble.given_up(self._otlp.endpoint))
            self._renew(pool)
            return Unavailable(trouble.unreachable(self._otlp.endpoint, error))

    def close(self) -> None:
        """See `Transport.close`."""
        self._live.end()
        self._pool.clear()

    def _new_pool(self) -> urllib3.PoolManager:
        endpoint = urlsplit(self._otlp.endpoint)
        arguments: dict[str, Any] = {"maxsize": _MOST_IDLE, "retries": False}
        if endpoint.scheme == "https" or self._otlp.certificate or self._otlp.client_certificate:
            arguments["ssl_context"] = context = tls.context(self._otlp)
            context.sslsocket_class = self._live.tls_socket
        proxies = getproxies_environment()
        proxy = proxies.get(endpoint.scheme) or proxies.get("all")
        if proxy and not proxy_bypass_environment(endpoint.netloc, proxies):
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            user = urlsplit(proxy).netloc.rpartition("@")[0]
            headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
            pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, proxy_headers=headers, **arguments)
        else:
            pool = urllib3.PoolManager(**arguments)
        pool.pool_classes_by_scheme = self._live.pools
        return pool

    def _renew(self, pool: urllib3.PoolManager) -> None:
        """Read certificates again if their files are others now: they may be why it failed, and they do expire."""
        with self._renewal:
            stamp = tls.stamp(self._otlp)
            if stamp == self._tls_stamp or pool is not self._pool:
                return
            try:
                self._pool = self._new_pool()
            except Exception:  # noqa: BLE001 - somebody may be in the middle of writing them
                return
            self._tls_stamp = stamp

    def _exchange(self, pool: urllib3.PoolManager, body: bytes) -> _Answer:
        """Send, and read the answer; follow redirects. Raises what urllib3 raises."""
        until = time.monotonic() + self._otlp.timeout_s
        url, headers = self._otlp.endpoint, self._headers
        for _ in range(_MOST_REDIRECTS):
            try:
                answer = _post(pool, url, body, headers, until)
            except HTTPError as error:
                if not any(isinstance(cause, _StaleError) for cause in error.args):
                    raise
                answer = _post(pool, url, body, headers, until)
            if answer.status not in _FOLLOWED or not (target := _target(url, answer.location)):
                break
            if not _same_place(url, target):
                # Whoever is there is not who the headers were written for; among them are passwords.
                headers = {name: value for name, value in headers.items() if name not in self._otlp.headers}
            url = target
        return answer

    def _judge(self, batch: Batch, answer: _Answer) -> Outcome:
        endpoint, status = self._otlp.endpoint, answer.status
        if 200 <= status < 300:
            if not answer.complete:
                return Unavailable(trouble.unreachable(endpoint, "IncompleteRead"))
            read = accepted_json if answer.content_type == "application/json" else accepted
            return read(batch, answer.body) or Accepted(message=trouble.strange(endpoint, answer.content_type))
        said = answer.said()
        if status in _RETRYABLE:
            return Unavailable(trouble.busy(endpoint, status, said), retry_after_s(answer.retry_after, self._clock()))
        # The Collector answers 400, with the words of Go's http.MaxBytesReader (otlpreceiver 0.159, otlphttp.go).
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (status == 400 and "request body too large" in said):
            return TooLarge(trouble.too_large(endpoint, status, said))
        if status >= 400:
            return Refused(trouble.refused(endpoint, status, said))
        return Unavailable(trouble.moved(endpoint, status, answer.location))


class _Answer(NamedTuple):
    """The parts of a response that mean something."""

    status: int
    content_type: str
    retry_after: str
    location: str
    body: bytes
    complete: bool
    """False: the connection was closed in the middle of the body."""

    def said(self) -> str:
        """What the receiver says is wrong, empty if it does not say."""
        if self.content_type == "application/x-protobuf":
            return status_message(self.body)
        if self.content_type == "application/json":
            return status_message_json(self.body)
        # Of a proxy's page in HTML nothing is left that could be said in one sentence.
        return self.body.decode(errors="replace") if self.content_type in {"", "text/plain"} else ""


def _post(pool: urllib3.PoolManager, url: str, body: bytes, headers: dict[str, str], until: float) -> _Answer:
    response = pool.urlopen(
        "POST",
        url,
        body=body,
        headers=headers,
        redirect=False,
        retries=False,
        timeout=urllib3.Timeout(total=max(0.001, until - time.monotonic())),
        preload_content=False,
        decode_content=False,
    )
    answer, complete = b"", True
    try:
        # Up to the empty piece at the end, at which it is seen whether anything is missing.
        while len(answer) <= _MOST_ANSWER_BYTES:
            piece = response.read(_MOST_ANSWER_BYTES + 1 - len(answer), decode_content=False)
            if not piece:
                break
            answer += piece
        else:
            response.close()
    except HTTPError:
        # The status has come, and says more than that the rest has not.
        complete = False
        response.close()
    response.release_conn()
    got = response.headers
    return _Answer(
        status=response.status,
        content_type=got.get("content-type", "").partition(";")[0].strip().lower(),
        retry_after=got.get("retry-after", ""),
        location=got.get("location", ""),
        body=answer[:_MOST_ANSWER_BYTES],
        complete=complete,
    )


def retry_after_s(value: str, now: float) -> float | None:
    """The Retry-After header: seconds, or a date (RFC 9110, 10.2.3). None if it is neither. Never negative."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        # "-0000" and "GMT" are both UTC.
        date = parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - now) if date.tzinfo else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _compressed(body: bytes, compression: str) -> bytes:
    if compression == "none":
        return body
    # "deflate" is zlib's format in HTTP (RFC 9110, 8.4.1.2).
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31 if compression == "gzip" else 15)
    return packer.compress(body) + packer.flush()


def _target(url: str, location: str) -> str | None:
    """Where a redirect leads to; None if it is not to be followed: to nowhere, or out of TLS."""
    if not location:
        return None
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
        usable = bool(urlsplit(target).hostname) and urlsplit(target).port != 0
    except ValueError:
        return None
    allowed = {"https"} if urlsplit(url).scheme == "https" else {"http", "https"}
    return target if usable and scheme in allowed else None


def _same_place(one: str, other: str) -> bool:
    """The same host and port, or the same host's port for TLS instead of its plain one."""
    a, b = urlsplit(one), urlsplit(other)
    ports = {"http": 80, "https": 443}
    before, after = (a.scheme, a.port or ports[a.scheme]), (b.scheme, b.port or ports[b.scheme])
    return a.hostname == b.hostname and (before == after or (before, after) == (("http", 80), ("https", 443)))


class _StaleError(ConnectionError):
    """The receiver had closed a kept connection while the request was on its way: no failure, try another."""


class _Live:
    """The sockets in use, so that whoever waits on one can be interrupted; and urllib3's classes that make them."""

    def __init__(self) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        live = self

        class TlsSocket(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                live.add(self)
                super().do_handshake(block)

        class Plain(_Connection, HTTPConnection):
            pass

        class Tls(_Connection, HTTPSConnection):
            pass

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = Tls

        Plain.live = Tls.live = self
        self.tls_socket = TlsSocket
        self.pools: dict[str, Any] = {"http": PlainPool, "https": TlsPool}

    def check(self) -> None:
        """Raises after the end."""
        if self.ended:
            raise ConnectionAbortedError

    def add(self, opened: socket.socket) -> None:
        with self._lock:
            self._sockets.add(opened)
            if self.ended:
                _interrupt(opened)

    def connect(self, opened: socket.socket, address: Any, timeout_s: float | None) -> None:
        """Connect `opened`, which does not block."""
        with self._lock:
            # Begun under the lock: what is interrupted before it has begun would not notice.
            self.check()
            self._sockets.add(opened)
            number = opened.connect_ex(address)
        if number == errno.EINPROGRESS:
            in_time = wait_for_write(opened, timeout_s)
            number = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if in_time else errno.ETIMEDOUT
        if number:
            raise OSError(number, os.strerror(number))

    def end(self) -> None:
        with self._lock:
            self.ended = True
            for opened in self._sockets:
                _interrupt(opened)


def _interrupt(opened: socket.socket) -> None:
    """Make whoever waits on it wake up with an error, or at the end of the stream."""
    # It may be closed already, or not be connected yet.
    with suppress(OSError):
        # SSLSocket's own would take its state away under another thread's feet.
        socket.socket.shutdown(opened, socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """A connection whose timeout is one for all that is done for a request.

    urllib3 sets `timeout` when a request begins, to all the time there is. The standard library would grant it again to
    each single operation: a receiver that sends a byte now and then would never be given up.
    """

    live: _Live
    _until: float | None = None
    _answered = False

    @property
    def timeout(self) -> float | None:
        """What is left of it, in seconds."""
        return None if self._until is None else max(0.001, self._until - time.monotonic())

    @timeout.setter
    def timeout(self, seconds: object) -> None:
        self._until = time.monotonic() + seconds if isinstance(seconds, (int, float)) else None

    def _new_conn(self) -> socket.socket:
        # As socket.create_connection does it, but so that each try can be interrupted.
        try:
            addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]
        failure: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in addresses:
            opened = socket.socket(family, kind, protocol)
            try:
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.setblocking(False)
                self.live.connect(opened, address, self.timeout)
                opened.settimeout(self.timeout)
            except OSError as error:
                opened.close()
                failure = error
            else:
                return opened
        raise NewConnectionError(self, f"cannot connect: {failure}") from failure

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        try:
            super().send(data)
        except ssl.SSLEOFError as error:
            # As for a broken pipe, after which urllib3 goes on to the answer: it may be there, and say "too large".
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error

    def getresponse(self) -> Any:
        try:
            response = super().getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            if self._answered and not self.live.ended:
                raise _StaleError(str(error)) from error
            raise
        self._answered = True
        return response

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, *args: Any, **kwargs: Any
    ) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *args, **kwargs)
        response.fp = io.BufferedReader(_Reader(response.fp.detach(), sock, self))
        return response


class _Reader(io.RawIOBase):
    """Reads from a socket, for as long as the connection's time lasts."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, connection: _Connection) -> None:
        self._raw = raw
        self._sock = sock
        self._until = connection._until  # noqa: SLF001 - of this module

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until is not None:
            left_s = self._until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left_s)
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
