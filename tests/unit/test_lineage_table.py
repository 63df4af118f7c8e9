"""The process table: each row of the design's table of what happens, and the bounds of its memory."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from msgspec.structs import replace

from otel_procmon.config import LineageOptions, TraceOptions
from otel_procmon.events import Exec, Exit, Fork, Process
from otel_procmon.lineage.image import Image
from tests.unit.kernel_model import EPOCH_NS, NODE, Task
from tests.unit.lineage_account import Account
from tests.unit.lineage_machine import Machine, S, trace_of

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


def test_empty_fork_parent() -> None:
    account = Account()
    fork = Fork(time_unix_ns=EPOCH_NS, exec_id="f", parent_exec_id="", pid=5, parent_pid=0, boot_start_ns=1)
    account.apply(fork)
    assert account.table.running() == 1
    assert (
        account.apply(Exit(time_unix_ns=1, observed_unix_ns=1, exec_id="f", pid=5, code=0))[0].image.parent_exec_id
        is None
    )


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
