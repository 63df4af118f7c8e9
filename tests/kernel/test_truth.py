"""The truth test: real workloads, watched by the agent and by strace at the same time, compared tree against tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.truth import witness, workloads
from tests.kernel.truth.compare import (
    Account,
    AgentTree,
    Difference,
    agent_tree,
    below,
    compare,
    contradictions,
    read_account,
)
from tests.kernel.truth.machine import EMULATED, bound, fewer
from tests.kernel.truth.running import RunningAgent, cannot_run
from tests.kernel.truth.tree import Exit, Image, Process

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

pytestmark = pytest.mark.kernel

TORTURE = Path(__file__).parent / "truth" / "torture.c"
ROWS = re.findall(r'^\t\{ "([^"]+)", ', TORTURE.read_text(), re.MULTILINE)
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
WORKLOAD_SECONDS = bound(120)
"""Bound after which a workload counts as stuck."""

SHORT_PROCESSES = fewer(20_000)


@dataclass(frozen=True, slots=True)
class Observed:
    """One run of a workload as both told it."""

    witnessed: list[Process]
    tree: AgentTree
    differences: list[Difference]
    agent_stderr: str
    account: Account

    def root(self) -> Image:
        """The image that the workload began with."""
        return self.witnessed[0].images[0]

    def agents_images(self, *argv: str) -> list[Image]:
        """The images of the agent's tree whose arguments are these."""
        return [image for process in self.tree.processes for image in process.images if image.argv == argv]


@pytest.fixture(scope="session")
def require_tools(require_kernel: None) -> None:
    """Skip, or fail, where the witness or the workloads cannot run."""
    missing = [tool for tool in ("strace", "gcc", "make", "sh") if shutil.which(tool) is None]
    if missing:
        cannot_run("kernel", f"the truth test needs {', '.join(missing)}")


