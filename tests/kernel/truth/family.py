"""Picks the records of some processes from among those of the whole host."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tests.kernel.truth.otlp import Log, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Record = Log | Span
R = TypeVar("R", Log, Span)


def exec_id(record: Record) -> str:
    """The identity of the record's image."""
    told: str = record.attributes["procmon.exec_id"]
    return told


def with_word(records: Iterable[R], word: str) -> list[R]:
    """The records of images that have `word` among their arguments: of what was called with it, and its forks."""
    return [record for record in records if word in record.attributes.get("process.command_args", [])]


class Family(NamedTuple):
    """An image and all below it."""

    logs: list[Log]
    spans: list[Span]

    def records(self) -> list[Record]:
        """All of them."""
        return [*self.logs, *self.spans]

    def of(self, event_name: str) -> list[Log]:
        """The log records of one kind."""
        return [log for log in self.logs if log.event_name == event_name]

    def span(self, exec_id_: str) -> Span:
        """The one span of an image."""
        (span,) = [span for span in self.spans if exec_id(span) == exec_id_]
        return span


def family(logs: Sequence[Log], spans: Sequence[Span], first: str) -> Family:
    """The records of the image `first` and of all below it, by the parents that the records name."""
    records: list[Record] = [*logs, *spans]
    children: dict[str, set[str]] = {}
    for record in records:
        if parent := record.attributes.get("procmon.parent_exec_id"):
            children.setdefault(parent, set()).add(exec_id(record))
    known = {first}
    waiting = [first]
    while waiting:
        more = children.get(waiting.pop(), set()) - known
        known |= more
        waiting += more
    return Family(
        [log for log in logs if exec_id(log) in known],
        [span for span in spans if exec_id(span) in known],
    )
