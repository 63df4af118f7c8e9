"""A batch: one request's worth of records of one signal, encoded, and what became of it.

Whatever waits, in memory or on disk, waits in this form: it takes a tenth of the memory of the records that it was made
of, its size is known exactly, and sending it again costs no encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from otel_procmon.deliver.settings import Signal


class Batch(NamedTuple):
    """An ExportTraceServiceRequest or ExportLogsServiceRequest."""

    signal: Signal
    records: int
    """How many spans or log records are in it."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver has taken it."""

    rejected: int = 0
    """How many of its records the receiver did not want (partial success). They must not be sent again."""
    message: str = ""
    """What the receiver said of them, or as a warning."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver does not want it, and would not want it later either."""

    trouble: str
    """One sentence for people: what is wrong with which endpoint, and what to do about it."""


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The receiver takes smaller messages only. Two halves of it may be taken."""

    trouble: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """It did not arrive, or nobody knows whether it did: send it again later."""

    trouble: str
    retry_after_s: float | None = None
    """How long the receiver wants to be left alone (Retry-After, RetryInfo)."""


Outcome = Accepted | Refused | TooLarge | Unavailable


class Transport(Protocol):
    """Sends batches of one signal to one endpoint. Thread-safe: several may be in flight."""

    def send(self, batch: Batch) -> Outcome:
        """Send `batch` once, within the configured time. Never raises."""

    def close(self) -> None:
        """Make a `send` that waits give up soon, and later ones at once."""
