"""The kernel as a source, by CO-RE: loads the compiled BPF object, and reads its records."""

from __future__ import annotations

import mmap
import os
import struct
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_procmon.source.errors import SourceError
from otel_procmon.source.kernel import (
    BUFFERS_PER_CPU,
    BUFFERS_PER_CPU_MAX,
    CONFIG,
    COUNTERS_BYTES,
    PROC,
    KernelSource,
    KindCounts,
    config_values,
    open_library,
    sentence,
    sum_counters,
)
from otel_procmon.source.libbpf import BpfError, BpfObject, Library
from otel_procmon.source.ring import RingReader
from otel_procmon.wire import Kind, split_tasks

if TYPE_CHECKING:
    from otel_procmon.config import Capture
    from otel_procmon.source.pins import Pins

BTF: Final = Path("/sys/kernel/btf/vmlinux")
_PROGRAMS: Final = ("on_exit", "on_exec", "on_fork")
"""In the order in which they are attached: of what is seen to begin, nothing that follows is missed.

What is seen only later is in the snapshot, or its event tells all that is needed.
"""
_PREEMPTIBLE: Final = b"\0class_srcu_fast_notrace_t\0"
"""A type that kernels have on which a task can be preempted in a tracepoint's programs."""
_DEPTH: Final = 4
"""How many of each program these kernels get, so that one is there when others are preempted: see `sees_first` in
``bpf/core_programs.h``."""
_ITERATOR: Final = "on_task"
_MAPS: Final = ("ring", "counters")
_SHARED_MAPS: Final = (*_MAPS, "buffers", "exits_told", "seen")
_CONFIG: Final = struct.Struct("<" + "".join(format_ for _, format_ in CONFIG))


def object_bytes() -> bytes:
    """The compiled BPF object that is part of the package."""
    return resources.files("otel_procmon.source").joinpath("procmon.bpf.o").read_bytes()


def depth() -> int:
    """How many of each program this kernel gets."""
    return _DEPTH if _PREEMPTIBLE in BTF.read_bytes() else 1


class EbpfSource(KernelSource):
    """See `KernelSource`.

    With `pins` the programs go on when this ends, and the next one begins where this one has committed; without, they
    end with it.
    """

    def __init__(self, capture: Capture, *, pins: Pins | None = None, proc: Path = PROC) -> None:
        super().__init__(capture, proc)
        self._pins = pins
        self._depth = 1
        self._object: BpfObject | None = None
        self._behind: list[BpfObject] = []
        """The same programs again, for what the kernel leaves those of `_object` out of."""
        self._ring: RingReader | None = None
        self._fds: dict[str, int] = {}
        """Of the maps and programs that are in use, whoever loaded them."""
        self._pinned_fds: list[int] = []

    def open(self) -> None:
        """See `KernelSource.open`."""
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
        self._depth = depth()
        configs = [
            _CONFIG.pack(*config_values(self._capture, cpus, self._depth, place).values())
            for place in range(self._depth)
        ]
        folder = None
        if self._pins is not None:
            self._pins.open()
            folder = self._pins.folder(elf, configs[0], str(ring_bytes).encode())
            for other in self._pins.others(folder):
                self._pins.remove(other)
                self.started_clean += 1
            self.taken_over = self._find(library, folder)

        bpf = self._object = BpfObject(library, elf)
        bpf.set_max_entries("ring", mmap.PAGESIZE if self.taken_over else ring_bytes)
        bpf.set_max_entries("buffers", (BUFFERS_PER_CPU if self._depth == 1 else BUFFERS_PER_CPU_MAX) * cpus)
        if self.taken_over or self._depth == 1:
            bpf.set_max_entries("seen", 1)
        bpf.set_rodata(configs[0])
        if self.taken_over:
            # The iterator writes to no ring, so this object's own serves nobody and is as small as it can be.
            for program in _PROGRAMS:
                bpf.leave_out(program)
        bpf.load()
        if not self.taken_over:
            for config in configs[1:]:
                self._load_behind(BpfObject(library, elf), bpf, config)
            self._attach(library, [bpf, *self._behind], folder)
        self._reader = self._ring = RingReader(self._fds["ring"], ring_bytes)

    def _load_behind(self, behind: BpfObject, first: BpfObject, config: bytes) -> None:
        self._behind.append(behind)
        for name in _SHARED_MAPS:
            behind.share_map(name, first.map_fd(name))
        behind.set_rodata(config)
        behind.leave_out(_ITERATOR)
        behind.load()

    def _attach(self, library: Library, objects: list[BpfObject], folder: Path | None) -> None:
        self._fds = {name: objects[0].map_fd(name) for name in _MAPS}
        self._fds |= {name: objects[place].program_fd(program) for name, program, place in self._programs()}
        if folder is not None:
            folder.mkdir(mode=0o700)
            for name, fd in self._fds.items():
                library.pin(fd, folder / name)
        for name, program, place in self._programs():
            # The last link is pinned last: only then are the pins complete (see `_find`).
            objects[place].attach(program, None if folder is None else folder / f"link_{name}")

    def _programs(self) -> list[tuple[str, str, int]]:
        """All that are attached, in order: a name, the program, and its place at its tracepoint."""
        return [
            (f"{program}_{place}" if place else program, program, place)
            for program in _PROGRAMS
            for place in range(self._depth)
        ]

    def _find(self, library: Library, folder: Path) -> bool:
        """Whether all that an earlier agent pinned is there. What is left of one that died meanwhile is removed."""
        pinned = (*_MAPS, *(name for name, _, _ in self._programs()))
        links = [f"link_{name}" for name, _, _ in self._programs()]
        if not folder.exists():
            return False
        if not all((folder / name).exists() for name in (*pinned, *links)):
            assert self._pins is not None
            self._pins.remove(folder)
            self.started_clean += 1
            return False
        self._fds = {name: library.pinned(folder / name) for name in pinned}
        self._pinned_fds = list(self._fds.values())
        return True

    @property
    def read_before(self) -> int:
        """See `KernelSource.read_before`."""
        assert self._ring is not None
        return self._ring.committed_before

    def _tasks(self) -> list[bytes]:
        assert self._object is not None
        try:
            return split_tasks(self._object.iterate(_ITERATOR))
        except BpfError as error:
            raise SourceError(f"The running processes cannot be listed: {error}.") from error

    def counts(self) -> dict[Kind, KindCounts]:
        """See `KernelSource.counts`."""
        if self._library is not None and self._fds:
            left_out = sum(self._library.recursion_misses(self._fds[program]) for program in _PROGRAMS)
            # Read later, so that what others have seen to meanwhile is no loss.
            self._counts = sum_counters(self._library.per_cpu(self._fds["counters"], COUNTERS_BYTES))
            self._misses = max(0, left_out - sum(counts.left_out for counts in self._counts.values()))
        return self._counts

    def detach(self) -> None:
        """See `KernelSource.detach`."""
        if self._pins is None:
            for bpf in self._objects():
                bpf.detach()

    def _objects(self) -> list[BpfObject]:
        """Those behind first: while they are alone they would see to everything."""
        return [*reversed(self._behind), *([] if self._object is None else [self._object])]

    def close(self) -> None:
        """See `KernelSource.close`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = self._ring = None
        for bpf in self._objects():
            bpf.close()
        self._object, self._behind = None, []
        for fd in self._pinned_fds:
            os.close(fd)
        self._fds, self._pinned_fds = {}, []
        if self._pins is not None:
            self._pins.close()
