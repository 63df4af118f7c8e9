"""A process table under watch: every happening is held against the rules that hold for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_procmon.config import LineageOptions, TraceOptions
from otel_procmon.events import Discovered, Exec
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.ids import SpanIds
from otel_procmon.lineage.image import Ended, Happening, Image, Opened, SpanRef, Started
from otel_procmon.lineage.table import PLACE, ProcessTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otel_procmon.events import Event

BOOT_ID = "3e7a5b1c-0000-4000-8000-000000000001"


class Account:
    """What a `ProcessTable` told. `complete`: nothing is evicted, so that the rules hold without exception."""

    def __init__(
        self,
        trace: TraceOptions | None = None,
        options: LineageOptions | None = None,
        *,
        complete: bool = True,
        boot_id: str = BOOT_ID,
    ) -> None:
        self.trace = trace or TraceOptions()
        self.options = options or LineageOptions()
        self.ledger = Ledger()
        self.table = ProcessTable(SpanIds(boot_id), self.trace, self.options, self.ledger)
        self.happenings: list[Happening] = []
        self.images: dict[str, Image] = {}
        self.started: set[str] = set()
        self.ended: dict[str, Ended] = {}
        self.opened: list[str] = []
        self._complete = complete
        self._names: list[tuple[Image, SpanRef]] = []

    # Events go in

    def apply(self, *events: Event) -> list[Happening]:
        """The events, each with a tick of its time before, as `capture.TetragonCapture` does it."""
        told: list[Happening] = []
        for event in events:
            told += self._watch(self.table.tick(event.time_unix_ns), event.time_unix_ns)
            told += self._watch(self.table.apply(event), event.time_unix_ns)
        return told

    def reconcile(
        self, snapshot: Sequence[Discovered], pending: Iterable[Event] = (), *, began_unix_ns: int, now_unix_ns: int
    ) -> list[Happening]:
        told = self.table.reconcile(snapshot, list(pending), began_unix_ns, now_unix_ns)
        return self._watch(told, now_unix_ns)

    def tick(self, now_unix_ns: int) -> list[Happening]:
        return self._watch(self.table.tick(now_unix_ns), now_unix_ns)

    def finish(self) -> list[Happening]:
        return self._watch(self.table.finish(), None)

    # What is asked of the account

    def count(self, outcome: str) -> int:
        return self.ledger.get(PLACE, outcome)

    def image(self, exec_id: str) -> Image:
        return self.images[exec_id]

    def dangling(self) -> list[tuple[Image, SpanRef]]:
        """Spans that were named as a parent, and neither were told nor can be any more."""
        told = {happening.image.span for happening in self.happenings if not isinstance(happening, Started)}
        running = {image.span for image in self.table._images.values() if image.ended is None}
        return [(image, span) for image, span in self._names if span not in told and span not in running]

    # The rules

    def _watch(self, happenings: list[Happening], now_unix_ns: int | None) -> list[Happening]:
        self.happenings += happenings
        for happening, at_unix_ns in zip(happenings, _times(happenings, now_unix_ns), strict=True):
            image = happening.image
            exec_id = image.exec_id
            assert len(image.span.trace_id) == 16
            assert len(image.span.span_id) == 8
            assert len(image.ancestors) <= 16
            assert (image.entry_reason is None) == (image.parent_span_id is not None)
            assert image.link is None or image.entry_reason is not None
            assert not image.process.kernel_thread, "nothing is told of kernel threads"
            self.images[exec_id] = image
            if isinstance(happening, Started):
                assert exec_id not in self.started, "started twice"
                self.started.add(exec_id)
                if not isinstance(happening.event, Discovered):
                    assert isinstance(happening.event, Exec)
            elif isinstance(happening, Opened):
                assert image.opened
                if self._complete:
                    assert exec_id not in self.opened, "opened twice"
                    assert exec_id not in self.ended, "opened after its end"
                if at_unix_ns is not None:
                    assert at_unix_ns - image.process.start_unix_ns >= self.trace.open_after_ns
                self.opened.append(exec_id)
                self._leaves(image, at_unix_ns)
            else:
                if self._complete:
                    assert exec_id not in self.ended, "ended twice"
                assert image.ended == ("exit" if happening.event is not None else image.ended)
                assert image.ended is not None
                self.ended[exec_id] = happening
                self._leaves(image, at_unix_ns)
        return happenings

    def _leaves(self, image: Image, at_unix_ns: int | None) -> None:
        """A span of `image` leaves: if it names one that goes on and is old enough, that one was opened before."""
        if image.parent_span_id is not None:
            self._names.append((image, SpanRef(image.span.trace_id, image.parent_span_id)))
        if image.link is not None:
            self._names.append((image, image.link))
        parent = image.parent
        if not self._complete or parent is None or parent.process.kernel_thread or at_unix_ns is None:
            return
        if parent.ended is None and at_unix_ns - parent.process.start_unix_ns >= self.trace.open_after_ns:
            assert parent.exec_id in self.opened, "the parent that goes on was not opened first"


def _times(happenings: Sequence[Happening], now_unix_ns: int | None) -> list[int | None]:
    """When each of them left, as the table sees it: a sweep is later than the events that were pending when it began.

    What is opened for one that ends comes before it, and leaves with it.
    """
    times: list[int | None] = []
    at_unix_ns = now_unix_ns
    for happening in reversed(happenings):
        if isinstance(happening, Ended) and now_unix_ns is not None:
            at_unix_ns = happening.image.end_unix_ns
        times.append(at_unix_ns)
    return times[::-1]


def told(happenings: Iterable[Happening]) -> list[tuple[str, ...]]:
    """Happenings, short: ``("exec", exec_id)``, ``("discovered", …)``, ``("open", …)``, ``("end", …, reason)``."""
    short: list[tuple[str, ...]] = []
    for happening in happenings:
        exec_id = happening.image.exec_id
        if isinstance(happening, Started):
            short.append(("exec" if isinstance(happening.event, Exec) else "discovered", exec_id))
        elif isinstance(happening, Opened):
            short.append(("open", exec_id))
        else:
            short.append(("end", exec_id, str(happening.image.ended)))
    return short


def of(kind: Any, happenings: Iterable[Happening]) -> list[Any]:
    """The happenings of one kind."""
    return [happening for happening in happenings if isinstance(happening, kind)]
