"""The process table: each row of the design's table of what happens, each rule of traces, each gap."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from otel_procmon.config import LineageOptions, TraceOptions
from otel_procmon.events import Container, Discovered, Exec, Exit, Fork, Pod, Process
from otel_procmon.lineage.ids import SpanIds, make_exec_id
from otel_procmon.lineage.image import Ended, Image, Opened, SpanRef, Started
from tests.unit.kernel_model import EPOCH_NS, NODE, Kernel, Task, as_tetragon
from tests.unit.lineage_account import BOOT_ID, Account, of, told

if TYPE_CHECKING:
    from otel_procmon.events import Event

S = 1_000_000_000


class Machine:
    """A kernel with an account of it, which began with a snapshot: init, kthreadd, and a shell in a terminal."""

    def __init__(self, **options: Any) -> None:
        self.kernel = Kernel()
        self.account = Account(**options)
        self.shell, _ = self.kernel.fork(self.kernel.init)
        self.kernel.exec(self.shell, "/bin/bash")
        self.shell.session, self.shell.tty = self.shell.pid, True
        self.sweep()

    def sweep(self, *pending: Event, without: tuple[Task, ...] = ()) -> list[tuple[str, ...]]:
        began = self.kernel.unix_ns()
        self.kernel.sleep(0.001)
        snapshot = [event for event in self.kernel.snapshot() if event.process.pid not in {t.pid for t in without}]
        return told(
            self.account.reconcile(snapshot, pending, began_unix_ns=began, now_unix_ns=self.kernel.unix_ns() + 1)
        )

    def see(self, *events: Event) -> list[tuple[str, ...]]:
        return told(self.account.apply(*events))

    def fork(self, parent: Task | None = None, **how: Any) -> Task:
        child, event = self.kernel.fork(parent or self.shell, **how)
        assert self.see(event) == []
        return child

    def run(self, binary: str = "/bin/ls", *argv: str, parent: Task | None = None) -> Task:
        """Fork and exec, both seen."""
        child = self.fork(parent)
        assert self.see(self.kernel.exec(child, binary, *argv)) == [("exec", child.exec_id)]
        return child

    def image(self, task: Task) -> Image:
        return self.account.image(task.exec_id)


def trace_of(image: Image) -> bytes:
    return image.span.trace_id


# What happens, and what is told


def test_fork_then_exec() -> None:
    machine = Machine()
    task = machine.run("/bin/ls", "-l")
    image = machine.image(task)
    assert (image.process.binary, image.process.argv) == ("/bin/ls", ("/bin/ls", "-l"))
    assert (image.parent_exec_id, image.parent_name, image.parent_binary) == (
        machine.shell.exec_id,
        "bash",
        "/bin/bash",
    )
    assert image.process.flags == ("execve", "clone")
    shell = machine.image(machine.shell)
    assert (image.entry_reason, image.link, image.parent_span_id) == (None, None, shell.span.span_id)
    assert trace_of(image) == trace_of(shell)
    assert machine.see(machine.kernel.exit(task, 3)) == [("end", image.exec_id, "exit")]
    ended = machine.account.ended[image.exec_id]
    assert ended.event is not None
    assert (ended.event.code, ended.observed_unix_ns) == (3, ended.event.observed_unix_ns)
    assert image.end_unix_ns == ended.event.time_unix_ns
    assert machine.account.ledger.counts() == {
        ("lineage", "noted: fork"): 1,
        ("lineage", "noted: kernel thread"): 1,
        ("lineage", "told: discovered"): 2,
        ("lineage", "told: exec"): 1,
        ("lineage", "told: exit"): 1,
    }


def test_exec_again_in_the_same_process() -> None:
    machine = Machine()
    task = machine.run("/bin/sh")
    first = machine.image(task)
    exec_ = machine.kernel.exec(task, "/bin/cat")
    assert machine.see(exec_) == [("end", first.exec_id, "exec"), ("exec", task.exec_id)]
    second = machine.image(task)
    ended = machine.account.ended[first.exec_id]
    assert (ended.image, ended.event, ended.observed_unix_ns) == (first, None, exec_.observed_unix_ns)
    assert (first.ended, first.end_unix_ns) == ("exec", exec_.time_unix_ns)
    assert (second.parent, second.parent_exec_id) == (first, first.exec_id)
    assert second.process.parent_pid == machine.shell.pid, "the pid of the parent process"
    assert second.process.flags == ("execve",)
    assert second.ancestors == ("sh", "bash", "init")
    third_event = machine.kernel.exec(task, "/bin/true")
    assert machine.see(third_event) == [("end", second.exec_id, "exec"), ("exec", task.exec_id)]
    assert machine.see(machine.kernel.exit(task)) == [("end", task.exec_id, "exit")]


def test_fork_without_exec() -> None:
    machine = Machine()
    subshell = machine.fork()
    child = machine.run("/bin/ls", parent=subshell)
    assert machine.see(machine.kernel.exit(subshell, 1)) == [("end", subshell.exec_id, "exit")]
    image = machine.image(subshell)
    assert image.forked_only
    assert (image.process.binary, image.process.argv, image.name) == ("/bin/bash", ("/bin/bash",), "bash")
    assert image.process.flags == ("clone",)
    assert (image.process.start_unix_ns, image.process.creation_unix_ns) == (EPOCH_NS + subshell.start_ns,) * 2
    assert image.parent_exec_id == machine.shell.exec_id
    assert machine.image(child).parent_span_id == image.span.span_id
    assert machine.image(child).ancestors == ("bash", "bash", "init")


def test_nested_forks_all_are_told() -> None:
    machine = Machine()
    outer = machine.fork()
    inner = machine.fork(outer)
    assert machine.see(machine.kernel.exit(inner), machine.kernel.exit(outer)) == [
        ("end", inner.exec_id, "exit"),
        ("end", outer.exec_id, "exit"),
    ]
    assert machine.image(inner).parent_span_id == machine.image(outer).span.span_id


def test_fork_in_a_fork_before_its_exec() -> None:
    """The fork is somebody's parent, so it is told when its exec ends it."""
    machine = Machine()
    fork = machine.fork()
    fork_id = fork.exec_id
    child = machine.run("/bin/ls", parent=fork)
    assert machine.see(machine.kernel.exec(fork, "/bin/cat")) == [("end", fork_id, "exec"), ("exec", fork.exec_id)]
    assert machine.image(fork).parent_exec_id == machine.shell.exec_id, "the exec's parent is the fork's"
    assert machine.image(child).parent_exec_id == fork_id
    assert machine.account.ended[fork_id].image.span.span_id == machine.image(child).parent_span_id
    machine.see(machine.kernel.exit(child), machine.kernel.exit(fork))
    assert machine.account.dangling() == []


