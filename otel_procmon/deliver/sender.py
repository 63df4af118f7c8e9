"""Delivers one signal over OTLP: encodes and gathers records, sends batches, keeps what cannot be sent.

Every record that enters is settled once in the ledger: exported, or lost for a reason. Until then it waits: in memory,
a bounded number of bytes, or in the spool.

A receiver that is there gets live batches as they come, and between them what the spool holds, oldest first. When it is
not, one batch at a time tries again, after a pause that grows, or that the receiver asked for; meanwhile batches go
XX
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from otel_procmon.deliver.batch import Accepted, Batch, Outcome, Refused, TooLarge, Transport, Unavailable
from otel_procmon.deliver.delivery import EXPORTED, NOT_IN_TIME, QUEUE_FULL
from otel_procmon.deliver.split import split
from otel_procmon.encode.otlp import OtlpEncoder, encode_request
from otel_procmon.teller import Teller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_procmon.convert.records import Record, Resource
    from otel_procmon.deliver.settings import Batching, Signal
    from otel_procmon.deliver.spool import Spool
    from otel_procmon.ledger import Ledger

REJECTED: Final = "lost: rejected by the receiver"
REFUSED: Final = "lost: refused by the receiver"
TOO_LARGE: Final = "lost: larger than the receiver takes"

MOST_BATCH_BYTES: Final = 1024 * 1024
"""A quarter of the 4 MiB that receivers of gRPC take by default; larger ones save nothing that can be measured."""

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_LONGEST_WISH_S: Final = 600.0
"""A receiver that asks for more than that in Retry-After may have been wrong about its clock."""
_TOGETHER_S: Final = 0.1
"""How far apart records may come that are better sent in one batch: what the kernel's source reads at one go."""
_LOOK_AGAIN_S: Final = 1.0
_SPOOL_DELAY_S: Final = 3.0
_GRACE_S: Final = 1.0
"""How long shutdown waits for an answer of a receiver that was away; and, beyond its time, for what it interrupted."""


@dataclass(slots=True)
class _Gathering:
    """Messages on their way to become a batch."""

    first: int
    """The number of its first record, of all that were put."""
    since: float
    records: int = 0
    size: int = 0
    groups: dict[int, tuple[Resource, bytes, list[bytes]]] = field(default_factory=dict)

    def batch(self, signal: Signal) -> Batch:
        groups = [(encoded, resource.schema_url, items) for resource, encoded, items in self.groups.values()]
        return Batch(signal, self.records, encode_request(groups))


@dataclass(slots=True)
class _Ready:
    """What can be sent: a batch, or what becomes one when its turn comes."""

    first: int
    records: int
    size: int
    content: _Gathering | Batch


@dataclass(slots=True, eq=False)
class _Job:
    """What a thread does next."""

    first: int
    batch: Batch | None
    """None: the oldest of the spool is to be taken and sent."""
    store: bool = False
    """It goes into the spool, not to the receiver."""