@pytest.fixture(scope="session")
def torture(require_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled torture program."""
    program = tmp_path_factory.mktemp("torture") / "torture"
    workloads.compile_torture(TORTURE, program)
    return program


@contextmanager
def core_files() -> Iterator[None]:
    """Core dumps go into a file of the working directory meanwhile, so that whether one is made depends on nothing."""
    pattern = CORE_PATTERN.read_bytes()
    if not re.search(rb"[|/@]", pattern):
        yield
        return
    CORE_PATTERN.write_bytes(b"core\n")
    try:
        yield
    finally:
        CORE_PATTERN.write_bytes(pattern)


def observe(
    running_agent: RunningAgent, directory: Path, *command: str, env: Mapping[str, str] | None = None
) -> Observed:
    """Run `command` in `directory`/work under strace while the agent captures. It must exit 0."""
    work, trace, account = directory / "work", directory / "trace", directory / "account"
    work.mkdir(exist_ok=True)
    with running_agent(directory) as agent:
        done = subprocess.run(
            [*witness.COMMAND, trace, *command],
            cwd=work,
            env={**workloads.ENVIRONMENT, "TORTURE_ACCOUNT": str(account), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=WORKLOAD_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode(errors="backslashreplace")
    accounted = read_account(account.read_text().splitlines()) if account.exists() else Account([], [], [])
    # Only the program itself knows what this kernel makes of no arguments.
    no_arguments = () if any(count == 0 for _, count, _, _ in accounted.ran) else (b"",)
    witnessed = witness.parse_file(trace, work, no_arguments)
    root = witnessed[0]
    tree = agent_tree(agent.logs(), agent.spans(), root.pid, root.images[0].argv)
    return Observed(witnessed, tree, compare(witnessed, tree), agent.stderr, accounted)


def report(differences: Iterable[object], observed: Observed) -> str:
    """The differences, readable; ``""`` if there are none."""
    lines = [str(difference) for difference in differences]
    if not lines:
        return ""
    more = [f"… and {len(lines) - 50} more"] if len(lines) > 50 else []
    return "\n".join(
        [f"{len(lines)} differences", *lines[:50], *more, "--- the agent's stderr:", observed.agent_stderr]
    )


@pytest.fixture(scope="module")
def tortured(running_agent: RunningAgent, torture: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """All rows of the torture program in one run."""
    with core_files():
        return observe(running_agent, tmp_path_factory.mktemp("tortured"), str(torture), "all", uuid.uuid4().hex)


@pytest.mark.every_loader
@pytest.mark.parametrize("row", ROWS)
def test_torture_row(row: str, tortured: Observed) -> None:
    (image,) = [
        image
        for process in tortured.witnessed
        for image in process.images
        if image.argv == ("torture", row) and image.parent is tortured.root()
    ]
    assert not report((d for d in tortured.differences if below(d.image, image)), tortured)


@pytest.mark.every_loader
def test_torture_tree_as_a_whole(tortured: Observed) -> None:
    assert not report(tortured.differences, tortured)


@pytest.mark.every_loader
def test_strace_agrees_with_what_the_torture_program_says(tortured: Observed) -> None:
    assert len(tortured.account.forks) >= len(ROWS)
    assert len(tortured.account.reaped) >= len(ROWS)
    assert len(tortured.account.ran) >= len(ROWS)
    assert not report(contradictions(tortured.account, tortured.witnessed), tortured)


@pytest.mark.every_loader
def test_agent_agrees_with_what_the_torture_program_says(tortured: Observed) -> None:
    assert not report(contradictions(tortured.account, tortured.tree.processes), tortured)


@pytest.mark.every_loader
def test_torture_program_did_what_its_rows_say(tortured: Observed) -> None:
    """The rows' names promise something that `compare` alone would not miss if it did not happen."""
    exits = {process.images[-1].argv[1:2]: process.exit for process in tortured.witnessed}
    assert exits["core-dumped",] == Exit(None, 11, core_dumped=True)
    assert exits["realtime-signal",] == Exit(None, 37)
    sizes = [len(image.raw_argv) for process in tortured.witnessed for image in process.images]
    assert max(sizes) > 2_000_000
    assert any(60_000 < size < 61_000 for size in sizes)
    assert any(b"\xff\xfe" in image.raw_argv for process in tortured.witnessed for image in process.images)


@pytest.mark.every_loader
def test_pid_namespace_has_its_own_pids(tortured: Observed) -> None:
    for code, vpid in (("31", 1), ("30", 2)):
        (image,) = tortured.agents_images("torture", "leaf", code)
        assert tortured.tree.told[image].value("process.vpid") == vpid
        assert image.process.pid != vpid


@pytest.mark.every_loader
def test_session_leader(tortured: Observed) -> None:
    (image,) = tortured.agents_images("torture", "leaf", "32")
    assert tortured.tree.told[image].value("process.session_leader.pid") == image.process.pid
    assert image.parent is not None
    assert tortured.tree.told[image.parent].value("process.session_leader.pid") != image.process.pid


@pytest.mark.every_loader
@pytest.mark.parametrize(
    ("code", "parent", "parent_exit"),
    [
        pytest.param("11", ("torture", "orphan"), Exit(4), id="orphan's parent is the one that forked it"),
        pytest.param("24", ("torture", "clone-parent"), Exit(0), id="CLONE_PARENT's child is its maker's sibling"),
        pytest.param("33", ("torture", "worker-runs-program"), Exit(34), id="fork without exec is a parent"),
        pytest.param("35", ("torture", "worker-execs-later"), Exit(36), id="fork is a parent before its exec"),
        pytest.param("36", ("torture", "worker-execs-later"), Exit(0), id="exec after a fork is the forker's child"),
        pytest.param("15", ("torture", "parent-execs-first"), Exit(0), id="parent is the image at the fork"),
        pytest.param("14", ("torture", "fork-in-thread"), Exit(0), id="threads are their process"),
        pytest.param("12", ("torture", "exec-thread"), Exit(12), id="exec in a thread is the same process"),
    ],
)
def test_agent_names_parent(code: str, parent: tuple[str, ...], parent_exit: Exit, tortured: Observed) -> None:
    """Edges that are easily wrong, held against the torture program's source, not against strace."""
    (image,) = tortured.agents_images("torture", "leaf", code)
    assert image.parent is not None
    assert image.parent.process.exit == parent_exit
    forker = image.parent.parent if image.parent.forked_only else image.parent
    assert forker is not None
    assert forker.argv == parent


@pytest.mark.every_loader
def test_what_is_cut_is_marked(tortured: Observed) -> None:
    """`compare` checks that nothing else is cut; this, that the marking was tested at all."""
    (pid,) = [process.pid for process in tortured.witnessed if any(len(i.raw_argv) > 2_000_000 for i in process.images)]
    (image,) = [image for process in tortured.tree.processes if process.pid == pid for image in process.images]
    assert tortured.tree.told[image].value("procmon.truncated")
    assert image.argv[:3] == ("torture", "leaf", "0")


@pytest.mark.every_kernel
def test_make(running_agent: RunningAgent, require_tools: None, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    sources = workloads.SOURCES // 4 if EMULATED else workloads.SOURCES
    workloads.write_c_project(tmp_path / "work", sources)
    observed = observe(running_agent, tmp_path, "make", "-j4", f"MARKER={uuid.uuid4().hex}")
    assert len(observed.witnessed) > 3 * sources, "gcc, cc1 and as for each source"
    assert not report(observed.differences, observed)


@pytest.mark.every_kernel
def test_configure(running_agent: RunningAgent, require_tools: None, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    workloads.write_configure(tmp_path / "work" / "configure")
    observed = observe(running_agent, tmp_path, "./configure", uuid.uuid4().hex)
    assert len(observed.witnessed) > 500
    assert {process.exit for process in observed.witnessed} >= {Exit(0), Exit(1), Exit(3), Exit(127), Exit(None, 15)}
    assert not report(observed.differences, observed)


@pytest.mark.every_loader
def test_short_processes_as_fast_as_the_machine_can(running_agent: RunningAgent, torture: Path, tmp_path: Path) -> None:
    """Without strace, which would slow them down: the program itself checks each exit code, which tells its number."""
    tiny = tmp_path / "tiny"
    workloads.compile_tiny(TORTURE, tiny)
    command = (str(torture), "burst", str(tiny), str(SHORT_PROCESSES), uuid.uuid4().hex)
    with running_agent(tmp_path) as agent:
        process = subprocess.Popen(command, env=workloads.ENVIRONMENT)
        try:
            assert process.wait(WORKLOAD_SECONDS) == 0
        finally:
            process.kill()
    tree = agent_tree(agent.logs(), agent.spans(), process.pid, command)
    observed = Observed([], tree, [], agent.stderr, Account([], [], []))
    assert not report(tree.differences, observed)

    root, *others = tree.processes
    workers = [other for other in others if other.images[0].forked_only]
    short = [other for other in others if not other.images[0].forked_only]
    assert root.exit == Exit(0)
    assert [worker.exit for worker in workers] == [Exit(0)] * os.sysconf("SC_NPROCESSORS_ONLN")
    assert all(worker.images[0].parent is root.images[0] for worker in workers)

    wrong = []
    by_number: dict[int, Process] = {}
    for other in short:
        (image, *more) = other.images
        number = int("".join(image.argv[1:2]) or -1)
        twice = by_number.setdefault(number, other) is not other
        if twice or more or image.path != str(tiny) or image.argv != (str(tiny), str(number)):
            wrong.append(f"{image}: invented")
            continue
        if other.exit != Exit(number & 255):
            wrong.append(f"{image}: ended with exit {number & 255}, not {other.exit}")
        # The workers were forked one after the other, and take turns in that order.
        worker = workers[number % len(workers)].images[0]
        if image.parent is not worker:
            wrong.append(f"{image}: parent is {worker}, not {image.parent}")
    wrong += [f"number {number} missing" for number in range(SHORT_PROCESSES) if number not in by_number]
    assert not report(wrong, observed)
