"""Outputs: what happened leaves as records, or as lines for people and for other programs."""

from __future__ import annotations

import logging
import os
import select
from typing import TYPE_CHECKING, Final, Protocol

from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.file import FileDelivery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otel_procmon.convert.happenings import Converter
    from otel_procmon.deliver.delivery import Delivery
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import Happening

_log = logging.getLogger(__name__)

_STDOUT: Final = 1


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
        self._file_name = "standard output" if path is None else str(path)
        self._told = False
        self._cut = False
        """The last line was cut short by an error: the next one must not become part of it."""
        self.closed = False
        self._file = _STDOUT
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise DeliveryError(f"cannot write to {path} ({why}); name a file that can be written") from error

    def put(self, happenings: Sequence[Happening]) -> None:
        """See `Output.put`."""
        lines = [line for happening in happenings if (line := self._render(happening)) is not None]
        if not lines:
            return
        written = 0 if self.closed else self._write(b"\n".join(lines) + b"\n", len(lines))
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
        if self._file != _STDOUT and not self.closed:
            os.close(self._file)
        self.closed = True

    def _write(self, data: bytes, count: int) -> int:
        """How many of the `count` lines of `data` were written."""
        rest = b"\n" + data if self._cut else data
        try:
            while rest:
                try:
                    written = os.write(self._file, rest)
                except BlockingIOError:
                    # A terminal or pipe that another process has set to this; it is slow, not broken.
                    select.select((), (self._file,), ())
                    continue
                self._cut = rest[written - 1 : written] != b"\n"
                rest = rest[written:]
        except BrokenPipeError:
            self.closed = True
        except OSError as error:
            if not self._told:
                self._told = True
                _log.error(
                    "cannot write to %s (%s): lines are lost until there is room again, or another file is named",
                    self._file_name,
                    (error.strerror or str(error)).lower(),
                )
        else:
            self._told = False
        return count - min(count, rest.count(b"\n"))
