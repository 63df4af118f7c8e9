"""Arguments as Tetragon writes them: one string, without the program's own name.

Tetragon (``pkg/process/args.go``) joins them by spaces and puts an argument that holds a space between quotation marks,
without escaping the marks inside. So the string is for people and for searching; it cannot always be split again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.events import Process


def arguments_text(argv: Sequence[str]) -> str:
    """`argv`, whose first item is the program's name, as Tetragon's ``arguments``.

    An empty argument between others leaves two spaces, as in Tetragon. At either end it leaves no trace: Tetragon drops
    leading ones always, trailing ones when the cwd is ``/``. The space that Tetragon puts before a first argument that
    is quoted is an accident of its loop, and left out.
    """
    first, last = 1, len(argv)
    while first < last and not argv[first]:
        first += 1
    while last > first and not argv[last - 1]:
        last -= 1
    return " ".join(f'"{argument}"' if " " in argument else argument for argument in argv[first:last])


def process_arguments(process: Process) -> str:
    """The arguments of `process` as one string; ``""`` where there are none or none are known."""
    if process.arguments is not None:
        return process.arguments
    return arguments_text(process.argv) if process.argv else ""
