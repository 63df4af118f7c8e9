"""The reading end of perf buffers: where records go on a kernel that has no BPF ring buffer (before Linux 5.8).

Each CPU has a buffer of its own, so records are put in order here, by their time. A record is stamped when its program
begins to run and can be read when it ends: so what is younger than `SETTLE_NS` waits for older ones of other CPUs.

libbpf opens and maps the buffers. What did not fit the kernel side has counted itself, exactly; perf's own records of
losses are left alone.
"""

from __future__ import annotations

import ctypes
import heapq
import select
import struct
import time
from ctypes import byref, c_size_t, c_void_p
from itertools import count
from typing import TYPE_CHECKING, Final

from otel_procmon.source.libbpf import PERF_EVENT

if TYPE_CHECKING:
    from otel_procmon.source.libbpf import Library

SETTLE_NS: Final = 20_000_000
"""Longer than a run of a program takes."""
RECORD_MAX_BYTES: Final = 65_000
"""A perf record's size has 16 bits; the kernel refuses what does not fit."""

_GO_ON: Final = -2
"""``LIBBPF_PERF_EVENT_CONT``."""
_SAMPLE: Final = 9
"""``PERF_RECORD_SAMPLE``."""
_HEADER: Final = struct.Struct("=IHHI")
"""``struct perf_event_header``, and the length of what follows (PERF_SAMPLE_RAW)."""
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQIIQQQQQ")
"""The beginning of ``struct perf_event_attr``, of include/uapi/linux/perf_event.h (PERF_ATTR_SIZE_VER3)."""
_SOFTWARE, _BPF_OUTPUT, _RAW, _WATERMARK = 1, 10, 1 << 10, 1 << 14
_HEAD_AT, _TAIL_AT = 1024, 1032
"""``data_head`` and ``data_tail`` in ``struct perf_event_mmap_page``."""
_TIME: Final = struct.Struct("<Q")
_TIME_AT: Final = 8
_FOR_EVER_NS: Final = 1 << 64


class PerfReader:
    """Reads the perf event array `map_fd`, whose buffers have `pages` pages each (a power of two).

    A waiting reader is woken when a CPU's buffer is filled to `wake_bytes`. Not thread-safe.
    """

    def __init__(self, library: Library, map_fd: int, pages: int, wake_bytes: int) -> None:
        self._library = library
        # It has to live as long as libbpf may call it.
        self._take = PERF_EVENT(self._keep)
        attributes = bytearray(120)
        _ATTRIBUTES.pack_into(
            attributes, 0, _SOFTWARE, 112, _BPF_OUTPUT, 1, _RAW, 0, _WATERMARK, wake_bytes, 0, 0, 0, 0, 0, 0
        )
        self._buffers = library.pointer(
            "perf_buffer__new_raw", map_fd, pages, (ctypes.c_char * 120).from_buffer(attributes), self._take, None, None
        )
        self._epoll = select.epoll()
        self._epoll.register(library.integer("perf_buffer__epoll_fd", self._buffers), select.EPOLLIN)
        self._number = count()
        self._held: list[tuple[int, int, bytes]] = []
        """A heap: time, number (of one CPU the order), record."""
        self._settled_ns = 0
        """Whatever has happened by then is in the heap, or was handed on."""
        self._ended = False
        self.position = 0
        """How many bytes of records were handed on."""

    def _keep(self, context: int | None, cpu: int, event: int) -> int:
        del context, cpu
        kind, _, _, length = _HEADER.unpack(ctypes.string_at(event, _HEADER.size))
        if kind == _SAMPLE:
            record = ctypes.string_at(event + _HEADER.size, length)
            heapq.heappush(self._held, (_TIME.unpack_from(record, _TIME_AT)[0], next(self._number), record))
        return _GO_ON

    def wait(self, timeout_s: float) -> None:
        """Wait until a buffer fills up, at most `timeout_s`, or until a signal comes."""
        self._epoll.poll(timeout_s, 1)

    def read(self, limit: int) -> list[bytes]:
        """Records that are there and have settled, `limit` at most, in their order."""
        records = self._settled(limit)
        if len(records) < limit:
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._library.integer("perf_buffer__consume", self._buffers)
            self._settled_ns = _FOR_EVER_NS if self._ended else now_ns - SETTLE_NS
            records += self._settled(limit - len(records))
        return records

    def _settled(self, limit: int) -> list[bytes]:
        records: list[bytes] = []
        while self._held and self._held[0][0] <= self._settled_ns and len(records) < limit:
            record = heapq.heappop(self._held)[2]
            self.position += len(record)
            records.append(record)
        return records

    def settle(self) -> None:
        """Wait until all that was made before now can be read."""
        time.sleep(SETTLE_NS / 1e9)

    def end(self) -> None:
        """No records are made any more: what is there has settled."""
        self._ended = True

    def commit(self, position: int) -> None:
        """Do nothing: the kernel got the room back when the records were read."""

    def waiting_bytes(self) -> int:
        """How much of the buffers is taken, and what waits here."""
        waiting = sum(len(record) for _, _, record in self._held)
        address, size = c_void_p(), c_size_t()
        for index in range(self._library.integer("perf_buffer__buffer_cnt", self._buffers)):
            self._library.integer("perf_buffer__buffer", self._buffers, index, byref(address), byref(size))
            assert address.value is not None
            head, tail = (ctypes.c_uint64.from_address(address.value + at).value for at in (_HEAD_AT, _TAIL_AT))
            waiting += head - tail
        return waiting

    def close(self) -> None:
        """Unmap."""
        self._epoll.close()
        self._library.call("perf_buffer__free", self._buffers)
