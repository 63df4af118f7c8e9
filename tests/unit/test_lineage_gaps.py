"""The process table: what ran before the agent, the race at the start, and what a sweep finds after losses."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from otel_procmon.events import Discovered, Exec
from otel_procmon.lineage.image import Started
from tests.unit.kernel_model import EPOCH_NS, Kernel, Task
from tests.unit.lineage_account import Account, of, told
from tests.unit.lineage_machine import Machine, trace_of

if TYPE_CHECKING:
    from otel_procmon.events import Event


# Running before the agent


def test_discovered() -> None:
    machine = Machine()
    shell, init = machine.image(machine.shell), machine.image(machine.kernel.init)
    assert [kind for kind, _ in told(machine.account.happenings)] == ["discovered", "discovered"]
    assert machine.account.started == {shell.exec_id, init.exec_id}
    assert shell.discovered
    assert (init.entry_reason, init.parent_exec_id) == ("unknown_parent", None)
    assert (shell.entry_reason, shell.link) == ("init_parent", init.span)
    assert shell.process.start_unix_ns == EPOCH_NS + machine.shell.start_ns
    assert machine.sweep() == [], "once"
    assert machine.account.table.running() == 3


def test_discovered_fork_that_execs_is_told() -> None:
    kernel, account = Kernel(), Account()
    fork, _ = kernel.fork(kernel.init)
    before = fork.exec_id
    account.reconcile(kernel.snapshot(), began_unix_ns=kernel.unix_ns() + 1, now_unix_ns=kernel.unix_ns() + 2)
    assert told(account.apply(kernel.exec(fork, "/bin/ls"))) == [("end", before, "exec"), ("exec", fork.exec_id)]
    assert account.image(fork.exec_id).parent_exec_id == kernel.init.exec_id


def test_discovered_image_that_lived_long_is_opened_before_its_life_is_told() -> None:
    """An agent that ran before may have opened it: sent twice it is the same, and its life hangs below."""
    machine = Machine()
    machine.kernel.sleep(60)
    shell = machine.shell.exec_id
    init = machine.kernel.init.exec_id
    assert machine.see(machine.kernel.exit(machine.shell)) == [("open", init), ("open", shell), ("end", shell, "exit")]


def test_parent_of_a_discovered_orphan_is_its_reaper() -> None:
    """All that the kernel still knows: the parent of now, and a generation that was another's."""
    kernel, account = Kernel(), Account()
    middle, _ = kernel.fork(kernel.init)
    for binary in "/a", "/b", "/c", "/d":
        kernel.exec(middle, binary)
    orphan, _ = kernel.fork(middle)
    kernel.exec(orphan, "/daemon")
    kernel.exit(middle)
    account.reconcile(kernel.snapshot(), began_unix_ns=kernel.unix_ns() + 1, now_unix_ns=kernel.unix_ns() + 2)
    image = account.image(orphan.exec_id)
    assert orphan.parent_exec_id != kernel.init.exec_id
    assert (image.parent_exec_id, image.entry_reason) == (kernel.init.exec_id, "init_parent")
    assert image.link == account.image(kernel.init.exec_id).span


def test_agent_that_restarts_finds_the_same_ids() -> None:
    machine = Machine()
    child = machine.run("/bin/sleep")
    again = Account()
    machine.kernel.sleep(1)
    again.reconcile(
        machine.kernel.snapshot(), began_unix_ns=machine.kernel.unix_ns(), now_unix_ns=machine.kernel.unix_ns()
    )
    for task in machine.kernel.init, machine.shell, child:
        found, known = again.image(task.exec_id), machine.image(task)
        assert (found.span, found.parent_span_id, found.link) == (known.span, known.parent_span_id, known.link)
        assert (found.parent_exec_id, found.ancestors) == (known.parent_exec_id, known.ancestors)


