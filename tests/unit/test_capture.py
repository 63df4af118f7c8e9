"""From a source to what happened: when a sweep is due, what is counted, and that a recording tells the same again."""

from __future__ import annotations

import json
import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from otel_procmon import capture
from otel_procmon.capture import KernelCapture, RecordingCapture, TetragonCapture
from otel_procmon.config import Capture as CaptureOptions
from otel_procmon.config import Config, LineageOptions
from otel_procmon.ledger import Ledger
from otel_procmon.rfc3339 import format_rfc3339
from otel_procmon.source.json_stream import JsonText
from otel_procmon.source.kernel import KindCounts
from otel_procmon.source.recording import Host, RecordingSource, RecordingWriter
from otel_procmon.wire import Kind
from tests.unit.lineage_account import told
from tests.unit.wire_records import BOOT_NS, exec_record, exit_record, fork_record, strings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_procmon.source.ebpf import EbpfSource
    from otel_procmon.source.tetragon import TetragonSource

S = 1_000_000_000
HOST = Host(node="here", boot_id="3e7a5b1c-0000-4000-8000-000000000001", page_bytes=4096)


class FakeKernel:
    """An `EbpfSource` whose records a test puts there."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.tasks: list[bytes] = []
        self.waited: list[float] = []
        self.sweeps: list[int] = []
        """How many of the tasks were known, at each snapshot."""
        self.detached = self.closed = 0
        self.position = 0
        self.read_before = 0
        self.lost_forks = 1
        self.left_out = 7

    def read(self, timeout_s: float) -> list[bytes]:
        self.waited.append(timeout_s)
        return self.batches.pop(0) if self.batches else []

    def snapshot(self, is_known: Callable[[bytes], bool]) -> list[bytes]:
        self.sweeps.append(sum(is_known(task) for task in self.tasks))
        return list(self.tasks)

    def counts(self) -> dict[Kind, KindCounts]:
        return {
            Kind.FORK: KindCounts(5, self.lost_forks, 0, 0),
            Kind.EXEC: KindCounts(4, 0, 2, 0),
            Kind.EXIT: KindCounts(3, 0, 0, 0),
        }

    def misses(self) -> int:
        return self.left_out

    def filled(self) -> float:
        return 0

    def commit(self, position: int) -> None:
        pass

    def detach(self) -> None:
        self.detached += 1

    def close(self) -> None:
        self.closed += 1


class Clock:
    """Time as `capture` sees it; it passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot_ns = 2 * BOOT_NS
        fake = SimpleNamespace(
            CLOCK_BOOTTIME=time.CLOCK_BOOTTIME,
            clock_gettime_ns=lambda _: self.boot_ns,
            time_ns=time.time_ns,
            monotonic=lambda: self.boot_ns / 1e9,
        )
        monkeypatch.setattr(capture, "time", fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def kernel_capture(
    source: FakeKernel, ledger: Ledger | None = None, recording: RecordingWriter | None = None, **options: Any
) -> KernelCapture:
    config = Config(capture=CaptureOptions(**options), lineage=LineageOptions(sweep_interval_ns=30 * S))
    return KernelCapture(cast("EbpfSource", source), HOST, config, ledger or Ledger(), recording)


def task(pid: int, **fields: Any) -> bytes:
    """A record of the iterator, of a process that was forked long ago."""
    known: dict[str, Any] = {"kind": Kind.TASK, "pid": pid, "start_ns": pid * 1000, "parent_pid": 1}
    return exec_record(strings(filename=b"/bin/%d" % pid), **{**known, **fields})


# The kernel


def test_sweep_at_the_start_and_at_each_interval(clock: Clock) -> None:
    source = FakeKernel()
    source.tasks = [task(10), task(11)]
    one = kernel_capture(source, poll_interval_ns=S // 4)
    assert [kind for kind, *_ in told(one.step())] == ["discovered", "discovered"]
    assert (source.sweeps, source.waited) == ([0], [0])
    assert one.running() == 2
    for _ in range(3):
        assert one.step() == []
    assert source.waited == [0, 0.25, 0.25, 0.25]
    clock.boot_ns += 30 * S - 1
    one.step()
    assert source.sweeps == [0]
    clock.boot_ns += 1
    one.step()
    assert source.sweeps == [0, 2], "what is known need not be read again"
    one.step()
    assert source.sweeps == [0, 2]


def test_no_sweeps_if_they_are_not_wanted(clock: Clock) -> None:
    source = FakeKernel()
    source.tasks = [task(10)]
    one = kernel_capture(source, snapshot=False)
    for _ in range(3):
        assert one.step() == []
        clock.boot_ns += 60 * S
    assert source.sweeps == []


def test_sweep_takes_all_that_is_pending(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "READ_LIMIT", 1)
    source = FakeKernel()
    source.tasks = [task(10)]
    source.batches = [[fork_record()], [exec_record()], []]
    happenings = kernel_capture(source).step()
    assert [kind for kind, *_ in told(happenings)] == ["discovered", "exec"]
    assert not source.batches


def test_sweep_finds_what_was_lost(clock: Clock) -> None:
    source, ledger = FakeKernel(), Ledger()
    source.tasks = [task(10), task(11)]
    one = kernel_capture(source, ledger)
    one.step()
    source.tasks = [task(10)]
    for expected in ([], ["open", "end"]):
        clock.boot_ns += 30 * S
        assert [kind for kind, *_ in told(one.step())] == expected
    assert ledger.get("lineage", "gap: exit lost") == 1


def test_losses_bring_the_next_two_sweeps_forward(clock: Clock) -> None:
    source, ledger = FakeKernel(), Ledger()
    source.tasks = [task(10), task(11)]
    one = kernel_capture(source, ledger)
    one.step()
    source.tasks = [task(10)]
    source.lost_forks += 1
    clock.boot_ns += S
    one.step()
    found = []
    for _ in range(12):
        clock.boot_ns += S
        found += told(one.step())
    assert [kind for kind, *_ in found] == ["open", "end"]
    assert ledger.get("lineage", "gap: exit lost") == 1
    assert len(source.sweeps) == 3
    for _ in range(29):
        clock.boot_ns += S
        one.step()
    assert len(source.sweeps) == 4, "after that, as often as before"


def test_each_kind_of_loss_is_told_in_its_own_words(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    source = FakeKernel()
    one = kernel_capture(source)
    one.step()
    assert not caplog.records, "what was lost before is an earlier agent's"
    source.lost_forks += 2
    source.left_out += 3
    clock.boot_ns += S
    one.step()
    no_room, left_out = [record.message for record in caplog.records]
    assert "the ring is full" in no_room
    assert no_room.endswith("; 2 records were lost")
    assert "preempted" in left_out
    assert left_out.endswith("; 3 records were lost")


def test_ledger_accounts_for_the_kernels_side_and_for_what_was_read(clock: Clock) -> None:
    source, ledger = FakeKernel(), Ledger()
    source.batches = [[fork_record(), b"nonsense", exec_record()], [exit_record()]]
    one = kernel_capture(source, ledger, snapshot=False)
    one.step()
    one.step()
    one.count()
    one.count()
    assert ledger.counts() == {
        ("decode.kernel", "lost: malformed"): 1,
        ("kernel", "lost: no buffer, exec"): 2,
        ("kernel", "lost: program was running"): 7,
        ("kernel", "lost: ring full, fork"): 1,
        ("kernel", "made: exec"): 4,
        ("kernel", "made: exit"): 3,
        ("kernel", "made: fork"): 5,
        ("lineage", "noted: fork"): 1,
        ("lineage", "told: exec"): 1,
        ("lineage", "told: exit"): 1,
        ("source", "read"): 4,
    }
    assert ledger.lost() == 11


def test_errors_are_all_counted_and_the_first_ones_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    source, ledger = FakeKernel(), Ledger()
    source.batches = [[b"\x63" + bytes(40)] * 15, [exec_record()] + [b""] * 10]
    one = kernel_capture(source, ledger, snapshot=False)
    one.step()
    assert [kind for kind, *_ in told(one.step())] == ["exec"], "one bad record costs one record"
    messages = [record.message for record in caplog.records]
    assert messages == [f"record {n}: unknown kind 99" for n in range(1, 11)] + [
        "more errors of this kind are only counted"
    ]
    assert ledger.get("decode.kernel", "lost: malformed") == 25


def test_stop_takes_what_is_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "READ_LIMIT", 1)
    source = FakeKernel()
    one = kernel_capture(source)
    one.step()
    source.batches = [[fork_record()], [exec_record()], [exit_record()]]
    assert [kind for kind, *_ in told(one.stop())] == ["exec", "end"]
    assert source.detached == 1
    one.close()
    assert source.closed == 1


def test_step_of_the_wall_clock_is_told_and_followed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = kernel_capture(FakeKernel())
    monkeypatch.setattr(one._clock, "_realtime_ns", lambda: 7)
    one.step()
    assert [record.message for record in caplog.records] == ["the wall clock was set: later times follow it"]


# Recordings


def whole_life(source: FakeKernel, clock: Clock, one: KernelCapture) -> list[Any]:
    """Snapshots with and without pending events, a shell that lives on, and processes that come and go."""
    happenings: list[Any] = []
    shell = task(400, start_ns=800_000_000_000, generation=3, parent_generation=2)
    source.tasks = [task(1, parent_pid=0), shell]

    def step(*records: bytes, seconds: float = 0.1) -> None:
        clock.boot_ns += int(seconds * S)
        if records:
            source.batches.append(list(records))
        happenings.extend(one.step())

    step()
    step(fork_record())
    step(exec_record(), b"nonsense")
    step(seconds=31)
    step(exit_record(256), seconds=31)
    step()
    step(fork_record(pid=501), exec_record(pid=501), exit_record(9, pid=501))
    step(seconds=40)
    return happenings


def comparable(happenings: list[Any]) -> list[Any]:
    return [
        (*short, happening.image.span, happening.image.process, happening.image.end_unix_ns)
        for short, happening in zip(told(happenings), happenings, strict=True)
    ]


def test_a_recording_tells_the_same_again(clock: Clock, tmp_path: Path) -> None:
    path = str(tmp_path / "recording")
    source = FakeKernel()
    live = kernel_capture(source, recording=RecordingWriter(path, HOST))
    happenings = whole_life(source, clock, live)
    live.close()
    assert [kind for kind, *_ in told(happenings)] == [
        "discovered",
        "discovered",
        "exec",
        "open",
        "open",
        "end",
        "exec",
        "end",
    ]
    recorded = RecordingSource(path)
    again = RecordingCapture(recorded, recorded.open(), Config(), Ledger())
    replayed: list[Any] = []
    while (more := again.step()) is not None:
        replayed += more
    assert comparable(replayed) == comparable(happenings)
    assert again.stop() == []
    again.close()


def test_a_recording_that_breaks_off_is_told_up_to_there(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "recording"
    source = FakeKernel()
    live = kernel_capture(source, recording=RecordingWriter(str(path), HOST))
    whole_life(source, clock, live)
    live.close()
    path.write_bytes(path.read_bytes()[:-10])
    recorded = RecordingSource(str(path))
    again = RecordingCapture(recorded, recorded.open(), Config(), Ledger())
    replayed: list[Any] = []
    while (more := again.step()) is not None:
        replayed += more
    assert again.step() is None
    assert len(replayed) >= 6
    assert "breaks off before byte" in caplog.records[-1].message


def test_full_disk_ends_the_recording_and_not_the_capture(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    source = FakeKernel()
    source.tasks = [task(10)]
    one = kernel_capture(source, recording=RecordingWriter("/dev/full", HOST))
    assert len(one.step()) == 1
    source.batches = [[fork_record(), exec_record()]]
    assert len(one.step()) == 1
    one.close()
    assert [record.message for record in caplog.records] == [
        "the recording cannot be written any more (no space left on device): it ends here, the capture goes on"
    ]


# Tetragon


class FakeTetragon:
    """A `TetragonSource` of batches; then its end."""

    def __init__(self, *batches: list[bytes]) -> None:
        self.batches = list(batches)

    def read(self, _timeout_s: float) -> list[JsonText] | None:
        if not self.batches:
            return None
        return [JsonText(text, f"t:{number}") for number, text in enumerate(self.batches.pop(0), 1)]

    def close(self) -> None:
        pass


START_NS = 1_700_000_000 * S


def process(name: str, at_s: float, parent: str | None = None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "exec_id": name,
        "pid": sum(name.encode()),
        "binary": f"/bin/{name}",
        "flags": "execve clone",
        "start_time": format_rfc3339(START_NS + int(at_s * S)),
    }
    return about if parent is None else {**about, "parent_exec_id": parent}


def event(kind: str, about: dict[str, Any], at_s: float) -> bytes:
    time_ = format_rfc3339(START_NS + int(at_s * S))
    return json.dumps({f"process_{kind}": {"process": about}, "time": time_, "node_name": "n"}).encode()


def exec_of(name: str, at_s: float, parent: str | None = None) -> bytes:
    return event("exec", process(name, at_s, parent), at_s)


def exit_of(name: str, at_s: float, end_s: float) -> bytes:
    return event("exit", process(name, at_s), end_s)


def tetragon(*batches: list[bytes], live: bool, ledger: Ledger | None = None) -> TetragonCapture:
    return TetragonCapture(cast("TetragonSource", FakeTetragon(*batches)), Config(), ledger or Ledger(), live=live)


def run(one: TetragonCapture) -> list[tuple[str, ...]]:
    happenings: list[Any] = []
    while (more := one.step()) is not None:
        happenings += more
    return told(happenings + one.stop())


DISORDER = [
    exec_of("child", 3, "parent"),
    exit_of("child", 3, 4),
    exec_of("parent", 1),
    exec_of("late", 40, "parent"),
    exit_of("parent", 1, 50),
]
IN_ORDER = [
    ("exec", "parent"),
    ("exec", "child"),
    ("end", "child", "exit"),
    ("open", "parent"),
    ("exec", "late"),
    ("end", "parent", "exit"),
]


def test_replay_puts_events_in_order_by_their_own_times(clock: Clock) -> None:
    assert run(tetragon(DISORDER, live=False)) == IN_ORDER
    # How they are cut into reads, and how long that takes, is nothing to a replay.
    one = tetragon(*[[text] for text in DISORDER], live=False)
    happenings: list[Any] = []
    while (more := one.step()) is not None:
        happenings += more
        clock.boot_ns += 100 * S
    assert told(happenings + one.stop()) == IN_ORDER


def test_live_events_do_not_wait_for_others_for_long(clock: Clock) -> None:
    one = tetragon(DISORDER[:2], [], [], DISORDER[2:3], [], live=True)
    assert one.step() == []
    clock.boot_ns += S // 2
    assert one.step() == []
    clock.boot_ns += S // 2
    assert told(one.step() or []) == [("exec", "child"), ("end", "child", "exit")]
    one.step()
    clock.boot_ns += S
    assert told(one.step() or []) == [("exec", "parent")]


def test_live_parents_are_opened_by_the_clock(clock: Clock) -> None:
    """No event need come for it. These are of long ago, so it is due at once."""
    one = tetragon([exec_of("parent", 1), exec_of("child", 3, "parent"), exit_of("child", 3, 4)], [], live=True)
    one.step()
    clock.boot_ns += S
    assert told(one.step() or [])[-1] == ("open", "parent")


def test_replay_opens_at_its_end_what_spans_have_named() -> None:
    assert run(tetragon(DISORDER[:3], live=False)) == [
        ("exec", "parent"),
        ("exec", "child"),
        ("end", "child", "exit"),
        ("open", "parent"),
    ]


def test_what_cannot_be_decoded_is_told_with_its_place_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    texts = [b"{}", exec_of("a", 1), b'{"process_kprobe": {}}', b"[1]", b'{"process_exec": 1}']
    one = tetragon(texts, live=False, ledger=ledger)
    with caplog.at_level(logging.WARNING):
        assert run(one) == [("exec", "a")]
    assert [record.message.partition(" ")[0] for record in caplog.records] == ["t:1:", "t:4:", "t:5:"]
    assert ledger.get("source", "read") == 5
    assert ledger.get("decode.tetragon", "lost: malformed") == 3
    assert ledger.get("decode.tetragon", "passed by: process_kprobe") == 1


def test_ids_of_tetragons_events_do_not_depend_on_this_host() -> None:
    one, other = tetragon(live=False), tetragon(live=False)
    assert one.ids.span_id("a") == other.ids.span_id("a")
    assert one.ids.span_id("a") != KernelCapture(
        cast("EbpfSource", FakeKernel()), HOST, Config(), Ledger()
    ).ids.span_id("a")
