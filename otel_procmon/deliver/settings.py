"""What OpenTelemetry's standard environment variables ask of delivery.

As the specification has it, an empty variable counts as unset. Where it would have a bad value ignored with a warning,
this fails instead: an agent that runs for months must not run otherwise than asked.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import SplitResult, unquote, urlsplit

from otel_procmon.deliver.delivery import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Mapping

Signal = Literal["traces", "logs"]
Protocol = Literal["grpc", "http/protobuf"]
Compression = Literal["none", "gzip", "deflate"]

DEFAULT_QUEUE_SIZE: Final = 32_768
"""Sixteen times the specification's 2,048, which a burst of execs fills within a second; some 100 MB if full."""
DEFAULT_BATCH_SIZE: Final = 512

_BATCH_PREFIX: Final[dict[Signal, str]] = {"traces": "OTEL_BSP_", "logs": "OTEL_BLRP_"}
_DEFAULT_DELAY_MS: Final[dict[Signal, int]] = {"traces": 5000, "logs": 1000}

# RFC 9110's token; gRPC's metadata takes less (its PROTOCOL-HTTP2.md).
_HEADER_NAME: Final = {"http/protobuf": re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+"), "grpc": re.compile(r"[0-9a-z_.-]+")}
_HEADER_VALUE: Final = re.compile(r"[ -~]*")


@dataclass(frozen=True, slots=True)
class Batching:
    """How records are gathered before they leave."""

    queue_size: int
    batch_size: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Otlp:
    """Where to send one signal over OTLP, and how."""

    protocol: Protocol
    endpoint: str
    """For HTTP the whole URL, with the signal's path. Without user and password."""
    timeout_s: float
    """For one try to send a batch."""
    compression: Compression = "none"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case; the endpoint's user and password are among them."""
    insecure: bool = False
    """gRPC without TLS."""
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What to do with the records of one signal."""

    signal: Signal
    exporters: tuple[str, ...]
    """``otlp``, ``console``, or the name of an installed package's exporter. Empty: nothing is sent."""
    unsent_because: str
    """What made `exporters` empty, as in ``OTEL_TRACES_EXPORTER=none``."""
    batching: Batching
    otlp: Otlp | None
    """None unless `exporters` has ``otlp``."""


def read_settings(environ: Mapping[str, str], signal: Signal) -> Settings:
    """The settings of one signal. Raises DeliveryError, naming the variable and what it may be."""
    variables = _Variables(environ, signal)
    exporter_variable = f"OTEL_{signal.upper()}_EXPORTER"
    exporters = _exporters(environ, exporter_variable, signal)
    unsent_because = f"{exporter_variable}=none"
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        exporters, unsent_because = (), "OTEL_SDK_DISABLED=true"
    return Settings(
        signal=signal,
        exporters=exporters,
        unsent_because=unsent_because,
        batching=_batching(variables, signal),
        otlp=_otlp(variables, signal) if "otlp" in exporters else None,
    )


class _Variables:
    """The environment with the per-signal forms of the exporter's variables."""

    def __init__(self, environ: Mapping[str, str], signal: Signal) -> None:
        self._environ = environ
        self._signal = signal

    def own(self, name: str) -> tuple[str, str]:
        """A variable's full name and its value, ``""`` if unset."""
        return name, self._environ.get(name, "").strip()

    def otlp(self, name: str) -> tuple[str, str]:
        """The same of ``OTEL_EXPORTER_OTLP_<name>``, the per-signal form first."""
        for variable in (f"OTEL_EXPORTER_OTLP_{self._signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
            if value := self._environ.get(variable, "").strip():
                return variable, value
        return f"OTEL_EXPORTER_OTLP_{name}", ""


def _exporters(environ: Mapping[str, str], variable: str, signal: Signal) -> tuple[str, ...]:
    value = environ.get(variable, "").strip() or "otlp"
    chosen = dict.fromkeys(part.strip() for part in value.split(","))
    for part in chosen:
        if part not in ("otlp", "console", "none") and not entry_points(
            group=f"opentelemetry_{signal}_exporter", name=part
        ):
            raise DeliveryError(
                f"{variable} has {part!r}, and no installed package has an exporter of that name; use otlp, console or "
                "none, or several separated by commas"
            )
    if "none" in chosen and len(chosen) > 1:
        raise DeliveryError(f"{variable} is {value!r}; none cannot be combined with others")
    return tuple(part for part in chosen if part != "none")


def _batching(variables: _Variables, signal: Signal) -> Batching:
    prefix = _BATCH_PREFIX[signal]
    queue_size = _number(variables.own(f"{prefix}MAX_QUEUE_SIZE"), DEFAULT_QUEUE_SIZE)
    batch_variable, batch_value = variables.own(f"{prefix}MAX_EXPORT_BATCH_SIZE")
    batch_size = _number((batch_variable, batch_value), min(DEFAULT_BATCH_SIZE, queue_size))
    if batch_size > queue_size:
        raise DeliveryError(
            f"{batch_variable} is {batch_size}, more than the queue's {queue_size}; lower it, or raise "
            f"{prefix}MAX_QUEUE_SIZE"
        )
    delay_ms = _number(variables.own(f"{prefix}SCHEDULE_DELAY"), _DEFAULT_DELAY_MS[signal], least=0)
    return Batching(queue_size, batch_size, delay_ms / 1000)


def _otlp(variables: _Variables, signal: Signal) -> Otlp:
    protocol = _choice(
        variables.otlp("PROTOCOL"), ("grpc", "http/protobuf"), "http/protobuf", "http/json is not supported"
    )
    compression = _choice(
        variables.otlp("COMPRESSION"), ("none", "gzip") if protocol == "grpc" else ("none", "gzip", "deflate"), "none"
    )
    # Milliseconds in the specification; the Python SDK takes the same variable for seconds.
    timeout_ms = min(
        _number(variables.otlp("TIMEOUT"), 10_000),
        _number(variables.own(f"{_BATCH_PREFIX[signal]}EXPORT_TIMEOUT"), 30_000),
    )
    endpoint, authorization = _grpc_endpoint(variables) if protocol == "grpc" else _http_endpoint(variables, signal)
    scheme = urlsplit(endpoint).scheme
    insecure = _choice(variables.otlp("INSECURE"), ("true", "false"), "false") == "true"
    return Otlp(
        protocol=cast("Protocol", protocol),
        endpoint=endpoint,
        timeout_s=timeout_ms / 1000,
        compression=cast("Compression", compression),
        headers=authorization | _headers(variables.otlp("HEADERS"), protocol),
        insecure=scheme == "http" or (scheme != "https" and insecure),
        certificate=_file(variables.otlp("CERTIFICATE")),
        client_certificate=_file(variables.otlp("CLIENT_CERTIFICATE")),
        client_key=_file(variables.otlp("CLIENT_KEY")),
    )


def _http_endpoint(variables: _Variables, signal: Signal) -> tuple[str, dict[str, str]]:
    """The URL, and the headers that it stands for.

    The signal's own variable is taken as it is; to the common one the signal's path is added.
    """
    variable, value = variables.otlp("ENDPOINT")
    endpoint = value or "http://localhost:4318"
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in {"http", "https"} and url.hostname is not None and url.port != 0
        usable = usable and endpoint.isascii() and not re.search(r"\s", endpoint)
    except ValueError:
        usable = False
    if not usable:
        raise DeliveryError(f"{variable} is {_without_password(endpoint)!r}; write a URL such as http://localhost:4318")
    url = url._replace(fragment="")
    if variable == "OTEL_EXPORTER_OTLP_ENDPOINT":
        url = url._replace(path=f"{url.path.rstrip('/')}/v1/{signal}")
    return _without_user(url)


def _grpc_endpoint(variables: _Variables) -> tuple[str, dict[str, str]]:
    """The endpoint, in any form that gRPC takes, and the headers that a URL's user and password stand for."""
    variable, value = variables.otlp("ENDPOINT")
    endpoint = value or "http://localhost:4317"
    usable = not any(character.isspace() for character in endpoint) and not endpoint.endswith("://")
    if endpoint.startswith(("http://", "https://")):
        try:
            url = urlsplit(endpoint)
            usable = usable and url.hostname is not None and url.port != 0
        except ValueError:
            usable = False
        if usable:
            return _without_user(url)
    if not usable:
        raise DeliveryError(f"{variable} is {_without_password(endpoint)!r}; write a URL such as http://localhost:4317")
    return endpoint, {}


def _without_user(url: SplitResult) -> tuple[str, dict[str, str]]:
    """`url`, and its user and password as the header that every HTTP client makes of them."""
    user, at, host = url.netloc.rpartition("@")
    if not at:
        return url.geturl(), {}
    name, _, password = user.partition(":")
    credentials = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return url._replace(netloc=host).geturl(), {"authorization": f"Basic {credentials}"}


def _without_password(endpoint: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", endpoint)


def _headers(variable: tuple[str, str], protocol: str) -> dict[str, str]:
    """``name=value`` pairs as in W3C Baggage, values percent-encoded. Messages hold names only: values are secrets."""
    name, value = variable
    headers: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        key, equals, encoded = part.partition("=")
        key, text = unquote(key).strip().lower(), unquote(encoded).strip()
        if not equals or not key:
            raise DeliveryError(f"{name} has a part without a name or '='; write name=value,name=value")
        reserved = protocol == "grpc" and (key.startswith("grpc-") or key.endswith("-bin"))
        if reserved or not _HEADER_NAME[protocol].fullmatch(key):
            raise DeliveryError(f"{name} has {key!r}, which is no name of a header that can be sent over {protocol}")
        if not _HEADER_VALUE.fullmatch(text):
            raise DeliveryError(
                f"{name} has a value for {key!r} that is not printable ASCII; headers cannot carry anything else"
            )
        headers[key] = text
    return headers


def _number(variable: tuple[str, str], default: int, *, least: int = 1) -> int:
    name, value = variable
    if not value:
        return default
    if not (value.isascii() and value.isdigit()) or int(value) < least:
        raise DeliveryError(f"{name} is {value!r}; write a whole number, {least} or more")
    return int(value)


def _choice(variable: tuple[str, str], allowed: tuple[str, ...], default: str, remark: str = "") -> str:
    name, value = variable
    value = value.lower() or default
    if value not in allowed:
        remark = f" ({remark})" if remark else ""
        raise DeliveryError(f"{name} is {value!r}; use {' or '.join(allowed)}{remark}")
    return value


def _file(variable: tuple[str, str]) -> Path | None:
    name, value = variable
    if not value:
        return None
    path = Path(value)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise DeliveryError(f"{name} names {value}, which cannot be read: {error.strerror}") from error
