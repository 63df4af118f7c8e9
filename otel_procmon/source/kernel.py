"""The kernel as a source, whoever loads the program: `source.ebpf` or `source.bcc`.

The records are those of ``bpf/procmon.h``, and so are the configuration and the counters. What can go wrong when it
starts becomes one sentence with the cause and the remedy (`SourceError`).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from otel_procmon.source.errors import SourceError
from otel_procmon.source.libbpf import LibbpfMissingError, Library
from otel_procmon.source.procfs import complete
from otel_procmon.wire import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.config import Capture
    from otel_procmon.source.libbpf import BpfError

CONFIG: Final = (
    ("wake_bytes", "Q"),
    ("args_max_bytes", "I"),
    ("cpus", "I"),
    ("exec_room_bytes", "Q"),
    ("fork_room_bytes", "Q"),
    ("programs", "I"),
    ("place", "I"),
)
"""``struct procmon_config``."""

COUNTERS: Final = (("made", "5Q"), ("lost_ring_full", "5Q"), ("lost_no_buffer", "5Q"), ("left_out", "5Q"))
"""``struct procmon_counters``, one for each CPU; by kind, of which 0 is none."""

BUFFERS_PER_CPU: Final = 2
BUFFERS_PER_CPU_MAX: Final = 4
"""Where every program may be preempted. As in ``bpf/maps.h``."""

LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
PROC: Final = Path("/proc")

_EXEC_ROOM: Final = 7 / 8
_FORK_ROOM: Final = 15 / 16
"""Of the ring. The last eighth is for forks and exits, the last sixteenth for exits alone."""
READ_LIMIT: Final = 64
"""Records taken at one go. So few go through all stages before they leave the processor's cache: with 2,048, a burst
cost a fifth more for each process, and 5 MiB."""

_COUNTERS: Final = struct.Struct("<" + "".join(format_ for _, format_ in COUNTERS))
COUNTERS_BYTES: Final = _COUNTERS.size


class KindCounts(NamedTuple):
    """What the kernel side counted of one kind of record."""

    made: int
    """How many were due."""
    lost_ring_full: int
    lost_no_buffer: int
    left_out: int
    """How often the kernel left a program out, and another one at the same tracepoint saw to the event."""


def open_library() -> Library:
    """Libbpf. Raises `SourceError`, also where the programs cannot run whoever loads them."""
    if sys.byteorder != "little":
        raise SourceError("The BPF program is built for little-endian machines only, and this is not one.")
    try:
        return Library()
    except LibbpfMissingError as error:
        raise SourceError(
            f"libbpf 1.0 or newer is missing ({error}): on Debian and Ubuntu, apt-get install libbpf1."
        ) from error


def sum_counters(values: list[bytes]) -> dict[Kind, KindCounts]:
    """The counters of all CPUs, each as ``struct procmon_counters``, by kind."""
    columns = zip(*map(_COUNTERS.unpack, values), strict=True)
    sums = [sum(column) for column in columns]
    kinds = len(sums) // len(COUNTERS)
    return {kind: KindCounts(*sums[kind::kinds]) for kind in (Kind.FORK, Kind.EXEC, Kind.EXIT)}


def config_values(capture: Capture, cpus: int, programs: int = 1, place: int = 0) -> dict[str, int]:
    """The values of `CONFIG`, in its order."""
    ring_bytes = capture.ring_bytes
    return {
        "wake_bytes": int(ring_bytes * capture.wake_fraction),
        "args_max_bytes": capture.arguments_max_bytes,
        "cpus": cpus,
        "exec_room_bytes": int(ring_bytes * _EXEC_ROOM),
        "fork_room_bytes": int(ring_bytes * _FORK_ROOM),
        "programs": programs,
        "place": place,
    }


def sentence(error: BpfError, messages: list[str]) -> str:
    """What is wrong and what to do, from the errno and what is known of this host."""
    if error.errno in (errno.EPERM, errno.EACCES):
        if os.geteuid() != 0:
            return (
                "Loading a BPF program needs root, or the capabilities BPF, PERFMON and SYS_RESOURCE: run it by sudo."
            )
        if "[confidentiality]" in _lockdown():
            return (
                "This kernel is locked down (lockdown=confidentiality), so that no program may read its memory: boot "
                "with lockdown=integrity or none."
            )
        if not any("processed" in message and "insns" in message for message in messages):
            return (
                f"The kernel does not allow BPF programs here ({error.strerror}): in a container, add the "
                "capabilities BPF, PERFMON and SYS_RESOURCE, or run it privileged."
            )
    if error.what in ("bpf_object__load", "bpf_prog_load"):
        return (
            f"This kernel does not take the BPF program ({os.strerror(error.errno or 0)}; {_kernel()}): Linux 5.10 or "
            "newer is needed; otel-procmon doctor --verbose shows what its verifier says."
        )
    return f"The BPF program cannot be attached ({error.strerror}; {_kernel()}): see otel-procmon doctor --verbose."


def _lockdown() -> str:
    try:
        return LOCKDOWN.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _kernel() -> str:
    return f"Linux {os.uname().release}"


class Reader(Protocol):
    """The reading end of what the programs write into."""

    @property
    def position(self) -> int:
        """Up to where records were read."""

    def wait(self, timeout_s: float) -> None:
        """Wait until it fills up, at most `timeout_s`, or until a signal comes."""

    def read(self, limit: int) -> list[bytes]:
        """Records that are there, `limit` at most, in their order."""

    def commit(self, position: int) -> None:
        """Give the room up to `position` back to the kernel."""

    def waiting_bytes(self) -> int:
        """How much is taken."""

    def close(self) -> None:
        """Unmap."""


class KernelSource(ABC):
    """Records of every fork, exec and exit on this host, as ``bpf/procmon.h`` describes them."""

    def __init__(self, capture: Capture, proc: Path) -> None:
        self._capture = capture
        self._proc = proc
        self._library: Library | None = None
        self._reader: Reader | None = None
        self._size = capture.ring_bytes
        """How much fits into what `_reader` reads."""
        self._counts: dict[Kind, KindCounts] = {}
        self._misses = 0
        self._more_waits = False
        self.taken_over = False
        """Whether an earlier agent's programs were running, and its records wait."""
        self.started_clean = 0
        """How many pinned versions were found that are not this one's, and were removed with what they held."""

    @property
    def messages(self) -> list[str]:
        """What libbpf said, the verifier's log included."""
        return list(self._library.messages) if self._library is not None else []

    @property
    @abstractmethod
    def read_before(self) -> int:
        """How many of the records that the kernel has made earlier agents have read and committed."""

    @abstractmethod
    def open(self) -> None:
        """Load and attach. Raises `SourceError`."""

    def read(self, timeout_s: float) -> list[bytes]:
        """Records that wait. Waits up to `timeout_s`, less when the ring fills up."""
        assert self._reader is not None
        if timeout_s > 0 and not self._more_waits:
            self._reader.wait(timeout_s)
        records = self._reader.read(READ_LIMIT)
        self._more_waits = len(records) >= READ_LIMIT
        return records

    @property
    def position(self) -> int:
        """Up to where records were read, for `commit`."""
        assert self._reader is not None
        return self._reader.position

    def filled(self) -> float:
        """Which part of the ring is taken, by records that were not read or not committed; 0 once this is closed."""
        return 0.0 if self._reader is None else self._reader.waiting_bytes() / self._size

    def commit(self, position: int) -> None:
        """The records up to `position` are not needed any more."""
        assert self._reader is not None
        self._reader.commit(position)

    def snapshot(self, is_known: Callable[[bytes], bool]) -> list[bytes]:
        """A record of every process that runs now. Raises `SourceError`.

        The strings that only ``/proc`` has are read for those that `is_known` does not know. A process that runs
        another program by the time they are read is marked as unread, for they may be the other program's.
        """
        return complete(self._tasks, is_known, self._proc, self._capture.arguments_max_bytes)

    @abstractmethod
    def _tasks(self) -> list[bytes]:
        """A record of every process that runs now, without these strings. Raises `SourceError`."""

    @abstractmethod
    def counts(self) -> dict[Kind, KindCounts]:
        """What the kernel side counted, by kind: exact at any time, with no record needed to tell of a loss."""

    def misses(self) -> int:
        """How many runs of a program the kernel left out, because it ran already on that CPU; as of `counts`."""
        return self._misses

    @abstractmethod
    def detach(self) -> None:
        """No more records are made, unless the programs are pinned; those that wait can still be read."""

    @abstractmethod
    def close(self) -> None:
        """Unload everything that is not pinned."""