def test_what_a_fork_became_is_told_at_its_exit() -> None:
    machine = Machine()
    worker = machine.fork()
    machine.kernel.setsid(worker)
    machine.see(replace(machine.kernel.exit(worker), uid=33, euid=33, auid=1000))
    process = machine.image(worker).process
    assert (process.session_id, process.tty, process.uid, process.euid, process.auid) == (
        worker.pid,
        False,
        33,
        33,
        1000,
    )
    assert process.binary == "/bin/bash", "all else it has from its parent"


def test_usage_that_was_cut_is_told_at_the_exit() -> None:
    machine = Machine()
    task = machine.run()
    machine.see(replace(machine.kernel.exit(task), truncated=("usage",)))
    assert machine.image(task).process.truncated == ("usage",)


@pytest.mark.parametrize(("code", "signal"), [(0, None), (255, None), (None, "SIGKILL"), (None, "SIGRTMIN+3")])
def test_exit_and_death_by_signal(code: int | None, signal: str | None) -> None:
    machine = Machine()
    task = machine.run()
    machine.see(machine.kernel.exit(task, code, signal))
    event = machine.account.ended[task.exec_id].event
    assert event is not None
    assert (event.code, event.signal) == (code, signal)


def test_exit_that_is_told_twice() -> None:
    """Before Linux 6.16 both of the last two threads may find themselves the last."""
    machine = Machine()
    task = machine.run()
    exit_ = machine.kernel.exit(task)
    assert machine.see(exit_, exit_) == [("end", task.exec_id, "exit")]
    assert machine.account.count("dropped: told twice") == 1


def test_exec_and_fork_that_are_told_twice() -> None:
    machine = Machine()
    task, fork = machine.kernel.fork(machine.shell)
    assert machine.see(fork, fork) == []
    exec_ = machine.kernel.exec(task, "/bin/ls")
    assert machine.see(exec_, exec_) == [("exec", task.exec_id)]
    assert machine.see(fork) == [], "what the process ran before is no news"
    again = machine.kernel.exec(task, "/bin/ls")
    machine.see(again)
    assert machine.see(exec_, again, fork) == []
    assert machine.see(machine.kernel.exit(task)) == [("end", task.exec_id, "exit")]
    assert machine.account.count("dropped: told twice") == 6


def test_parent_that_dies_before_its_child_execs() -> None:
    machine = Machine()
    middle = machine.fork()
    orphan = machine.fork(middle)
    machine.see(machine.kernel.exit(middle))
    machine.account.tick(machine.kernel.unix_ns() + 31 * S)
    machine.see(machine.kernel.exec(orphan, "/bin/ls"))
    image = machine.image(orphan)
    assert image.parent_exec_id == middle.exec_id, "not the reaper's"
    assert image.process.parent_pid == middle.pid
    assert image.ancestors == ("bash", "bash", "init")
    assert image.parent_span_id == machine.image(middle).span.span_id


