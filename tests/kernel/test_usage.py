"""What processes used, as whom they ran and where: against the kernel's own words for it."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.kernel.truth.cgroups import cgroup
from tests.kernel.truth.family import exec_id, with_word
from tests.kernel.truth.machine import bound
from tests.kernel.truth.running import Agent, RunningAgent, cannot_run
from tests.kernel.truth.shell import marker, only_marked
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.truth.otlp import Log, Span

pytestmark = [pytest.mark.kernel, pytest.mark.every_loader, pytest.mark.usefixtures("require_kernel")]

MIB = 1024 * 1024
PAGE_BYTES = resource.getpagesize()
NOBODY = 65534
ANSWER_SECONDS = bound(60)


class Told(NamedTuple):
    """One program's records."""

    exec: Log
    exit: Log
    span: Span

    def value(self, name: str) -> Any:
        """An attribute, the same in the exit's record and the span; None if it is in neither."""
        told = self.exit.attributes.get(name)
        assert self.span.attributes.get(name) == told
        return told


@pytest.fixture(scope="module")
def agent(running_agent: RunningAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for all of these tests: each looks for its own programs only."""
    directory = tmp_path_factory.mktemp("agent")
    with running_agent(directory, *only_marked(directory)) as running:
        yield running


def told(agent: Agent, word: str) -> Told:
    """What was told of the one program that was called with `word`, and has ended."""
    agent.wait_until(lambda: len(with_word(agent.logs(), word)) >= 2, "the program was told of")
    agent.wait_until(lambda: bool(with_word(agent.spans(), word)), "its span was sent")
    exec_, exit_ = with_word(agent.logs(), word)
    (span,) = with_word(agent.spans(), word)
    assert (exec_.event_name, exit_.event_name) == ("process.exec", "process.exit")
    return Told(exec_, exit_, span)


class Run(NamedTuple):
    """A program that has ended, by wait4(2)."""

    word: str
    status: int
    usage: resource.struct_rusage
    output: str


def run(*command: str, **options: Any) -> Run:
    """Run `command` with a marker as its last argument, and wait for it."""
    word = marker()
    process = subprocess.Popen(
        [*command, word], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options
    )
    assert process.stdout is not None
    output = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(word, status, usage, output.decode())


def python(program: str, **options: Any) -> Run:
    """Run a Python program, without what the environment may add to it."""
    return run(sys.executable, "-I", "-S", "-c", program, **options)


# Until enough more of the kind that is meant has been used than of the other: where instructions are emulated, the
# interpreter's start alone takes longer than all of it elsewhere.
COMPUTE = """
import os, time
while (used := os.times()).user < used.system + 0.3:
    sum(range(10000))
print(time.process_time())
"""
SYSTEM = """
import os, time
zero = os.open("/dev/zero", os.O_RDONLY)
while (used := os.times()).system < used.user + 0.3:
    os.read(zero, 4 << 20)
print(time.process_time())
"""


@pytest.mark.parametrize(("program", "most"), [(COMPUTE, "cpu_user"), (SYSTEM, "cpu_system")], ids=["user", "system"])
def test_cpu_time(program: str, most: str, agent: Agent) -> None:
    done = python(program)
    of = told(agent, done.word)
    user, system = of.value("procmon.usage.cpu_user"), of.value("procmon.usage.cpu_system")
    # The process itself looked a little earlier, wait4 a little later: when its memory had been given back, too.
    assert float(done.output) - 0.01 <= user + system <= done.usage.ru_utime + done.usage.ru_stime + 0.011
    assert of.value(f"procmon.usage.{most}") > (user + system) / 2
    # Both divide by the same samples of the tick; of those there may be one or two more at the end.
    assert user == pytest.approx(done.usage.ru_utime, abs=0.1)


def test_short_program_used_some_time(agent: Agent) -> None:
    done = run("true")
    of = told(agent, done.word)
    spent = of.value("procmon.usage.cpu_user") + of.value("procmon.usage.cpu_system")
    assert 0 < spent <= done.usage.ru_utime + done.usage.ru_stime + 0.011


def test_threads_count(agent: Agent) -> None:
    """Also those that ended before the process did."""
    program = """
import threading, time
def work():
    while time.thread_time() < 0.1:
        sum(range(1000))
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(time.process_time())
"""
    done = python(program)
    of = told(agent, done.word)
    spent = of.value("procmon.usage.cpu_user") + of.value("procmon.usage.cpu_system")
    assert spent >= float(done.output) - 0.01
    assert spent >= 0.3


@pytest.mark.parametrize("mib", [0, 48])
def test_max_rss(mib: int, agent: Agent) -> None:
    done = python(f"block = bytearray({mib} << 20)\nfor at in range(0, len(block), 4096): block[at] = 1")
    rss = told(agent, done.word).value("procmon.usage.max_rss")
    # What the kernel reports is the value that it keeps from when the program ended.
    assert rss == done.usage.ru_maxrss * 1024
    assert rss > mib * MIB


def test_io(agent: Agent, tmp_path: Path) -> None:
    program = f"""
import os
source = os.open("/dev/zero", os.O_RDONLY)
target = os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT)
for _ in range(3):
    os.write(target, os.read(source, {MIB}))
