"""The counters that account for every event."""

from __future__ import annotations

from otel_procmon.ledger import Ledger


def test_counts_by_place_and_outcome() -> None:
    ledger = Ledger()
    ledger.count("decode", "decoded")
    ledger.count("decode", "decoded", 2)
    ledger.count("deliver", "decoded")
    assert (ledger.get("decode", "decoded"), ledger.get("deliver", "decoded"), ledger.get("decode", "other")) == (
        3,
        1,
        0,
    )


def test_what_never_happened_is_not_told() -> None:
    ledger = Ledger()
    ledger.count("decode", "lost", 0)
    ledger.put("kernel", "lost: ring buffer full", 0)
    ledger.get("asked", "for")
    assert ledger.counts() == {}
    assert ledger.line() == ""


def test_a_count_kept_elsewhere_replaces_the_one_before() -> None:
    ledger = Ledger()
    ledger.put("kernel", "made", 7)
    ledger.put("kernel", "made", 9)
    assert ledger.get("kernel", "made") == 9


def test_lost_is_the_sum_of_all_places() -> None:
    ledger = Ledger()
    ledger.put("kernel", "lost: ring buffer full", 3)
    ledger.count("deliver.logs", "lost: queue full", 4)
    ledger.count("deliver.logs", "lost", 5)
    ledger.count("deliver.logs", "exported", 100)
    ledger.count("lost and found", "exported", 1000)
    ledger.count("deliver.logs", "found, not lost", 10_000)
    assert ledger.lost() == 12


def test_line() -> None:
    ledger = Ledger()
    ledger.count("kernel", "made", 12)
    ledger.count("deliver", "lost: queue full", 2)
    ledger.count("deliver", "exported", 10)
    assert ledger.line() == "deliver: exported 10, lost: queue full 2; kernel: made 12"