def test_parent_that_execs_before_its_child_does() -> None:
    machine = Machine()
    parent = machine.run("/bin/sh")
    then = parent.exec_id
    child = machine.fork(parent)
    machine.see(machine.kernel.exec(parent, "/bin/cat"))
    machine.see(machine.kernel.exec(child, "/bin/ls"))
    assert machine.image(child).parent_exec_id == then
    assert machine.image(child).parent_name == "sh"


def test_clone_parent() -> None:
    """What runc does: the new process is a sibling of the one that made it."""
    machine = Machine()
    runc = machine.run("/usr/bin/runc")
    sibling = machine.fork(runc, clone_parent=True)
    machine.see(machine.kernel.exec(sibling, "/bin/container-init"))
    image = machine.image(sibling)
    assert image.parent_exec_id == machine.shell.exec_id
    assert image.process.flags == ("execve", "clone"), "the kernel's generations say otherwise here"


def test_kernel_threads_are_ancestors_but_never_told() -> None:
    machine = Machine()
    assert machine.kernel.kthreadd.exec_id in machine.account.table
    assert machine.account.count("noted: kernel thread") == 1
    helper = machine.run("/sbin/modprobe", parent=machine.kernel.kthreadd)
    image = machine.image(helper)
    assert (image.entry_reason, image.link) == ("kernel_parent", None)
    assert image.ancestors == ("kthreadd",)
    assert image.parent_exec_id == machine.kernel.kthreadd.exec_id
    machine.kernel.sleep(60)
    assert machine.see(machine.kernel.exit(helper)) == [("end", helper.exec_id, "exit")], "no kernel thread is opened"
    machine.account.tick(machine.kernel.unix_ns())
    exit_ = machine.kernel.exit(machine.kernel.kthreadd)
    assert machine.see(exit_) == []
    assert machine.kernel.kthreadd.exec_id not in machine.account.table
    assert machine.see(replace(exit_, exec_id="x")) == []
    assert machine.account.count("noted: exit of a kernel thread") == 2


def test_child_of_a_kernel_thread_that_is_not_known() -> None:
    machine = Machine()
    worker = Task(
        77, machine.kernel.now_ns, 0, machine.kernel.kthreadd, 0, "", (), 0, tty=False, cgroup="/", container=None
    )
    worker.kernel_thread = True
    helper = machine.fork(worker)
    machine.see(machine.kernel.exec(helper, "/sbin/modprobe"))
    assert machine.image(helper).entry_reason == "kernel_parent"
    other = machine.fork(worker)
    machine.see(machine.kernel.exit(other))
    assert (machine.image(other).entry_reason, machine.image(other).name) == ("kernel_parent", "kworker/0:1")


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


# Grace, memory


def test_grace_period() -> None:
    machine = Machine(options=LineageOptions(grace_ns=5 * S))
    parent = machine.run("/bin/sh")
    child = machine.run("/bin/ls", parent=parent)
    grandchild = machine.run("/bin/id", parent=child)
    exit_ = machine.kernel.exit(parent)
    machine.see(exit_)
    at = exit_.time_unix_ns
    machine.account.tick(at + 5 * S - 1)
    assert parent.exec_id in machine.account.table
    machine.account.tick(at + 5 * S)
    assert parent.exec_id not in machine.account.table
    machine.see(machine.kernel.exit(child), machine.kernel.exit(grandchild))
    assert machine.image(grandchild).ancestors == ("ls", "sh", "bash", "init")
    machine.account.tick(machine.kernel.unix_ns() + 60 * S)
    assert len(machine.account.table) == machine.account.table.running() == 3
    assert not machine.account.table._ended
    assert not machine.account.table._to_open


def test_long_line_of_parents_does_not_stay_in_memory() -> None:
    machine = Machine()
    task = machine.run("/bin/0")
    for number in range(200):
        machine.see(machine.kernel.exec(task, f"/bin/{number}"))
        machine.account.tick(machine.kernel.unix_ns() + 31 * S)
    image: Image | None = machine.image(task)
    depth = 0
    while image is not None:
        depth, image = depth + 1, image.parent
    assert depth <= 2
    assert machine.image(task).ancestors == tuple(str(number) for number in range(198, 182, -1))


def test_ancestors_are_at_most_16_nearest_first_and_across_traces() -> None:
    machine = Machine(trace=TraceOptions(max_spans=3))
    task = machine.shell
    for number in range(20):
        task = machine.run(f"/bin/p{number}", parent=task)
    image = machine.image(task)
    assert image.ancestors == tuple(f"p{number}" for number in range(18, 2, -1))
    assert {machine.image(t).entry_reason for t in machine.kernel.tasks.values() if t.pid >= 100} >= {"limit"}


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_tiny_table(most: int) -> None:
    machine = Machine(options=LineageOptions(max_images=most), complete=False)
    tasks = [machine.run(f"/bin/{number}") for number in range(6)]
    assert len(machine.account.table) <= most
    assert machine.account.count("evicted: table full") > 0
    for task in tasks:
        assert ("end", task.exec_id, "exit") in machine.see(machine.kernel.exit(task))
        assert len(machine.account.table) <= most
    machine.account.tick(machine.kernel.unix_ns() + 60 * S)
    assert machine.account.table.running() == len(machine.account.table) <= most


