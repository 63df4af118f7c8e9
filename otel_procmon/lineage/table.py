"""The process table: events go in, what happened to images comes out.

It knows every image that runs, and for a grace period those that ended. It is told of forks, execs and exits in the
order in which they happened (`decode.order` puts Tetragon's into it), and now and then of all that runs (`reconcile`),
which closes the gaps: what ran before, and what was lost.

No event that contradicts another one is an error: events can be lost, come twice, or come for what was never seen. The
rules, each counted in the ledger:

- an event that was told already (both of the last two threads saw themselves as the last) is dropped;
- an exit of an unknown image is told with what the event itself knows;
- a process whose pid belongs to another one now has ended unseen: it is told as lost;
- an image whose process runs another one now was replaced unseen: it ends by exec, and is the nearest known parent.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final

from otel_procmon.events import Discovered, Event, Exec, Exit, Fork, Process
from otel_procmon.lineage.arguments import LongArguments
from otel_procmon.lineage.entry import began, entry_reason
from otel_procmon.lineage.ids import process_id, succeeds
from otel_procmon.lineage.image import Ended, EndReason, EntryReason, Happening, Image, Opened, SpanRef, Started
from otel_procmon.lineage.init_tree import in_init_tree
from otel_procmon.lineage.succession import at_exit, contained, executed, exited, forked, start_unix_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.config import LineageOptions, TraceOptions
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.ids import SpanIds

PLACE: Final = "lineage"
"""Where in the ledger events are accounted for."""

ANCESTORS_MAX: Final = 16
_SWEEPS_UNTIL_LOST: Final = 2
"""A process that is just ending is in no list of tasks any more, and its exit may not be written yet."""


_ENDED_MAX: Final = 1024
"""Most images that are kept in their grace period. Where as many end within ten seconds, the kernel is the source, and
that gives events in their order but for microseconds; to keep all of a storm would take 150 MB."""

_Key = tuple[str | None, int]


class ProcessTable:
    """All images, by `exec_id`. Not thread-safe.

    Bounded by ``options.max_images``: beyond that what ended goes first, then the oldest, counted as evicted.
    """

    def __init__(
        self,
        ids: SpanIds,
        trace: TraceOptions,
        options: LineageOptions,
        ledger: Ledger,
        own_pid: int | None = None,
    ) -> None:
        """`own_pid`: the process that this runs in, if events are of its host."""
        self._ids = ids
        self._own_pid = own_pid
        self._trace = trace
        self._options = options
        self._ledger = ledger
        self._images: dict[str, Image] = {}
        self._running: dict[_Key, Image] = {}
        """What each process runs now, by node and pid."""
        self._ended: deque[tuple[int, Image]] = deque()
        """When the grace period of each image is over, in order."""
        self._to_open: list[tuple[int, int, Image]] = []
        """A heap: when an image that was named by a span will have lived long enough to be opened."""
        self._number = 0
        self._long_arguments = LongArguments(PLACE, ledger)

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, exec_id: str) -> bool:
        return exec_id in self._images

    def running(self) -> int:
        """How many processes run, as far as is known."""
        return len(self._running)

    def apply(self, event: Event) -> list[Happening]:
        """What `event` means, in the order in which it should be told."""
        if isinstance(event, Fork):
            return self._fork(event)
        if isinstance(event, Exec):
            return self._exec(event)
        if isinstance(event, Exit):
            return self._exit(event)
        return self._discovered(event)

    def reconcile(
        self, snapshot: Sequence[Discovered], pending: Sequence[Event], began_unix_ns: int, observed_unix_ns: int
    ) -> list[Happening]:
        """Compare the table with all that runs.

        Args:
            snapshot: Every process that ran at some moment after `began_unix_ns`.
            pending: All events that had come by the end of the snapshot and were not applied yet. Whatever they tell of
                is told by them, and not as discovered.
            began_unix_ns: When the snapshot began.
            observed_unix_ns: Now.
        """
        told = {_event_exec_id(event) for event in pending if isinstance(event, Fork | Exec)}
        replaced = {event.previous_exec_id for event in pending if isinstance(event, Exec)}
        coming = {_event_process(event) for event in pending if isinstance(event, Fork | Exec)}
        found = {event.process.exec_id for event in snapshot}
        happenings: list[Happening] = []
        # A parent was forked before its children, and so is in the table when they come.
        for event in sorted(snapshot, key=lambda event: began(event.process)):
            process = event.process
            if process.exec_id in told or process.exec_id in self:
                continue
            before = self._before(_pid_key(process), process.boot_start_ns)
            # A task is in the kernel's list, and has its new generation, a little before the fork or the exec is
            # written. What began just now is told by the event that is on its way; if that is lost, the next sweep
            # finds it here again.
            on_its_way = (
                began(process) >= began_unix_ns
                or _process_key(process) in coming
                or (before is not None and not before.missed)
            )
            if process.exec_id in replaced or not on_its_way:
                happenings += self._discovered(event)
        for pending_event in pending:
            happenings += self.apply(pending_event)
        for image in list(self._running.values()):
            if image.exec_id in found or _start(image) >= began_unix_ns:
                image.missed = 0
                continue
            image.missed += 1
            if image.missed >= _SWEEPS_UNTIL_LOST:
                happenings += self._lose(image, observed_unix_ns, observed_unix_ns)
        return happenings

    def tick(self, now_unix_ns: int) -> list[Happening]:
        """What is due by `now_unix_ns`, by the clock of the events: opening spans, and the end of grace periods."""
        self._long_arguments.settle()
        happenings: list[Happening] = []
        while self._to_open and self._to_open[0][0] <= now_unix_ns:
            _, _, image = heapq.heappop(self._to_open)
            if image.ended is None and not image.opened:
                happenings += self._open(image, now_unix_ns)
        while self._ended and self._ended[0][0] <= now_unix_ns:
            self._forget(self._ended.popleft()[1])
        return happenings

    def finish(self) -> list[Happening]:
        """At the end of a recording: opens what spans have named and no later event can tell of."""
        happenings: list[Happening] = []
        while self._to_open:
            due_unix_ns, _, image = heapq.heappop(self._to_open)
            if image.ended is None and not image.opened:
                happenings += self._open(image, due_unix_ns)
        return happenings

    # Events

    def _fork(self, event: Fork) -> list[Happening]:
        parent = self._images.get(event.parent_exec_id)
        image = Image(event, _NOWHERE)
        if event.exec_id in self._images or self._before(image.pid_key, event.boot_start_ns) is not None:
            self._ledger.count(PLACE, "dropped: told twice")
            return []
        happenings = self._take_pid(image, event.time_unix_ns)
        self._add(image)
        image.forked_only = True
        image.parent, image.parent_exec_id = parent, event.parent_exec_id or None
        # Most forks exec next, and then nobody ever asks what it was and where it belongs.
        if parent is None:
            self._settle(image)
        else:
            self._have_child(parent)
        self._ledger.count(PLACE, "noted: fork")
        return happenings

    def _exec(self, event: Exec) -> list[Happening]:
        process = event.process
        known = self._images.get(process.exec_id)
        if known is not None and not known.hearsay:
            self._ledger.count(PLACE, "dropped: told twice")
            return []
        self._ledger.count(PLACE, "told: exec")
        if known is not None:
            return self._confirm(known, event)

        previous = self._previous(event)
        if previous is not None:
            before: Image | None = previous
        elif (before := self._before(_pid_key(process), process.boot_start_ns)) is not None:
            self._ledger.count(PLACE, "gap: exec lost")
        if before is not None:
            origin = _after(before, process)
            process = self._continued(process, before, first=before.forked_only and before is previous)
        else:
            # Where another program ran before in this process and was not seen, it is the parent all the same.
            rerun = event.previous_is_fork is False
            origin = self._told_origin(
                process, event.previous_exec_id if rerun else event.parent_exec_id, event.parent, is_process=not rerun
            )
        happenings = [] if before is None else self._replace(before, event.time_unix_ns, event.observed_unix_ns)
        image = Image(process, _NOWHERE)
        happenings += self._take_pid(image, event.time_unix_ns)
        self._add(image)
        self._place(image, origin)
        image.trace_images[0] += 1
        happenings.append(Started(image, event))
        return happenings

    def _confirm(self, image: Image, event: Exec) -> list[Happening]:
        """An image that was known from the events of others tells of itself. It stays in the trace where they are."""
        image.process, image.hearsay = event.process, False
        image.in_init_tree = in_init_tree(image.process, image.parent)
        image.trace_images[0] += 1
        happenings: list[Happening] = []
        previous = self._previous(event)
        if image.ended is None:
            if previous is not None:
                happenings += self._replace(previous, event.time_unix_ns, event.observed_unix_ns)
            image.pid_key, image.boot_start_ns = _pid_key(image.process), image.process.boot_start_ns
            if self._running.get(image.pid_key) is not image:
                happenings += self._take_pid(image, event.time_unix_ns)
                self._running.setdefault(image.pid_key, image)
        if image.parent is None:
            parent_exec_id = event.parent_exec_id if event.previous_exec_id is None else event.previous_exec_id
            parent = previous or self._parent(parent_exec_id, event.parent)
            # Only events that contradict each other make an image its own ancestor.
            if parent is None or not _descends(parent, image):
                if parent is not None:
                    self._settle(parent)
                _know_parent(image, parent, parent_exec_id)
                # Else it is below a parent that has left the table.
                if parent is not None and image.entry_reason is not None and not parent.process.kernel_thread:
                    image.link = parent.span
        happenings.append(Started(image, event))
        return happenings

    def _exit(self, event: Exit) -> list[Happening]:
        image = self._images.get(event.exec_id)
        if image is not None and image.ended is not None:
            self._ledger.count(PLACE, "dropped: told twice")
            return []
        if (
            event.kernel_thread
            or (event.process is not None and event.process.kernel_thread)
            or (image is not None and image.fork is None and image.process.kernel_thread)
        ):
            self._ledger.count(PLACE, "noted: exit of a kernel thread")
            if image is not None:
                self._forget(image)
            return []
        happenings: list[Happening] = []
        if image is None:
            process = exited(event)
            # Its exec was lost, or failed when it was too late to go back, which ends the process.
            before = self._before(_pid_key(process), process.boot_start_ns)
            if before is None:
                origin = self._told_origin(process, event.parent_exec_id, event.parent)
            else:
                origin = _after(before, process)
                process = self._continued(process, before, first=False)
                self._ledger.count(PLACE, "gap: exec lost")
                happenings += self._replace(before, event.time_unix_ns, event.observed_unix_ns)
            image = Image(process, _NOWHERE)
            happenings += self._take_pid(image, event.time_unix_ns)
            self._add(image)
            image.forked_only = "clone" in process.flags and "execve" not in process.flags
            image.hearsay = True
            self._place(image, origin)
            self._ledger.count(PLACE, "told: exit of an unknown image")
        else:
            self._ledger.count(PLACE, "told: exit")
            self._settle(image)
            image.process = at_exit(image, event)
        return happenings + self._end(image, "exit", event.time_unix_ns, event.observed_unix_ns, event)

    def _discovered(self, event: Discovered) -> list[Happening]:
        process = event.process
        if process.exec_id in self._images:
            self._ledger.count(PLACE, "dropped: told twice")
            return []
        before = self._before(_pid_key(process), process.boot_start_ns)
        happenings: list[Happening] = []
        if before is None:
            origin = self._told_origin(process, event.parent_exec_id, None)
        else:
            origin = _after(before, process)
            process = self._continued(process, before, first=False)
            self._ledger.count(PLACE, "gap: exec lost")
            happenings += self._replace(before, event.time_unix_ns, event.observed_unix_ns)
        image = Image(process, _NOWHERE)
        happenings += self._take_pid(image, event.time_unix_ns)
        self._add(image)
        image.discovered = True
        image.forked_only = event.forked_only
        self._place(image, origin)
        if process.kernel_thread:
            self._ledger.count(PLACE, "noted: kernel thread")
            return happenings
        image.trace_images[0] += 1
        self._ledger.count(PLACE, "told: discovered")
        happenings.append(Started(image, event))
        return happenings

    # Where an image belongs

    def _previous(self, event: Exec) -> Image | None:
        """The image that the process of `event` ran until now, by what the event says."""
        if event.previous_exec_id is None:
            return None
        previous = self._images.get(event.previous_exec_id)
        if previous is None and event.previous_is_fork is False:
            previous = self._parent(event.previous_exec_id, event.parent)
        return None if previous is None or previous.ended is not None else previous

    def _before(self, pid_key: _Key, boot_start_ns: int | None) -> Image | None:
        """What the same process ran, as far as is known. None where the source does not tell processes apart."""
        running = self._running.get(pid_key)
        if running is None or boot_start_ns is None or running.boot_start_ns != boot_start_ns:
            return None
        return running

    def _continued(self, process: Process, before: Image, *, first: bool) -> Process:
        """`process`, which took the place of `before`, with what is known better from that."""
        # A fork of the kernel's own has 0.
        parent_pid = before.process.parent_pid if before.fork is None else before.fork.parent_pid or None
        process = executed(process, parent_pid, first=first)
        if process.cgroup is None and process.boot_start_ns is not None:
            self._settle(before)
            process = contained(process, before.process)
        return process

    def _told_origin(
        self, process: Process, parent_exec_id: str | None, described: Process | None, *, is_process: bool = True
    ) -> _Origin:
        """Where an image belongs by what its event says, of which the fork was not seen.

        `is_process`: the parent is another process, as a rule.
        """
        parent = self._parent(parent_exec_id, described)
        if parent is None and is_process and process.boot_start_ns is not None and process.parent_pid is not None:
            # The kernel tells the process that is the parent now, perhaps a reaper, with the generation that the parent
            # had at the fork. That may be an earlier image of it, or one that never was. What it runs is known.
            running = self._running.get((process.node, process.parent_pid))
            if running is not None and _is_older(running, process.boot_start_ns, process.start_unix_ns):
                parent = running
        return _Origin(parent, parent_exec_id if parent is None else parent.exec_id, began(process), None)

    def _parent(self, exec_id: str | None, described: Process | None) -> Image | None:
        """The image with this id; if it is not known, made from what an event of another image says of it."""
        image = self._images.get(exec_id or "")
        if image is None and described is not None and described.exec_id == exec_id:
            image = Image(described, _NOWHERE)
            self._add(image)
            image.hearsay = True
            self._place(image, _Origin(None, None, began(described), None))
        return image

    def _place(self, image: Image, origin: _Origin) -> None:
        """Put `image` below its parent, and into that one's trace or a new one."""
        parent = origin.parent
        if parent is not None:
            self._have_child(parent)
            image.process = contained(image.process, parent.process)
        _know_parent(image, parent, origin.parent_exec_id)
        image.in_init_tree = in_init_tree(image.process, parent)
        image.own = image.process.pid == self._own_pid or (parent is not None and parent.own)
        replaces = parent is not None and parent is origin.before
        reason = entry_reason(
            image.process, origin.moment_unix_ns, parent, origin.at_fork, self._trace, replaces=replaces
        )
        if parent is None and origin.reason is not None:
            reason = origin.reason
        span_id = self._ids.span_id(image.exec_id)
        if reason is None:
            assert parent is not None
            image.span = SpanRef(parent.span.trace_id, span_id)
            image.parent_span_id = parent.span.span_id
            image.trace_start_unix_ns, image.trace_images = parent.trace_start_unix_ns, parent.trace_images
            image.began_trace = replaces and parent.began_trace
            return
        image.entry_reason = reason
        image.began_trace = True
        image.span = SpanRef(self._trace_id(image, origin.before), span_id)
        image.trace_start_unix_ns = origin.moment_unix_ns
        if parent is not None and not parent.process.kernel_thread:
            image.link = parent.span

    def _have_child(self, parent: Image) -> None:
        self._settle(parent)
        if parent.forked_only and not parent.children and not parent.discovered:
            parent.trace_images[0] += 1
        parent.children = True

    def _settle(self, image: Image) -> None:
        """Say of a fork after all what it runs and where it belongs, as it was then."""
        event, parent = image.fork, image.parent
        if event is None:
            return
        process = forked(event, None if parent is None else parent.process)
        image.process, image.fork = process, None
        self._long_arguments.added(image)
        reason: EntryReason | None = "kernel_parent" if parent is None and event.parent_is_kernel_thread else None
        self._place(image, _Origin(parent, image.parent_exec_id, began(process), process, reason))

    def _trace_id(self, image: Image, before: Image | None) -> bytes:
        """The id of the trace that begins at `image`, which took the place of `before` in its process.

        It is the process's: after a restart nobody knows any more at which of its programs the trace began. Only where
        one process begins two traces in one container (see `entry_reason`), the second one is its image's.
        """
        process = process_id(image.process)
        if process is None:
            return self._ids.trace_id(image.exec_id)
        own = self._ids.trace_id(process, image.process.container_id or "")
        # A fork without children that another program replaced was never there: it is not in the table any more.
        taken = before is not None and before.exec_id in self._images and before.span.trace_id == own
        return self._ids.trace_id(image.exec_id) if taken else own

    # How an image ends

    def _replace(self, before: Image, at_unix_ns: int, observed_unix_ns: int) -> list[Happening]:
        """`before` ends because its process runs another program. A fork that nobody knows of was never there."""
        if before.forked_only and not before.children and not before.discovered:
            self._not_running(before)
            del self._images[before.exec_id]
            before.ended = "exec"
            return []
        return self._end(before, "exec", at_unix_ns, observed_unix_ns, None)

    def _take_pid(self, image: Image, at_unix_ns: int) -> list[Happening]:
        """Make way for the process of `image`: another one that had its pid has ended, and nobody saw it."""
        running = self._running.get(image.pid_key)
        if running is None:
            return []
        if image.boot_start_ns is None and succeeds(image.exec_id, running.exec_id):
            # Our own JSON, of a process of which an exec was lost, or that was found before its first one.
            return self._replace(running, at_unix_ns, at_unix_ns)
        # An event that comes late may tell of a process that had the pid earlier.
        if not _is_older(running, image.boot_start_ns, _start(image)):
            return []
        return self._lose(running, at_unix_ns, at_unix_ns)

    def _lose(self, image: Image, at_unix_ns: int, observed_unix_ns: int) -> list[Happening]:
        """`image` is gone, and no event told of it."""
        self._settle(image)
        if image.process.kernel_thread:
            self._forget(image)
            return []
        if image.hearsay:
            # Whoever wrote the events left out the exit on purpose, as he left out the exec. Those that it started may
            # still name it.
            self._not_running(image)
            self._keep_for_a_while(image, at_unix_ns)
            return []
        self._ledger.count(PLACE, "gap: exit lost")
        return self._end(image, "lost", at_unix_ns, observed_unix_ns, None)

    def _end(
        self, image: Image, reason: EndReason, at_unix_ns: int, observed_unix_ns: int, event: Exit | None
    ) -> list[Happening]:
        self._settle(image)
        if image.forked_only and not image.children and not image.discovered:
            image.trace_images[0] += 1
        happenings: list[Happening] = []
        lived_ns = at_unix_ns - image.process.start_unix_ns
        if (image.discovered or image.hearsay) and not image.opened and lived_ns >= self._trace.open_after_ns:
            # It began unseen: an agent that ran before may have opened it, and children may hang there already.
            happenings += self._open(image, at_unix_ns)
        else:
            happenings += self._refer(image, at_unix_ns)
        image.ended = reason
        image.end_unix_ns = at_unix_ns
        happenings.append(Ended(image, event, observed_unix_ns))
        self._not_running(image)
        self._keep_for_a_while(image, at_unix_ns)
        return happenings

    def _keep_for_a_while(self, image: Image, ended_unix_ns: int) -> None:
        """Events that come late, or in another order, may still name what has ended."""
        self._ended.append((ended_unix_ns + self._options.grace_ns, image))
        if len(self._ended) > _ENDED_MAX:
            self._forget(self._ended.popleft()[1])

    def _refer(self, image: Image, now_unix_ns: int) -> list[Happening]:
        """A span of `image` is about to leave: opens the parent that it names, if that lives long already."""
        parent = image.parent
        if parent is None or parent.ended is not None or parent.opened or parent.process.kernel_thread:
            return []
        due_unix_ns = parent.process.start_unix_ns + self._trace.open_after_ns
        if due_unix_ns <= now_unix_ns:
            return self._open(parent, now_unix_ns)
        if not parent.referred:
            parent.referred = True
            self._number += 1
            if len(self._to_open) >= 2 * self._options.max_images:
                # Those that claim to begin in the future would stay there for good.
                self._to_open = [due for due in self._to_open if self._images.get(due[2].exec_id) is due[2]]
                heapq.heapify(self._to_open)
            heapq.heappush(self._to_open, (due_unix_ns, self._number, parent))
        return []

    def _open(self, image: Image, now_unix_ns: int) -> list[Happening]:
        """Opening spans of `image` and, before it, of all above it that have none: each names its own parent."""
        chain: list[Happening] = []
        above: Image | None = image
        while above is not None and above.ended is None and not above.opened and not above.process.kernel_thread:
            above.opened = True
            chain.append(Opened(above))
            # What is above an image was there before it, and so has lived long enough too. If not, it waits its turn.
            parent = above.parent
            if parent is not None and parent.process.start_unix_ns + self._trace.open_after_ns > now_unix_ns:
                chain += self._refer(above, now_unix_ns)
                break
            above = parent
        return chain[::-1]

    # The images themselves

    def _add(self, image: Image) -> None:
        while len(self._images) >= self._options.max_images:
            if self._ended:
                self._forget(self._ended.popleft()[1])
                continue
            self._forget(next(iter(self._images.values())))
            self._ledger.count(PLACE, "evicted: table full")
        self._images[image.exec_id] = image
        # An ancestor by hearsay may have ended long ago, and its pid be another's.
        self._running.setdefault(image.pid_key, image)
        if image.fork is None:
            self._long_arguments.added(image)

    def _not_running(self, image: Image) -> None:
        if self._running.get(image.pid_key) is image:
            del self._running[image.pid_key]

    def _forget(self, image: Image) -> None:
        self._not_running(image)
        if self._images.get(image.exec_id) is image:
            del self._images[image.exec_id]
        self._long_arguments.removed(image)
        # Else a long line of parents would stay in memory for as long as the last descendant lives.
        image.parent = None


