"""OTLP over gRPC: a unary call for a batch, whose bytes go out as they are.

Import it only when it is asked for: gRPC costs 17 MB of memory.
"""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

# What gRPC's core has to say it would write to standard error, at each try; the outcome says it in a sentence.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # type: ignore[import-untyped]

from otel_procmon.deliver import tls, trouble
from otel_procmon.deliver.answer import accepted, retry_delay_s
from otel_procmon.deliver.batch import Accepted, Outcome, Refused, TooLarge, Unavailable
from otel_procmon.deliver.transport import USER_AGENT

if TYPE_CHECKING:
    from otel_procmon.deliver.batch import Batch
    from otel_procmon.deliver.settings import Otlp, Signal

_METHOD: Final[dict[Signal, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
# The table in the OTLP specification (1.11, "OTLP/gRPC Response"); RESOURCE_EXHAUSTED only with RetryInfo.
_RETRYABLE: Final = frozenset(("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"))
# RESOURCE_EXHAUSTED from grpc-go, and so from the Collector: "grpc: received message larger than max (N vs. M)" and
# "grpc: message after decompression larger than max (N vs. M)" (1.76, rpc_util.go); from gRPC's core: "SERVER: Received
# message larger than max (N vs. M)" and "Decompressed message larger than max"; from grpc-java: "gRPC message exceeds
# maximum size M: N". OUT_OF_RANGE, which else is retryable, from Rust's tonic: "Error, decoded message length too
# large: found N bytes, the limit is: M bytes". UNKNOWN, to which gRPC maps HTTP's 413, from a proxy.
_TOO_LARGE: Final = re.compile(
    "message.* larger than max|message length too large|message exceeds maximum size|HTTP.* status:? *(code:? *)?413",
    re.IGNORECASE,
)
# What our side says of itself: of names, connections and TLS.
_NO_ANSWER: Final = re.compile(
    "failed to connect to all addresses|errors resolving|resolution failed|recvmsg|sendmsg|Socket closed|Broken pipe"
    "|Connection re(set|fused)|GOAWAY|handshake|Endpoint closing|Hostname Verification|ping timeout"
)
_OPTIONS: Final = (
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_send_message_length", -1),
    # The sender has its own pauses, and gRPC's, of up to two minutes, would make it miss that the receiver is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A connection that is dead and does not show it. grpc-go punishes pings more frequent than one in five minutes.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Or two transports to one place would share the connection, and what has happened to it.
    ("grpc.use_local_subchannel_pool", 1),
)


class GrpcTransport:
    """A `Transport` of one signal. Any number of batches may be in flight, all over one connection."""

    def __init__(self, otlp: Otlp, signal: Signal) -> None:
        """Connects only when something is sent. Raises DeliveryError if a certificate or key cannot be used."""
        self._otlp = otlp
        self._signal = signal
        self._metadata = tuple(otlp.headers.items())
        self._ended = False
        self._renewal = threading.Lock()
        self._tls_stamp = tls.stamp(otlp)
        self._channel, self._export = self._connect()

    def send(self, batch: Batch) -> Outcome:
        """See `Transport.send`."""
        endpoint, export = self._otlp.endpoint, self._export
        try:
            answer = export(batch.body, timeout=self._otlp.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            if self._ended:
                return Unavailable(trouble.given_up(endpoint))
            return self._judge(error, export)
        except Exception as error:  # noqa: BLE001 - ValueError of a closed channel; a surprise must cost this try only
            return Unavailable(trouble.given_up(endpoint) if self._ended else trouble.unreachable(endpoint, error))
        return accepted(batch, answer) or Accepted(message=trouble.strange(endpoint, "broken protobuf"))

    def close(self) -> None:
        """See `Transport.close`."""
        with self._renewal:
            self._ended = True
            self._channel.close()

    def _connect(self) -> tuple[Any, Any]:
        otlp = self._otlp
        compression = grpc.Compression.Gzip if otlp.compression == "gzip" else grpc.Compression.NoCompression
        if otlp.insecure:
            channel = grpc.insecure_channel(target(otlp.endpoint), _OPTIONS, compression)
        else:
            roots, key, chain = tls.pem(otlp)
            credentials = grpc.ssl_channel_credentials(roots, key, chain)
            channel = grpc.secure_channel(target(otlp.endpoint), credentials, _OPTIONS, compression)
        # Without serializers, bytes go out and come in.
        return channel, channel.unary_unary(_METHOD[self._signal])

    def _judge(self, error: Any, export: Any) -> Outcome:
        endpoint, code, details = self._otlp.endpoint, error.code().name, error.details() or ""
        if code == "RESOURCE_EXHAUSTED" and "CLIENT: Received message larger than max" in details:
            # A message comes only with success.
            return Accepted(message=trouble.strange(endpoint, details))
        retry_after_s = _retry_after_s(error)
        if code in {"RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "UNKNOWN", "INTERNAL"} and _TOO_LARGE.search(details):
            return TooLarge(trouble.too_large(endpoint, code, details))
        if code == "DEADLINE_EXCEEDED":
            return Unavailable(trouble.unreachable(endpoint, code), retry_after_s)
        # A name that is not in the certificate is UNAUTHENTICATED, made here; so is the failure to connect UNAVAILABLE.
        if code in {"UNAVAILABLE", "UNAUTHENTICATED", "INTERNAL", "UNKNOWN"} and _NO_ANSWER.search(details):
            self._renew(export)
            return Unavailable(trouble.unreachable(endpoint, details), retry_after_s)
        if code in _RETRYABLE or (code == "RESOURCE_EXHAUSTED" and retry_after_s is not None):
            return Unavailable(trouble.busy(endpoint, code, details), retry_after_s)
        return Refused(trouble.refused(endpoint, code, details))

    def _renew(self, export: Any) -> None:
        """Read certificates again if their files are others now: they may be why it failed, and they do expire."""
        with self._renewal:
            stamp = tls.stamp(self._otlp)
            if self._ended or stamp == self._tls_stamp or export is not self._export:
                return
            try:
                channel, renewed = self._connect()
            except Exception:  # noqa: BLE001 - somebody may be in the middle of writing them
                return
            # What is in flight over the old one is cancelled, and so sent again.
            self._channel.close()
            self._channel, self._export, self._tls_stamp = channel, renewed, stamp


def target(endpoint: str) -> str:
    """`endpoint` as gRPC's core takes it, which knows no URLs with ``http`` or ``https``; their default ports stay."""
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"}:
        return endpoint
    return url.netloc if url.port else f"{url.netloc.rstrip(':')}:{443 if url.scheme == 'https' else 80}"


def _retry_after_s(error: Any) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return retry_delay_s(value)
    return None
