"""Boot time as Unix time."""

from __future__ import annotations

import time
from itertools import chain, repeat
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.clock import BootClock

if TYPE_CHECKING:
    from collections.abc import Iterable

BOOT = 5_000_000_000
REAL = 1_700_000_000_000_000_000


class Clocks:
    """Two clocks that stand still, unless a test moves them."""

    def __init__(self) -> None:
        self.boot, self.real = BOOT, REAL

    def clock(self) -> BootClock:
        return BootClock(lambda: self.boot, lambda: self.real)


def test_real_clocks() -> None:
    clock = BootClock()
    before = time.time_ns()
    converted = clock.unix_ns(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert before - 1_000_000_000 <= converted <= time.time_ns() + 1_000_000_000


def test_conversion() -> None:
    clock = Clocks().clock()
    assert clock.unix_ns(BOOT) == REAL
    assert clock.unix_ns(0) == REAL - BOOT
    assert clock.unix_ns(2**64 - 1) == REAL - BOOT + 2**64 - 1


def test_nothing_lies_before_the_epoch() -> None:
    clocks = Clocks()
    clocks.real = 1
    assert clocks.clock().unix_ns(0) == 0


def test_time_that_passes_is_no_step() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    for _ in range(5):
        clocks.boot += 3_600_000_000_000
        clocks.real += 3_600_000_000_000
        assert not clock.refresh()
    assert clock.unix_ns(BOOT) == REAL


def test_step_of_the_wall_clock() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clocks.real += 7_000_000_000
    assert clock.unix_ns(BOOT) == REAL, "until it is looked at"
    assert clock.refresh()
    assert clock.unix_ns(BOOT) == REAL + 7_000_000_000
    assert not clock.refresh()
    clocks.real -= 20_000_000_000
    assert clock.refresh()
    assert clock.unix_ns(BOOT) == REAL - 13_000_000_000


def test_noise_is_no_step() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clocks.real += 999_999
    assert not clock.refresh()
    assert clock.unix_ns(BOOT) == REAL
    # Small changes in one direction add up, and are followed then.
    clocks.real += 1
    assert clock.refresh()
    assert clock.unix_ns(BOOT) == REAL + 1_000_000


def reading(boots: Iterable[int], reals: Iterable[int]) -> BootClock:
    one, other = iter(boots), iter(reals)
    return BootClock(lambda: next(one), lambda: next(other))


def test_reading_that_took_the_least_time_counts() -> None:
    """The process may be preempted between two readings, for long."""
    boots = [0, 9_000_000, 10_000_000, 10_000_100, 20_000_000, 28_000_000, 30, 9_000_030, 40, 7_000_040]
    reals = [REAL + 8_000_000, REAL + 10_000_050, REAL + 27_000_000, REAL + 50, REAL + 60]
    assert reading(boots, reals).unix_ns(0) == REAL


@given(
    st.lists(st.integers(0, 2**40), min_size=10, max_size=10), st.lists(st.integers(0, 2**40), min_size=5, max_size=5)
)
def test_any_readings_give_an_offset(boots: list[int], reals: list[int]) -> None:
    clock = reading(chain(boots, repeat(0)), chain(reals, repeat(0)))
    assert clock.unix_ns(2**63) > 0
