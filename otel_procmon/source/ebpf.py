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
_ITERATOR: Final = "on_task"
_MAPS: Final = ("ring", "counters")
_CONFIG: Final = struct.Struct("<" + "".join(format_ for _, format_ in CONFIG))


def object_bytes() -> bytes:
    """The compiled BPF object that is part of the package."""
    return resources.files("otel_procmon.source").joinpath("procmon.bpf.o").read_bytes()


class EbpfSource(KernelSource):
    """See `KernelSource`.

    With `pins` the programs go on when this ends, and the next one begins where this one has committed; without, they
    end with it.
    """

    def __init__(self, capture: Capture, *, pins: Pins | None = None, proc: Path = PROC) -> None:
        super().__init__(capture, proc)
        self._pins = pins
        self._object: BpfObject | None = None
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
        config = _CONFIG.pack(*config_values(self._capture, cpus).values())
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
        self._reader = self._ring = RingReader(self._fds["ring"], ring_bytes)

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
            self._counts = sum_counters(self._library.per_cpu(self._fds["counters"], COUNTERS_BYTES))
            self._misses = sum(self._library.recursion_misses(self._fds[program]) for program in _PROGRAMS)
        return self._counts

    def detach(self) -> None:
        """See `KernelSource.detach`."""
        if self._object is not None and self._pins is None:
            self._object.detach()

    def close(self) -> None:
        """See `KernelSource.close`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = self._ring = None
        if self._object is not None:
            self._object.close()
            self._object = None
        for fd in self._pinned_fds:
            os.close(fd)
        self._fds, self._pinned_fds = {}, []
        if self._pins is not None:
            self._pins.close()
