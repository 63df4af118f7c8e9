"""Memory for arguments is bounded, and nobody is told less than there is room for."""

from __future__ import annotations

from otel_procmon.ledger import Ledger
from otel_procmon.lineage.arguments import LONG, LongArguments
from tests.unit.happenings import image

SHORTENED = ("lineage", "shortened: too many long arguments")


def test_long_arguments_within_the_budget_stay() -> None:
    ledger = Ledger()
    long = LongArguments("lineage", ledger, budget=100_000)
    images = [image(exec_id=str(number), argv=("x", "y" * 40_000)) for number in range(2)]
    for each in images:
        long.added(each)
    for _ in range(3):
        long.settle()
    assert all(len("".join(each.process.argv or ())) == 40_001 for each in images)
    assert not ledger.counts()


def test_beyond_the_budget_they_are_shortened_after_they_were_told() -> None:
    ledger = Ledger()
    long = LongArguments("lineage", ledger, budget=100_000)
    images = [image(exec_id=str(number), argv=("x", "y" * 40_000, "z")) for number in range(4)]
    for each in images:
        long.added(each)
    long.settle()
    assert all(len(each.process.argv or ()) == 3 for each in images), "their beginning is being told"
    long.settle()
    kept = [sum(map(len, each.process.argv or ())) for each in images]
    assert kept == [40_002, 40_002, LONG, LONG]
    assert images[3].process.truncated == ("args",)
    assert ledger.counts() == {SHORTENED: 2}


def test_what_ended_makes_room() -> None:
    ledger = Ledger()
    long = LongArguments("lineage", ledger, budget=100_000)
    for number in range(50):
        each = image(exec_id=str(number), argv=("y" * 60_000,))
        long.added(each)
        long.settle()
        long.removed(each)
    assert not ledger.counts()


def test_short_arguments_are_never_touched() -> None:
    long = LongArguments("lineage", Ledger(), budget=10)
    each = image(argv=("y" * LONG,))
    long.added(each)
    long.settle()
    long.settle()
    assert each.process.argv == ("y" * LONG,)


def test_tetragons_one_string() -> None:
    long = LongArguments("lineage", Ledger(), budget=10)
    each = image(arguments="y" * 10_000)
    long.added(each)
    long.settle()
    long.settle()
    assert each.process.arguments == "y" * LONG
