"""Several programs at a tracepoint, where the kernel leaves out one that a preempted task is running.

Which task is preempted when is not ours to say. A program that is detached is left out, too: so the others are asked.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from otel_procmon.config import Capture
from otel_procmon.source import ebpf
from otel_procmon.wire import Kind, read_head
from tests.kernel.truth.machine import bound

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.every_kernel]

KINDS = {Kind.FORK, Kind.EXEC, Kind.EXIT}


@pytest.fixture
def source(require_kernel: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[ebpf.EbpfSource]:
    """As on a kernel where tasks can be preempted in the programs."""
    monkeypatch.setattr(ebpf, "_PREEMPTIBLE", b"")
    source = ebpf.EbpfSource(Capture())
    source.open()
    yield source
    source.close()


def told(source: ebpf.EbpfSource) -> Counter[int]:
    """What is told of a process, by kind."""
    with subprocess.Popen(["sh", "-c", "exit 3"]) as process:
        assert process.wait() == 3
    kinds: Counter[int] = Counter()
    deadline = time.monotonic() + bound(10)
    while not kinds[Kind.EXIT]:
        assert time.monotonic() < deadline, f"no exit; {kinds} so far"
        kinds += Counter(head.kind for head in map(read_head, source.read(0.1)) if head.pid == process.pid)
    return kinds + Counter(head.kind for head in map(read_head, source.read(0)) if head.pid == process.pid)


def left_out(source: ebpf.EbpfSource) -> dict[Kind, int]:
    return {kind: counts.left_out for kind, counts in source.counts().items()}


def test_an_event_is_told_once_by_the_first_program_that_is_asked(source: ebpf.EbpfSource) -> None:
    objects = source._objects()[::-1]
    assert len(objects) == ebpf._DEPTH == 4
    for first in objects:
        before = left_out(source)
        assert told(source) == Counter(KINDS)
        after = left_out(source)
        if first is not objects[0]:
            assert all(after[kind] > before[kind] for kind in KINDS), "no other one saw to it"
        assert source.misses() == 0
        first.detach()
