"""Lineage against a small kernel: exactly the truth without loss, and never nonsense with loss."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from otel_procmon.config import LineageOptions, TraceOptions
from otel_procmon.events import Discovered, Exec, Exit, Fork
from otel_procmon.lineage.image import Image
from tests.unit.kernel_model import Kernel, as_tetragon
from tests.unit.lineage_account import Account

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_procmon.events import Event
    from tests.unit.kernel_model import Task

S = 1_000_000_000
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# One step: what, who (an index into the processes that live), how long after the last one in seconds.
WHAT = (
    "fork",
    "fork",
    "fork",
    "exec",
    "exec",
    "exec",
    "exit",
    "exit",
    "setsid",
    "clone_parent",
    "failed_exec",
    "reuse",
)
Step = tuple[str, int, float]
steps = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, 30), st.sampled_from([0.0, 0.0, 0.01, 3.0, 12.0, 400.0])),
    max_size=40,
)
traces = st.builds(
    TraceOptions,
    service_age_ns=st.sampled_from([0, 5 * S, 300 * S]),
    max_age_ns=st.sampled_from([S, 3600 * S]),
    max_spans=st.sampled_from([1, 3, 4000]),
    open_after_ns=st.sampled_from([0, 10 * S]),
)
LESS_TIME = TraceOptions(service_age_ns=20 * S, max_spans=20)


@dataclass
class Story:
    """What a kernel did: events in their order, and now and then a snapshot (a list) among them."""

    kernel: Kernel = field(default_factory=Kernel)
    events: list[Event] = field(default_factory=list)
    at_start: list[Discovered] = field(default_factory=list)
    visited: set[str] = field(default_factory=set)
    """Images that ran at the start."""
    reapers: set[str] = field(default_factory=set)
    """Parents at the start that were not so at the fork (they are reapers, or ran another program then)."""
    began_unix_ns: int = 0
    odd: bool = False
    """An exec failed too late, or CLONE_PARENT: the kernel itself tells less than the truth."""


def run(before: list[Step], after: list[Step], *, odd: bool = True) -> Story:
    """`before` the agent starts, and `after`."""
    story = Story()
    kernel = story.kernel
    shell, _ = kernel.fork(kernel.init)
    kernel.exec(shell, "/bin/bash")
    shell.session, shell.tty = shell.pid, True
    for number, step in enumerate(before):
        _do(story, step, number, odd=odd)
    kernel.sleep(0.001)
    story.began_unix_ns = kernel.unix_ns()
    story.at_start = kernel.snapshot()
    story.visited = {event.process.exec_id for event in story.at_start if not event.process.kernel_thread}
    for task in kernel.tasks.values():
        if task.parent is not None and kernel.images[task.exec_id].parent != task.parent.exec_id:
            story.reapers.add(task.parent.exec_id)
    story.events.clear()
    for number, step in enumerate(after):
        _do(story, step, 100 + number, odd=odd)
    return story


def end_all(story: Story) -> None:
    """Every process but init and kthreadd ends."""
    for task in [task for task in story.kernel.tasks.values() if task.pid > 2]:
        story.events.append(story.kernel.exit(task))


def _do(story: Story, step: Step, number: int, *, odd: bool) -> None:
    what, who, seconds = step
    kernel = story.kernel
    kernel.sleep(seconds)
    tasks = [task for task in kernel.tasks.values() if task.pid > 2]
    task: Task = tasks[who % len(tasks)] if tasks else kernel.init
    events = story.events
    if what == "fork" or task is kernel.init:
        events.append(kernel.fork(task)[1])
    elif what == "exec":
        events.append(kernel.exec(task, f"/bin/p{number}"))
    elif what == "exit":
        events.append(kernel.exit(task, number % 3))
    elif what == "setsid":
        kernel.setsid(task)
    elif what == "clone_parent" and odd:
        story.odd = True
        events.append(kernel.fork(task, clone_parent=True)[1])
    elif what == "failed_exec" and odd:
        story.odd = True
        kernel.failed_exec(task)
        events.append(kernel.exit(task, None, "SIGKILL"))
    elif what == "reuse":
        # The next process gets the pid of one that ends now.
        parent = task.parent if task.parent is not None and task.parent.pid > 2 else kernel.init
        events.append(kernel.exit(task))
        events.append(kernel.fork(parent, pid=task.pid)[1])


def feed(account: Account, events: Iterable[Event]) -> None:
    account.apply(*events)


def start(account: Account, story: Story) -> None:
    account.reconcile(story.at_start, began_unix_ns=story.began_unix_ns, now_unix_ns=story.began_unix_ns)


# Without loss


@EXAMPLES
@given(steps, steps, traces)
def test_happenings_are_the_truth(before: list[Step], after: list[Step], trace: TraceOptions) -> None:
    story = run(before, after, odd=False)
    account = Account(trace)
    start(account, story)
    feed(account, story.events)
    kernel = story.kernel
    execs = {event.process.exec_id for event in story.events if isinstance(event, Exec)}
    exits = {event.exec_id for event in story.events if isinstance(event, Exit)}
    forked = {event.exec_id for event in story.events if isinstance(event, Fork)}
    replaced = {event.previous_exec_id or "" for event in story.events if isinstance(event, Exec)}
    # A fork that execs is one with its program, unless others name it as their parent.
    silent = {exec_id for exec_id in replaced & forked if not kernel.images[exec_id].parent_of}

    assert account.started == execs | story.visited
    assert set(account.ended) == exits | (replaced - silent)
    for exec_id, ended in account.ended.items():
        assert ended.image.ended == ("exit" if exec_id in exits else "exec") == kernel.images[exec_id].end
    for exec_id, image in account.images.items():
        if exec_id not in story.visited and image.parent_exec_id not in story.reapers:
            assert image.parent_exec_id == kernel.images[exec_id].parent
            assert image.forked_only == (exec_id in forked)
        if image.parent is not None:
            assert image.parent.exec_id == image.parent_exec_id
    told = {"dropped: told twice", "gap: exec lost", "gap: exit lost", "told: exit of an unknown image"}
    assert not [key for key in account.ledger.counts() if key[1] in told]
    assert account.table.running() == len(kernel.tasks)
    assert account.dangling() == []


@EXAMPLES
# What ends is read at a sweep, when its parent is old enough to be opened, as it was not at that end.
@example([], [*[("fork", 0, 0.0)] * 11, ("exec", 0, 0.0), ("fork", 0, 12.0)], TraceOptions(), [12])
@example([], [*[("fork", 0, 0.0)] * 11, ("exit", 3, 0.0), ("fork", 0, 12.0)], TraceOptions(), [12])
@given(steps, steps, traces, st.lists(st.integers(0, 40), max_size=4))
def test_sweeps_add_nothing(before: list[Step], after: list[Step], trace: TraceOptions, sweeps: list[int]) -> None:
    """However the events are cut into what is pending at a sweep and what is read before and after it."""
    plain, swept = Account(trace), Account(trace)
    # The same steps twice, since a snapshot is of its moment only.
    story = run(before, after)
    start(plain, story)
    feed(plain, story.events)

    again = run(before, [])
    start(swept, again)
    unread: list[Event] = []
    for number, step in enumerate(after):
        made = len(again.events)
        began = again.kernel.unix_ns()
        _do(again, step, 100 + number, odd=True)
        unread += again.events[made:]
        if number in sweeps:
            snapshot = again.kernel.snapshot()
            # Some of it may not be written yet when the sweep reads.
            late = number % 2 if len(unread) > 1 else 0
            pending, unread = unread[: len(unread) - late], unread[len(unread) - late :]
            swept.reconcile(snapshot, pending, began_unix_ns=began, now_unix_ns=again.kernel.unix_ns())
        elif number % 3 == 0:
            feed(swept, unread)
            unread = []
    feed(swept, unread)

    assert swept.started == plain.started
    assert {k: v.image.ended for k, v in swept.ended.items()} == {k: v.image.ended for k, v in plain.ended.items()}
    for exec_id, image in plain.images.items():
        other = swept.images[exec_id]
        assert (other.parent_exec_id, other.span, other.parent_span_id, other.ancestors) == (
            image.parent_exec_id,
            image.span,
            image.parent_span_id,
            image.ancestors,
        )
    assert swept.count("gap: exec lost") == plain.count("gap: exec lost")
    assert swept.count("gap: exit lost") == 0


@EXAMPLES
@given(steps, steps, traces)
def test_all_memory_is_given_back(before: list[Step], after: list[Step], trace: TraceOptions) -> None:
    story = run(before, after)
    end_all(story)
    account = Account(trace)
    start(account, story)
    feed(account, story.events)
    account.tick(story.kernel.unix_ns() + 60 * S)
    table = account.table
    assert len(table) == table.running() == 2
    assert not table._ended
    assert not table._to_open
    assert account.dangling() == []


@pytest.mark.parametrize("tetragon", [False, True])
def test_there_are_no_reference_cycles(tetragon: bool) -> None:
    """Nothing waits for the garbage collector, which the agent lets run seldom."""

    def images() -> int:
        return sum(isinstance(found, Image) for found in gc.get_objects())

    chance = Random(7)
    gc.collect()
    gc.disable()
    try:
        before = images()
        for _ in range(10):
            made = [(chance.choice(WHAT), chance.randrange(30), chance.choice([0.0, 3.0, 12.0])) for _ in range(100)]
            story = run([], made, odd=not tetragon)
            events: list[Event] = [*story.at_start, *story.events]
            kept = [event for event in (as_tetragon(events) if tetragon else events) if chance.random() < 0.9]
            for _ in range(10 if tetragon else 0):
                place = chance.randrange(len(kept) - 1)
                kept[place], kept[place + 1] = kept[place + 1], kept[place]
            account = Account(LESS_TIME, complete=False)
            feed(account, kept)
            assert images() > before
            del account
            assert images() == before
    finally:
        gc.enable()


# With loss


def disturbed(data: st.DataObject, events: list[Event], *, reorder: int = 0) -> list[Event]:
    """`events` with some lost, some twice, and, with `reorder`, some as many places too late."""
    kept: list[Event] = []
    faults = data.draw(st.lists(st.sampled_from("......lldr"), min_size=len(events), max_size=len(events)))
    delayed: list[tuple[int, Event]] = []
    for position, (event, fault) in enumerate(zip(events, faults, strict=True)):
        if fault == "r" and reorder:
            delayed.append((position + data.draw(st.integers(1, reorder)), event))
        elif fault != "l":
            kept.append(event)
            # Only exits come twice from the kernel, and from Tetragon what was delivered twice.
            if fault == "d":
                kept.append(event)
        kept += [late for due, late in delayed if due == position]
    return kept + [late for due, late in delayed if due >= len(events)]


@EXAMPLES
@given(steps, steps, traces, st.data())
def test_kernel_with_loss(before: list[Step], after: list[Step], trace: TraceOptions, data: st.DataObject) -> None:
    """`Account` checks each happening; here what must be so at the end."""
    story = run(before, after)
    account = Account(trace)
    if data.draw(st.booleans()):
        start(account, story)
    feed(account, disturbed(data, story.events))
    kernel = story.kernel
    for image in account.images.values():
        assert image.parent is None or image.parent.exec_id == image.parent_exec_id
    for _ in range(2):
        kernel.sleep(1)
        account.reconcile(kernel.snapshot(), began_unix_ns=kernel.unix_ns(), now_unix_ns=kernel.unix_ns() + 1)
    # Two sweeps put everything right: exactly what runs is known to run.
    running = {image.exec_id for image in account.table._images.values() if image.ended is None}
    assert running == {task.exec_id for task in kernel.tasks.values()}
    assert account.table.running() == len(kernel.tasks)
    account.finish()
    assert account.dangling() == []
    made = len(story.events)
    end_all(story)
    feed(account, story.events[made:])
    account.tick(kernel.unix_ns() + 60 * S)
    assert len(account.table) == account.table.running() == 2


@EXAMPLES
@given(steps, traces, st.data())
def test_tetragon_with_loss_and_disorder(after: list[Step], trace: TraceOptions, data: st.DataObject) -> None:
    story = run([], after, odd=False)
    # What is forgotten and heard of again is a new image.
    account = Account(trace, LineageOptions(grace_ns=10**18))
    feed(account, disturbed(data, as_tetragon([*story.at_start, *story.events]), reorder=6))
    account.tick(story.kernel.unix_ns() + 60 * S)
    account.finish()
    assert account.dangling() == []
    for image in account.images.values():
        true = story.kernel.images[image.exec_id]
        assert image.parent_exec_id in (None, true.parent)


@EXAMPLES
@given(steps, st.integers(1, 6), st.booleans(), st.data())
def test_table_is_bounded(after: list[Step], most: int, tetragon: bool, data: st.DataObject) -> None:
    story = run([], after, odd=not tetragon)
    account = Account(options=LineageOptions(max_images=most, grace_ns=10 * S), complete=False)
    events: list[Event] = [*story.at_start, *story.events]
    if tetragon:
        events = as_tetragon(events)
    for event in disturbed(data, events, reorder=4 if tetragon else 0):
        account.apply(event)
        assert len(account.table) <= most
        assert account.table.running() <= most
        assert len(account.table._ended) <= most
        assert len(account.table._to_open) <= 2 * most + 1


@EXAMPLES
@given(steps, steps, traces, st.integers(0, 40))
def test_restart_gives_the_same_ids(before: list[Step], after: list[Step], trace: TraceOptions, at: int) -> None:
    first, second = Account(trace), Account(trace)
    story = run(before, after)
    start(first, story)
    feed(first, story.events)

    again = run(before, after[:at])
    feed(Account(trace), again.events)
    restarted = run([*before], [])
    for number, step in enumerate(after[:at]):
        _do(restarted, step, 100 + number, odd=True)
    kernel = restarted.kernel
    second.reconcile(kernel.snapshot(), began_unix_ns=kernel.unix_ns() + 1, now_unix_ns=kernel.unix_ns() + 1)
    made = len(restarted.events)
    for number, step in enumerate(after[at:], start=at):
        _do(restarted, step, 100 + number, odd=True)
    feed(second, restarted.events[made:])

    common = first.images.keys() & second.images.keys()
    for exec_id in common:
        assert first.images[exec_id].span.span_id == second.images[exec_id].span.span_id
    assert common >= {task.exec_id for task in kernel.tasks.values()} & first.images.keys() & second.started


@pytest.mark.parametrize("kind", [Fork, Exec, Exit])
def test_each_kind_of_event_alone(kind: Any) -> None:
    """Nothing but forks, or execs, or exits comes."""
    forest: list[Step] = [("fork", 0, 0.0), ("exec", 1, 1.0), ("fork", 1, 1.0), ("exec", 2, 1.0), ("exit", 1, 20.0)]
    story = run(forest, forest * 4)
    end_all(story)
    account = Account()
    feed(account, [event for event in story.events if isinstance(event, kind)])
    account.tick(story.kernel.unix_ns() + 60 * S)
    account.finish()
    assert account.dangling() == []
