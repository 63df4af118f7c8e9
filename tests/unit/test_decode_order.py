"""Events in order: what a window promises about any sequence of events."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.decode.order import DEFAULT_WINDOW_NS, ReorderWindow
from otel_procmon.events import Event, Exit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WINDOW_NS = 100
OBSERVED = 10**6
"""Long after all events here."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def event(time: int, number: int = 0, observed: int = OBSERVED) -> Event:
    return Exit(time_unix_ns=time, observed_unix_ns=observed, exec_id=str(number), pid=number, code=0)


def number_of(event: Event) -> int:
    assert isinstance(event, Exit)
    return event.pid


def times(events: Iterable[Event]) -> list[int]:
    return [event.time_unix_ns for event in events]


def window(*, max_wait_s: float | None = None, clock: Clock | None = None, limit: int = 1000) -> ReorderWindow:
    return ReorderWindow(WINDOW_NS, max_wait_s, clock or Clock(), limit)


def test_an_event_leaves_when_one_has_come_that_is_a_window_later() -> None:
    order = window()
    assert times(order.push(event(1000))) == []
    assert times(order.push(event(1050))) == []
    assert times(order.push(event(1020))) == []
    assert times(order.push(event(1099))) == []
    assert times(order.push(event(1120))) == [1000, 1020]
    assert times(order.push(event(1300))) == [1050, 1099, 1120]
    assert len(order) == 1
    assert times(order.flush()) == [1300]
    assert (len(order), order.flush()) == (0, [])


def test_the_window_of_tetragon_is_30_s() -> None:
    order = ReorderWindow(DEFAULT_WINDOW_NS, None, Clock())
    observed = 80 * 10**9
    assert order.push(event(40 * 10**9, observed=observed)) == []
    assert order.push(event(69_999_999_999, observed=observed)) == []
    assert times(order.push(event(70 * 10**9, observed=observed))) == [40 * 10**9]


def test_what_comes_too_late_leaves_at_once() -> None:
    order = window()
    order.push(event(1000))
    assert times(order.push(event(800))) == [800]


def test_a_live_event_waits_only_so_long() -> None:
    clock = Clock()
    order = window(max_wait_s=1.0, clock=clock)
    assert order.deadline() is None
    assert order.push(event(1000)) == []
    clock.now = 0.5
    assert order.push(event(990)) == []
    assert order.deadline() == 1.0
    assert order.tick(0.9) == []
    # 990 came later, but it happened before what leaves now.
    assert times(order.tick(1.0)) == [990, 1000]
    assert order.deadline() is None


def test_what_happened_later_than_what_leaves_goes_on_waiting() -> None:
    clock = Clock()
    order = window(max_wait_s=1.0, clock=clock)
    order.push(event(1000))
    clock.now = 0.5
    order.push(event(1010))
    assert times(order.tick(1.0)) == [1000]
    assert order.deadline() == 1.5
    assert times(order.tick(1.5)) == [1010]


def test_one_time_in_the_far_future_does_not_push_the_others_out() -> None:
    order = window()
    order.push(event(1000))
    assert order.push(event(10**9)) == []
    assert order.push(event(1050)) == []
    assert times(order.push(event(1020))) == []
    assert times(order.flush()) == [1000, 1020, 1050, 10**9]


def test_two_clocks_may_differ_by_the_window() -> None:
    order = window()
    order.push(event(1000, observed=1000))
    assert times(order.push(event(1150, observed=1060))) == [1000]


def test_more_than_the_limit_are_not_held_and_the_earliest_leave() -> None:
    order = window(limit=3)
    out = [left for time in (1005, 1003, 1004, 1001, 1002) for left in order.push(event(time))]
    assert (times(out), len(order)) == ([1001, 1002], 3)
    assert times(order.flush()) == [1003, 1004, 1005]


# What holds for any sequence: times within one window, so that every disorder can be mended.
NEAR = st.lists(st.integers(1000, 1000 + WINDOW_NS), max_size=30)
ANY = st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 500), max_size=30)
STEPS = st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0]), min_size=30, max_size=30)


def run(order: ReorderWindow, clock: Clock, all_times: Sequence[int], steps: Iterable[float]) -> list[Event]:
    out: list[Event] = []
    for (number, time), step in zip(enumerate(all_times), steps, strict=False):
        clock.now += step
        out += order.tick(clock.now)
        out += order.push(event(time, number))
    return out + order.flush()


@given(NEAR)
def test_disorder_within_the_window_is_mended(all_times: list[int]) -> None:
    out = run(window(), Clock(), all_times, itertools.repeat(0.0))
    # Sorting is stable, and so is the window.
    assert [number_of(each) for each in out] == sorted(range(len(all_times)), key=all_times.__getitem__)


@given(ANY, STEPS, st.sampled_from([None, 0.3, 1.0]), st.integers(1, 5))
def test_nothing_is_lost_doubled_or_held_without_bound(
    all_times: list[int], steps: list[float], max_wait_s: float | None, limit: int
) -> None:
    clock = Clock()
    order = window(max_wait_s=max_wait_s, clock=clock, limit=limit)
    out: list[Event] = []
    for (number, time), step in zip(enumerate(all_times), steps, strict=False):
        clock.now += step
        out += order.push(event(time, number))
        assert len(order) <= limit
    out += order.flush()
    assert sorted(map(number_of, out)) == list(range(len(all_times)))


@given(ANY, STEPS)
def test_no_event_waits_longer_than_it_may(all_times: list[int], steps: list[float]) -> None:
    clock = Clock()
    order = window(max_wait_s=1.0, clock=clock)
    came: dict[int, float] = {}
    for (number, time), step in zip(enumerate(all_times), steps, strict=False):
        clock.now += step
        for each in order.tick(clock.now):
            del came[number_of(each)]
        assert all(clock.now - at < 1.0 for at in came.values())
        came[number] = clock.now
        for each in order.push(event(time, number)):
            del came[number_of(each)]
        deadline = order.deadline()
        if came:
            assert deadline is not None
            assert deadline <= min(came.values()) + 1.0


@given(ANY)
def test_each_batch_is_in_order(all_times: list[int]) -> None:
    order = window()
    for number, time in enumerate(all_times):
        batch = times(order.push(event(time, number)))
        assert batch == sorted(batch)
    batch = times(order.flush())
    assert batch == sorted(batch)


@pytest.mark.parametrize("max_wait_s", [None, 1.0])
def test_memory_for_waiting_is_bounded_when_nothing_waits(max_wait_s: float | None) -> None:
    order = window(max_wait_s=max_wait_s, limit=5)
    for number in range(1000):
        order.push(event(1000 + number * 1000))
    assert len(order._arrivals) <= 11
