"""Outputs: what happened leaves as records, or as lines for people and for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from otel_procmon.deliver.file import FileDelivery
from otel_procmon.deliver.line_file import LineFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otel_procmon.convert.happenings import Converter
    from otel_procmon.deliver.delivery import Delivery
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import Happening


class Output(Protocol):
    """Takes what happened."""

    def put(self, happenings: Sequence[Happening]) -> None:
        """Pass `happenings` on, in their order."""

    def mark(self) -> object:
        """How much was put so far, for `is_safe`."""

    def is_safe(self, mark: object) -> bool:
        """Whether all that was put before `mark` would survive the end of this process."""

    @property
    def closed(self) -> bool:
        """Whether nobody reads it any more."""

    def close(self, timeout_s: float) -> None:
        """Pass on what waits, within `timeout_s`, and end."""


class RecordOutput:
    """Log records and spans, converted once, for one or more deliveries.

    `wait`: rather be slow than lose a record, as a replay wants it.
    """

    def __init__(self, converter: Converter, deliveries: Sequence[Delivery], *, wait: bool) -> None:
        self._converter = converter
        self._deliveries = deliveries
        self._wait = wait

    def put(self, happenings: Sequence[Happening]) -> None:
        """See `Output.put`."""
        records = [record for happening in happenings for record in self._converter.convert(happening)]
        for delivery in self._deliveries:
            delivery.put(records, wait=self._wait)

    def mark(self) -> object:
        """See `Output.mark`."""
        return [delivery.mark() for delivery in self._deliveries]

    def is_safe(self, mark: object) -> bool:
        """See `Output.is_safe`."""
        assert isinstance(mark, list)
        return all(delivery.is_safe(each) for delivery, each in zip(self._deliveries, mark, strict=True))

    @property
    def closed(self) -> bool:
        """See `Output.closed`. A Collector that is away comes back; who read the other end of a pipe does not."""
        return all(isinstance(delivery, FileDelivery) and delivery.closed for delivery in self._deliveries)

    def close(self, timeout_s: float) -> None:
        """See `Output.close`."""
        for delivery in self._deliveries:
            delivery.shutdown(timeout_s)


class LineOutput:
    """One line for each happening that `render` has a line for; into a file, or to standard output."""

    def __init__(
        self, name: str, path: Path | None, render: Callable[[Happening], bytes | None], ledger: Ledger
    ) -> None:
        """Open `path`, with mode 0600 if it is new; None is standard output.

        Counts under ``output.<name>``. Raises DeliveryError.
        """
        self._place = f"output.{name}"
        self._render = render
        self._ledger = ledger
        self._file = LineFile(self._place, path)

    @property
    def closed(self) -> bool:
        """See `Output.closed`."""
        return self._file.closed

    def put(self, happenings: Sequence[Happening]) -> None:
        """See `Output.put`."""
        lines = [line for happening in happenings if (line := self._render(happening)) is not None]
        if not lines:
            return
        written = self._file.write(b"\n".join(lines) + b"\n", len(lines))
        self._ledger.count(self._place, "written", written)
        self._ledger.count(self._place, "lost: cannot be written", len(lines) - written)

    def mark(self) -> object:
        """See `Output.mark`."""
        return None

    def is_safe(self, mark: object) -> bool:  # noqa: ARG002 - lines are written at once
        """See `Output.is_safe`."""
        return True

    def close(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing is kept back
        """See `Output.close`."""
        self._file.close()