@pytest.mark.parametrize("parent", ["init", "daemon"])
@pytest.mark.parametrize("setsid", [None, 0, 1, 2])
@pytest.mark.parametrize("contained", [None, 1, 2])
def test_agent_that_restarts_finds_the_trace_of_a_process_that_changed(
    parent: str, setsid: int | None, contained: int | None
) -> None:
    """A fork, then three programs; before one of them it leads a session of its own, or enters a container."""
    machine = Machine()
    daemon = machine.run("/usr/sbin/daemon", parent=machine.kernel.init)
    child = machine.fork(machine.kernel.init if parent == "init" else daemon)
    for number in range(3):
        if number == setsid:
            machine.kernel.setsid(child)
        if number == contained:
            child.container, child.cgroup = "c" * 64, f"/docker/{'c' * 64}"
        # As long as it takes for what it starts to be an activity of its own; a change of the program is none.
        machine.kernel.sleep(400)
        machine.see(machine.kernel.exec(child, f"/bin/{number}"))
    inner = machine.run("/bin/ls", parent=child)
    again = Account()
    again.reconcile(
        machine.kernel.snapshot(), began_unix_ns=machine.kernel.unix_ns() + 1, now_unix_ns=machine.kernel.unix_ns() + 1
    )
    assert again.image(child.exec_id).span == machine.image(child).span
    assert again.image(inner.exec_id).span == machine.image(inner).span
    images = [image for image in machine.account.images.values() if image.process.pid == child.pid]
    roots = [trace_of(image) for image in images if image.entry_reason is not None]
    assert len(roots) == len(set(roots)), "no trace has two beginnings"


def test_process_that_outlives_a_trace_begins_another_one() -> None:
    machine = Machine()
    child = machine.run("/sbin/supervisor", parent=machine.kernel.init)
    machine.kernel.sleep(3601)
    before = machine.image(child)
    machine.see(machine.kernel.exec(child, "/sbin/supervisor"))
    image = machine.image(child)
    assert (image.entry_reason, image.link) == ("limit", before.span)
    assert trace_of(image) != trace_of(before)


# The race at the start: nothing is told twice, nothing is left out

BEFORE, DURING, AFTER = "before the attach", "between attach and visit", "after the visit"
_WHEN = [BEFORE, DURING, AFTER]


