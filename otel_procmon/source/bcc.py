"""The kernel as a source, by BCC: for a kernel without BTF whose headers are there.

BCC compiles the same C source that `source.ebpf` has compiled, and is not needed any more: libbpf loads what came out.
Two things stand in for what needs BTF: raw tracepoints, with the same arguments; and, for the iterator over tasks, a
program that the agent runs for each pid that ``/proc`` lists (BPF_PROG_TEST_RUN), which finds the process in the
kernel's own table and reads the exact identity. So the records are the same, bit by bit.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.source.bcc_program import Places, compile_program
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
from otel_procmon.source.libbpf import BpfError, Library
from otel_procmon.source.own_process import read_self
from otel_procmon.source.perf import RECORD_MAX_BYTES, PerfReader
from otel_procmon.source.ring import RingReader
from otel_procmon.wire import EXEC_STRUCT, Kind, read_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from otel_procmon.config import Capture

OUTPUT_VARIABLE: Final = "PROCMON_BCC_OUTPUT"
"""An environment variable: ``perf`` takes perf buffers even where the kernel has a ring buffer."""

_LICENCE: Final = "Dual BSD/GPL"
_PATHS_BYTES: Final = 20 * 1024
_ARGS_BYTES: Final = 64 * 1024
"""PROCMON_PATHS_MAX and PROCMON_ARGS_MAX."""
_RECORD_AT: Final = 16
"""Where the record begins in ``struct buffer``."""
_BUFFER_BYTES: Final = _RECORD_AT + EXEC_STRUCT.size + _PATHS_BYTES + _ARGS_BYTES

_HASH_LRU, _ARRAY, _PERCPU_ARRAY, _PERF_EVENT_ARRAY, _RINGBUF = 9, 2, 6, 4, 27
"""``enum bpf_map_type``."""


class _Map(NamedTuple):
    """As ``bpf/bcc.h`` wants it, which checks the sizes."""

    kind: int
    key_bytes: int
    value_bytes: int
    entries: int


_FIRST_MAP: Final = 1 << 20
_FIRST_VALUE: Final = 1 << 21
"""Stand for the first map and the first field of the configuration in the compiled instructions.

No descriptor of the compiler's own is so large.
"""
_LOAD_NUMBER, _BY_DESCRIPTOR = 0x18, 1
"""The instruction that loads 64 bits, and in it BPF_PSEUDO_MAP_FD: they are a map's descriptor."""
_INSTRUCTION: Final = struct.Struct("<BBhi")
_TRACEPOINTS: Final = (
    ("sched_process_exit", ("on_exit", "on_exit_by_threads")),
    ("sched_process_exec", ("on_exec",)),
    ("sched_process_fork", ("on_fork",)),
)
"""In the order of `source.ebpf`; of a tracepoint's programs the first one that the kernel lets attach."""


