"""The page of the ring buffer that the reader writes while the kernel reads it."""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING

import pytest

from otel_procmon.source.ring import ConsumerPage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST = 1 << 40
SECONDS = 1.0


@pytest.fixture
def shared() -> Iterator[mmap.mmap]:
    """A page that two processes see, as reader and kernel do."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        yield page


def commit_all_the_time(shared: mmap.mmap) -> None:
    page = ConsumerPage(shared)
    position = FIRST
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for _ in range(1000):
            position += 4096
            page.commit(position, position)


def in_a_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_the_kernel_sees_no_position_but_those_that_were_committed(shared: mmap.mmap) -> None:
    ConsumerPage(shared).commit(FIRST, 0)
    seen = memoryview(shared).cast("Q")
    child = in_a_child(lambda: commit_all_the_time(shared))
    looks, last = 0, FIRST
    try:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            for _ in range(1000):
                now = seen[0]
                assert now >= last
                last = now
            looks += 1000
    finally:
        seen.release()
    assert looks
    assert last > FIRST


def test_the_next_reader_knows_how_many_records_there_were(shared: mmap.mmap) -> None:
    page = ConsumerPage(shared)
    assert (page.position, page.committed_before) == (0, 0)
    for position, records in ((64, 1), (640, 10), (704, 11)):
        page.commit(position, records)
        page = ConsumerPage(shared)
        assert (page.position, page.committed_before) == (position, records)


def test_a_reader_that_is_killed_between_its_stores(shared: mmap.mmap) -> None:
    page = ConsumerPage(shared)
    page.commit(64, 1)
    before = shared[:8]
    page.commit(128, 2)
    # The count is stored first.
    shared[:8] = before
    again = ConsumerPage(shared)
    assert (again.position, again.committed_before) == (64, 1)
    again.commit(128, 2)
    assert ConsumerPage(shared).committed_before == 2
