"""Images and what happened to them, made by hand, with only the fields that a test is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_procmon.events import Discovered, Exec, Exit, Process
from otel_procmon.lineage.image import Ended, Image, Opened, SpanRef, Started

if TYPE_CHECKING:
    from otel_procmon.lineage.image import EndReason

START = 1_709_280_601_500_000_000
"""2024-03-01T08:10:01.5Z."""
END = START + 200_000_000


def image(**fields: Any) -> Image:
    """An image of a process with these fields."""
    required = {"exec_id": "aGVyZTo2OjQwMA==", "pid": 400, "binary": "/bin/ls", "start_unix_ns": START}
    return Image(Process(**{**required, **fields}), SpanRef(bytes(16), bytes(8)))


def started(image: Image, *, parent: Process | None = None, raw: dict[str, Any] | None = None) -> Started:
    """Its exec."""
    return Started(
        image,
        Exec(
            time_unix_ns=START,
            observed_unix_ns=START,
            process=image.process,
            parent_exec_id=image.parent_exec_id,
            parent=parent,
            raw=raw,
        ),
    )


def discovered(image: Image) -> Started:
    """It was found running, some time after its start."""
    event = Discovered(time_unix_ns=END, observed_unix_ns=END, process=image.process, parent_exec_id=None)
    return Started(image, event)


def exited(
    image: Image, code: int | None = 0, signal: str | None = None, *, parent: Process | None = None, **fields: Any
) -> Ended:
    """Its exit."""
    image.ended, image.end_unix_ns = "exit", END
    event = Exit(
        time_unix_ns=END,
        observed_unix_ns=END,
        exec_id=image.exec_id,
        pid=image.process.pid,
        code=code,
        signal=signal,
        parent=parent,
        **fields,
    )
    return Ended(image, event, END)


def ended_without_event(image: Image, reason: EndReason) -> Ended:
    """It was replaced by another program, or its exit was lost."""
    image.ended, image.end_unix_ns = reason, END
    return Ended(image, None, END)


def opened(image: Image) -> Opened:
    """A span is about to name it."""
    return Opened(image)
