"""The one place where the kernel's time since boot becomes time since the Unix epoch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_STEP_NS = 1_000_000
"""A smaller change of the offset is taken for the noise of reading two clocks."""
_READINGS = 5


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class BootClock:
    """Converts CLOCK_BOOTTIME to CLOCK_REALTIME.

    NTP slews both alike; only a step of the wall clock changes the offset between them, and `refresh` follows that.
    What was converted before keeps its value: one image's start is one number in all of its records.
    """

    def __init__(
        self, boottime_ns: Callable[[], int] = _boottime_ns, realtime_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._boottime_ns = boottime_ns
        self._realtime_ns = realtime_ns
        self._offset_ns = self._measure()

    def unix_ns(self, boot_ns: int) -> int:
        """Nanoseconds since the Unix epoch; 0 for what would lie before it."""
        unix_ns = boot_ns + self._offset_ns
        return unix_ns if unix_ns > 0 else 0  # noqa: FURB136 - max() takes twice as long, ten times for each process

    def refresh(self) -> bool:
        """Follow a step of the wall clock. True if there was one."""
        offset_ns = self._measure()
        if abs(offset_ns - self._offset_ns) < _STEP_NS:
            return False
        self._offset_ns = offset_ns
        return True

    def _measure(self) -> int:
        """The offset from the reading of both clocks that took the least time, and so is the most exact."""
        best: tuple[int, int] | None = None
        for _ in range(_READINGS):
            before = self._boottime_ns()
            real = self._realtime_ns()
            after = self._boottime_ns()
            reading = (after - before, real - (before + after) // 2)
            best = reading if best is None else min(best, reading)
        assert best is not None
        return best[1]
