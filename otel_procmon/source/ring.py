"""The reading end of the BPF ring buffer, by its memory map.

Layout and protocol: kernel/bpf/ringbuf.c. One page that the consumer writes its position to, one that the producers
have theirs in, then the data. They could be mapped twice in a row, so that a record which goes over the end is in one
piece; but all that is mapped counts as this process's memory.
A record has a header of 8 bytes: its length, with a bit while it is being written and one if it was discarded.

Reading and committing are two steps here (libbpf's reader does both at once): until `commit`, the kernel keeps the
records, and whoever opens the pinned ring next gets them again.
"""

from __future__ import annotations

import mmap
import select
import struct
import threading
from collections import deque
from typing import Final

_PAGE: Final = mmap.PAGESIZE
# Native, which means one load for all bytes. With "<" it would be one for each, and half of a position could be seen.
_POSITION: Final = struct.Struct("@Q")
_LENGTH: Final = struct.Struct("@I")
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER_BYTES: Final = 8
_COMMITTED: Final = struct.Struct("@2Q")
"""Position, and how many records were committed up to there."""
_COMMITTED_AT: Final = (64, 128)


class ConsumerPage:
    """The page that the reader writes, and the kernel reads while it makes records.

    The kernel looks at the first 8 bytes only: up to where the records are done with. In the rest stands how many were
    committed since the ring was made, twice in turn and each time with the position that it goes with: so whoever is
    killed between two stores leaves one that is right.
    """

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        # Its stores are single ones. Those of `struct` are not: it clears the bytes before it packs them, and with a
        # position of 0 the kernel finds the ring full. It lost a few events in a million by that.
        self._words = memoryview(page).cast("Q")
        position = self.position
        self._slot, self.committed_before = self._find_committed(position)
        """Which of the two is right, and how many records earlier readers of this ring have committed."""

    @property
    def position(self) -> int:
        """Up to where the kernel may write again, in bytes since the ring was made."""
        return int(self._words[0])

    def _find_committed(self, position: int) -> tuple[int, int]:
        for slot, at in enumerate(_COMMITTED_AT):
            found, records = _COMMITTED.unpack_from(self._page, at)
            if found == position:
                return slot, records
        return 0, 0

    def commit(self, position: int, records: int) -> None:
        """So many records in all are done with, up to `position`."""
        self._slot = 1 - self._slot
        _COMMITTED.pack_into(self._page, _COMMITTED_AT[self._slot], position, records)
        self._words[0] = position

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._page.close()


class RingReader:
    """Reads the ring buffer map `map_fd`, whose data has `size` bytes. Not thread-safe; one reader for a ring."""

    def __init__(self, map_fd: int, size: int) -> None:
        self._consumer = ConsumerPage(mmap.mmap(map_fd, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
        self._producer = mmap.mmap(map_fd, _PAGE + size, prot=mmap.PROT_READ, offset=_PAGE)
        self._size = size
        self._position = self._committed = self._consumer.position
        self.committed_before = self._records = self._consumer.committed_before
        """How many records earlier readers of this ring have committed."""
        self._ends: deque[tuple[int, int]] = deque()
        """Where each reading ended, and how many records there were by then; of those that are not committed."""
        self._epoll = select.epoll()
        self._epoll.register(map_fd, select.EPOLLIN)
        # On machines that reorder loads, taking a lock keeps what is read after the position from being read before it.
        self._barrier = threading.Lock()

    @property
    def position(self) -> int:
        """Up to where records were read, in bytes since the ring was made."""
        return self._position

    def waiting_bytes(self) -> int:
        """How much the ring holds that is not committed."""
        return self._end() - self._committed

    def _end(self) -> int:
        return int(_POSITION.unpack_from(self._producer)[0])

    def wait(self, timeout_s: float) -> None:
        """Wait until the program says that the ring fills up, at most `timeout_s`, or until a signal comes."""
        self._epoll.poll(timeout_s, 1)

    def read(self, limit: int) -> list[bytes]:
        """Records that are there, `limit` at most, in their order."""
        end = self._end()
        with self._barrier:
            pass
        data, mask, position = self._producer, self._size - 1, self._position
        limit_at = _PAGE + self._size
        records: list[bytes] = []
        while position < end and len(records) < limit:
            at = _PAGE + (position & mask)
            (length,) = _LENGTH.unpack_from(data, at)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if size == length:
                begin = at + _HEADER_BYTES
                over = begin + size - limit_at
                record = data[begin : begin + size]
                records.append(record if over <= 0 else record + data[_PAGE : _PAGE + over])
            position += (size + _HEADER_BYTES + 7) & ~7
        if position != self._position:
            self._position = position
            self._records += len(records)
            self._ends.append((position, self._records))
        return records

    def commit(self, position: int) -> None:
        """Give the room up to `position`, where a reading has ended, back to the kernel."""
        if position > self._committed:
            records = 0
            while self._ends and self._ends[0][0] <= position:
                _, records = self._ends.popleft()
            self._consumer.commit(position, records)
            self._committed = position

    def close(self) -> None:
        """Unmap."""
        self._epoll.close()
        self._consumer.close()
        self._producer.close()