class BccSource(KernelSource):
    """See `KernelSource`. Nothing is pinned, so there are no earlier agents' records."""

    read_before = 0

    def __init__(
        self, capture: Capture, *, perf: bool = False, places: Places | None = None, proc: Path = PROC
    ) -> None:
        """`perf`: take perf buffers in any case."""
        super().__init__(capture, proc)
        self._perf = perf
        self._places = places or Places()
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        self._links: list[int] = []
        self._said: list[str] = []

    @property
    def messages(self) -> list[str]:
        """What the compiler, libbpf and the verifier said."""
        return self._said + super().messages

    def open(self) -> None:
        """Compile, load and attach. Raises `SourceError`."""
        library = self._library = open_library()
        try:
            self._load(library)
        except BpfError as error:
            messages = self.messages
            self.close()
            raise SourceError(sentence(error, messages)) from error
        except SourceError:
            self.close()
            raise

    def _load(self, library: Library) -> None:
        cpus = library.possible_cpus()
        perf = self._perf or not _has_ring(library)
        maps = _maps(cpus, self._capture.ring_bytes, perf=perf)
        config = config_values(self._capture, cpus)
        if perf:
            longest = RECORD_MAX_BYTES - EXEC_STRUCT.size - _PATHS_BYTES
            config["args_max_bytes"] = min(config["args_max_bytes"], longest)
        programs = compile_program(macros(maps, perf=perf), self._places, self._said, os.uname())
        for name, each in maps.items():
            self._maps[name] = library.create_map(each.kind, name, each.key_bytes, each.value_bytes, each.entries)
        fds = {number: self._maps[name] for number, name in enumerate(maps, _FIRST_MAP)}
        values = {number: config[name] for number, (name, _) in enumerate(CONFIG, _FIRST_VALUE)}
        programs = {name: place(code, fds, values) for name, code in programs.items()}
        # The reader first: a perf buffer that is not open takes nothing.
        if perf:
            pages = _pages(self._capture.ring_bytes // cpus)
            self._size = cpus * pages * mmap.PAGESIZE
            wake_bytes = int(pages * mmap.PAGESIZE * self._capture.wake_fraction)
            self._reader = PerfReader(library, self._maps["ring"], pages, wake_bytes)
        else:
            self._reader = RingReader(self._maps["ring"], self._size)
        self._programs["on_task"] = library.load_raw_tracepoint("on_task", _LICENCE, programs["on_task"])
        self._check()
        for tracepoint, candidates in _TRACEPOINTS:
            self._attach(library, tracepoint, candidates, programs)

    def _check(self) -> None:
        """Whether the headers are this kernel's: what is read of this process by them must be what ``/proc`` tells.

        Other headers compile as well, and everything would be read from the wrong places. Raises `SourceError`.
        """
        told = read_self(self._proc)
        if told is None:
            # A pid namespace or a ``/proc`` of its own: there the pids are others.
            return
        assert self._library is not None
        size = self._library.run(self._programs["on_task"], told.pid)
        answer = self._library.value(self._maps["answer"], _BUFFER_BYTES)[_RECORD_AT : _RECORD_AT + size]
        if not size or not told.is_of(read_head(answer)):
            raise SourceError(
                f"The headers are not those of this kernel, Linux {os.uname().release}: what they say of its memory is "
                f"wrong (process {told.pid} is not what it is). Install linux-headers-{os.uname().release} in the very "
                "version that was booted, or boot the version that is installed."
            )

    def _attach(self, library: Library, tracepoint: str, candidates: Sequence[str], programs: dict[str, bytes]) -> None:
        for name in candidates:
            fd = library.load_raw_tracepoint(name, _LICENCE, programs[name])
            try:
                self._links.append(library.attach_raw_tracepoint(fd, tracepoint))
            except BpfError as error:
                os.close(fd)
                # kernel/trace/bpf_trace.c, __bpf_probe_register(): it reads an argument that this kernel's lacks.
                if name == candidates[-1] or error.errno != errno.EINVAL:
                    raise
            else:
                self._programs[name] = fd
                return

    def snapshot(self, is_known: Callable[[bytes], bool]) -> list[bytes]:
        """See `KernelSource.snapshot`."""
        records = super().snapshot(is_known)
        if isinstance(self._reader, PerfReader):
            # What was made meanwhile has to be there for whoever compares it with this.
            self._reader.settle()
        return records

    def _tasks(self) -> list[bytes]:
        assert self._library is not None
        records = []
        try:
            # In the order of the iterator.
            for pid in sorted(int(name) for name in os.listdir(self._proc) if name.isdigit()):  # noqa: PTH208
                if size := self._library.run(self._programs["on_task"], pid):
                    answer = self._library.value(self._maps["answer"], _BUFFER_BYTES)
                    records.append(answer[_RECORD_AT : _RECORD_AT + size])
        except OSError as error:
            raise SourceError(f"The running processes cannot be listed: {error}.") from error
        return records

    def counts(self) -> dict[Kind, KindCounts]:
        """See `KernelSource.counts`."""
        if self._library is not None and "counters" in self._maps:
            self._counts = sum_counters(self._library.per_cpu(self._maps["counters"], COUNTERS_BYTES))
            self._misses = sum(
                self._library.recursion_misses(fd) for name, fd in self._programs.items() if name != "on_task"
            )
        return self._counts

    def detach(self) -> None:
        """See `KernelSource.detach`."""
        while self._links:
            os.close(self._links.pop())
        if isinstance(self._reader, PerfReader):
            self._reader.settle()
            self._reader.end()

    def close(self) -> None:
        """Unload everything."""
        while self._links:
            os.close(self._links.pop())
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        for fd in (*self._programs.values(), *self._maps.values()):
            os.close(fd)
        self._programs, self._maps = {}, {}


def perf_is_asked_for(environ: Mapping[str, str]) -> bool:
    """Whether `OUTPUT_VARIABLE` says so."""
    return environ.get(OUTPUT_VARIABLE) == "perf"


def _has_ring(library: Library) -> bool:
    """Whether this kernel makes a ring buffer map."""
    with contextlib.suppress(BpfError):
        os.close(library.create_map(_RINGBUF, "probe", 0, 0, mmap.PAGESIZE))
        return True
    return False


def _maps(cpus: int, ring_bytes: int, *, perf: bool) -> dict[str, _Map]:
    return {
        "ring": _Map(_PERF_EVENT_ARRAY, 4, 4, cpus) if perf else _Map(_RINGBUF, 0, 0, ring_bytes),
        "counters": _Map(_PERCPU_ARRAY, 4, COUNTERS_BYTES, 1),
        "buffers": _Map(_ARRAY, 4, _BUFFER_BYTES, BUFFERS_PER_CPU * cpus),
        "exits_told": _Map(_HASH_LRU, 16, 4, 1024),
        "clocks": _Map(_PERCPU_ARRAY, 4, 24, 1),
        "wakes": _Map(_ARRAY, 4, 8, 1),
        "answer": _Map(_ARRAY, 4, _BUFFER_BYTES, 1),
    }


def macros(maps: dict[str, _Map], *, perf: bool) -> dict[str, int]:
    """What ``bpf/bcc.h`` wants to be told."""
    return {
        **{f"PROCMON_CONFIG_{name}": number for number, (name, _) in enumerate(CONFIG, _FIRST_VALUE)},
        **{f"PROCMON_MAP_{name}": number for number, name in enumerate(maps, _FIRST_MAP)},
        **{f"PROCMON_SIZE_{name}": each.value_bytes for name, each in maps.items()},
        "PROCMON_KEY_exits_told": maps["exits_told"].key_bytes,
        **({"PROCMON_PERF": 1} if perf else {}),
    }


def place(instructions: bytes, fds: dict[int, int], values: dict[int, int]) -> bytes:
    """`instructions` with the numbers of maps replaced by descriptors, and those of configuration by values.

    ValueError if a number is neither's.
    """
    placed = bytearray(instructions)
    at = 0
    while at < len(placed):
        opcode, registers, offset, number = _INSTRUCTION.unpack_from(placed, at)
        if opcode != _LOAD_NUMBER:
            at += 8
            continue
        # It is two instructions long, and the second one has the upper half.
        if registers >> 4 == _BY_DESCRIPTOR:
            if number in fds:
                _INSTRUCTION.pack_into(placed, at, opcode, registers, offset, fds[number])
            elif number in values:
                low, high = struct.unpack("<ii", struct.pack("<Q", values[number]))
                _INSTRUCTION.pack_into(placed, at, opcode, registers & 0x0F, offset, low)
                _INSTRUCTION.pack_into(placed, at + 8, 0, 0, 0, high)
            else:
                raise ValueError(f"instruction {at // 8} names {number}, which is neither a map nor a value")
        at += 16
    return bytes(placed)


def _pages(wanted_bytes: int) -> int:
    """Pages of one CPU's perf buffer: a power of two, and enough for two of the longest records."""
    pages = max(wanted_bytes, 2 * RECORD_MAX_BYTES) // mmap.PAGESIZE
    return 1 << max(pages.bit_length() - 1, (2 * RECORD_MAX_BYTES // mmap.PAGESIZE).bit_length())
