"""The compact view: one line an event, for people, as ``tetra getevents -o compact`` prints it.

What a process can choose is quoted where it has to be, so that no event can forge a line or drive a terminal.
The difference from Tetragon: arguments are quoted only where they hold something unprintable, not for every space, and
where there are none there is no second space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_procmon.events import Exec
from otel_procmon.lineage.image import Ended, Happening, Started
from otel_procmon.view.arguments import process_arguments
from otel_procmon.view.quote import quote_unless_plain, quote_unless_printable

if TYPE_CHECKING:
    from otel_procmon.events import Process

# Tetragon's colours (its pkg/encoder): what happened is blue, where green, the program magenta, arguments cyan, the
# status red.
_BLUE, _GREEN, _MAGENTA, _CYAN, _RED = 34, 32, 35, 36, 31

_PROCESS = f"🚀 {'process':<7}"
_EXIT = f"💥 {'exit':<7}"

LOST = "lost"
"""The status of a process whose exit nobody saw."""


def compact_line(happening: Happening, *, colour: bool) -> str | None:
    """The line for `happening`, without a line end; None if the compact view does not tell of it.

    It tells of every exec and every exit. An image that another program replaced had no exit, and what was already
    running when the agent began did nothing now.
    """
    if isinstance(happening, Started):
        if not isinstance(happening.event, Exec):
            return None
        return _line(_PROCESS, happening.image.process, None, colour=colour)
    if isinstance(happening, Ended):
        status = _status(happening)
        return None if status is None else _line(_EXIT, happening.image.process, status, colour=colour)
    return None


def _status(happening: Ended) -> str | None:
    event = happening.event
    if event is None:
        return LOST if happening.image.ended == "lost" else None
    if event.signal is not None:
        return quote_unless_plain(event.signal)
    return LOST if event.code is None else str(event.code)


def _line(what: str, process: Process, status: str | None, *, colour: bool) -> str:
    where, binary = quote_unless_plain(_where(process)), quote_unless_plain(process.binary)
    arguments = process_arguments(process)
    if arguments:
        arguments = quote_unless_printable(arguments)
    parts = ((_BLUE, what), (_GREEN, where), (_MAGENTA, binary), (_CYAN, arguments), (_RED, status))
    if colour:
        return " ".join(f"\x1b[{code}m{text}\x1b[0m" for code, text in parts if text)
    return " ".join([text for _, text in parts if text])


def _where(process: Process) -> str:
    """``namespace/pod``, else the node's name."""
    pod = process.pod
    if pod is not None and (pod.namespace or pod.name):
        return f"{pod.namespace or ''}/{pod.name or ''}"
    return process.node or ""
