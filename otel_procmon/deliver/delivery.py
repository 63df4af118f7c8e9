"""The boundary to the last stage: records go in, and leave the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.convert.records import Record


# Outcomes in the ledger that more than one way out has.
EXPORTED: Final = "exported"
QUEUE_FULL: Final = "lost: queue full"
NOT_IN_TIME: Final = "lost: not sent before the end"
EXPORT_FAILED: Final = "lost: export failed"
NOT_ENCODABLE: Final = "lost: cannot be encoded"


class DeliveryError(Exception):
    """Delivery cannot be set up as asked.

    The message is one sentence for people: what is wrong and what to do about it.
    """


class Delivery(Protocol):
    """Takes records and sees to it that each is delivered or counted as lost. Thread-safe."""

    def put(self, records: Sequence[Record], *, wait: bool = False) -> None:
        """Take `records`, log records and spans in any mixture.

        Args:
            records: What to deliver.
            wait: Block until there is room, as replay wants it. Otherwise it never blocks for the receiver's sake: what
                there is no room for is counted as lost.
        """

    def mark(self) -> object:
        """How much was put so far, for `is_safe`."""

    def is_safe(self, mark: object) -> bool:
        """Whether all that was put before `mark` would survive the end of this process: delivered, lost, or on disk."""

    def flush(self, timeout_s: float) -> bool:
        """Deliver now all that was put before. False if `timeout_s` was too short."""

    def shutdown(self, timeout_s: float) -> bool:
        """Deliver what can be delivered within `timeout_s`, count the rest as lost, and end.

        False if something was left over. Records put afterwards are counted as lost. A second call does nothing.
        """
