"""The queue and its thread: every record is settled once."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon.convert.records import LogRecord, Record, Resource
from otel_procmon.deliver.lane import MOST_BATCH_BYTES, Lane, Sent
from otel_procmon.deliver.settings import Batching
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import SpanRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BOUND_S = 20.0
RESOURCE = Resource({}, "")


def record(body: str = "") -> LogRecord:
    return LogRecord(
        resource=RESOURCE,
        event_name="process.exec",
        time_unix_ns=1,
        observed_unix_ns=1,
        severity_number=9,
        body=body,
        attributes={},
        span=SpanRef(b"t" * 16, b"s" * 8),
    )


class Receiver:
    """Takes batches when its gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.gate = threading.Event()
        self.asked = threading.Event()
        self.interrupted = threading.Event()
        self.outcome: Callable[[Sequence[Record]], Sent] = lambda records: Sent(len(records))

    def send(self, records: Sequence[Record]) -> Sent:
        self.asked.set()
        if not self.gate.wait(BOUND_S):
            raise TimeoutError
        self.batches.append(list(records))
        return self.outcome(records)

    def interrupt(self) -> None:
        self.interrupted.set()
        self.gate.set()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def lane_of(receiver: Receiver, ledger: Ledger) -> Iterator[Callable[..., Lane]]:
    lanes: list[Lane] = []

    def make(queue: int = 100, batch: int = 10, delay_s: float = 0.0, **options: Any) -> Lane:
        batching = Batching(queue, batch, delay_s)
        lanes.append(
            Lane("here", receiver.send, receiver.interrupt, batching, ledger, **{"grace_s": BOUND_S, **options})
        )
        return lanes[-1]

    yield make
    receiver.gate.set()
    for lane in lanes:
        lane.shutdown(BOUND_S)


def counts(ledger: Ledger) -> dict[str, int]:
    return {outcome: number for (_, outcome), number in ledger.counts().items()}