print(open("/proc/self/io").read())
"""
    done = python(program)
    of = told(agent, done.word)
    kernels = dict(line.split(": ") for line in done.output.splitlines() if line)
    # After it read those, it read the rest of the file, and wrote them.
    assert 0 <= of.value("procmon.usage.io_read") - int(kernels["rchar"]) <= 4096
    assert 0 < of.value("procmon.usage.io_written") - int(kernels["wchar"]) <= 4096
    assert of.value("procmon.usage.io_written") == 3 * MIB + len(done.output)


def test_io_of_children_that_were_waited_for(agent: Agent, tmp_path: Path) -> None:
    """The kernel adds it to the parent's, in /proc/<pid>/io too."""
    word = marker()
    done = run("sh", "-c", f"head -c {MIB} /dev/zero > {tmp_path / 'file'}; sh -c exit {word}; exit 0")
    shell, last = told(agent, done.word), told(agent, word)
    assert last.value("procmon.parent_exec_id") == exec_id(shell.exit)
    assert shell.value("procmon.usage.io_written") >= MIB
    assert last.value("procmon.usage.io_written") == 0


class MemoryCgroup:
    """Cgroup v1's memory controller, or v2's."""

    def __init__(self) -> None:
        name = f"otel-procmon-test-{os.getpid()}"
        v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        if (v1 / "memory.limit_in_bytes").exists():
            self.path, self._limit, swap = v1 / name, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
        elif "memory" in self._words(v2 / "cgroup.subtree_control"):
            self.path, self._limit, swap = v2 / name, "memory.max", "memory.swap.max"
        else:
            cannot_run("kernel", "this host has no memory controller in which a cgroup could be made")
        self._swap = swap

    @staticmethod
    def _words(file: Path) -> list[str]:
        return file.read_text().split() if file.exists() else []

    @contextmanager
    def limited(self, size: int) -> Iterator[Path]:
        """The file that takes pids, of a cgroup with `size` bytes of memory and no swap."""
        try:
            self.path.mkdir()
        except OSError as error:
            cannot_run("kernel", f"no cgroup can be made ({error})")
        try:
            (self.path / self._limit).write_text(str(size))
            if (self.path / self._swap).exists():
                (self.path / self._swap).write_text(str(size if "memsw" in self._swap else 0))
            yield self.path / "cgroup.procs"
        finally:
            self.path.rmdir()