def test_what_ended_is_evicted_first() -> None:
    machine = Machine(options=LineageOptions(max_images=5))
    ended = machine.run("/bin/a")
    running = machine.run("/bin/b")
    machine.see(machine.kernel.exit(ended))
    more = machine.run("/bin/c")
    assert [task.exec_id in machine.account.table for task in (ended, running, more)] == [False, True, True]
    assert machine.account.count("evicted: table full") == 0
    machine.run("/bin/d")
    assert machine.account.count("evicted: table full") == 1
    assert machine.kernel.init.exec_id not in machine.account.table, "the oldest"


def test_parents_from_the_future_do_not_fill_the_memory() -> None:
    account = Account(options=LineageOptions(max_images=10), complete=False)
    for number in range(200):
        future = Process(exec_id=f"p{number}", pid=1000 + number, binary="/p", start_unix_ns=EPOCH_NS * 2, node=NODE)
        child = Process(exec_id=f"c{number}", pid=5000 + number, binary="/c", start_unix_ns=EPOCH_NS, node=NODE)
        known: dict[str, Any] = {"time_unix_ns": EPOCH_NS, "observed_unix_ns": EPOCH_NS, "parent": future}
        known["parent_exec_id"] = future.exec_id
        account.apply(Exec(process=child, **known), Exit(exec_id=child.exec_id, pid=child.pid, code=0, **known))
    assert len(account.table) <= 10
    assert len(account.table._to_open) <= 21


