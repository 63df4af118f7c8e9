"""What only ``/proc`` tells of a process that is already running: its program's path, arguments and working directory.

The kernel side gives the exact identity; these strings complete its records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_procmon.source.command_lines import command_lines
from otel_procmon.wire import EXEC_STRUCT, Fact, Field, Head, Strings, pack_task, read_head

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_procmon.source.command_lines import ReadCommandLine

_DELETED: Final = b" (deleted)"
"""What the kernel puts behind the path of a file that no name leads to any more."""


def complete(
    list_tasks: Callable[[], list[bytes]], is_known: Callable[[bytes], bool], proc: Path, args_max_bytes: int
) -> list[bytes]:
    """The records that `list_tasks` gives of all processes that run now, with their strings.

    The strings are read for those that `is_known` does not know. A process that runs another program by the time they
    are read is marked as unread, for they may be the other program's.
    """
    records = list_tasks()
    heads = [read_head(record) for record in records]
    with command_lines(args_max_bytes) as read_command_line:
        told = [
            None if is_known(record) else read_strings(proc, head, record[EXEC_STRUCT.size :], read_command_line)
            for record, head in zip(records, heads, strict=True)
        ]
    unchanged = {_image(read_head(record)) for record in list_tasks()}
    for index, (head, found) in enumerate(zip(heads, told, strict=True)):
        if found is None:
            continue
        now, strings, args_count = found
        if _image(head) not in unchanged:
            now = head._replace(unread=int(head.unread | Field.FILENAME | Field.CWD | Field.ARGS))
            strings, args_count = strings._replace(filename=b"", cwd=b"", args=b""), 0
        records[index] = pack_task(now, strings, len(strings.args), args_count)
    return records


def _image(head: Head) -> tuple[int, int, int]:
    return head.pid, head.start_ns, head.generation


def read_strings(
    proc: Path, head: Head, cgroup: bytes, read_command_line: ReadCommandLine
) -> tuple[Head, Strings, int]:
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
    read = read_command_line(directory / "cmdline")
    if read is None:
        unread |= Field.ARGS
    else:
        args, was_cut = read
        cut |= Field.ARGS if was_cut else 0
    head = head._replace(facts=int(facts), unread=int(unread), cut=int(cut))
    strings = Strings(filename, b"", b"", _leaf_first(cwd), cgroup, args)
    return head, strings, args.count(b"\0") + (not args.endswith(b"\0") and bool(args))


def _leaf_first(path: bytes) -> bytes:
    """``/a/b`` as ``b/a/``, the form in which the BPF program writes a path that it walked."""
    names = [name for name in path.split(b"/") if name]
    return b"".join(name + b"/" for name in reversed(names))
