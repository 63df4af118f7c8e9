"""Events in the order of their times, within a bounded window.

Tetragon holds an event back for up to 30 s while it waits for pod data, and later ones overtake it; lineage wants a
parent before its child. A window of that length puts them in order again. A file that is read at once has all events
there, so only their own times count. A live view must not lag by 30 s, so there an event leaves at the latest some
time after it came, in order with what has come until then.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.events import Event

DEFAULT_WINDOW_NS = 30_000_000_000
"""How long Tetragon waits for pod data at most."""
DEFAULT_MAX_WAIT_S = 1.0
DEFAULT_LIMIT = 100_000


class ReorderWindow:
    """Holds events until no earlier one is to be expected.

    `window_ns` is in the events' own time: an event leaves when one has come that is `window_ns` later. `max_wait_s` is
    by `clock` (seconds, monotonic): an event leaves when it has waited that long; None for no such bound. At most
    `limit` events are held; beyond that the earliest leaves. Events of equal times keep the order in which they came.
    """

    def __init__(
        self,
        window_ns: int,
        max_wait_s: float | None,
        clock: Callable[[], float],
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        self._window_ns = window_ns
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._limit = limit
        self._held: list[tuple[int, int, Event]] = []
        self._arrivals: deque[tuple[float, tuple[int, int]]] = deque()
        """When the waiting of each event is over, in the order in which they came, and its place in the order."""
        self._number = 0
        self._latest_unix_ns = 0

    def __len__(self) -> int:
        return len(self._held)

    def push(self, event: Event) -> list[Event]:
        """Take `event`; what may leave now, in order."""
        key = (event.time_unix_ns, self._number)
        self._number += 1
        heapq.heappush(self._held, (*key, event))
        # One wrong time far in the future must not push everything else out of the window. What was observed before
        # it happened is wrong; a skew between two machines' clocks of up to the window is not.
        observed_unix_ns = getattr(event, "observed_unix_ns", event.time_unix_ns)
        if self._latest_unix_ns < event.time_unix_ns <= observed_unix_ns + self._window_ns:
            self._latest_unix_ns = event.time_unix_ns
        if self._max_wait_s is None:
            return self._released((self._latest_unix_ns - self._window_ns, self._number))
        now = self._clock()
        self._arrivals.append((now + self._max_wait_s, key))
        return self.tick(now)

    def tick(self, now: float) -> list[Event]:
        """What may leave at `now`, by the same clock, in order."""
        until = (self._latest_unix_ns - self._window_ns, self._number)
        while self._arrivals and (self._arrivals[0][0] <= now or len(self._arrivals) > 2 * self._limit):
            until = max(until, self._arrivals.popleft()[1])
        return self._released(until)

    def flush(self) -> list[Event]:
        """Everything, in order: nothing more will come."""
        self._arrivals.clear()
        events = [event for _, _, event in sorted(self._held, key=lambda held: held[:2])]
        self._held.clear()
        return events

    def deadline(self) -> float | None:
        """When, by the clock, `tick` is worth calling; None if nothing waits for it."""
        return self._arrivals[0][0] if self._held and self._arrivals else None

    def _released(self, until: tuple[int, int]) -> list[Event]:
        events = []
        while self._held and (self._held[0][:2] <= until or len(self._held) > self._limit):
            events.append(heapq.heappop(self._held)[2])
        return events
