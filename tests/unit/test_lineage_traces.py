"""The process table: each rule of traces, links and opening spans."""

from __future__ import annotations

from msgspec.structs import replace

from otel_procmon.config import TraceOptions
from otel_procmon.lineage.ids import SpanIds, make_exec_id
from otel_procmon.lineage.image import Ended, Opened, SpanRef
from tests.unit.kernel_model import NODE
from tests.unit.lineage_account import BOOT_ID, of, told
from tests.unit.lineage_machine import Machine, S, trace_of


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