class Sender:
    """Thread-safe. `put` encodes in the caller's thread; sending has threads of its own."""

    def __init__(
        self,
        signal: Signal,
        transport: Transport,
        spool: Spool | None,
        batching: Batching,
        ledger: Ledger,
        *,
        queue_bytes: int,
        in_flight: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Start the threads.

        Args:
            signal: What is sent.
            transport: How.
            spool: Where batches wait that cannot be sent; None: in memory only.
            batching: When a batch is due.
            ledger: Counts under ``delivery.<signal>``.
            queue_bytes: Most bytes that wait in memory.
            in_flight: How many batches may be on their way at one time.
            clock: Seconds, for delays and pauses.
            jitter: From 0 to 1, by which pauses are shortened by up to a half, so that agents do not all come at once.
        """
        self._signal = signal
        self._place = f"delivery.{signal}"
        self._transport = transport
        self._spool = spool
        self._batching = batching
        self._ledger = ledger
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._jitter = jitter
        self._teller = Teller(self._place, clock)
        self._encoder = OtlpEncoder(ledger)
        self._encoding = threading.Lock()
        self._changed = threading.Condition()
        self._most_bytes = MOST_BATCH_BYTES
        self._gathering: _Gathering | None = None
        self._closed_at = clock()
        self._entered = 0
        self._ready: deque[_Ready] = deque()
        self._ready_bytes = 0
        self._jobs: list[_Job] = []
        self._spool_look_at: float | None = None if spool is None else 0.0
        """From when on the spool may hold something to send; None: it holds nothing."""
        self._stores = 0
        self._flushing = 0
        self._failures = 0
        self._retry_at = 0.0
        self._spool_next = False
        self._ending = False
        self._abandoned = False
        self._threads = [
            threading.Thread(target=self._work, name=f"otel-procmon {self._place} {number}", daemon=True)
            for number in range(in_flight)
        ]
        for thread in self._threads:
            thread.start()

    # What goes in

    def put(self, records: Sequence[Record], *, wait: bool) -> None:
        """Take `records`; see `Delivery.put`."""
        with self._encoding:
            messages = [(record.resource, self._encoder.encode(record)) for record in records]
            while messages:
                # The wait for room comes first: a replay must not lose what it encoded.
                if self._ready_bytes >= self._queue_bytes:
                    self._make_room(wait=wait)
                messages = self._add(messages)

    def _add(self, messages: list[tuple[Resource, bytes]]) -> list[tuple[Resource, bytes]]:
        """Gather `messages` while there is room; gives back the rest."""
        with self._changed:
            if self._ending:
                self._ledger.count(self._place, NOT_IN_TIME, len(messages))
                return []
            for number, (resource, message) in enumerate(messages):
                self._gather(resource, message)
                if self._ready_bytes >= self._queue_bytes:
                    return messages[number + 1 :]
            # What is due before the kernel's source will have read again would wait for nothing.
            if self._gathering is not None and self._clock() >= self._due_at(self._gathering, early_s=_TOGETHER_S):
                self._close_gathering()
            return []

    def _gather(self, resource: Resource, message: bytes) -> None:
        gathering = self._gathering
        if gathering is not None and gathering.size + len(message) > self._most_bytes:
            self._close_gathering()
            gathering = None
        if gathering is None:
            gathering = self._gathering = _Gathering(self._entered, self._clock())
            self._changed.notify()
        group = gathering.groups.get(id(resource))
        if group is None:
            encoded = self._encoder.resource(resource)
            group = gathering.groups[id(resource)] = (resource, encoded, [])
            gathering.size += len(encoded) + 128
        group[2].append(message)
        gathering.size += len(message) + 4
        gathering.records += 1
        self._entered += 1
        if gathering.records >= self._batching.batch_size:
            self._close_gathering()

    def _close_gathering(self) -> None:
        gathering, self._gathering = self._gathering, None
        if gathering is not None:
            self._closed_at = self._clock()
            self._ready.append(_Ready(gathering.first, gathering.records, gathering.size, gathering))
            self._ready_bytes += gathering.size
            self._changed.notify()

    def _make_room(self, *, wait: bool) -> None:
        """Memory is full: wait for room, or move the oldest batch to the spool, or lose it."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._ready_bytes < self._queue_bytes or self._ending)
                return
            oldest = self._take_ready()
        if oldest is None or oldest.batch is None:
            return
        if self._spool is not None:
            # While it is stored, it is in no list; but nobody asks meanwhile, for whoever asks is the one who puts.
            self._store(oldest.batch)
            return
        self._ledger.count(self._place, QUEUE_FULL, oldest.batch.records)
        with self._changed:
            self._teller.trouble("the receiver does not keep up, and the queue is full", oldest.batch.records)

    # What goes out

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if job.batch is None:
                self._send_spooled()
            elif job.store:
                self._store(job.batch)
            else:
                self._send_live(job, job.batch)
            with self._changed:
                if self._abandoned:
                    return
                self._jobs.remove(job)
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        """Wait until there is something to do, and take it. None at the end."""
        with self._changed:
            while True:
                now = self._clock()
                due_in_s = None
                if self._gathering is not None:
                    due_in_s = self._due_at(self._gathering) - now
                    if due_in_s <= 0 or self._ending or self._flushing:
                        self._close_gathering()
                        due_in_s = None
                # Whatever is in the spool at the end waits for the next agent.
                if self._abandoned or (self._ending and not self._ready):
                    self._changed.notify_all()
                    return None
                pause_s = max(0.0, self._retry_at - now) if self._failures else 0.0
                job = self._choose(pausing=pause_s > 0 or (self._failures > 0 and self._trying()))
                if job is not None:
                    self._jobs.append(job)
                    return job
                look_in_s = None if self._spool_look_at is None or self._ending else max(0.0, self._spool_look_at - now)
                waits_s = [seconds for seconds in (due_in_s, pause_s, look_in_s) if seconds]
                self._changed.wait(min(waits_s) if waits_s else None)

    def _due_at(self, gathering: _Gathering, early_s: float = 0.0) -> float:
        """When a batch is due that has not reached its size: a delay after the one before; or `early_s` before that.

        The specification's ``scheduledDelayMillis`` is that delay at its longest. The first one after a quiet time need
        not wait so long; but what comes together goes together. What goes into the spool is a file each, and so had
        better be larger.
        """
        delay_s = self._batching.delay_s
        if self._failures and self._spool is not None:
            return gathering.since + max(delay_s, _SPOOL_DELAY_S)
        return max(self._closed_at + delay_s - early_s, gathering.since + min(delay_s, _TOGETHER_S))

    def _trying(self) -> bool:
        """Whether a batch is on its way to find out if the receiver is back."""
        return any(not job.store for job in self._jobs)

    def _choose(self, *, pausing: bool) -> _Job | None:
        """A live batch, or the oldest of the spool, in turn where there are both; or one to be put into the spool."""
        if pausing:
            job = self._take_ready() if self._spool is not None else None
            if job is not None:
                job.store = True
            return job
        self._spool_next = not self._spool_next
        look = self._spool_look_at is not None and self._spool_look_at <= self._clock() and not self._ending
        if look and (self._spool_next or not self._ready):
            return _Job(self._entered, None)
        return self._take_ready()

    def _take_ready(self) -> _Job | None:
        if not self._ready:
            return None
        ready = self._ready.popleft()
        self._ready_bytes -= ready.size
        self._changed.notify_all()
        content = ready.content
        return _Job(ready.first, content if isinstance(content, Batch) else content.batch(self._signal))

    def _give_back(self, first: int, batch: Batch) -> None:
        """To the head of the queue."""
        self._ready.appendleft(_Ready(first, batch.records, len(batch.body), batch))
        self._ready_bytes += len(batch.body)

    def _store(self, batch: Batch) -> None:
        """Into the spool, which counts what it cannot keep."""
        assert self._spool is not None
        self._spool.append(batch)
        with self._changed:
            self._stores += 1
            self._spool_look_at = 0.0

    def _send_live(self, job: _Job, batch: Batch) -> None:
        outcome = self._transport.send(batch)
        with self._changed:
            # Else shutdown has counted it.
            if self._abandoned:
                return
            for half in reversed(self._settle(batch, outcome)):
                self._give_back(job.first, half)
            if not isinstance(outcome, Unavailable):
                return
            if self._spool is None:
                self._give_back(job.first, batch)
                job.batch = None
                return
        self._store(batch)

    def _send_spooled(self) -> None:
        assert self._spool is not None
        with self._changed:
            stores = self._stores
        entry = self._spool.take(self._signal)
        if entry is None:
            # Whoever put something there meanwhile knows better; and what another thread has may be put back, or what
            # cannot be read now be readable later.
            later = self._clock() + _LOOK_AGAIN_S if self._spool.waiting(self._signal)[0] else None
            with self._changed:
                if self._stores == stores:
                    self._spool_look_at = later
            return
        outcome = self._transport.send(entry.batch)
        with self._changed:
            # Else it stays where it is, for the next agent, and shutdown has counted it so.
            if self._abandoned:
                return
            halves = self._settle(entry.batch, outcome)
        for half in halves:
            # On disk they survive this agent, as the whole would have.
            self._store(half)
        if isinstance(outcome, Unavailable):
            self._spool.put_back(entry)
            with self._changed:
                self._spool_look_at = 0.0
        else:
            self._spool.done(entry)

    def _settle(self, batch: Batch, outcome: Outcome) -> list[Batch]:
        """Count and say what became of a batch. The halves of one that is too large are to be sent in its place."""
        if isinstance(outcome, Unavailable):
            self._pause(outcome)
            return []
        self._failures = 0
        if isinstance(outcome, Accepted):
            self._ledger.count(self._place, EXPORTED, batch.records - outcome.rejected)
            self._ledger.count(self._place, REJECTED, outcome.rejected)
            if outcome.rejected or outcome.message:
                self._teller.trouble(f"the receiver says: {outcome.message or 'partial success'}", outcome.rejected)
            else:
                self._teller.works()
        elif isinstance(outcome, Refused):
            self._ledger.count(self._place, REFUSED, batch.records)
            self._teller.trouble(outcome.trouble, batch.records)
        else:
            return self._halve(batch, outcome)
        return []

    def _halve(self, batch: Batch, outcome: TooLarge) -> list[Batch]:
        """Two smaller batches, and smaller ones from now on; nothing if it is one record, which is lost."""
        self._most_bytes = max(1, min(self._most_bytes, len(batch.body) // 2))
        halves = split(batch)
        if not halves:
            self._ledger.count(self._place, TOO_LARGE, batch.records)
            self._teller.trouble(outcome.trouble, batch.records)
        return halves

    def _pause(self, outcome: Unavailable) -> None:
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures, 10))
        pause_s *= 1 - self._jitter() / 2
        if outcome.retry_after_s is not None:
            pause_s = max(pause_s, min(outcome.retry_after_s, _LONGEST_WISH_S))
        self._failures += 1
        self._retry_at = self._clock() + pause_s
        self._teller.trouble(outcome.trouble, 0)

    # The end

    def waiting(self) -> int:
        """How many records wait in memory or are on their way; those in the spool are the spool's to count."""
        with self._changed:
            return self._waiting()

    def _waiting(self) -> int:
        gathered = 0 if self._gathering is None else self._gathering.records
        taken = sum(job.batch.records for job in self._jobs if job.batch is not None)
        return gathered + taken + sum(item.records for item in self._ready)

    def entered(self) -> int:
        """How many records were put so far."""
        return self._entered

    def safe(self) -> int:
        """Of the records that were put, up to which number all are settled or in the spool."""
        with self._changed:
            firsts = [job.first for job in self._jobs] + [ready.first for ready in self._ready]
            if self._gathering is not None:
                firsts.append(self._gathering.first)
            return min(firsts, default=self._entered)

    def flush(self, timeout_s: float) -> bool:
        """Send, or put into the spool, all that was put before; see `Delivery.flush`."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting(), timeout_s)
            finally:
                self._flushing -= 1

    def close(self) -> None:
        """Take no more records, and send what there is without delay."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def shutdown(self, timeout_s: float) -> bool:
        """Send the rest within `timeout_s`, or keep it in the spool; see `Delivery.shutdown`."""
        self.close()
        until = time.monotonic() + timeout_s
        with self._changed:
            # A receiver that is away now will hardly come back in these seconds, and the spool will do. What is on its
            # way from there is safe; but the receiver may have it already, and would get it twice.
            self._changed.wait_for(
                lambda: not (self._waiting() or self._jobs) or (self._failures > 0 and self._spool is not None),
                timeout_s,
            )
            self._changed.wait_for(lambda: not self._jobs, max(0.0, min(_GRACE_S, until - time.monotonic())))
        self._transport.close()
        until = time.monotonic() + _GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            self._abandoned = True
            self._close_gathering()
            left = [job.batch for job in self._jobs if job.batch is not None]
            self._jobs.clear()
            while (job := self._take_ready()) is not None:
                left += [job.batch] if job.batch is not None else []
            self._changed.notify_all()
        if self._spool is not None:
            for batch in left:
                self._spool.append(batch)
            return True
        lost = sum(batch.records for batch in left)
        self._ledger.count(self._place, NOT_IN_TIME, lost)
        return not lost
