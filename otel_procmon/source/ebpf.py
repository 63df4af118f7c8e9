"""The kernel as a source, by CO-RE: loads the compiled BPF object, and reads its records.

What can go wrong when it starts becomes one sentence with the cause and the remedy (`SourceError`); what libbpf and the
verifier had to say is in `EbpfSource.messages`.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.source.errors import SourceError
from otel_procmon.source.libbpf import BpfError, BpfObject, LibbpfMissingError, Library
from otel_procmon.source.procfs import complete
from otel_procmon.source.ring import RingReader
from otel_procmon.wire import Kind, split_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.config import Capture
    from otel_procmon.source.pins import Pins

CONFIG: Final = (
    ("wake_bytes", "Q"),
    ("args_max_bytes", "I"),
    ("cpus", "I"),
    ("exec_room_bytes", "Q"),
    ("fork_room_bytes", "Q"),
)
"""``struct procmon_config``."""

COUNTERS: Final = (("made", "5Q"), ("lost_ring_full", "5Q"), ("lost_no_buffer", "5Q"))
"""``struct procmon_counters``, one for each CPU; by kind, of which 0 is none."""

BUFFERS_PER_CPU: Final = 2
"""As in ``bpf/maps.h``."""

BTF: Final = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
PROC: Final = Path("/proc")

_PROGRAMS: Final = ("on_exit", "on_exec", "on_fork")
"""In the order in which they are attached: of what is seen to begin, nothing that follows is missed.

