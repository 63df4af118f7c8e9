"""A lane: one bounded queue of records, and one thread that sends them in batches.

Every record that enters is settled once, in the ledger: exported, or lost for a reason.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.deliver.delivery import EXPORT_FAILED, EXPORTED, NOT_ENCODABLE, NOT_IN_TIME, QUEUE_FULL
from otel_procmon.teller import Teller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_procmon.convert.records import Record
    from otel_procmon.deliver.settings import Batching
    from otel_procmon.ledger import Ledger

MOST_BATCH_BYTES: Final = 2 * 1024 * 1024
"""Receivers of gRPC take 4 MiB a message by default. The size of a record is estimated by its strings."""


class Sent(NamedTuple):
    """What became of one batch."""

    exported: int
    failed: int = 0
    not_encodable: int = 0
    trouble: str | None = None
    """One sentence for people: what went wrong and what to do about it."""


class Lane:
    """A queue and its thread. Thread-safe."""

    def __init__(
        self,
        place: str,
        send: Callable[[Sequence[Record]], Sent],
        interrupt: Callable[[], None],
        batching: Batching,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.monotonic,
        grace_s: float = 1.0,
    ) -> None:
        """Start the thread.

        Args:
            place: Where this is, for the ledger.
            send: Sends one batch, and may take its time. An exception counts as a failure.
            interrupt: Makes a `send` that waits give up soon, and later ones at once. Called once, at the end.
            batching: Sizes and delay.
            ledger: Where records are settled.
            clock: Seconds, for deciding when trouble is told again.
            grace_s: How long shutdown waits, beyond its time, for a send that was interrupted.
        """
        self._place = place
        self._send = send
        self._interrupt = interrupt
        self._batching = batching
        self._ledger = ledger
        self._grace_s = grace_s
        self._queue: deque[Record] = deque()
        self._changed = threading.Condition()
        self._in_flight = 0
        self._entered = 0
        self._settled = 0
        self._flush_to = 0
        self._ending = False
        self._abandoned = False
        self._shut_down = False
        self._teller = Teller(place, clock)
        self._thread = threading.Thread(target=self._work, name=f"otel-procmon {place}", daemon=True)
        self._thread.start()

    def put(self, records: Sequence[Record], *, wait: bool) -> None:
        """Queue `records`; without `wait`, those that find no room are lost."""
        with self._changed:
            for index, record in enumerate(records):
                while wait and len(self._queue) >= self._batching.queue_size and not self._ending:
                    self._changed.notify_all()
                    self._changed.wait()
                if self._ending:
                    self._ledger.count(self._place, NOT_IN_TIME, len(records) - index)
                    break
                if len(self._queue) >= self._batching.queue_size:
                    self._ledger.count(self._place, QUEUE_FULL, len(records) - index)
                    break
                self._queue.append(record)
                self._entered += 1
                if len(self._queue) in {1, self._batching.batch_size}:
                    self._changed.notify_all()

    def entered(self) -> int:
        """How many records were queued so far."""
        with self._changed:
            return self._entered

    def safe(self) -> int:
        """How many of them were settled. One thread sends them in their order, so these are the first."""
        with self._changed:
            return self._settled

    def waiting(self) -> int:
        """How many of them were not."""
        with self._changed:
            return self._entered - self._settled

    def flush(self, timeout_s: float) -> bool:
        """Send now; see `Delivery.flush`."""
        with self._changed:
            target = self._entered
            self._flush_to = max(self._flush_to, target)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._settled >= target, timeout_s)

    def close(self) -> None:
        """Take no more records, and send what there is without delay."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def shutdown(self, timeout_s: float) -> bool:
        """Send the rest within `timeout_s`; see `Delivery.shutdown`."""
        self.close()
        with self._changed:
            if self._shut_down:
                return True
            self._shut_down = True
        self._thread.join(timeout_s)
        in_time = not self._thread.is_alive()
        with self._changed:
            # The thread settles what it is sending; what waits is taken away from it.
            left = len(self._queue)
            self._queue.clear()
        self._interrupt()
        self._thread.join(self._grace_s)
        with self._changed:
            self._abandoned = True
            left += self._in_flight
            self._settled += left
            self._changed.notify_all()
        self._ledger.count(self._place, NOT_IN_TIME, left)
        return in_time and not left

    def _work(self) -> None:
        while batch := self._next():
            try:
                sent = self._send(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread must live and the records be counted
                sent = Sent(0, failed=len(batch), trouble=f"sending failed: {type(error).__name__}: {error}")
            # Before it is settled, so that whoever flushed finds it said.
            self._tell(sent)
            with self._changed:
                if self._abandoned:
                    return
                self._in_flight = 0
                self._ledger.count(self._place, EXPORTED, sent.exported)
                self._ledger.count(self._place, EXPORT_FAILED, sent.failed)
                self._ledger.count(self._place, NOT_ENCODABLE, sent.not_encodable)
                self._settled += len(batch)
                self._changed.notify_all()

    def _next(self) -> list[Record]:
        """Wait until a batch is due, and take it. Empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ending)
            self._changed.wait_for(self._due, self._batching.delay_s)
            batch: list[Record] = []
            size = 0
            while self._queue and len(batch) < self._batching.batch_size:
                size += _estimate(self._queue[0])
                if batch and size > MOST_BATCH_BYTES:
                    break
                batch.append(self._queue.popleft())
            self._in_flight = len(batch)
            # Whoever waits for room can go on.
            self._changed.notify_all()
            return batch

    def _due(self) -> bool:
        return self._ending or self._settled < self._flush_to or len(self._queue) >= self._batching.batch_size

    def _tell(self, sent: Sent) -> None:
        """Say trouble in words, and its end."""
        if sent.trouble is not None:
            self._teller.trouble(sent.trouble, sent.failed + sent.not_encodable)
        elif sent.exported:
            self._teller.works()


def _estimate(record: Record) -> int:
    """About how many bytes `record` becomes: its names and values, and a little for each."""
    size = 200
    for name, value in record.all_attributes.items():
        size += len(name) + 16
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, tuple):
            size += sum(map(len, value)) + 8 * len(value)
    return size + len(getattr(record, "body", ""))
