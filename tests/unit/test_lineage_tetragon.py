"""The process table, of Tetragon's events: parents by hearsay, other orders, pids that are used again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from otel_procmon.events import Container, Exec, Exit, Pod, Process
from tests.unit.kernel_model import EPOCH_NS, NODE, Kernel, as_tetragon
from tests.unit.lineage_account import Account, told
from tests.unit.lineage_machine import S

if TYPE_CHECKING:
    from otel_procmon.events import Event


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
