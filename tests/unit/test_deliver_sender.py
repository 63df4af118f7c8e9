"""The sender: every record is settled once, whatever the receiver does.

The receiver stands in at the boundary of the transports, which have tests of their own against real servers.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_procmon.convert.records import LogRecord, Resource
from otel_procmon.deliver.batch import Accepted, Batch, Outcome, Refused, TooLarge, Unavailable
from otel_procmon.deliver.sender import MOST_BATCH_BYTES, Sender
from otel_procmon.deliver.settings import Batching
from otel_procmon.deliver.split import split
from otel_procmon.deliver.spool import Spool
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import SpanRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BOUND_S = 20.0
PLACE = "delivery.logs"
RESOURCE = Resource({"service.name": "s"}, "")


def record(body: str = "", resource: Resource = RESOURCE) -> LogRecord:
    return LogRecord(
        resource=resource,
        event_name="process.exec",
        time_unix_ns=1,
        observed_unix_ns=1,
        severity_number=9,
        body=body,
        attributes={},
        span=SpanRef(b"t" * 16, b"s" * 8),
    )


def records(count: int, size: int = 0) -> list[LogRecord]:
    return [record(f"{number:06}".ljust(size)) for number in range(count)]


def bodies(batch: Batch) -> list[str]:
    request = ExportLogsServiceRequest.FromString(batch.body)
    return [
        found.body.string_value.rstrip()
        for entry in request.resource_logs
        for scope in entry.scope_logs
        for found in scope.log_records
    ]


class Receiver:
    """Answers as it is told to, when its gate is open."""

    def __init__(self, answer: Callable[[Batch], Outcome] = lambda _: Accepted()) -> None:
        self.answer = answer
        self.accepted: list[str] = []
        self.seen: list[Batch] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.closed = threading.Event()
        self._lock = threading.Lock()

    def send(self, batch: Batch) -> Outcome:
        self.asked.set()
        assert self.gate.wait(BOUND_S)
        if self.closed.is_set():
            return Unavailable("closed")
        with self._lock:
            self.seen.append(batch)
            outcome = self.answer(batch)
            if isinstance(outcome, Accepted):
                self.accepted += bodies(batch)
        return outcome

    def close(self) -> None:
        self.closed.set()
        self.gate.set()


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


Make = Any


@pytest.fixture
def make(ledger: Ledger) -> Iterator[Make]:
    """Makes a sender for a receiver; it is ended with the test."""
    senders: list[Sender] = []

    def made(receiver: Receiver, spool: Spool | None = None, **options: Any) -> Sender:
        batching = Batching(0, options.pop("batch_size", 10), options.pop("delay_s", 0.0))
        defaults = {"queue_bytes": 1 << 20, "in_flight": 2, "jitter": lambda: 0.0}
        senders.append(Sender("logs", receiver, spool, batching, ledger, **{**defaults, **options}))
        return senders[-1]

    yield made
    for sender in senders:
        sender.shutdown(0.0)


def names(count: int) -> list[str]:
    return [f"{number:06}" for number in range(count)]


def outcomes(ledger: Ledger) -> dict[str, int]:
    return {outcome: number for (place, outcome), number in ledger.counts().items() if place == PLACE}


def test_records_arrive_in_batches_and_in_order(make: Make, ledger: Ledger) -> None:
    receiver = Receiver()
    sender = make(receiver, in_flight=1)
    sender.put(records(25), wait=False)
    assert sender.flush(BOUND_S)
    assert receiver.accepted == names(25)
    assert all(batch.records <= 10 for batch in receiver.seen)
    assert outcomes(ledger) == {"exported": 25}
    assert sender.waiting() == 0
    assert sender.safe() == sender.entered() == 25


def test_a_batch_waits_for_its_delay_only(make: Make) -> None:
    receiver = Receiver()
    sender = make(receiver, delay_s=0.05)
    sender.put([record("x")], wait=False)
    assert receiver.asked.wait(BOUND_S)


def test_a_batch_is_not_kept_for_less_than_the_next_read_takes(make: Make) -> None:
    """What is put last before its time leaves with it, instead of waiting for what will not come."""
    clock = Clock()
    receiver = Receiver()
    sender = make(receiver, delay_s=1.0, clock=clock, in_flight=1)
    for now, sent in ((0.85, 0), (0.91, 0), (0.96, 3), (1.7, 3), (1.85, 3), (1.87, 6)):
        clock.now = now
        sender.put([record(f"{now}")], wait=False)
        deadline = time.monotonic() + BOUND_S
        while sender.safe() < sent:
            assert time.monotonic() < deadline, f"{sender.safe()} at {now}"
            time.sleep(0.001)
        assert len(receiver.accepted) == sent, f"at {now}"


def test_records_of_one_resource_stand_together(make: Make) -> None:
    receiver = Receiver()
    other = Resource({"service.name": "t"}, "")
    sender = make(receiver, delay_s=60.0)
    sender.put([record("a"), record("b", other), record("c")], wait=False)
    assert sender.flush(BOUND_S)
    (batch,) = receiver.seen
    assert bodies(batch) == ["a", "c", "b"]
    assert len(ExportLogsServiceRequest.FromString(batch.body).resource_logs) == 2


def test_no_batch_is_larger_than_it_may_be(make: Make) -> None:
    receiver = Receiver()
    sender = make(receiver, batch_size=10_000, queue_bytes=1 << 30)
    sender.put(records(300, 10_000), wait=False)
    assert sender.flush(BOUND_S)
    assert sorted(receiver.accepted) == names(300)
    assert len(receiver.seen) > 2
    assert max(len(batch.body) for batch in receiver.seen) <= MOST_BATCH_BYTES


def test_partial_success_is_counted_and_said(make: Make, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(lambda _: Accepted(rejected=3, message="too old"))
    sender = make(receiver)
    sender.put(records(10), wait=False)
    assert sender.flush(BOUND_S)
    assert outcomes(ledger) == {"exported": 7, "lost: rejected by the receiver": 3}
    assert len(receiver.seen) == 1, "must not be sent again"
    assert "delivery.logs: the receiver says: too old; 3 records were lost" in caplog.text


def test_what_is_refused_is_lost_and_blocks_nothing(
    make: Make, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(lambda batch: Refused("it says no") if "000000" in bodies(batch) else Accepted())
    sender = make(receiver)
    sender.put(records(30), wait=False)
    assert sender.flush(BOUND_S)
    assert outcomes(ledger) == {"exported": 20, "lost: refused by the receiver": 10}
    assert "delivery.logs: it says no; 10 records were lost" in caplog.text


def test_a_receiver_that_takes_less_gets_less(make: Make, ledger: Ledger) -> None:
    def answer(batch: Batch) -> Outcome:
        return TooLarge("too large") if batch.records > 3 else Accepted()

    receiver = Receiver(answer)
    sender = make(receiver, in_flight=1)
    sender.put(records(10), wait=False)
    assert sender.flush(BOUND_S)
    assert receiver.accepted == names(10)
    assert outcomes(ledger) == {"exported": 10}


def test_one_record_that_is_too_large_costs_itself(
    make: Make, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(lambda batch: TooLarge("too large") if "000004" in bodies(batch) else Accepted())
    sender = make(receiver)
    sender.put(records(10), wait=False)
    assert sender.flush(BOUND_S)
    assert sorted(receiver.accepted) == [name for name in names(10) if name != "000004"]
    assert outcomes(ledger) == {"exported": 9, "lost: larger than the receiver takes": 1}
    assert "too large; 1 records were lost" in caplog.text


def test_without_a_spool_what_cannot_be_sent_waits_in_order(make: Make, ledger: Ledger) -> None:
    clock = Clock()
    away = True
    receiver = Receiver(lambda _: Unavailable("away") if away else Accepted())
    sender = make(receiver, clock=clock, in_flight=1)
    sender.put(records(10), wait=False)
    assert receiver.asked.wait(BOUND_S)
    sender.put(records(30)[10:], wait=False)
    assert not sender.flush(0.05)
    assert sender.waiting() == 30
    assert sender.safe() == 0
    away = False
    clock.now = 60.0
    assert sender.flush(BOUND_S)
    assert receiver.accepted == names(30)
    assert outcomes(ledger) == {"exported": 30}


def test_without_a_spool_the_oldest_goes_when_memory_is_full(
    make: Make, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    away = True
    receiver = Receiver(lambda _: Unavailable("away") if away else Accepted())
    sender = make(receiver, clock=clock, queue_bytes=100_000, in_flight=1)
    sender.put(records(200, 1000), wait=False)
    lost = outcomes(ledger)["lost: queue full"]
    assert 80 <= lost <= 130
    assert sender.waiting() == 200 - lost
    assert "the queue is full" in caplog.text or "away" in caplog.text
    away = False
    clock.now = 60.0
    assert sender.flush(BOUND_S)
    assert receiver.accepted == names(200)[lost:]


def test_a_replay_waits_for_room_and_loses_nothing(make: Make, ledger: Ledger) -> None:
    receiver = Receiver()
    receiver.gate.clear()
    sender = make(receiver, queue_bytes=20_000)
    putting = threading.Thread(target=lambda: sender.put(records(200, 1000), wait=True))
    putting.start()
    assert receiver.asked.wait(BOUND_S)
    receiver.gate.set()
    putting.join(BOUND_S)
    assert not putting.is_alive()
    assert sender.flush(BOUND_S)
    assert sorted(receiver.accepted) == names(200)
    assert outcomes(ledger) == {"exported": 200}


@pytest.mark.parametrize(("asked_s", "pause_s"), [(None, 1.0), (7.5, 7.5), (0.1, 1.0)])
def test_pauses(make: Make, asked_s: float | None, pause_s: float) -> None:
    clock = Clock()
    receiver = Receiver(lambda _: Unavailable("away", asked_s))
    sender = make(receiver, clock=clock, in_flight=1)
    sender.put(records(1), wait=False)
    assert not sender.flush(0.2)
    assert len(receiver.seen) == 1
    clock.now = pause_s - 0.01
    assert not sender.flush(0.1)
    assert len(receiver.seen) == 1
    receiver.answer = lambda _: Accepted()
    clock.now = pause_s
    assert sender.flush(BOUND_S)


def test_only_one_batch_tries_a_receiver_that_was_away(make: Make) -> None:
    clock = Clock()
    receiver = Receiver(lambda _: Unavailable("away"))
    sender = make(receiver, clock=clock, in_flight=4)
    sender.put(records(1), wait=False)
    assert not sender.flush(0.2)
    receiver.seen.clear()
    receiver.gate.clear()
    receiver.asked.clear()
    clock.now = 60.0
    sender.put(records(40), wait=False)
    assert receiver.asked.wait(BOUND_S)
    assert not sender.flush(0.2)
    receiver.answer = lambda _: Accepted()
    receiver.gate.set()
    assert sender.flush(BOUND_S)


def test_trouble_is_said_once_a_minute_and_so_is_its_end(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = Clock()
    receiver = Receiver(lambda _: Unavailable("away"))
    sender = make(receiver, clock=clock, in_flight=1)
    sender.put(records(1), wait=False)
    for now in (10.0, 20.0, 30.0):
        assert not sender.flush(0.1)
        clock.now = now
    assert caplog.text.count("delivery.logs: away; nothing is lost yet") == 1
    receiver.answer = lambda _: Accepted()
    clock.now = 100.0
    assert sender.flush(BOUND_S)
    assert "delivery.logs: sending works again" in caplog.text


def test_shutdown_sends_the_rest(make: Make, ledger: Ledger) -> None:
    receiver = Receiver()
    sender = make(receiver, delay_s=60.0)
    sender.put(records(5), wait=False)
    assert sender.shutdown(BOUND_S)
    assert receiver.accepted == names(5)
    sender.put(records(2), wait=False)
    assert outcomes(ledger) == {"exported": 5, "lost: not sent before the end": 2}


def test_shutdown_counts_what_it_could_not_send(make: Make, ledger: Ledger) -> None:
    receiver = Receiver(lambda _: Unavailable("away"))
    sender = make(receiver)
    sender.put(records(25), wait=False)
    assert not sender.shutdown(0.1)
    assert outcomes(ledger) == {"lost: not sent before the end": 25}
    assert receiver.closed.is_set()


def wait_for(receiver: Receiver, sender: Sender, count: int) -> None:
    """Until `receiver` has accepted so many records."""
    deadline = time.monotonic() + BOUND_S
    while len(receiver.accepted) < count:
        assert time.monotonic() < deadline, f"{len(receiver.accepted)} of {count} records came"
        sender.flush(0.01)


def spool_in(path: Path, ledger: Ledger) -> Spool:
    return Spool(path / "spool", 1 << 30, ledger)


def test_what_cannot_be_sent_goes_into_the_spool_and_from_there(make: Make, ledger: Ledger, tmp_path: Path) -> None:
    clock = Clock()
    receiver = Receiver(lambda _: Unavailable("away"))
    spool = spool_in(tmp_path, ledger)
    sender = make(receiver, spool, clock=clock, in_flight=1)
    sender.put(records(40), wait=False)
    assert sender.flush(BOUND_S), "the spool is as good as a receiver"
    assert sender.safe() == 40
    assert spool.waiting("logs")[1] == 40
    receiver.answer = lambda _: Accepted()
    clock.now = 60.0
    sender.put(records(41)[40:], wait=False)
    wait_for(receiver, sender, 41)
    assert sorted(receiver.accepted) == names(41)
    assert sender.shutdown(BOUND_S)
    assert outcomes(ledger) == {"exported": 41}
    assert spool.waiting("logs")[1] == 0
    spool.close()


def test_an_agent_sends_what_an_earlier_one_left(make: Make, ledger: Ledger, tmp_path: Path) -> None:
    spool = spool_in(tmp_path, ledger)
    sender = make(Receiver(lambda _: Unavailable("away")), spool)
    sender.put(records(25), wait=False)
    assert sender.shutdown(0.0)
    spool.close()
    assert outcomes(ledger) == {}

    receiver = Receiver()
    spool = spool_in(tmp_path, ledger)
    sender = make(receiver, spool, in_flight=1)
    wait_for(receiver, sender, 25)
    assert sorted(receiver.accepted) == names(25)
    assert sender.shutdown(BOUND_S)
    spool.close()


def test_what_waits_in_the_spool_does_not_hold_up_what_is_live(make: Make, ledger: Ledger, tmp_path: Path) -> None:
    spool = spool_in(tmp_path, ledger)
    sender = make(Receiver(lambda _: Unavailable("away")), spool)
    sender.put(records(500), wait=False)
    assert sender.shutdown(0.0)

    receiver = Receiver()
    receiver.gate.clear()
    sender = make(receiver, spool, in_flight=1)
    assert receiver.asked.wait(BOUND_S)
    sender.put([record("live")], wait=False)
    receiver.gate.set()
    assert sender.flush(BOUND_S)
    assert "live" in receiver.accepted[:31], "behind one batch of the spool, or two, and not behind fifty"
    wait_for(receiver, sender, 501)
    assert sender.shutdown(BOUND_S)
    spool.close()


def spooled(spool: Spool, make: Make, count: int) -> None:
    """Leave `count` records there."""
    sender = make(Receiver(lambda _: Unavailable("away")), spool)
    sender.put(records(count), wait=False)
    assert sender.shutdown(0.0)
    assert spool.waiting("logs")[1] == count


def test_halves_of_what_was_spooled_are_spooled(make: Make, ledger: Ledger, tmp_path: Path) -> None:
    spool = spool_in(tmp_path, ledger)
    spooled(spool, make, 8)
    receiver = Receiver(lambda batch: TooLarge("t") if batch.records > 3 else Unavailable("away"))
    sender = make(receiver, spool, in_flight=1)
    while not any(batch.records <= 3 for batch in receiver.seen):
        assert receiver.asked.wait(BOUND_S)
        sender.flush(0.01)
    sender.shutdown(0.0)
    assert spool.waiting("logs")[1] == 8
    assert outcomes(ledger) == {}
    spool.close()


def test_what_was_put_back_is_sent_though_another_found_nothing(make: Make, ledger: Ledger, tmp_path: Path) -> None:
    """Both threads want the only batch. Nothing comes after it that would make them look again."""
    spool = spool_in(tmp_path, ledger)
    spooled(spool, make, 1)
    clock = Clock()
    receiver = Receiver(lambda _: Unavailable("away"))
    receiver.gate.clear()
    sender = make(receiver, spool, clock=clock, in_flight=2)
    assert receiver.asked.wait(BOUND_S)
    sender.flush(0.05)
    receiver.gate.set()
    while not receiver.seen:
        sender.flush(0.01)
    receiver.answer = lambda _: Accepted()
    deadline = time.monotonic() + BOUND_S
    while not receiver.accepted:
        assert time.monotonic() < deadline
        clock.now += 60.0
        sender.flush(0.01)
    assert sender.shutdown(BOUND_S)
    assert outcomes(ledger) == {"exported": 1}
    spool.close()


def test_shutdown_lets_what_is_on_its_way_from_the_spool_arrive(make: Make, ledger: Ledger, tmp_path: Path) -> None:
    """Or the receiver would have it, and get it from the next agent again."""
    spool = spool_in(tmp_path, ledger)
    spooled(spool, make, 5)
    receiver = Receiver()
    receiver.gate.clear()
    sender = make(receiver, spool, in_flight=1)
    assert receiver.asked.wait(BOUND_S)
    ending = threading.Thread(target=sender.shutdown, args=(BOUND_S,))
    ending.start()
    assert not receiver.closed.wait(0.2)
    receiver.gate.set()
    ending.join(BOUND_S)
    assert outcomes(ledger) == {"exported": 5}
    assert spool.waiting("logs")[1] == 0
    spool.close()


answers = st.sampled_from(
    [Accepted(), Accepted(), Accepted(rejected=1, message="m"), Refused("r"), TooLarge("t"), Unavailable("u")]
)


@settings(max_examples=20)
@given(st.lists(answers, max_size=30), st.integers(1, 120), st.booleans())
def test_whatever_the_receiver_answers_the_ledger_balances(
    tmp_path_factory: pytest.TempPathFactory, answers: list[Outcome], count: int, with_spool: bool
) -> None:
    ledger = Ledger()
    clock = Clock()
    told = iter(answers)
    receiver = Receiver(lambda _: next(told, Accepted()))
    spool = spool_in(tmp_path_factory.mktemp("balance"), ledger) if with_spool else None
    sender = Sender(
        "logs", receiver, spool, Batching(0, 7, 0.0), ledger, queue_bytes=5000, in_flight=2, clock=clock, jitter=float
    )
    for begin in range(0, count, 20):
        sender.put(records(count, 100)[begin : begin + 20], wait=False)
        clock.now += 40.0
    sender.shutdown(0.2)
    kept = 0 if spool is None else spool.waiting("logs")[1]
    if spool is not None:
        spool.close()
    assert sum(outcomes(ledger).values()) + kept == count


@given(st.integers(2, 40), st.integers(1, 3))
def test_halves_are_the_whole_in_order(count: int, resources: int) -> None:
    found = [Resource({"n": str(number)}, "") for number in range(resources)]
    receiver, ledger = Receiver(), Ledger()
    sender = Sender("logs", receiver, None, Batching(0, count, 60.0), ledger, queue_bytes=1 << 20, in_flight=1)
    sender.put([record(f"{number:06}", found[number % resources]) for number in range(count)], wait=False)
    assert sender.shutdown(BOUND_S)
    (batch,) = receiver.seen
    first, second = split(batch)
    assert bodies(first) + bodies(second) == bodies(batch)
    assert first.records == len(bodies(first)) > 0
    assert second.records == len(bodies(second)) > 0
    assert split(Batch("logs", 1, b"")) == []