def test_oom_kill(agent: Agent) -> None:
    with MemoryCgroup().limited(24 * MIB) as processes:

        def enter() -> None:
            processes.write_text(str(os.getpid()))

        done = python("bytearray(512 << 20)", preexec_fn=enter)
    assert os.WTERMSIG(done.status) == signal.SIGKILL
    of = told(agent, done.word)
    assert of.value("procmon.exit.signal") == "SIGKILL"
    assert of.value("procmon.exit.oom_killed") is True
    assert of.value("procmon.exit.core_dumped") is False


def test_kill_that_is_not_for_lack_of_memory(agent: Agent) -> None:
    done = run("sh", "-c", "kill -KILL $$")
    of = told(agent, done.word)
    assert of.value("procmon.exit.signal") == "SIGKILL"
    assert of.value("procmon.exit.oom_killed") is False
    assert of.value("process.exit.code") is None
    assert of.value("error.type") == "SIGKILL"
    assert of.exit.attributes["process.exit.time"]


PR_SET_DUMPABLE = 4


@pytest.mark.parametrize("dumpable", [True, False])
def test_core_dump(dumpable: bool, agent: Agent, tmp_path: Path) -> None:
    """Whether there is one, depends on the host too: what wait4 says counts."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    program = f"import ctypes, os; ctypes.CDLL(None).prctl({PR_SET_DUMPABLE}, {int(dumpable)}); os.kill(os.getpid(), 6)"
    done = python(program, preexec_fn=prepare, cwd=tmp_path)
    assert os.WTERMSIG(done.status) == signal.SIGABRT
    of = told(agent, done.word)
    assert of.value("procmon.exit.signal") == "SIGABRT"
    assert of.value("procmon.exit.core_dumped") is os.WCOREDUMP(done.status)
    assert dumpable or not os.WCOREDUMP(done.status)


def test_user(agent: Agent) -> None:
    done = run("true", user=NOBODY, group=NOBODY, extra_groups=[])
    of = told(agent, done.word)
    assert (of.value("process.user.id"), of.value("process.real_user.id")) == (NOBODY, NOBODY)
    assert of.value("process.user.name") == "nobody"


def test_setuid_program(agent: Agent, tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        cannot_run("kernel", f"{tmp_path} is mounted nosuid")
    program = tmp_path / "true-as-nobody"
    program.write_bytes(Path("/bin/true").read_bytes())
    os.chown(program, NOBODY, NOBODY)
    program.chmod(0o6755)
    done = run(str(program))
    of = told(agent, done.word)
    assert (of.value("process.user.id"), of.value("process.real_user.id")) == (NOBODY, os.getuid())
    assert of.value("process.user.name") == "nobody"
    assert of.value("process.executable.path") == str(program)


def test_audit_user(agent: Agent) -> None:
    login = Path("/proc/self/loginuid")
    if not login.exists():
        cannot_run("kernel", "this kernel is built without audit")
    own = int(login.read_text())
    as_it_is = run("true")
    changed = run("sh", "-c", 'echo 4242 > /proc/self/loginuid && exec sh -c exit "$0"')
    assert told(agent, as_it_is.word).value("procmon.auid") == (None if own == 2**32 - 1 else own)
    if changed.status:
        cannot_run("kernel", "the login uid cannot be set here")
    agent.wait_until(lambda: len(with_word(agent.logs(), changed.word)) == 3, "both programs were told of")
    assert [log.attributes.get("procmon.auid") for log in with_word(agent.logs(), changed.word)][1:] == [4242, 4242]


def test_terminal(agent: Agent) -> None:
    word = marker()
    without = run("true", start_new_session=True)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", f"/bin/true {word}; exit 0"])
    try:
        assert os.waitpid(pid, 0) == (pid, 0)
    finally:
        os.close(terminal)
    assert told(agent, without.word).value("process.interactive") is False
    of = told(agent, word)
    assert of.value("process.interactive") is True
    assert of.value("process.session_leader.pid") == pid


def test_working_directory(agent: Agent, tmp_path: Path) -> None:
    here, gone = tmp_path / "here ünd", tmp_path / "gone"
    here.mkdir()
    gone.mkdir()
    plain = run("true", cwd=here)
    root = run("true", cwd="/")
    deleted = run("true", cwd=gone, preexec_fn=gone.rmdir)
    assert told(agent, plain.word).value("process.working_directory") == str(here)
    assert told(agent, root.word).value("process.working_directory") == "/"
    assert told(agent, deleted.word).value("process.working_directory") == f"{gone} (deleted)"


def unified_hierarchy() -> Path:
    """Where cgroup v2 is mounted."""
    mounts = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    unified = [Path(fields.split()[4]) for fields, _, kind in mounts if kind.split()[0] == "cgroup2"]
    if not unified:
        cannot_run("kernel", "cgroup v2 is not mounted")
    return unified[0]


@contextmanager
def unified_cgroup(*names: str) -> Iterator[tuple[str, Path]]:
    """A new cgroup: its path in the unified hierarchy, and the file that takes pids."""
    with cgroup(unified_hierarchy(), *names) as processes:
        yield f"/{'/'.join(names)}", processes


def test_container(agent: Agent) -> None:
    """As a runtime does it: a process goes into the container's cgroup, and then runs its program."""
    container, pod = uuid.uuid4().hex * 2, str(uuid.uuid4())
    word = marker()
    with unified_cgroup("kubepods", "besteffort", f"pod{pod}", container) as (path, processes):
        outer = run(
            "sh", "-c", f'echo $$ > {processes}; sh -c "/bin/true {word}.below; exit 0" {word}.first; (exit 9); exit 0'
        )
        assert outer.status == 0
    agent.wait_until(lambda: len(with_word(agent.spans(), outer.word)) == 2, "the runtime and its fork were told of")
    runtime = with_word(agent.spans(), outer.word)[-1]
    assert not {"container.id", "k8s.pod.uid"} & runtime.resource.keys()

    first, below = told(agent, f"{word}.first"), told(agent, f"{word}.below")
    for record in (*first, *below):
        assert record.resource["container.id"] == container
        assert record.resource["k8s.pod.uid"] == pod
        assert record.resource["host.id"] == runtime.resource["host.id"]
        assert record.attributes["process.linux.cgroup"] == path
    assert first.span.attributes["procmon.entry.reason"] == "container"
    assert not first.span.parent_span_id
    assert first.span.trace_id != runtime.trace_id
    assert first.span.links == ((runtime.trace_id, runtime.span_id),)
    assert (below.span.trace_id, below.span.parent_span_id) == (first.span.trace_id, first.span.span_id)
    assert "procmon.entry.reason" not in below.span.attributes
    # The name of a user in a container is not what the host's passwd file says.
    assert first.value("process.user.name") is None
    assert runtime.attributes.get("process.user.name") == "root"


def test_process_in_a_container_is_discovered(running_agent: RunningAgent, tmp_path: Path) -> None:
    container, word = uuid.uuid4().hex * 2, marker()
    with ExitStack() as stack:
        path, processes = stack.enter_context(unified_cgroup("system.slice", f"docker-{container}.scope"))
        process = subprocess.Popen(
            ["sh", "-c", "read line", word],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            preexec_fn=lambda: processes.write_text(str(os.getpid())),  # noqa: PLW1509 - no threads here
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        with running_agent(tmp_path, *only_marked(tmp_path)) as later:
            later.wait_until(lambda: bool(with_word(later.logs(), word)), "the process was discovered")
            process.kill()
            process.wait()
    found, ended = with_word(later.logs(), word)
    assert (found.event_name, ended.event_name) == ("process.discovered", "process.exit")
    for log in (found, ended):
        assert log.resource["container.id"] == container
        assert log.resource["container.runtime.name"] == "docker"
        assert log.attributes["process.linux.cgroup"] == path
    span = next(span for span in with_word(later.spans(), word) if span.span_id == found.span_id)
    assert span.attributes["procmon.entry.reason"] == "container"
