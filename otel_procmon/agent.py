"""The agent: puts the stages together and runs them until there is nothing more to come, or somebody says stop.

source → decode → redact → lineage      `capture`
→ containers                   `containers.hold`
→ filters                      `filters`
→ view, convert → encode → deliver    `outputs`
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.capture import Capture
    from otel_procmon.containers.hold import Hold
    from otel_procmon.filters import Filter
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import Happening
    from otel_procmon.outputs import Output

_log = logging.getLogger(__name__)

_LAST_LOOK_S: Final = 0.5
"""How long, at the end, a container is looked for that nothing is known of yet."""


class Agent:
    """One run. `stop` and `ask` may be called from a signal handler."""

    def __init__(
        self,
        capture: Capture,
        filter_: Filter,
        outputs: Sequence[Output],
        ledger: Ledger,
        hold: Hold | None = None,
    ) -> None:
        """`hold`: where nobody is asked for containers, or events come with them, None."""
        self._capture = capture
        self._hold = hold
        self._filter = filter_
        self._outputs = outputs
        self._ledger = ledger
        self._stopping = False
        self._asked = False
        self._held: deque[tuple[int, int]] = deque()
        """Marks of the source, and of the hold at that time: before that has let everything go, nothing is safe."""
        self._unsafe: deque[tuple[int, list[object]]] = deque()
        """Marks of the source, and of each output at that time: when those are safe, the source may forget."""

    def stop(self) -> None:
        """End soon: what has happened by then is told."""
        self._stopping = True

    def ask(self) -> None:
        """Say the ledger soon."""
        self._asked = True

    def run(self) -> None:
        """Pass on what happens until the source ends, `stop` is called, or nobody reads any output any more.

        Raises SourceError.
        """
        while not self._stopping:
            happenings = self._capture.step()
            if happenings is None:
                break
            self._tell(happenings if self._hold is None else self._hold.pass_on(happenings))
            self._release()
            if self._asked:
                self._asked = False
                self._capture.count()
                _log.warning("ledger: %s", self._ledger.line())
            if all(output.closed for output in self._outputs):
                break
        last = self._capture.stop()
        if self._hold is None:
            self._tell(last)
            return
        self._tell(self._hold.pass_on(last))
        self._tell(self._hold.flush(_LAST_LOOK_S))

    def close(self, timeout_s: float) -> str:
        """Deliver what waits within `timeout_s`, release everything, and give the ledger's last line."""
        for output in self._outputs:
            output.close(timeout_s)
        # The last chance: what is not safe now is lost, or is kept by whoever keeps it.
        self._capture.release(self._capture.mark())
        self._capture.count()
        self._capture.close()
        return self._ledger.line()

    def _release(self) -> None:
        """Let the source forget what the outputs have made safe, or, if it cannot hold it, all that was passed on."""
        mark = self._capture.mark()
        if not self._capture.holds():
            self._held.clear()
            self._unsafe.clear()
            self._capture.release(mark)
            return
        left = self._has_left(mark)
        if left is not None and (not self._unsafe or self._unsafe[-1][0] != left):
            self._unsafe.append((left, [output.mark() for output in self._outputs]))
        while self._unsafe and all(
            output.is_safe(each) for output, each in zip(self._outputs, self._unsafe[0][1], strict=True)
        ):
            self._capture.release(self._unsafe.popleft()[0])

    def _has_left(self, mark: int) -> int | None:
        """Up to which mark of the source, `mark` being the latest, the outputs have been given everything.

        None: no further than when this was last asked.
        """
        if self._hold is None:
            return mark
        if not self._held or self._held[-1][0] != mark:
            self._held.append((mark, self._hold.mark()))
        left = None
        while self._held and self._hold.has_left(self._held[0][1]):
            left = self._held.popleft()[0]
        return left

    def _tell(self, happenings: list[Happening]) -> None:
        if not happenings:
            return
        accepted = [happening for happening in happenings if self._filter.accepts(happening)]
        self._ledger.count("filter", "passed", len(accepted))
        self._ledger.count("filter", "filtered on purpose", len(happenings) - len(accepted))
        if accepted:
            for output in self._outputs:
                output.put(accepted)
