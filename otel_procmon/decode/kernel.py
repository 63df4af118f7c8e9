"""The BPF program's records (`otel_procmon.wire`) as events.

Strings may hold any bytes: what is not UTF-8 stays visible as lone surrogates (``surrogateescape``), which every later
stage knows to replace when text leaves.
"""

from __future__ import annotations

import signal
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from otel_procmon.containers.cgroup import parse_cgroup
from otel_procmon.decode.errors import DecodeError
from otel_procmon.events import Container, Discovered, Event, Exec, Exit, Fork, Process, Usage
from otel_procmon.lineage.ids import make_exec_id
from otel_procmon.wire import (
    EXEC_STRUCT,
    EXIT_STRUCT,
    TASK,
    TASK_STRUCT,
    WIRE_VERSION,
    Fact,
    Field,
    Head,
    Kind,
    Strings,
    read_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PLACE: Final = "decode.kernel"
"""Where in the ledger records that cannot be decoded are counted."""

_STRUCTS: Final = {
    int(Kind.FORK): TASK_STRUCT,
    int(Kind.EXEC): EXEC_STRUCT,
    int(Kind.EXIT): EXIT_STRUCT,
    int(Kind.TASK): EXEC_STRUCT,
}

# Plain numbers: an IntFlag's operators cost a microsecond each, on every record, and an IntEnum's comparison a tenth.
_FORK, _EXEC, _EXIT = int(Kind.FORK), int(Kind.EXEC), int(Kind.EXIT)
_TTY, _KERNEL_THREAD, _PARENT_KERNEL_THREAD = int(Fact.TTY), int(Fact.KERNEL_THREAD), int(Fact.PARENT_KERNEL_THREAD)
_EXECUTABLE_DELETED, _CWD_DELETED = int(Fact.EXECUTABLE_DELETED), int(Fact.CWD_DELETED)
_OOM_VICTIM = int(Fact.OOM_VICTIM)
_ARGS, _FILENAME, _CWD, _VPID = int(Field.ARGS), int(Field.FILENAME), int(Field.CWD), int(Field.VPID)
_INTERPRETER, _EXECUTABLE, _CGROUP = int(Field.INTERPRETER), int(Field.EXECUTABLE), int(Field.CGROUP)
_USAGE_CPU, _USAGE_IO = int(Field.USAGE_CPU), int(Field.USAGE_IO)

_CUT_NAMES: Final = (
    (_ARGS, "args"),
    (_FILENAME, "binary"),
    (_INTERPRETER, "interpreter"),
    (_EXECUTABLE, "executable"),
    (_CWD, "cwd"),
    (_CGROUP, "cgroup"),
    (_USAGE_CPU, "usage"),
)
"""`Process.truncated` by bit of ``cut``."""

_UNSET = 2**32 - 1
_BY_DESCRIPTOR = "/dev/fd/"
"""How the kernel names what execveat(2) was given a descriptor of: fs/exec.c, alloc_bprm()."""


class KernelDecoder:
    """Makes events of records. It knows what is the same for all of them: the node, the clock, the machine's page size.

    `unix_ns` converts CLOCK_BOOTTIME; `observed_unix_ns` is the clock for when a record was read.
    """

    def __init__(
        self,
        node: str,
        *,
        unix_ns: Callable[[int], int],
        observed_unix_ns: Callable[[], int],
        page_bytes: int,
    ) -> None:
        self._node = node
        self._unix_ns = unix_ns
        self._observed_unix_ns = observed_unix_ns
        self._page_bytes = page_bytes
        self._number = 0

    def exec_id(self, record: bytes) -> str:
        """The identity of the image that `record` is about. Raises `struct.error` if it has no head."""
        return self._exec_id(read_head(record))

    def decode(self, record: bytes) -> Event:
        """The event that `record` tells of. Raises `DecodeError`, and nothing else whatever the bytes are."""
        self._number += 1
        try:
            kind = int.from_bytes(record[:4], "little")
            layout = _STRUCTS.get(kind)
            if layout is None:
                raise DecodeError(f"record {self._number}: unknown kind {kind}")
            fields = layout.unpack_from(record)
        except struct.error:
            raise DecodeError(f"record {self._number}: {len(record)} bytes, too short for its kind {kind}") from None
        head = Head._make(fields[: len(TASK)])
        if head.version != WIRE_VERSION:
            raise DecodeError(f"record {self._number}: version {head.version} of the wire, not {WIRE_VERSION}")
        if kind == _FORK:
            return self._fork(head)
        if kind == _EXIT:
            return self._exit(head, fields[len(TASK) :])
        strings = self._strings(record, fields[len(TASK) :])
        if kind == _EXEC:
            return self._exec(head, fields[len(TASK) + 1], strings)
        return self._task(head, fields[len(TASK) + 1], strings)

    def _exec_id(self, head: Head, generation: int | None = None) -> str:
        return make_exec_id(self._node, head.start_ns, head.generation if generation is None else generation, head.pid)

    def _parent_exec_id(self, head: Head) -> str | None:
        if not head.parent_pid:
            return None
        return make_exec_id(self._node, head.parent_start_ns, head.parent_generation, head.parent_pid)

    def _strings(self, record: bytes, tail: tuple[int, ...]) -> Strings:
        _, _, *lengths = tail[:-1]
        position = EXEC_STRUCT.size
        parts = []
        for length in lengths:
            parts.append(record[position : position + length])
            position += length
        # The ring rounds a record's size up to 8 bytes at most.
        if position > len(record):
            raise DecodeError(f"record {self._number}: {len(record)} bytes, but its strings end at {position}")
        return Strings._make(parts)

    def _fork(self, head: Head) -> Fork:
        facts = head.facts
        return Fork(
            time_unix_ns=self._unix_ns(head.time_ns),
            exec_id=self._exec_id(head),
            parent_exec_id=self._parent_exec_id(head) or "",
            pid=head.pid,
            parent_pid=head.parent_pid,
            node=self._node,
            boot_start_ns=head.start_ns,
            creation_unix_ns=self._unix_ns(head.start_ns),
            vpid=head.vpid or None,
            parent_is_kernel_thread=bool(facts & _PARENT_KERNEL_THREAD),
            name=_comm(head),
            session_id=head.session_id,
            tty=bool(facts & _TTY),
            uid=head.uid,
            gid=head.gid,
            euid=head.euid,
            egid=head.egid,
            auid=None if head.auid == _UNSET else head.auid,
        )

    def _exec(self, head: Head, args_count: int, strings: Strings) -> Exec:
        time_unix_ns = self._unix_ns(head.time_ns)
        # A fork leaves the child with its parent's generation (kernel/fork.c, copy_process()), and remembers that as
        # the parent's: one more, and this is the first exec since. With CLONE_PARENT what it remembers is the common
        # parent's, so lineage, which saw the fork, knows better.
        first = head.generation == head.parent_generation + 1
        flags = ("execve", "clone") if first else ("execve",)
        return Exec(
            time_unix_ns=time_unix_ns,
            observed_unix_ns=self._observed_unix_ns(),
            process=self._process(
                head,
                (*flags, *_path_flags(head, strings)),
                time_unix_ns,
                strings,
                args_count,
                exec_id=self._exec_id(head),
                creation_unix_ns=self._unix_ns(head.start_ns),
            ),
            parent_exec_id=self._parent_exec_id(head),
            previous_exec_id=self._exec_id(head, head.generation - 1) if head.generation else None,
            previous_is_fork=first,
        )

    def _task(self, head: Head, args_count: int, strings: Strings) -> Discovered:
        flags = () if head.facts & _KERNEL_THREAD else _path_flags(head, strings)
        start_unix_ns = self._unix_ns(head.start_ns)
        return Discovered(
            time_unix_ns=self._unix_ns(head.time_ns),
            observed_unix_ns=self._observed_unix_ns(),
            process=self._process(
                head,
                ("procFS", *flags),
                start_unix_ns,
                strings,
                args_count,
                exec_id=self._exec_id(head),
                creation_unix_ns=start_unix_ns,
            ),
            parent_exec_id=self._parent_exec_id(head),
            # As above: it still has the generation that the fork gave it.
            forked_only=head.generation == head.parent_generation,
        )

    def _exit(self, head: Head, tail: tuple[int, ...]) -> Exit:
        wait_status, _, utime_ns, stime_ns, runtime_ns, max_rss_pages, read_bytes, written_bytes = tail
        number = wait_status & 0x7F
        facts = head.facts
        user_ns, system_ns = scaled_cpu_times(utime_ns, stime_ns, runtime_ns)
        io_known = not head.unread & _USAGE_IO
        return Exit(
            time_unix_ns=self._unix_ns(head.time_ns),
            observed_unix_ns=self._observed_unix_ns(),
            exec_id=self._exec_id(head),
            pid=head.pid,
            boot_start_ns=head.start_ns,
            code=None if number else wait_status >> 8 & 0xFF,
            signal=signal_name(number) if number else None,
            core_dumped=bool(wait_status & 0x80) if number else None,
            oom_killed=number == signal.SIGKILL and bool(facts & _OOM_VICTIM) if number else None,
            usage=Usage(
                cpu_user_ns=user_ns,
                cpu_system_ns=system_ns,
                max_rss_bytes=max_rss_pages * self._page_bytes,
                read_bytes=read_bytes if io_known else None,
                written_bytes=written_bytes if io_known else None,
            ),
            parent_exec_id=self._parent_exec_id(head),
            parent_pid=head.parent_pid or None,
            node=self._node,
            creation_unix_ns=self._unix_ns(head.start_ns),
            vpid=head.vpid or None,
            name=_comm(head),
            session_id=head.session_id,
            tty=bool(facts & _TTY),
            uid=head.uid,
            gid=head.gid,
            euid=head.euid,
            egid=head.egid,
            auid=None if head.auid == _UNSET else head.auid,
            cgroup_id=head.cgroup_id or None,
            forked_only=head.generation == head.parent_generation,
            kernel_thread=bool(facts & _KERNEL_THREAD),
            executable_deleted=bool(facts & _EXECUTABLE_DELETED),
            truncated=_cut(head.cut),
        )

    def _process(
        self,
        head: Head,
        flags: tuple[str, ...],
        start_unix_ns: int,
        strings: Strings,
        args_count: int,
        *,
        exec_id: str,
        creation_unix_ns: int,
    ) -> Process:
        cwd = cgroup = executable = argv = container = pod_uid = None
        binary = _text(strings.filename)
        interpreter = _text(strings.interpreter) or None
        if not head.unread & _CWD and not head.facts & _KERNEL_THREAD:
            cwd = _walked(strings.cwd)
        if binary.startswith(_BY_DESCRIPTOR) and interpreter is None:
            executable = _walked(strings.executable) if strings.executable else None
        elif cwd is not None and binary and not binary.startswith("/"):
            # As Tetragon makes it absolute. ``./a`` stays visible in the arguments.
            binary = f"{cwd.rstrip('/')}/{binary.removeprefix('./')}"
        if cwd is not None and head.facts & _CWD_DELETED:
            cwd += " (deleted)"
        if not head.unread & _ARGS and not head.facts & _KERNEL_THREAD:
            argv = _arguments(strings.args)
        if not head.unread & _CGROUP:
            cgroup = _walked(strings.cgroup)
            container_id, runtime, pod_uid = parse_cgroup(cgroup)
            if container_id is not None:
                container = Container(id=container_id, runtime=runtime)
        return Process(
            exec_id=exec_id,
            pid=head.pid,
            binary=binary,
            start_unix_ns=start_unix_ns,
            creation_unix_ns=creation_unix_ns,
            boot_start_ns=head.start_ns,
            flags=flags,
            argv=argv,
            args_count=args_count if argv is not None else None,
            executable=executable,
            executable_deleted=bool(head.facts & _EXECUTABLE_DELETED),
            name=None if binary else _comm(head),
            interpreter=interpreter,
            cwd=cwd,
            parent_pid=head.parent_pid or None,
            vpid=head.vpid or None,
            session_id=head.session_id,
            tty=bool(head.facts & _TTY),
            uid=head.uid,
            gid=head.gid,
            euid=head.euid,
            egid=head.egid,
            auid=None if head.auid == _UNSET else head.auid,
            cgroup=cgroup,
            cgroup_id=head.cgroup_id or None,
            container_id=None if container is None else container.id,
            container=container,
            pod_uid=pod_uid,
            node=self._node,
            kernel_thread=bool(head.facts & _KERNEL_THREAD),
            truncated=_cut(head.cut),
        )


def _cut(bits: int) -> tuple[str, ...]:
    """`Process.truncated` for a record's ``cut``."""
    return tuple([name for bit, name in _CUT_NAMES if bits & bit]) if bits else ()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _comm(head: Head) -> str | None:
    return _text(head.comm.partition(b"\0")[0]) or None


@lru_cache(maxsize=1024)
def _walked(components: bytes) -> str:
    """``c/b/a/`` as ``/a/b/c``."""
    return "/" + _text(b"/".join(reversed(components[:-1].split(b"/"))))


def _arguments(raw: bytes) -> tuple[str, ...]:
    """Arguments that each end with NUL. A last one without it was cut short."""
    if not raw:
        return ()
    # Not rstrip: the last argument may be empty.
    return tuple(_text(raw.removesuffix(b"\0")).split("\0"))


def _path_flags(head: Head, strings: Strings) -> list[str]:
    """Tetragon's words for what became of the strings (its ``pkg/reader/exec``)."""
    flags = []
    if head.unread & _CWD:
        flags.append("errorCWD")
    elif not strings.cwd:
        flags.append("rootcwd")
    if head.cut & _ARGS:
        flags.append("truncArgs")
    if head.unread & _ARGS:
        flags.append("errorArgs")
    if head.cut & _FILENAME:
        flags.append("truncFilename")
    if head.unread & _FILENAME:
        flags.append("errorFilename")
    return flags


def signal_name(number: int) -> str:
    """SIGKILL, SIGRTMIN+3: as bash names them. What has no name there is SIG and its number."""
    if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
        above = number - signal.SIGRTMIN
        return f"SIGRTMIN+{above}" if above else "SIGRTMIN"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def scaled_cpu_times(utime_ns: int, stime_ns: int, runtime_ns: int) -> tuple[int, int]:
    """User and system time as getrusage(2) gives them.

    kernel/sched/cputime.c, cputime_adjust(): the tick samples `utime_ns` and `stime_ns` coarsely, but how long a task
    ran is known exactly; so that is divided in their proportion.
    """
    if not stime_ns:
        return runtime_ns, 0
    if not utime_ns:
        return 0, runtime_ns
    system_ns = stime_ns * runtime_ns // (stime_ns + utime_ns)
    return runtime_ns - system_ns, system_ns
