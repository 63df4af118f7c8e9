"""From a source to what happened: read, decode, redact, ask lineage; for each kind of source its own rules.

The kernel gives events in their order, but none of what ran before: a snapshot closes that gap at the start, and a
sweep now and then the gaps that losses left. Tetragon's events need to be put in order first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from otel_procmon.clock import BootClock
from otel_procmon.decode.errors import DecodeError
from otel_procmon.decode.fields import PLACE as DECODE_TETRAGON
from otel_procmon.decode.kernel import PLACE as DECODE_KERNEL
from otel_procmon.decode.kernel import KernelDecoder
from otel_procmon.decode.order import DEFAULT_MAX_WAIT_S, DEFAULT_WINDOW_NS, ReorderWindow
from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.events import Discovered
from otel_procmon.lineage.ids import SpanIds
from otel_procmon.lineage.image import Started
from otel_procmon.lineage.table import ProcessTable
from otel_procmon.privileges import held
from otel_procmon.redact.stage import Redaction
from otel_procmon.source.errors import SourceError
from otel_procmon.source.kernel import READ_LIMIT
from otel_procmon.source.own_process import host_pid
from otel_procmon.source.recording import Batch
from otel_procmon.teller import Teller

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.config import Config
    from otel_procmon.events import Event
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import Happening
    from otel_procmon.source.kernel import KernelSource
    from otel_procmon.source.recording import Host, RecordingSource, RecordingWriter
    from otel_procmon.source.tetragon import TetragonSource

    Redact = Callable[[Event], Event]

_log = logging.getLogger(__name__)

_ERRORS_TOLD: Final = 10
"""Records that cannot be decoded are all counted; so many are also told one by one."""

_TETRAGON_READ_S: Final = 0.1

_FILLED: Final = 0.5
_LOOK_FOR_LOSSES_NS: Final = 1_000_000_000
_SWEEP_AFTER_LOSSES_NS: Final = 5_000_000_000
_SWEEPS_AFTER_LOSSES: Final = 2
"""As many as find an image gone whose exit was lost: until then it stays in the table, one of many after a storm."""
_LAST_READS: Final = 32_768
"""More than any ring holds, at `READ_LIMIT` records each."""


class Capture(Protocol):
    """A source with its rules."""

    ids: SpanIds

    def step(self) -> list[Happening] | None:
        """What happened since the last step; waits a little for it. None when there will be nothing more.

        Raises SourceError.
        """

    def mark(self) -> int:
        """Up to where the source was read, for `release`."""

    def release(self, mark: int) -> None:
        """What was read up to `mark` has been passed on, and is kept elsewhere if it must be."""

    def holds(self) -> bool:
        """Whether the source keeps what was read until it is released, and has room to."""

    def stop(self) -> list[Happening]:
        """Stop making events; what had happened by then."""

    def count(self) -> None:
        """Put into the ledger what is counted elsewhere, in the kernel for instance."""

    def close(self) -> None:
        """Release everything."""


def answers(source: KernelSource, *, snapshots: bool) -> bool:
    """Whether the kernel gives counters, and with `snapshots` lists what runs, to this process as it is now."""
    try:
        source.counts()
        if snapshots:
            source.snapshot(lambda _: True)
    except (OSError, SourceError):
        return False
    return True


class _Troubles:
    """Says what could not be decoded: the first few, with their places."""

    def __init__(self, place: str, ledger: Ledger) -> None:
        self._place = place
        self._ledger = ledger
        self._told = 0

    def note(self, error: DecodeError) -> None:
        self._ledger.count(self._place, "lost: malformed")
        self._told += 1
        if self._told <= _ERRORS_TOLD:
            _log.warning("%s", error)
        if self._told == _ERRORS_TOLD:
            _log.warning("more errors of this kind are only counted")


class _Records:
    """Records of the kernel through the decoder and the process table; live or from a recording."""

    def __init__(
        self,
        host: Host,
        clock: BootClock,
        observed_unix_ns: Callable[[], int],
        config: Config,
        ledger: Ledger,
        *,
        redact: Redact | None,
        own_pid: int | None = None,
    ) -> None:
        self._redact = redact or Redaction(ledger)
        self.ids = SpanIds(host.boot_id)
        self.clock = clock
        self.table = ProcessTable(self.ids, config.trace, config.lineage, ledger, own_pid)
        self._decoder = KernelDecoder(
            host.node, unix_ns=clock.unix_ns, observed_unix_ns=observed_unix_ns, page_bytes=host.page_bytes
        )
        self._ledger = ledger
        self._troubles = _Troubles(DECODE_KERNEL, ledger)

    def is_known(self, record: bytes) -> bool:
        """Whether the image that a record of the task iterator is about is in the table."""
        return self._decoder.exec_id(record) in self.table

    def apply(self, batch: Batch) -> list[Happening]:
        """What the events of `batch` mean."""
        happenings: list[Happening] = []
        for event in self._decoded(batch):
            # What was due by then came before it, whether or not the ring was read meanwhile: a recording has to give
            # the same again.
            happenings += self.table.tick(event.time_unix_ns)
            happenings += self.table.apply(event)
        happenings += self.table.tick(batch.unix_ns)
        return happenings

    def reconcile(self, snapshot: Batch, pending: Batch) -> list[Happening]:
        """What a snapshot and the events that were pending by its end mean."""
        found = [event for event in self._decoded(snapshot) if isinstance(event, Discovered)]
        began_unix_ns = self.clock.unix_ns(snapshot.boot_ns)
        return self.table.reconcile(found, self._decoded(pending), began_unix_ns, pending.unix_ns)

    def _decoded(self, batch: Batch) -> list[Event]:
        events = []
        for record in batch.records:
            try:
                events.append(self._redact(self._decoder.decode(record)))
            except DecodeError as error:  # noqa: PERF203 - one bad record costs one record
                self._troubles.note(error)
        if not batch.is_snapshot:
            self._ledger.count("source", "read", len(batch.records))
        return events


class KernelCapture:
    """This host's kernel, live. `recording` gets every batch, if it is not None.

    `redact`, here and below, takes secrets out of an event before anything else sees it: by default those that
    `otel_procmon.redact` knows by itself.
    """

    def __init__(
        self,
        source: KernelSource,
        host: Host,
        config: Config,
        ledger: Ledger,
        recording: RecordingWriter | None = None,
        *,
        pinned: bool = False,
        redact: Redact | None = None,
    ) -> None:
        self._source = source
        self._clock = BootClock()
        self._records = _Records(host, self._clock, time.time_ns, config, ledger, redact=redact, own_pid=host_pid())
        self._ledger = ledger
        self._recording = recording
        self._pinned = pinned
        # The kernel's counters go on from agent to agent.
        ledger.count("source", "read by earlier agents", source.read_before)
        self._poll_s = config.capture.poll_interval_ns / 1e9
        self._snapshots = config.capture.snapshot
        self._sweep_ns = config.lineage.sweep_interval_ns
        self._next_sweep_boot_ns = 0
        self._early_sweeps = 0
        self._looked: Batch | None = None
        """What was running when the capture was opened, until it is told."""
        self._next_look_boot_ns = 0
        # Of pinned programs, what was lost before this agent came is not its to tell.
        self._lost = self._count_lost()
        self._no_room_teller, self._left_out_teller = Teller("kernel"), Teller("kernel")
        self._told_pathless = False
        self.ids = self._records.ids

    def look(self) -> None:
        """Read what runs already, while this process may still read all of ``/proc``; `step` tells of it.

        Nothing is decoded here: what other programs chose is for a process without rights. Raises SourceError.
        """
        if self._snapshots:
            self._looked = self._snapshot()

    def works(self) -> bool:
        """Whether what is asked of the kernel all the time, counters and running processes, is answered now."""
        return answers(self._source, snapshots=self._snapshots)

    def running(self) -> int:
        """How many processes run."""
        return self._records.table.running()

    def images(self) -> int:
        """How many images are in the process table."""
        return len(self._records.table)

    def filled(self) -> float:
        """Which part of the ring is taken."""
        return self._source.filled()

    def step(self) -> list[Happening]:
        """See `Capture.step`."""
        now_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self._clock.refresh():
            _log.warning("the wall clock was set: later times follow it")
        if now_boot_ns >= self._next_look_boot_ns:
            self._next_look_boot_ns = now_boot_ns + _LOOK_FOR_LOSSES_NS
            if self._tell_losses():
                self._early_sweeps = _SWEEPS_AFTER_LOSSES
                self._next_sweep_boot_ns = min(self._next_sweep_boot_ns, now_boot_ns + _SWEEP_AFTER_LOSSES_NS)
        if self._snapshots and now_boot_ns >= self._next_sweep_boot_ns:
            pause_ns = min(self._sweep_ns, _SWEEP_AFTER_LOSSES_NS) if self._early_sweeps else self._sweep_ns
            self._early_sweeps = max(0, self._early_sweeps - 1)
            self._next_sweep_boot_ns = now_boot_ns + pause_ns
            return self._sweep()
        return self._records.apply(self._read(self._poll_s))

    def mark(self) -> int:
        """See `Capture.mark`."""
        return self._source.position

    def release(self, mark: int) -> None:
        """See `Capture.release`."""
        self._source.commit(mark)

    def holds(self) -> bool:
        """See `Capture.holds`: a pinned ring does, until half of it is taken. Then new events are worth more."""
        return self._pinned and self._source.filled() < _FILLED

    def stop(self) -> list[Happening]:
        """See `Capture.stop`."""
        self._source.detach()
        happenings: list[Happening] = []
        # Pinned programs go on; what they make from now on is the next agent's.
        for _ in range(_LAST_READS):
            batch = self._read(0)
            happenings += self._records.apply(batch)
            if len(batch.records) < READ_LIMIT:
                break
        return happenings

    def count(self) -> None:
        """See `Capture.count`."""
        for kind, counts in self._source.counts().items():
            name = kind.name.lower()
            self._ledger.put("kernel", f"made: {name}", counts.made)
            self._ledger.put("kernel", f"lost: ring full, {name}", counts.lost_ring_full)
            self._ledger.put("kernel", f"lost: no buffer, {name}", counts.lost_no_buffer)
            self._ledger.put("kernel", f"left to another program: {name}", counts.left_out)
        self._ledger.put("kernel", "lost: program was running", self._source.misses())

    def close(self) -> None:
        """See `Capture.close`."""
        self._source.close()
        self._end_recording()

    def _count_lost(self) -> tuple[int, int]:
        """Events for which there was no room, and those that no program was run for."""
        counts = self._source.counts().values()
        return sum(kind.lost_ring_full + kind.lost_no_buffer for kind in counts), self._source.misses()

    def _tell_losses(self) -> bool:
        """Say it when the kernel side lost events. Whether there were any since the last look."""
        before, self._lost = self._lost, self._count_lost()
        no_room, left_out = (now - then for now, then in zip(self._lost, before, strict=True))
        if no_room > 0:
            self._no_room_teller.trouble(
                "the agent does not keep up, and the ring is full: give it more CPU time, raise capture.ring, or lower "
                "what else this host does",
                no_room,
            )
        if left_out > 0:
            self._left_out_teller.trouble(
                "too many processes were preempted on one CPU while programs ran for them, and the kernel left these "
                "out for others: lower what this host does at a time",
                left_out,
            )
        return no_room > 0 or left_out > 0

    def _read(self, wait_s: float) -> Batch:
        records = self._source.read(wait_s)
        batch = self._batch(records)
        if records:
            self._record(batch)
        return batch

    def _snapshot(self) -> Batch:
        began = self._batch([])
        return began._replace(records=self._source.snapshot(self._records.is_known), is_snapshot=True)

    def _sweep(self) -> list[Happening]:
        looked, self._looked = self._looked, None
        snapshot = looked or self._snapshot()
        self._record(snapshot)
        pending: list[bytes] = []
        # All that was made before the snapshot's end is in the ring by now; what comes meanwhile does no harm.
        while records := self._source.read(0):
            pending += records
            if len(records) < READ_LIMIT:
                break
        batch = self._batch(pending)
        # Even if there were none: the next events are not those of this snapshot.
        self._record(batch)
        happenings = self._records.reconcile(snapshot, batch)
        if looked is None:
            self._tell_pathless(happenings)
        return happenings

    def _tell_pathless(self, happenings: list[Happening]) -> None:
        """Say it when processes were found whose paths this process may not read."""
        pathless = sum(
            isinstance(one, Started)
            and isinstance(one.event, Discovered)
            and not (one.image.process.executable or one.image.process.binary)
            for one in happenings
        )
        # Who may read all finds none only of what has just ended.
        if not pathless or "SYS_PTRACE" in held():
            return
        self._ledger.count("sweep", "noted: found without path", pathless)
        if not self._told_pathless:
            self._told_pathless = True
            _log.warning(
                "what a sweep finds is told without path and directory, because reading them takes the capability "
                "SYS_PTRACE, which was given up: privileges.keep: [SYS_PTRACE] keeps it"
            )

    def _batch(self, records: list[bytes]) -> Batch:
        """`records`, read now. Both times by the one clock, so that a recording has the times of the capture."""
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Batch(boot_ns, self._clock.unix_ns(boot_ns), records)

    def _record(self, batch: Batch) -> None:
        if self._recording is None:
            return
        try:
            self._recording.write(batch)
        except OSError as error:
            _log.error(
                "the recording cannot be written any more (%s): it ends here, the capture goes on",
                (error.strerror or str(error)).lower(),
            )
            self._end_recording()

    def _end_recording(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            # What could not be written before cannot be now.
            with contextlib.suppress(OSError):
                recording.close()


class RecordingCapture:
    """A recording of records, as if it were live."""

    def __init__(
        self, source: RecordingSource, host: Host, config: Config, ledger: Ledger, *, redact: Redact | None = None
    ) -> None:
        self._source = source
        self._now_boot_ns = self._now_unix_ns = 0
        clock = BootClock(lambda: self._now_boot_ns, lambda: self._now_unix_ns)
        self._records = _Records(host, clock, lambda: self._now_unix_ns, config, ledger, redact=redact)
        self.ids = self._records.ids

    def step(self) -> list[Happening] | None:
        """See `Capture.step`."""
        batch = self._next()
        if batch is None:
            if self._source.problem is not None:
                _log.warning("%s", self._source.problem)
            return None
        if not batch.is_snapshot:
            return self._records.apply(batch)
        pending = self._next()
        return self._records.reconcile(batch, pending or Batch(batch.boot_ns, batch.unix_ns, []))

    def mark(self) -> int:
        """See `Capture.mark`."""
        return 0

    def release(self, mark: int) -> None:
        """See `Capture.release`."""

    def holds(self) -> bool:
        """See `Capture.holds`."""
        return False

    def stop(self) -> list[Happening]:
        """See `Capture.stop`."""
        return self._records.table.finish()

    def count(self) -> None:
        """See `Capture.count`."""

    def close(self) -> None:
        """See `Capture.close`."""
        self._source.close()

    def _next(self) -> Batch | None:
        batch = self._source.read()
        if batch is not None:
            self._now_boot_ns, self._now_unix_ns = batch.boot_ns, batch.unix_ns
            self._records.clock.refresh()
        return batch


class TetragonCapture:
    """Tetragon's JSON.

    `live`: events come as they happen, so that what waits in the reordering window leaves after a while. Otherwise
    (a file that is read from its beginning to its end) only the events' own times count.
    """

    def __init__(
        self, source: TetragonSource, config: Config, ledger: Ledger, *, live: bool, redact: Redact | None = None
    ) -> None:
        self._redact = redact or Redaction(ledger)
        self._source = source
        self._live = live
        self._ledger = ledger
        # The boot of the hosts that the events come from is not known.
        self.ids = SpanIds("")
        self._table = ProcessTable(self.ids, config.trace, config.lineage, ledger)
        self._window = ReorderWindow(DEFAULT_WINDOW_NS, DEFAULT_MAX_WAIT_S if live else None, time.monotonic)
        self._troubles = _Troubles(DECODE_TETRAGON, ledger)
        self._latest_unix_ns = 0

    def step(self) -> list[Happening] | None:
        """See `Capture.step`."""
        pieces = self._source.read(_TETRAGON_READ_S)
        if pieces is None:
            return None
        happenings: list[Happening] = []
        for piece in pieces:
            self._ledger.count("source", "read")
            try:
                event = decode_tetragon(piece, time.time_ns(), self._ledger)
            except DecodeError as error:
                self._troubles.note(error)
                continue
            if event is not None:
                happenings += self._apply(self._window.push(self._redact(event)))
        happenings += self._apply(self._window.tick(time.monotonic()))
        if self._live:
            happenings += self._table.tick(time.time_ns())
        return happenings

    def mark(self) -> int:
        """See `Capture.mark`."""
        return 0

    def release(self, mark: int) -> None:
        """See `Capture.release`."""

    def holds(self) -> bool:
        """See `Capture.holds`."""
        return False

    def stop(self) -> list[Happening]:
        """See `Capture.stop`."""
        return self._apply(self._window.flush()) + self._table.finish()

    def count(self) -> None:
        """See `Capture.count`."""

    def close(self) -> None:
        """See `Capture.close`."""
        self._source.close()

    def _apply(self, events: list[Event]) -> list[Happening]:
        happenings: list[Happening] = []
        for event in events:
            # By the clock of the events, so that a recording of yesterday is told as it was.
            self._latest_unix_ns = max(self._latest_unix_ns, event.time_unix_ns)
            happenings += self._table.tick(self._latest_unix_ns)
            happenings += self._table.apply(event)
        return happenings