@pytest.mark.parametrize(
    ("fork", "exec_", "exit_"),
    [
        when
        for when in itertools.product(_WHEN, [*_WHEN, None], [*_WHEN, None])
        if [_WHEN.index(at) for at in when if at is not None]
        == sorted(_WHEN.index(at) for at in when if at is not None)
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["pending", "read later"])
def test_start_race(fork: str, exec_: str | None, exit_: str | None, late: bool) -> None:
    """What happens after the visit is written to the ring; whether it is read with the snapshot or later is one."""
    kernel, account = Kernel(), Account()
    shell, _ = kernel.fork(kernel.init)
    kernel.exec(shell, "/bin/bash")
    kernel.sleep(1)
    pending: list[Event] = []
    later: list[Event] = []
    snapshot: list[Discovered] = []
    task: Task | None = None
    ids: list[str] = []
    began = 0

    for phase in _WHEN:
        seen: list[Event] = [] if phase == BEFORE else pending if phase == DURING or not late else later
        if fork == phase:
            task, event = kernel.fork(shell)
            ids.append(task.exec_id)
            seen.append(event)
        if exec_ == phase:
            assert task is not None
            seen.append(kernel.exec(task, "/bin/ls"))
            ids.append(task.exec_id)
        if exit_ == phase:
            assert task is not None
            seen.append(kernel.exit(task))
        if phase == BEFORE:
            kernel.sleep(0.01)
            began = kernel.unix_ns()
        if phase == DURING:
            snapshot = kernel.snapshot()
    if late:
        # The first batch after the start holds what came after the visit.
        account.reconcile(snapshot, pending, began_unix_ns=began, now_unix_ns=kernel.unix_ns())
        account.apply(*later)
    else:
        account.reconcile(snapshot, pending, began_unix_ns=began, now_unix_ns=kernel.unix_ns())

    final, forked = ids[-1], ids[0]
    existed = exit_ != BEFORE
    exec_seen = exec_ in (DURING, AFTER)
    # An image is told as exec if its exec was seen; as discovered if it was visited; a fork alone is not told.
    visited_fork = fork == BEFORE and exec_ in (AFTER, None) and exit_ in (AFTER, None)
    visited_program = exec_ == BEFORE and exit_ in (AFTER, None)
    expected_started = set()
    if exec_seen:
        expected_started.add(final)
    if visited_program:
        expected_started.add(final)
    if visited_fork:
        expected_started.add(forked)
    started = account.started - {kernel.init.exec_id, shell.exec_id}
    assert started == expected_started
    kinds = {happening.image.exec_id: type(happening.event) for happening in of(Started, account.happenings)}
    if exec_seen:
        assert kinds[final] is Exec
    expected_ended = set()
    if exit_ in (DURING, AFTER):
        expected_ended.add(final)
    if visited_fork and exec_seen:
        expected_ended.add(forked)
    assert set(account.ended) == expected_ended
    if existed and expected_started | expected_ended:
        told_of = account.image(final)
        assert told_of.parent_exec_id == shell.exec_id
    assert account.count("gap: exec lost") == account.count("gap: exit lost") == 0
    assert account.dangling() == []


# What a sweep sees a little before its event is written


def test_sweep_sees_a_program_before_its_exec_is_written() -> None:
    machine = Machine()
    task = machine.run("/bin/sh")
    before = task.exec_id
    exec_ = machine.kernel.exec(task, "/bin/cat")
    assert machine.sweep() == []
    assert machine.see(exec_) == [("end", before, "exec"), ("exec", task.exec_id)]
    assert machine.sweep() == []
    assert machine.account.count("gap: exec lost") == 0


def test_sweep_sees_a_program_before_the_exec_of_a_fork_is_written() -> None:
    machine = Machine()
    task = machine.fork()
    exec_ = machine.kernel.exec(task, "/bin/cat")
    assert machine.sweep() == []
    assert machine.see(exec_) == [("exec", task.exec_id)]


def test_sweep_sees_a_process_before_its_fork_is_written() -> None:
    machine = Machine()
    began = machine.kernel.unix_ns()
    task, fork = machine.kernel.fork(machine.shell)
    machine.account.reconcile(machine.kernel.snapshot(), began_unix_ns=began, now_unix_ns=machine.kernel.unix_ns())
    exec_ = machine.kernel.exec(task, "/bin/ls")
    assert machine.see(fork, exec_) == [("exec", task.exec_id)]


def test_sweep_sees_a_program_whose_fork_waits_to_be_read() -> None:
    """The worst order: the fork must not end the program that it became."""
    machine = Machine()
    task, fork = machine.kernel.fork(machine.shell)
    exec_ = machine.kernel.exec(task, "/bin/ls")
    assert machine.sweep(fork) == []
    assert machine.see(exec_, machine.kernel.exit(task)) == [("exec", task.exec_id), ("end", task.exec_id, "exit")]
    assert machine.account.count("gap: exec lost") == 0


def test_first_snapshot_sees_the_second_of_two_execs() -> None:
    kernel, account = Kernel(), Account()
    task, _ = kernel.fork(kernel.init)
    kernel.exec(task, "/a")
    began = kernel.unix_ns()
    first = kernel.exec(task, "/b")
    second = kernel.exec(task, "/c")
    account.reconcile(kernel.snapshot(), [first], began_unix_ns=began, now_unix_ns=kernel.unix_ns())
    assert told(account.apply(second, kernel.exit(task))) == [
        ("end", first.process.exec_id, "exec"),
        ("exec", task.exec_id),
        ("end", task.exec_id, "exit"),
    ]
    assert account.count("gap: exec lost") == 0


# Gaps


def test_lost_exec_is_found_by_the_second_sweep() -> None:
    machine = Machine()
    task = machine.run("/bin/sh")
    before = task.exec_id
    machine.kernel.exec(task, "/bin/cat")
    assert machine.sweep() == []
    assert machine.sweep() == [("end", before, "exec"), ("discovered", task.exec_id)]
    assert machine.account.count("gap: exec lost") == 1
    assert machine.image(task).parent_exec_id == before
    assert machine.see(machine.kernel.exit(task)) == [("end", task.exec_id, "exit")]


def test_lost_exec_of_a_fork() -> None:
    machine = Machine()
    task = machine.fork()
    machine.kernel.exec(task, "/bin/cat")
    exit_ = machine.kernel.exit(task)
    assert machine.see(exit_) == [("end", task.exec_id, "exit")]
    image = machine.image(task)
    assert (image.parent_exec_id, image.entry_reason) == (machine.shell.exec_id, None)
    assert (image.process.binary, image.name) == ("", "cat")
    assert machine.account.count("gap: exec lost") == machine.account.count("told: exit of an unknown image") == 1
    assert machine.account.table.running() == 3


def test_exec_after_a_lost_exec() -> None:
    machine = Machine()
    task = machine.fork()
    machine.kernel.exec(task, "/bin/sh")
    assert machine.see(machine.kernel.exec(task, "/bin/cat")) == [("exec", task.exec_id)]
    assert machine.image(task).parent_exec_id == machine.shell.exec_id, "the nearest that is known"
    assert machine.image(task).process.flags == ("execve",)
    before = task.exec_id
    machine.kernel.exec(task, "/bin/a")
    assert machine.see(machine.kernel.exec(task, "/bin/b")) == [("end", before, "exec"), ("exec", task.exec_id)]
    assert machine.image(task).parent_exec_id == before
    assert machine.account.count("gap: exec lost") == 2
    assert machine.account.dangling() == []


def test_exec_that_fails_when_it_is_too_late() -> None:
    """The program cannot be loaded and the old one is gone: the kernel kills the process."""
    machine = Machine()
    middle = machine.fork()
    task = machine.fork(middle)
    machine.see(machine.kernel.exit(middle))
    machine.kernel.failed_exec(task)
    assert machine.see(machine.kernel.exit(task, None, "SIGSEGV")) == [("end", task.exec_id, "exit")]
    assert machine.image(task).parent_exec_id == middle.exec_id
    assert machine.account.table.running() == 3


def test_lost_fork() -> None:
    machine = Machine()
    task, _ = machine.kernel.fork(machine.shell)
    assert machine.see(machine.kernel.exec(task, "/bin/ls")) == [("exec", task.exec_id)]
    assert machine.image(task).parent_exec_id == machine.shell.exec_id


def test_lost_fork_whose_parent_has_gone() -> None:
    machine = Machine()
    middle = machine.run("/bin/sh")
    orphan, _ = machine.kernel.fork(middle)
    machine.see(machine.kernel.exit(middle), machine.kernel.exec(orphan, "/bin/ls"))
    image = machine.image(orphan)
    assert (image.parent_exec_id, image.process.parent_pid) == (machine.kernel.init.exec_id, 1)
    assert image.entry_reason == "init_parent"


def test_lost_fork_and_exec() -> None:
    machine = Machine()
    task, _ = machine.kernel.fork(machine.shell)
    machine.kernel.exec(task, "/bin/ls")
    assert machine.see(machine.kernel.exit(task)) == [("end", task.exec_id, "exit")]
    image = machine.image(task)
    assert (image.parent_exec_id, image.entry_reason, image.ancestors) == (
        machine.shell.exec_id,
        None,
        ("bash", "init"),
    )


def test_lost_fork_of_a_parent_that_is_a_fork_itself() -> None:
    """It is named as a parent although nobody saw it fork, so it must be told."""
    machine = Machine()
    fork = machine.fork()
    fork_id = fork.exec_id
    child, _ = machine.kernel.fork(fork)
    machine.see(machine.kernel.exec(child, "/bin/ls"))
    assert machine.see(machine.kernel.exec(fork, "/bin/cat")) == [("end", fork_id, "exec"), ("exec", fork.exec_id)]
    machine.see(machine.kernel.exit(child), machine.kernel.exit(fork))
    assert machine.account.dangling() == []


def test_lost_exit_is_found_by_the_second_sweep() -> None:
    machine = Machine()
    task = machine.run()
    machine.kernel.exit(task)
    assert machine.sweep() == [], "it may be just ending"
    assert machine.sweep() == [("end", task.exec_id, "lost")]
    ended = machine.account.ended[task.exec_id]
    assert ended.event is None
    assert machine.image(task).end_unix_ns == ended.observed_unix_ns == machine.kernel.unix_ns() + 1
    assert machine.account.count("gap: exit lost") == 1
    assert machine.sweep() == []


def test_exit_that_comes_between_two_sweeps_is_not_lost() -> None:
    machine = Machine()
    task = machine.run()
    exit_ = machine.kernel.exit(task)
    assert machine.sweep() == []
    assert machine.see(exit_) == [("end", task.exec_id, "exit")]
    assert machine.sweep() == machine.sweep() == []


def test_process_that_is_missed_once_and_found_again() -> None:
    machine = Machine()
    task = machine.run()
    for _ in range(3):
        assert machine.sweep(without=(task,)) == []
        assert machine.sweep() == []


def test_lost_fork_that_still_runs_is_discovered() -> None:
    machine = Machine()
    task, _ = machine.kernel.fork(machine.shell)
    machine.kernel.sleep(1)
    assert machine.sweep() == [("discovered", task.exec_id)]
    image = machine.image(task)
    assert image.forked_only
    assert image.parent_exec_id == machine.shell.exec_id


def test_pid_that_belongs_to_another_process_now() -> None:
    machine = Machine()
    old = machine.run()
    machine.kernel.exit(old)
    machine.kernel.sleep(5)
    new, fork = machine.kernel.fork(machine.shell, pid=old.pid)
    assert machine.see(fork) == [("end", old.exec_id, "lost")]
    assert machine.image(old).end_unix_ns == fork.time_unix_ns
    assert machine.see(machine.kernel.exec(new, "/bin/b")) == [("exec", new.exec_id)]
    machine.kernel.exit(new)
    newer, _ = machine.kernel.fork(machine.shell, pid=old.pid)
    assert machine.see(machine.kernel.exec(newer, "/bin/c")) == [("end", new.exec_id, "lost"), ("exec", newer.exec_id)]
    machine.kernel.exit(newer)
    newest, _ = machine.kernel.fork(machine.shell, pid=old.pid)
    assert machine.see(machine.kernel.exit(newest)) == [
        ("end", newer.exec_id, "lost"),
        ("end", newest.exec_id, "exit"),
    ]
    assert machine.account.count("gap: exit lost") == 3


def test_pid_reuse_within_the_grace_period() -> None:
    machine = Machine()
    old = machine.run()
    machine.see(machine.kernel.exit(old))
    new, fork = machine.kernel.fork(machine.shell, pid=old.pid)
    assert machine.see(fork, machine.kernel.exec(new, "/bin/b"), machine.kernel.exit(new)) == [
        ("exec", new.exec_id),
        ("end", new.exec_id, "exit"),
    ]


def test_kernel_thread_that_is_gone_is_forgotten() -> None:
    machine = Machine()
    thread = machine.kernel.kthreadd
    del machine.kernel.tasks[thread.pid]
    assert machine.sweep() == machine.sweep() == []
    assert thread.exec_id not in machine.account.table
