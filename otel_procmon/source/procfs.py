"""What only ``/proc`` tells of a process that is already running: its program's path, arguments and working directory.

The task iterator gives the exact identity; these strings complete its records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_procmon.wire import Fact, Field, Head, Strings

if TYPE_CHECKING:
    from pathlib import Path

_DELETED: Final = b" (deleted)"
"""What the kernel puts behind the path of a file that no name leads to any more."""


def read_strings(proc: Path, head: Head, cgroup: bytes, args_max_bytes: int) -> tuple[Head, Strings, int]:
    """The head with what is to be said of the strings of its process, the strings, and how many arguments they are.

    What cannot be read (the process has just ended, `proc` is another pid namespace's) is marked as unread. Of a
    script, ``/proc`` knows only the interpreter.
    """
    directory = proc / str(head.pid)
    facts, unread, cut = head.facts, head.unread, head.cut
    filename = cwd = args = b""
    try:
        # surrogateescape both ways: these are bytes.
        filename = bytes((directory / "exe").readlink())
    except OSError:
        unread |= Field.FILENAME
    if filename.endswith(_DELETED):
        filename = filename.removesuffix(_DELETED)
        facts |= Fact.EXECUTABLE_DELETED
    try:
        cwd = bytes((directory / "cwd").readlink())
    except OSError:
        unread |= Field.CWD
    if cwd.endswith(_DELETED):
        cwd = cwd.removesuffix(_DELETED)
        facts |= Fact.CWD_DELETED
    try:
        with (directory / "cmdline").open("rb") as file:
            args = file.read(args_max_bytes + 1)
    except OSError:
        unread |= Field.ARGS
    if len(args) > args_max_bytes:
        args = args[:args_max_bytes]
        cut |= Field.ARGS
    head = head._replace(facts=int(facts), unread=int(unread), cut=int(cut))
    strings = Strings(filename, b"", b"", _leaf_first(cwd), cgroup, args)
    return head, strings, args.count(b"\0") + (not args.endswith(b"\0") and bool(args))


def _leaf_first(path: bytes) -> bytes:
    """``/a/b`` as ``b/a/``, the form in which the BPF program writes a path that it walked."""
    names = [name for name in path.split(b"/") if name]
    return b"".join(name + b"/" for name in reversed(names))
