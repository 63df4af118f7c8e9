"""Says trouble in words: at once when it begins, at most once a minute, and when it is over."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

_TELL_EVERY_S: Final = 60.0


class Teller:
    """For one place. Not thread-safe.

    Trouble may come and go with each batch: a receiver that refuses some of them, a queue at its limit. What comes
    again within the minute is not said at once but kept, with what it cost, until the minute is over.
    """

    def __init__(
        self, place: str, clock: Callable[[], float] = time.monotonic, *, over: str = "sending works again"
    ) -> None:
        """`clock` gives seconds, for deciding when trouble is told again; `over` says that there is none any more."""
        self._place = place
        self._clock = clock
        self._over = over
        self._told_at: float | None = None
        self._sentence = ""  # of the last trouble
        self._lost = 0  # and not told yet
        self._down = False  # trouble was told, and not yet that it is over

    def trouble(self, sentence: str, lost: int) -> None:
        """Something went wrong, and cost `lost` records."""
        self._sentence = sentence
        self._lost += lost
        if self._is_due():
            self._tell()

    def works(self) -> None:
        """It went well."""
        if self._lost and not self._down and self._is_due():
            self._tell()
        if self._down:
            consequence = f"; {self._lost} more records were lost" if self._lost else ""
            _log.warning("%s: %s%s", self._place, self._over, consequence)
            self._down, self._lost = False, 0

    def _is_due(self) -> bool:
        return self._told_at is None or self._clock() - self._told_at >= _TELL_EVERY_S

    def _tell(self) -> None:
        consequence = f"{self._lost} records were lost" if self._lost else "nothing is lost yet"
        _log.error("%s: %s; %s", self._place, self._sentence, consequence)
        self._told_at, self._lost, self._down = self._clock(), 0, True