def test_all_are_sent_in_order(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    lane = lane_of(queue=100, batch=10)
    records = [record(str(i)) for i in range(95)]
    lane.put(records, wait=False)
    receiver.gate.set()
    assert lane.flush(BOUND_S)
    assert [r for batch in receiver.batches for r in batch] == records
    assert max(map(len, receiver.batches)) == 10
    assert counts(ledger) == {"exported": 95}


def test_a_full_batch_does_not_wait_for_the_delay(lane_of: Any, receiver: Receiver) -> None:
    lane = lane_of(batch=3, delay_s=3600.0)
    lane.put([record()], wait=False)
    lane.put([record()], wait=False)
    assert not receiver.asked.is_set()
    lane.put([record()], wait=False)
    assert receiver.asked.wait(BOUND_S)


def test_flush_does_not_wait_for_the_delay(lane_of: Any, receiver: Receiver) -> None:
    receiver.gate.set()
    lane = lane_of(delay_s=3600.0)
    lane.put([record()], wait=False)
    assert lane.flush(BOUND_S)
    assert len(receiver.batches) == 1


def test_flush_that_is_too_short_says_so(lane_of: Any, receiver: Receiver) -> None:
    lane = lane_of()
    assert lane.flush(0.0), "nothing to send"
    lane.put([record()], wait=False)
    assert receiver.asked.wait(BOUND_S)
    assert not lane.flush(0.0)


def test_what_finds_no_room_is_lost_and_counted(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    lane = lane_of(queue=10, batch=5)
    lane.put([record()], wait=False)
    assert receiver.asked.wait(BOUND_S)
    lane.put([record() for _ in range(13)], wait=False)
    assert counts(ledger) == {"lost: queue full": 3}
    receiver.gate.set()
    assert lane.flush(BOUND_S)
    assert counts(ledger) == {"exported": 11, "lost: queue full": 3}


def test_waiting_loses_nothing(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    lane = lane_of(queue=4, batch=4, delay_s=3600.0)
    writers = [
        threading.Thread(target=lane.put, args=([record() for _ in range(101)],), kwargs={"wait": True}, daemon=True)
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    receiver.gate.set()
    for writer in writers:
        writer.join(BOUND_S)
        assert not writer.is_alive()
    assert lane.flush(BOUND_S)
    assert counts(ledger) == {"exported": 303}


def test_small_puts_after_waiting_are_sent(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    receiver.gate.set()
    lane = lane_of(queue=2, batch=2)
    for _ in range(500):
        lane.put([record()], wait=True)
    assert lane.flush(BOUND_S)
    assert counts(ledger) == {"exported": 500}


def test_batches_are_bounded_in_bytes(lane_of: Any, receiver: Receiver) -> None:
    lane = lane_of(batch=10)
    lane.put(
        [record("x" * (MOST_BATCH_BYTES // 2)) for _ in range(3)] + [record("y" * (2 * MOST_BATCH_BYTES))], wait=False
    )
    receiver.gate.set()
    assert lane.flush(BOUND_S)
    assert [len(batch) for batch in receiver.batches] == [1, 1, 1, 1]


def test_outcomes_are_counted(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    receiver.gate.set()
    receiver.outcome = lambda records: Sent(1, failed=2, not_encodable=len(records) - 3, trouble="trouble")
    lane = lane_of()
    lane.put([record() for _ in range(8)], wait=False)
    assert lane.flush(BOUND_S)
    assert counts(ledger) == {"exported": 1, "lost: export failed": 2, "lost: cannot be encoded": 5}


def test_a_sender_that_raises_costs_its_batch_only(
    lane_of: Any, receiver: Receiver, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.gate.set()

    def fail(records: Sequence[Record]) -> Sent:
        raise RuntimeError("strange")

    receiver.outcome = fail
    lane = lane_of()
    lane.put([record()], wait=False)
    assert lane.flush(BOUND_S)
    receiver.outcome = lambda records: Sent(len(records))
    lane.put([record()], wait=False)
    assert lane.flush(BOUND_S)
    assert counts(ledger) == {"exported": 1, "lost: export failed": 1}
    assert "strange" in caplog.text


def test_trouble_is_said_once_a_minute_and_its_end(
    lane_of: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    receiver.gate.set()
    receiver.outcome = lambda records: Sent(0, failed=len(records), trouble="cannot reach it: do something")
    lane = lane_of(clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for at in (0.0, 30.0, 59.0, 61.0, 62.0):
            now[0] = at
            lane.put([record()], wait=False)
            assert lane.flush(BOUND_S)
        receiver.outcome = lambda records: Sent(len(records))
        lane.put([record()], wait=False)
        assert lane.flush(BOUND_S)
        assert lane.shutdown(BOUND_S)
    assert caplog.messages == [
        "here: cannot reach it: do something; 1 records were lost",
        "here: cannot reach it: do something; 3 records were lost",
        "here: sending works again; 1 more records were lost",
    ]


def test_shutdown_sends_the_rest(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    receiver.gate.set()
    lane = lane_of(delay_s=3600.0)
    lane.put([record() for _ in range(25)], wait=False)
    assert lane.shutdown(BOUND_S)
    assert counts(ledger) == {"exported": 25}
    assert receiver.interrupted.is_set()
    assert lane.shutdown(BOUND_S)
    lane.put([record()], wait=False)
    assert counts(ledger) == {"exported": 25, "lost: not sent before the end": 1}


def test_shutdown_interrupts_and_counts_what_is_left(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    lane = lane_of(batch=5)
    lane.put([record() for _ in range(5)], wait=False)
    assert receiver.asked.wait(BOUND_S)
    lane.put([record() for _ in range(7)], wait=False)
    assert not lane.shutdown(0.0)
    assert receiver.interrupted.is_set()
    assert counts(ledger) == {"exported": 5, "lost: not sent before the end": 7}


def test_a_sender_that_does_not_come_back_is_given_up(receiver: Receiver, ledger: Ledger) -> None:
    lane = Lane("here", receiver.send, lambda: None, Batching(100, 5, 0.0), ledger, grace_s=0.0)
    lane.put([record() for _ in range(8)], wait=False)
    assert receiver.asked.wait(BOUND_S)
    assert not lane.shutdown(0.0)
    assert counts(ledger) == {"lost: not sent before the end": 8}
    receiver.gate.set()
    lane._thread.join(BOUND_S)
    assert not lane._thread.is_alive()
    assert counts(ledger) == {"lost: not sent before the end": 8}, "nothing is settled twice"


def test_shutdown_frees_whoever_waits_for_room(lane_of: Any, receiver: Receiver, ledger: Ledger) -> None:
    lane = lane_of(queue=2, batch=2)
    writer = threading.Thread(
        target=lane.put, args=([record() for _ in range(50)],), kwargs={"wait": True}, daemon=True
    )
    writer.start()
    assert receiver.asked.wait(BOUND_S)
    lane.shutdown(0.0)
    writer.join(BOUND_S)
    assert not writer.is_alive()
    assert sum(counts(ledger).values()) == 50
