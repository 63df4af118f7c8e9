"""Says trouble in words: at once when it begins, then once a minute, and when it is over."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

_TELL_EVERY_S: Final = 60.0


class Teller:
    """For one place. Not thread-safe."""

    def __init__(self, place: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds, for deciding when trouble is told again."""
        self._place = place
        self._clock = clock
        self._told_at: float | None = None
        self._lost = 0

    def trouble(self, sentence: str, lost: int) -> None:
        """Something went wrong, and cost `lost` records."""
        self._lost += lost
        now = self._clock()
        if self._told_at is not None and now - self._told_at < _TELL_EVERY_S:
            return
        consequence = f"{self._lost} records were lost" if self._lost else "nothing is lost yet"
        _log.error("%s: %s; %s", self._place, sentence, consequence)
        self._told_at, self._lost = now, 0

    def works(self) -> None:
        """It went well."""
        if self._told_at is not None:
            _log.warning("%s: sending works again", self._place)
            self._told_at, self._lost = None, 0