def test_no_reference_cycles() -> None:
    def images() -> int:
        return sum(isinstance(found, Image) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = images()
        machine = Machine()
        task = machine.run("/bin/sh")
        for _ in range(20):
            fork = machine.fork(task)
            machine.see(machine.kernel.exec(fork, "/bin/a"), machine.kernel.exit(fork))
        machine.account.tick(machine.kernel.unix_ns() + 60 * S)
        assert images() > before
        del machine
        assert images() == before
    finally:
        gc.enable()


# Traces, links and opening spans


def test_session_begins_a_trace_with_a_link() -> None:
    machine = Machine()
    sshd = machine.run("/usr/sbin/sshd", parent=machine.kernel.init)
    child = machine.fork(sshd)
    machine.kernel.setsid(child)
    machine.see(machine.kernel.exec(child, "/bin/bash"))
    image, parent = machine.image(child), machine.image(sshd)
    assert (image.entry_reason, image.link, image.parent_span_id) == ("session", parent.span, None)
    assert trace_of(image) != trace_of(parent)
    ids = SpanIds(BOOT_ID)
    first = make_exec_id(NODE, child.start_ns, 0, child.pid)
    assert image.span == SpanRef(ids.trace_id(first), ids.span_id(child.exec_id)), "the trace is the process's"
    assert image.ancestors == ("sshd", "init")
    inner = machine.run("/bin/ls", parent=child)
    assert trace_of(machine.image(inner)) == trace_of(image)


def test_what_an_old_daemon_starts_is_an_activity_of_its_own() -> None:
    machine = Machine()
    daemon = machine.run("/usr/sbin/daemon", parent=machine.kernel.init)
    young = machine.run("/bin/a", parent=daemon)
    machine.kernel.sleep(301)
    old = machine.run("/bin/b", parent=daemon)
    assert machine.image(young).entry_reason is None
    assert (machine.image(old).entry_reason, machine.image(old).link) == ("service", machine.image(daemon).span)
    inner = machine.run("/bin/c", parent=old)
    assert machine.image(inner).entry_reason is None


def test_trace_that_is_full_or_old() -> None:
    machine = Machine(trace=TraceOptions(max_spans=4))
    shell = machine.run("/bin/sh", parent=machine.kernel.init)
    machine.shell.tty = shell.tty = True
    tasks = [machine.run("/bin/a", parent=shell) for _ in range(5)]
    reasons = [machine.image(task).entry_reason for task in tasks]
    assert reasons == [None, None, None, "limit", "limit"]
    assert machine.image(tasks[-1]).link == machine.image(shell).span
    other = Machine()
    shell = other.run("/bin/sh", parent=other.kernel.init)
    shell.tty = True
    other.see(other.kernel.exec(shell, "/bin/bash"))
    other.kernel.sleep(3601)
    other.account.tick(other.kernel.unix_ns())
    late = other.run("/bin/a", parent=shell)
    assert other.image(late).entry_reason == "limit"


def test_forks_without_exec_count_in_their_trace_once() -> None:
    machine = Machine()
    counts = machine.image(machine.shell).trace_images
    before = counts[0]
    silent = machine.fork()
    machine.see(machine.kernel.exec(silent, "/bin/a"))
    assert counts[0] == before + 1, "a fork that execs is one with its program"
    subshell = machine.fork()
    machine.run("/bin/b", parent=subshell)
    machine.run("/bin/c", parent=subshell)
    machine.see(machine.kernel.exit(subshell))
    assert counts[0] == before + 4
    alone = machine.fork()
    machine.see(machine.kernel.exit(alone))
    assert counts[0] == before + 5
    assert before + 5 == len(
        {
            image.exec_id
            for image in machine.account.images.values()
            if trace_of(image) == trace_of(machine.image(machine.shell))
        }
    )


def test_container_begins_a_trace_and_is_inherited() -> None:
    machine = Machine()
    shim = machine.run("/usr/bin/shim", parent=machine.kernel.init)
    first = machine.fork(shim)
    first.container, first.cgroup = "c" * 64, "/c"
    machine.see(machine.kernel.exec(first, "/app"))
    assert machine.image(first).entry_reason == "container"
    worker = machine.fork(first)
    machine.see(machine.kernel.exit(worker))
    assert (machine.image(worker).process.container_id, machine.image(worker).entry_reason) == ("c" * 64, None)
    lost, _ = machine.kernel.fork(first)
    machine.kernel.exec(lost, "/bin/ls")
    machine.see(machine.kernel.exit(lost))
    image = machine.image(lost)
    assert (image.process.container_id, image.entry_reason) == ("c" * 64, None), "an exit does not tell the cgroup"


def test_young_parent_needs_no_opening_span() -> None:
    machine = Machine()
    parent = machine.run("/bin/sh")
    child = machine.run("/bin/ls", parent=parent)
    assert machine.see(machine.kernel.exit(child), machine.kernel.exit(parent)) == [
        ("end", child.exec_id, "exit"),
        ("end", parent.exec_id, "exit"),
    ]
    assert not machine.image(parent).opened


def test_parent_that_lived_long_is_opened_before_its_child_leaves_and_all_above_it_from_the_top() -> None:
    machine = Machine()
    outer = machine.run("/bin/sh")
    inner = machine.run("/bin/make", parent=outer)
    machine.kernel.sleep(10)
    child = machine.run("/bin/cc", parent=inner)
    assert machine.see(machine.kernel.exit(child)) == [
        ("open", machine.kernel.init.exec_id),
        ("open", machine.shell.exec_id),
        ("open", outer.exec_id),
        ("open", inner.exec_id),
        ("end", child.exec_id, "exit"),
    ]
    another = machine.run("/bin/cc", parent=inner)
    assert machine.see(machine.kernel.exit(another)) == [("end", another.exec_id, "exit")], "opened once"
    assert machine.see(machine.kernel.exit(inner)) == [("end", inner.exec_id, "exit")]
    assert machine.image(inner).opened
    assert machine.image(inner).span.span_id != SpanIds(BOOT_ID).life_span_id(machine.image(inner))


def test_parent_is_opened_when_it_has_lived_long_enough() -> None:
    machine = Machine(trace=TraceOptions(open_after_ns=10 * S, service_age_ns=10**18))
    outer = machine.run("/bin/sh")
    machine.kernel.sleep(4)
    inner = machine.run("/bin/make", parent=outer)
    child = machine.run("/bin/cc", parent=inner)
    machine.see(machine.kernel.exit(child))
    began = machine.image(inner).process.start_unix_ns
    assert told(machine.account.tick(began + 10 * S - 1)) == []
    opened = told(machine.account.tick(began + 10 * S))
    assert opened[-2:] == [("open", outer.exec_id), ("open", inner.exec_id)]
    assert machine.account.tick(began + 100 * S) == []


def test_chain_stops_at_a_parent_that_is_younger_than_its_child() -> None:
    """It ran another program after the fork: its image began later. It has its turn when it is old enough."""
    machine = Machine()
    machine.kernel.sleep(30)
    shell_again = machine.kernel.exec(machine.shell, "/bin/zsh")
    machine.see(shell_again)
    child = machine.run("/bin/make")
    image, shell = machine.image(child), machine.image(machine.shell)
    image.process = replace(image.process, start_unix_ns=image.process.start_unix_ns - 20 * S)
    grandchild = machine.run("/bin/cc", parent=child)
    assert machine.see(machine.kernel.exit(grandchild)) == [
        ("open", child.exec_id),
        ("end", grandchild.exec_id, "exit"),
    ]
    assert told(machine.account.tick(shell.process.start_unix_ns + 10 * S)) == [("open", machine.shell.exec_id)]


def test_parent_that_ended_meanwhile_is_not_opened() -> None:
    machine = Machine()
    parent = machine.run("/bin/sh")
    child = machine.run("/bin/ls", parent=parent)
    machine.see(machine.kernel.exit(child), machine.kernel.exit(parent))
    opened = told(machine.account.tick(machine.kernel.unix_ns() + 60 * S))
    assert ("open", parent.exec_id) not in opened


def test_entry_opens_what_its_link_names() -> None:
    machine = Machine()
    daemon = machine.run("/usr/sbin/daemon", parent=machine.kernel.init)
    machine.kernel.sleep(301)
    task = machine.run("/bin/job", parent=daemon)
    assert machine.see(machine.kernel.exit(task)) == [
        ("open", machine.kernel.init.exec_id),
        ("open", daemon.exec_id),
        ("end", task.exec_id, "exit"),
    ]


def test_end_by_exec_and_lost_exit_open_their_parent_too() -> None:
    machine = Machine()
    parent = machine.run("/bin/sh")
    machine.kernel.sleep(11)
    task = machine.run("/bin/a", parent=parent)
    assert ("open", parent.exec_id) in machine.see(machine.kernel.exec(task, "/bin/b"))
    machine = Machine()
    parent = machine.run("/bin/sh")
    machine.kernel.sleep(11)
    task = machine.run("/bin/a", parent=parent)
    machine.kernel.exit(task)
    machine.sweep()
    assert machine.sweep()[-2:] == [("open", parent.exec_id), ("end", task.exec_id, "lost")]


def test_fork_with_children_is_opened() -> None:
    machine = Machine()
    subshell = machine.fork()
    machine.kernel.sleep(11)
    child = machine.run(parent=subshell)
    assert machine.see(machine.kernel.exit(child))[-2:] == [
        ("open", subshell.exec_id),
        ("end", child.exec_id, "exit"),
    ]


def test_finish_opens_what_no_later_event_can_tell_of() -> None:
    machine = Machine()
    parent = machine.run("/bin/sh")
    child = machine.run(parent=parent)
    machine.see(machine.kernel.exit(child))
    assert told(machine.account.finish()) == [
        ("open", machine.kernel.init.exec_id),
        ("open", machine.shell.exec_id),
        ("open", parent.exec_id),
    ]
    assert machine.account.finish() == []
    assert machine.account.dangling() == []


def test_open_at_once_if_told_to() -> None:
    machine = Machine(trace=TraceOptions(open_after_ns=0))
    parent = machine.run("/bin/sh")
    child = machine.run(parent=parent)
    assert machine.see(machine.kernel.exit(child))[-2:] == [("open", parent.exec_id), ("end", child.exec_id, "exit")]


# Tetragon


def tetragon_process(exec_id: str, pid: int, at_s: float, flags: str = "execve clone", **fields: Any) -> Process:
    known: dict[str, Any] = {"binary": f"/bin/{exec_id}", "arguments": "", "node": NODE}
    start_unix_ns = EPOCH_NS + int(at_s * S)
    return Process(
        exec_id=exec_id, pid=pid, start_unix_ns=start_unix_ns, flags=tuple(flags.split()), **{**known, **fields}
    )


def tetragon_exec(process: Process, parent: Process | None = None, *, rerun: bool = False) -> Exec:
    return Exec(
        time_unix_ns=process.start_unix_ns,
        observed_unix_ns=process.start_unix_ns,
        process=process,
        parent_exec_id=None if parent is None else parent.exec_id,
        parent=parent,
        previous_exec_id=parent.exec_id if rerun and parent is not None else None,
        previous_is_fork=False if rerun else None,
    )


def tetragon_exit(process: Process, at_s: float, parent: Process | None = None, code: int = 0) -> Exit:
    return Exit(
        time_unix_ns=EPOCH_NS + int(at_s * S),
        observed_unix_ns=EPOCH_NS + int(at_s * S),
        exec_id=process.exec_id,
        pid=process.pid,
        code=code,
        process=process,
        parent_exec_id=None if parent is None else parent.exec_id,
        parent=parent,
    )


SHELL = tetragon_process("sh", 50, 1)
LS = tetragon_process("ls", 60, 2)


def test_parent_by_hearsay() -> None:
    account = Account()
    assert told(account.apply(tetragon_exec(LS, SHELL))) == [("exec", "ls")]
    image = account.image("ls")
    parent = image.parent
    assert parent is not None
    assert parent.hearsay
    assert (parent.entry_reason, image.entry_reason) == ("unknown_parent", None)
    assert (image.parent_exec_id, image.parent_name, image.ancestors) == ("sh", "sh", ("sh",))
    assert image.parent_span_id == parent.span.span_id
    assert told(account.apply(tetragon_exit(LS, 20, SHELL))) == [("open", "sh"), ("end", "ls", "exit")]
    assert told(account.apply(tetragon_exit(SHELL, 30))) == [("end", "sh", "exit")]


def test_hearsay_parent_is_opened_although_it_is_never_told_of() -> None:
    account = Account()
    account.apply(tetragon_exec(LS, SHELL), tetragon_exit(LS, 3, SHELL))
    assert account.finish()[-1].image.exec_id == "sh"
    assert account.dangling() == []


def test_hearsay_that_tells_of_itself_late() -> None:
    init = tetragon_process("init", 1, 0)
    account = Account()
    account.apply(tetragon_exec(LS, SHELL))
    assert told(account.apply(tetragon_exec(SHELL, init))) == [("exec", "sh")]
    shell = account.image("sh")
    assert not shell.hearsay
    assert (shell.parent_exec_id, shell.parent_name, shell.ancestors) == ("init", "init", ("init",))
    assert shell.parent is not None
    assert shell.link == shell.parent.span
    assert account.image("ls").parent_span_id == shell.span.span_id
    assert account.apply(tetragon_exec(SHELL, init)) == []
    assert told(account.apply(tetragon_exit(SHELL, 4), tetragon_exit(SHELL, 4))) == [("end", "sh", "exit")]


def test_hearsay_that_ran_another_program_before() -> None:
    """The child's event overtook its parent's, which ended the image before that."""
    first = tetragon_process("first", 50, 0.5)
    account = Account()
    account.apply(tetragon_exec(first), tetragon_exec(LS, SHELL))
    again = replace(SHELL, flags=("execve",))
    assert told(account.apply(tetragon_exec(again, first, rerun=True))) == [("end", "first", "exec"), ("exec", "sh")]
    assert account.image("sh").parent_exec_id == "first"
    assert account.table.running() == 2


def test_contradicting_parents_make_no_cycle() -> None:
    account = Account()
    account.apply(tetragon_exec(LS, SHELL))
    account.apply(tetragon_exec(SHELL, LS))
    assert account.image("sh").parent is None
    account.apply(tetragon_exit(LS, 20, SHELL), tetragon_exit(SHELL, 30, LS))


def test_tetragons_init_has_the_kernel_as_its_parent_in_its_next_program_too() -> None:
    first = tetragon_process("init", 1, 0, parent_pid=0)
    again = tetragon_process("systemd", 1, 3, "execve")
    account = Account()
    account.apply(tetragon_exec(first), tetragon_exec(again, first, rerun=True))
    assert account.image("systemd").process.parent_pid == 0


def test_tetragon_runs_another_program_in_the_same_process() -> None:
    cat = tetragon_process("cat", 60, 3, "execve")
    account = Account()
    account.apply(tetragon_exec(LS, SHELL))
    assert told(account.apply(tetragon_exec(cat, LS, rerun=True))) == [("end", "ls", "exec"), ("exec", "cat")]
    assert account.image("cat").parent_exec_id == "ls"
    assert account.image("cat").ancestors == ("ls", "sh")


def test_tetragon_runs_another_program_after_one_that_was_not_seen() -> None:
    cat = tetragon_process("cat", 60, 3, "execve", parent_pid=50)
    account = Account()
    assert told(account.apply(tetragon_exec(cat, LS, rerun=True))) == [("end", "ls", "exec"), ("exec", "cat")]
    assert told(account.apply(tetragon_exit(cat, 4, LS))) == [("end", "cat", "exit")]
    assert account.table.running() == 0
    assert account.dangling() == []


def test_tetragons_exit_of_an_unknown_image() -> None:
    fork = tetragon_process("fork", 60, 2, "clone")
    account = Account()
    assert told(account.apply(tetragon_exit(fork, 3, SHELL, code=4))) == [("end", "fork", "exit")]
    image = account.image("fork")
    assert (image.forked_only, image.parent_exec_id, image.parent_name) == (True, "sh", "sh")
    assert account.count("told: exit of an unknown image") == 1
    assert account.apply(tetragon_exit(fork, 3, SHELL, code=4)) == []
    bare = Exit(time_unix_ns=EPOCH_NS, observed_unix_ns=EPOCH_NS, exec_id="?", pid=9, code=0)
    assert told(account.apply(bare)) == [("end", "?", "exit")]
    assert account.image("?").entry_reason == "unknown_parent"


def test_tetragons_exec_that_comes_after_its_exit() -> None:
    account = Account()
    assert told(account.apply(tetragon_exit(LS, 3, SHELL))) == [("end", "ls", "exit")]
    assert told(account.apply(tetragon_exec(LS, SHELL))) == [("exec", "ls")]
    assert account.apply(tetragon_exec(LS, SHELL), tetragon_exit(LS, 3, SHELL)) == []
    assert account.table.running() == 1, "the shell"


def test_exit_of_a_long_life_whose_beginning_was_not_seen() -> None:
    account = Account()
    assert told(account.apply(tetragon_exit(LS, 60))) == [("open", "ls"), ("end", "ls", "exit")]


def test_tetragons_pids_are_used_again() -> None:
    account = Account()
    first, second = tetragon_process("a", 60, 2), tetragon_process("b", 60, 9)
    account.apply(tetragon_exec(first))
    assert told(account.apply(tetragon_exec(second))) == [("end", "a", "lost"), ("exec", "b")]
    heard = tetragon_process("heard", 70, 2)
    account.apply(tetragon_exec(tetragon_process("child", 71, 3), heard))
    assert told(account.apply(tetragon_exec(tetragon_process("c", 70, 9)))) == [("exec", "c")]
    assert account.count("gap: exit lost") == 1, "whoever left out the exec left out the exit on purpose"


def test_tetragons_late_event_of_an_earlier_process_with_the_pid() -> None:
    account = Account()
    early, late = tetragon_process("early", 60, 2), tetragon_process("late", 60, 9)
    account.apply(tetragon_exec(late))
    assert told(account.apply(tetragon_exec(early))) == [("exec", "early")]
    assert told(account.apply(tetragon_exit(early, 5))) == [("end", "early", "exit")]
    assert told(account.apply(tetragon_exit(tetragon_process("other", 60, 7), 8))) == [("end", "other", "exit")]
    assert told(account.apply(tetragon_exit(late, 12))) == [("end", "late", "exit")]


def test_stale_process_does_not_keep_the_pid_from_a_program_that_ran_another() -> None:
    account = Account()
    account.apply(tetragon_exec(tetragon_process("stale", 60, 1)))
    cat = tetragon_process("cat", 60, 3, "execve")
    assert told(account.apply(tetragon_exec(cat, LS, rerun=True))) == [
        ("end", "ls", "exec"),
        ("end", "stale", "lost"),
        ("exec", "cat"),
    ]
    assert told(account.apply(tetragon_exec(tetragon_process("next", 60, 8))))[0] == ("end", "cat", "lost")


def test_nodes_have_their_own_pids() -> None:
    account = Account()
    account.apply(tetragon_exec(LS))
    other = replace(LS, exec_id="ls2", node="there")
    assert told(account.apply(tetragon_exec(other))) == [("exec", "ls2")]
    assert account.table.running() == 2


def test_metadata_that_came_late_is_taken_from_the_exit() -> None:
    account = Account()
    account.apply(tetragon_exec(LS))
    pod = Pod(namespace="default", name="xwing", uid="u")
    container = Container(id="c" * 64)
    late = replace(LS, pod=pod, pod_uid="u", container=container, container_id=container.id, vpid=7)
    account.apply(tetragon_exit(late, 3))
    process = account.image("ls").process
    assert (process.pod, process.pod_uid, process.container_id, process.vpid) == (pod, "u", "c" * 64, 7)


def test_whole_tetragon_tree() -> None:
    """What the model's kernel does, as Tetragon tells it: the same images, parents and ends."""
    kernel = Kernel()
    events: list[Event] = list(kernel.snapshot())
    shell, fork = kernel.fork(kernel.init)
    events += [fork, kernel.exec(shell, "/bin/bash")]
    subshell, fork = kernel.fork(shell)
    events.append(fork)
    child, fork = kernel.fork(subshell)
    events += [fork, kernel.exec(child, "/bin/ls"), kernel.exec(child, "/bin/cat")]
    events += [kernel.exit(child), kernel.exit(subshell), kernel.exit(shell)]
    account = Account()
    account.apply(*as_tetragon(events))
    for image in account.images.values():
        true = kernel.images[image.exec_id]
        if image.parent_exec_id is not None:
            assert image.parent_exec_id == true.parent
    assert {exec_id for exec_id, ended in account.ended.items() if ended.image.ended == "exit"} == {
        task.exec_id for task in (child, subshell, shell)
    }
    assert account.dangling() == []


def test_opened_and_ended_are_told_of_the_same_span() -> None:
    machine = Machine()
    parent = machine.run("/bin/sh")
    machine.kernel.sleep(20)
    child = machine.run(parent=parent)
    (opened,) = [
        o for o in of(Opened, machine.account.apply(machine.kernel.exit(child))) if o.image.exec_id == parent.exec_id
    ]
    (ended,) = of(Ended, machine.account.apply(machine.kernel.exit(parent)))
    assert opened.image is ended.image


def test_empty_fork_parent() -> None:
    account = Account()
    fork = Fork(time_unix_ns=EPOCH_NS, exec_id="f", parent_exec_id="", pid=5, parent_pid=0, boot_start_ns=1)
    account.apply(fork)
    assert account.table.running() == 1
    assert (
        account.apply(Exit(time_unix_ns=1, observed_unix_ns=1, exec_id="f", pid=5, code=0))[0].image.parent_exec_id
        is None
    )