_NOWHERE: Final = SpanRef(b"", b"")


class _Origin:
    """Where an image comes from."""

    __slots__ = ("at_fork", "before", "moment_unix_ns", "parent", "parent_exec_id", "reason")

    def __init__(  # noqa: PLR0917 - keywords cost time here
        self,
        parent: Image | None,
        parent_exec_id: str | None,
        moment_unix_ns: int,
        at_fork: Process | Fork | None,
        reason: EntryReason | None = None,
        before: Image | None = None,
    ) -> None:
        self.parent = parent
        self.parent_exec_id = parent_exec_id
        self.moment_unix_ns = moment_unix_ns
        """When its process was forked; for a program that took another's place, when it did."""
        self.at_fork = at_fork
        """The image as its fork left it, if that was seen."""
        self.reason = reason
        """Why it is an entry, as the event of its fork told, if its parent is not known."""
        self.before = before
        """What ran before in the same process."""


def _after(before: Image, process: Process) -> _Origin:
    """Where `process` belongs, which took the place of `before`: a program below that, or what a fork became."""
    if before.forked_only:
        at_fork = before.process if before.fork is None else before.fork
        return _Origin(before.parent, before.parent_exec_id, began(process), at_fork, before.entry_reason, before)
    return _Origin(before, before.exec_id, process.start_unix_ns, None, before=before)


