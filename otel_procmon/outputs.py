"""Outputs: what happened leaves as records, or as lines for people and for other programs."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, Protocol

from otel_procmon.deliver.delivery import DeliveryError

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

    closed = False
    """A Collector that is away comes back."""

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
        written = not self.closed and self._write(b"\n".join(lines) + b"\n")
        self._ledger.count(self._place, "written" if written else "lost: cannot be written", len(lines))

    def close(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing is kept back
        """See `Output.close`."""
        if self._file != _STDOUT and not self.closed:
            os.close(self._file)
        self.closed = True

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BrokenPipeError:
            self.closed = True
            return False
        except OSError as error:
            if not self._told:
                self._told = True
                _log.error(
                    "cannot write to %s (%s): lines are lost until there is room again, or another file is named",
                    self._file_name,
                    (error.strerror or str(error)).lower(),
                )
            return False
        self._told = False
        return True