What is seen only later is in the snapshot, or its event tells all that is needed.
"""
_ITERATOR: Final = "on_task"
_MAPS: Final = ("ring", "counters")
EXEC_ROOM: Final = 7 / 8
FORK_ROOM: Final = 15 / 16
"""Of the ring. The last eighth is for forks and exits, the last sixteenth for exits alone."""
READ_LIMIT: Final = 64
"""Records taken at one go. So few go through all stages before they leave the processor's cache: with 2,048, a burst
cost a fifth more for each process, and 5 MiB."""

_CONFIG: Final = struct.Struct("<" + "".join(format_ for _, format_ in CONFIG))
_COUNTERS: Final = struct.Struct("<" + "".join(format_ for _, format_ in COUNTERS))
COUNTERS_BYTES: Final = _COUNTERS.size


class KindCounts(NamedTuple):
    """What the kernel side counted of one kind of record."""

    made: int
    """How many were due."""
    lost_ring_full: int
    lost_no_buffer: int


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


def object_bytes() -> bytes:
    """The compiled BPF object that is part of the package."""
    return resources.files("otel_procmon.source").joinpath("procmon.bpf.o").read_bytes()


class EbpfSource:
    """Records of every fork, exec and exit on this host, as ``bpf/procmon.h`` describes them.

    With `pins` the programs go on when this ends, and the next one begins where this one has committed; without, they
    end with it.
    """

    def __init__(self, capture: Capture, *, pins: Pins | None = None, proc: Path = PROC) -> None:
        self._capture = capture
        self._pins = pins
        self._proc = proc
        self._library: Library | None = None
        self._object: BpfObject | None = None
        self._ring: RingReader | None = None
        self._fds: dict[str, int] = {}
        """Of the maps and programs that are in use, whoever loaded them."""
        self._pinned_fds: list[int] = []
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

    def open(self) -> None:
        """Load and attach. Raises `SourceError`."""
        self._library = open_library()
        if not BTF.exists():
            raise SourceError(
                f"This kernel gives no type information ({BTF} is missing): boot one that was built with "
                "CONFIG_DEBUG_INFO_BTF=y, as those of Debian since 11 and Ubuntu since 20.10 are."
            )
        try:
            self._load(self._library)
        except BpfError as error:
            messages = self.messages
            self.close()
            raise SourceError(sentence(error, messages)) from error

    def _load(self, library: Library) -> None:
        cpus = library.possible_cpus()
        elf = object_bytes()
        ring_bytes = self._capture.ring_bytes
        config = _CONFIG.pack(
            int(ring_bytes * self._capture.wake_fraction),
            self._capture.arguments_max_bytes,
            cpus,
            int(ring_bytes * EXEC_ROOM),
            int(ring_bytes * FORK_ROOM),
        )
        folder = None
        if self._pins is not None:
            self._pins.open()
            folder = self._pins.folder(elf, config, str(ring_bytes).encode())
            for other in self._pins.others(folder):
                self._pins.remove(other)
                self.started_clean += 1
            self.taken_over = self._find(library, folder)

        bpf = self._object = BpfObject(library, elf)
        bpf.set_max_entries("ring", mmap.PAGESIZE if self.taken_over else ring_bytes)
        bpf.set_max_entries("buffers", BUFFERS_PER_CPU * cpus)
        bpf.set_rodata(config)
        if self.taken_over:
            # The iterator writes to no ring, so this object's own serves nobody and is as small as it can be.
            for program in _PROGRAMS:
                bpf.leave_out(program)
        bpf.load()
        if not self.taken_over:
            self._attach(library, bpf, folder)
        self._ring = RingReader(self._fds["ring"], ring_bytes)

    def _attach(self, library: Library, bpf: BpfObject, folder: Path | None) -> None:
        self._fds = {name: bpf.map_fd(name) for name in _MAPS} | {name: bpf.program_fd(name) for name in _PROGRAMS}
        if folder is not None:
            folder.mkdir(mode=0o700)
            for name, fd in self._fds.items():
                library.pin(fd, folder / name)
        for program in _PROGRAMS:
            # The last link is pinned last: only then are the pins complete (see `_find`).
            bpf.attach(program, None if folder is None else folder / f"link_{program}")

    def _find(self, library: Library, folder: Path) -> bool:
        """Whether all that an earlier agent pinned is there. What is left of one that died meanwhile is removed."""
        names = (*_MAPS, *_PROGRAMS, *(f"link_{program}" for program in _PROGRAMS))
        if not folder.exists():
            return False
        if not all((folder / name).exists() for name in names):
            assert self._pins is not None
            self._pins.remove(folder)
            self.started_clean += 1
            return False
        self._fds = {name: library.pinned(folder / name) for name in (*_MAPS, *_PROGRAMS)}
        self._pinned_fds = list(self._fds.values())
        return True

    def read(self, timeout_s: float) -> list[bytes]:
        """Records that wait. Waits up to `timeout_s`, less when the ring fills up."""
        assert self._ring is not None
        if timeout_s > 0 and not self._more_waits:
            self._ring.wait(timeout_s)
        records = self._ring.read(READ_LIMIT)
        self._more_waits = len(records) >= READ_LIMIT
        return records

    @property
    def position(self) -> int:
        """Up to where records were read, for `commit`."""
        assert self._ring is not None
        return self._ring.position

    @property
    def read_before(self) -> int:
        """How many of the records that the kernel has made earlier agents have read and committed."""
        assert self._ring is not None
        return self._ring.committed_before

    def filled(self) -> float:
        """Which part of the ring is taken, by records that were not read or not committed; 0 once this is closed."""
        return 0.0 if self._ring is None else self._ring.waiting_bytes() / self._capture.ring_bytes

    def commit(self, position: int) -> None:
        """The records up to `position` are not needed any more."""
        assert self._ring is not None
        self._ring.commit(position)

    def snapshot(self, is_known: Callable[[bytes], bool]) -> list[bytes]:
        """A record of every process that runs now. Raises `SourceError`.

        The strings that only ``/proc`` has are read for those that `is_known` does not know. A process that runs
        another program by the time they are read is marked as unread, for they may be the other program's.
        """
        return complete(self._iterate, is_known, self._proc, self._capture.arguments_max_bytes)

    def _iterate(self) -> list[bytes]:
        assert self._object is not None
        try:
            return split_tasks(self._object.iterate(_ITERATOR))
        except BpfError as error:
            raise SourceError(f"The running processes cannot be listed: {error}.") from error

    def counts(self) -> dict[Kind, KindCounts]:
        """What the kernel side counted, by kind: exact at any time, with no record needed to tell of a loss."""
        if self._library is not None and self._fds:
            self._counts = sum_counters(self._library.per_cpu(self._fds["counters"], COUNTERS_BYTES))
            self._misses = sum(self._library.recursion_misses(self._fds[program]) for program in _PROGRAMS)
        return self._counts

    def misses(self) -> int:
        """How many runs of a program the kernel left out, because it ran already on that CPU; as of `counts`."""
        return self._misses

    def detach(self) -> None:
        """No more records are made, unless the programs are pinned; those that wait can still be read."""
        if self._object is not None and self._pins is None:
            self._object.detach()

    def close(self) -> None:
        """Unload everything that is not pinned."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._object is not None:
            self._object.close()
            self._object = None
        for fd in self._pinned_fds:
            os.close(fd)
        self._fds, self._pinned_fds = {}, []
        if self._pins is not None:
            self._pins.close()


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
