"""Trouble in words: never more than a line a minute about it, and all that it cost in one of them."""

from __future__ import annotations

import pytest

from otel_procmon.teller import Teller


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def teller(clock: Clock, caplog: pytest.LogCaptureFixture) -> Teller:
    caplog.set_level("INFO")
    return Teller("here", clock)


def test_nothing_is_said_of_what_works(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    teller.works()
    assert caplog.messages == []


def test_trouble_that_costs_nothing(teller: Teller, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for clock.seconds in (0.0, 30.0, 59.0, 60.0, 61.0):
        teller.trouble("nobody listens", 0)
    teller.works()
    teller.works()
    assert caplog.messages == ["here: nobody listens; nothing is lost yet"] * 2 + ["here: sending works again"]


def test_what_was_lost_is_said_with_the_end(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        teller.trouble("refused", 8)
    teller.works()
    assert caplog.messages == [
        "here: refused; 8 records were lost",
        "here: sending works again; 16 more records were lost",
    ]


def test_trouble_that_comes_and_goes(teller: Teller, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that refuses every second batch, ten a second: two lines a minute, which tell of all of it."""
    for tenth in range(1500):
        clock.seconds = tenth / 10
        teller.trouble("refused", 8) if tenth % 2 == 0 else teller.works()
    each_minute = ["here: refused; 2400 records were lost", "here: sending works again"]
    assert caplog.messages == ["here: refused; 8 records were lost", "here: sending works again", *each_minute * 2]


def test_the_last_of_it_is_said_when_all_goes_well(
    teller: Teller, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for clock.seconds in (0.0, 1.0):
        teller.trouble("refused", 8)
        teller.works()
    caplog.clear()
    for clock.seconds in (59.0, 60.0, 61.0, 300.0):
        teller.works()
    assert caplog.messages == ["here: refused; 8 records were lost", "here: sending works again"]


def test_a_short_outage_soon_after_another(teller: Teller, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It cost nothing, and the minute has its line."""
    for clock.seconds in (0.0, 30.0, 70.0):
        teller.trouble("nobody listens", 0)
        teller.works()
    assert caplog.messages == ["here: nobody listens; nothing is lost yet", "here: sending works again"] * 2
