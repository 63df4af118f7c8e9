"""The ledger: counters that account for every event, from the kernel to the acknowledgement.

A count is filed under a *place* (where in the data path) and an *outcome* (what became of it there, and why), as in
``ledger.count("delivery.logs", "lost: queue full", 12)``. Thread-safe, because delivery counts from its own threads.
"""

from __future__ import annotations

import threading
from collections import Counter


class Ledger:
    """Counts by place and outcome."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def count(self, place: str, outcome: str, number: int = 1) -> None:
        """Add `number` to what became `outcome` at `place`."""
        if number:
            with self._lock:
                self._counts[place, outcome] += number

    def put(self, place: str, outcome: str, number: int) -> None:
        """Set a count that is kept elsewhere, in the kernel for instance."""
        with self._lock:
            self._counts[place, outcome] = number

    def get(self, place: str, outcome: str) -> int:
        """The count of one outcome; 0 if it never happened."""
        with self._lock:
            return self._counts[place, outcome]

    def counts(self) -> dict[tuple[str, str], int]:
        """All counts that are not zero, by (place, outcome)."""
        with self._lock:
            return {key: number for key, number in sorted(self._counts.items()) if number}

    def lost(self) -> int:
        """Everything that was lost, wherever: the sum of all outcomes that begin with ``lost``."""
        with self._lock:
            return sum(n for (_, outcome), n in self._counts.items() if outcome.startswith("lost"))

    def line(self) -> str:
        """All counts in one line, for people: ``place: outcome n, outcome n; place: …``."""
        places: dict[str, list[str]] = {}
        for (place, outcome), number in self.counts().items():
            places.setdefault(place, []).append(f"{outcome} {number}")
        return "; ".join(f"{place}: {', '.join(outcomes)}" for place, outcomes in places.items())
