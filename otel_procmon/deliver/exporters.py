"""Delivery as OpenTelemetry's variables ask for it: one way out for each signal and exporter.

OTLP is our own (`deliver.sender`, over `deliver.http` or `deliver.grpc`). Any other exporter that OTEL_TRACES_EXPORTER
or OTEL_LOGS_EXPORTER names is found by the SDK's entry points and gets the SDK's objects (`deliver.sdk`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from otel_procmon.deliver.console import ConsoleWriter
from otel_procmon.deliver.lane import Lane
from otel_procmon.deliver.sender import Sender
from otel_procmon.deliver.settings import read_settings
from otel_procmon.deliver.spool import Spool
from otel_procmon.deliver.transport import transport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otel_procmon.config import DeliveryOptions
    from otel_procmon.convert.records import Record
    from otel_procmon.deliver.sdk import SdkSender
    from otel_procmon.deliver.settings import Settings, Signal
    from otel_procmon.ledger import Ledger

_SIGNALS: Final[tuple[Signal, ...]] = ("traces", "logs")


class _Way(Protocol):
    """One way out: `Sender` or `Lane`."""

    def put(self, records: Sequence[Record], *, wait: bool) -> None: ...
    def entered(self) -> int: ...
    def safe(self) -> int: ...
    def waiting(self) -> int: ...
    def flush(self, timeout_s: float) -> bool: ...
    def close(self) -> None: ...
    def shutdown(self, timeout_s: float) -> bool: ...


class ExporterDelivery:
    """A `Delivery` by the exporters that the environment names."""

    def __init__(
        self,
        environ: Mapping[str, str],
        ledger: Ledger,
        options: DeliveryOptions,
        *,
        console: TextIO | None = None,
    ) -> None:
        """Set the exporters up. Raises DeliveryError.

        Args:
            environ: Where the OTEL_ variables are.
            ledger: Counts under ``delivery.traces`` and ``delivery.logs``, for another exporter than OTLP under
                ``delivery.traces.<exporter>``.
            options: How much may wait, and where.
            console: Where the console exporter writes; standard output if None.
        """
        self._ledger = ledger
        self._spool: Spool | None = None
        settings = {signal: read_settings(environ, signal) for signal in _SIGNALS}
        self._unsent = {s.signal: f"not sent: {s.unsent_because}" for s in settings.values() if not s.exporters}
        # All that can fail comes first: it must not leave another way's threads behind.
        transports = {s.signal: transport(s.otlp, s.signal) for s in settings.values() if s.otlp is not None}
        others = {
            (s.signal, exporter): _other(s, exporter, console)
            for s in settings.values()
            for exporter in s.exporters
            if exporter != "otlp"
        }
        if transports and options.spool_directory is not None:
            self._spool = Spool(Path(options.spool_directory), options.spool_max_bytes, ledger)
        self._ways: dict[Signal, list[_Way]] = {signal: [] for signal in _SIGNALS}
        for signal, way in transports.items():
            self._ways[signal].append(
                Sender(
                    signal,
                    way,
                    self._spool,
                    settings[signal].batching,
                    ledger,
                    queue_bytes=options.queue_bytes,
                    in_flight=options.in_flight,
                )
            )
        for (signal, exporter), other in others.items():
            place = f"delivery.{signal}.{exporter}"
            self._ways[signal].append(Lane(place, other.send, other.interrupt, settings[signal].batching, ledger))

    def put(self, records: Sequence[Record], *, wait: bool = False) -> None:
        """See `Delivery.put`."""
        sorted_: dict[Signal, list[Record]] = {"traces": [], "logs": []}
        for record in records:
            sorted_[record.signal].append(record)
        for signal, group in sorted_.items():
            if group and signal in self._unsent:
                self._ledger.count(f"delivery.{signal}", self._unsent[signal], len(group))
            for way in self._ways[signal] if group else ():
                way.put(group, wait=wait)

    def mark(self) -> object:
        """See `Delivery.mark`."""
        return [way.entered() for way in self._all_ways()]

    def is_safe(self, mark: object) -> bool:
        """See `Delivery.is_safe`."""
        assert isinstance(mark, list)
        return all(way.safe() >= entered for way, entered in zip(self._all_ways(), mark, strict=True))

    def waiting(self) -> int:
        """How many records wait in memory."""
        return sum(way.waiting() for way in self._all_ways())

    def spooled(self) -> tuple[int, int]:
        """How many records wait on disk, and how many bytes they take."""
        if self._spool is None:
            return 0, 0
        waiting = [self._spool.waiting(signal) for signal in _SIGNALS]
        return sum(records for _, records, _ in waiting), sum(size for _, _, size in waiting)

    def flush(self, timeout_s: float) -> bool:
        """See `Delivery.flush`."""
        deadline = time.monotonic() + timeout_s
        results = [way.flush(max(0.0, deadline - time.monotonic())) for way in self._all_ways()]
        return all(results)

    def shutdown(self, timeout_s: float) -> bool:
        """See `Delivery.shutdown`. It takes at most a second more for each way whose receiver does not answer."""
        deadline = time.monotonic() + timeout_s
        for way in self._all_ways():
            way.close()
        results = [way.shutdown(max(0.0, deadline - time.monotonic())) for way in self._all_ways()]
        if self._spool is not None:
            for signal in _SIGNALS:
                self._ledger.put(f"delivery.{signal}", "waiting: spooled", self._spool.waiting(signal)[1])
            self._spool.close()
        return all(results)

    def _all_ways(self) -> list[_Way]:
        return [way for ways in self._ways.values() for way in ways]


def _other(settings: Settings, exporter: str, console: TextIO | None) -> ConsoleWriter | SdkSender:
    """What sends with an exporter that is not OTLP."""
    if exporter == "console":
        return ConsoleWriter(console or sys.stdout)
    from otel_procmon.deliver.sdk import SdkSender  # noqa: PLC0415

    return SdkSender(settings.signal, exporter)