def _know_parent(image: Image, parent: Image | None, parent_exec_id: str | None) -> None:
    image.parent, image.parent_exec_id = parent, parent_exec_id
    if parent is not None:
        image.parent_name = parent.name or None
        image.parent_binary = parent.process.executable or parent.process.binary or None
        named = (image.parent_name,) if image.parent_name else ()
        image.ancestors = (*named, *parent.ancestors)[:ANCESTORS_MAX]


def _descends(image: Image | None, ancestor: Image) -> bool:
    while image is not None and image is not ancestor:
        image = image.parent
    return image is not None


def _is_older(image: Image, boot_start_ns: int | None, start_unix_ns: int) -> bool:
    """Whether the process of `image` began before another one, or at the same time: their pid is the same."""
    if image.boot_start_ns is not None and boot_start_ns is not None:
        return image.boot_start_ns <= boot_start_ns
    return _start(image) <= start_unix_ns


def _start(image: Image) -> int:
    """When it began, in nanoseconds since the Unix epoch."""
    return image.process.start_unix_ns if image.fork is None else start_unix_ns(image.fork)


def _pid_key(process: Process) -> _Key:
    return process.node, process.pid


def _process_key(process: Process) -> tuple[_Key, int | None]:
    return _pid_key(process), process.boot_start_ns


def _event_exec_id(event: Fork | Exec) -> str:
    return event.exec_id if isinstance(event, Fork) else event.process.exec_id


def _event_process(event: Fork | Exec) -> tuple[_Key, int | None]:
    if isinstance(event, Fork):
        return (event.node, event.pid), event.boot_start_ns
    return _process_key(event.process)
