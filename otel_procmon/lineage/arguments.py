"""Bounds the memory that arguments of running images take.

A record needs them when the image begins and again when it ends, so the table keeps them meanwhile. Hardly any program
has more than a few kilobytes of them, but any may have 64 KiB that are kept, and there may be 100,000 at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

if TYPE_CHECKING:
    from otel_procmon.events import Process
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import Image

LONG: Final = 4096
"""Characters from which on arguments count as long, and to which they are shortened."""
BUDGET: Final = 64 * 1024 * 1024
"""Characters that all long arguments in the table may have together."""


class LongArguments:
    """Counts long arguments, and shortens them where they are too many: once what they began with has been told."""

    def __init__(self, place: str, ledger: Ledger, budget: int = BUDGET) -> None:
        self._place = place
        self._ledger = ledger
        self._budget = budget
        self._kept = 0
        self._new: list[Image] = []
        self._told: list[Image] = []

    def added(self, image: Image) -> None:
        """`image` is in the table now."""
        length = _length(image.process)
        if length <= LONG:
            return
        image.long_arguments = length
        self._kept += length
        if self._kept > self._budget:
            self._new.append(image)

    def removed(self, image: Image) -> None:
        """It is not any more."""
        self._kept -= image.long_arguments
        image.long_arguments = 0

    def settle(self) -> None:
        """What was added before the last call has been told by now."""
        if not self._told and not self._new:
            return
        for image in self._told:
            if image.long_arguments:
                image.process = _shortened(image.process)
                self.removed(image)
                self._ledger.count(self._place, "shortened: too many long arguments")
        self._told, self._new = self._new, []


def _length(process: Process) -> int:
    return len(process.arguments or "") if process.argv is None else sum(map(len, process.argv))


def _shortened(process: Process) -> Process:
    truncated = process.truncated if "args" in process.truncated else (*process.truncated, "args")
    if process.argv is None:
        return replace(process, arguments=(process.arguments or "")[:LONG], truncated=truncated)
    kept = []
    room = LONG
    for argument in process.argv:
        if room <= 0:
            break
        kept.append(argument[:room])
        room -= len(argument)
    return replace(process, argv=tuple(kept), truncated=truncated)
