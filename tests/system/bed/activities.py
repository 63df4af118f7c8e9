"""Things that people and machines do on a host, to be looked at in a backend afterwards.

Each is started by a program of the name that one would expect (cron, sshd, nginx, ci-runner): short Python scripts, which
otel-procmon tells by the script's name, as what they do is what counts: sessions, terminals, children. What they start
are the real programs.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT
from tests.system.bed.enclosure import BOUND_SECONDS, cgroup_roots, end_cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator

OOM_LIMIT_BYTES = 64 << 20
_SCRIPTS = {
    # Between the tester's terminal, if there is one, and the activities.
    "launcher": "subprocess.Popen(sys.argv[1:], start_new_session=True).wait()",
    # A job: a session of its own, without a terminal.
    "cron": 'subprocess.Popen(["sh", "-c", sys.argv[1]], start_new_session=True).wait()',
    "ci-runner": 'subprocess.Popen(["sh", "-c", sys.argv[1]], start_new_session=True).wait()',
    # A daemon: runs each line that it is sent, and says when that has ended.
    "nginx": """\
for line in sys.stdin:
    subprocess.run(["sh", "-c", line.strip()], stdout=subprocess.DEVNULL)
    print("done", flush=True)
""",
    # Somebody at a terminal, who types the lines.
    "sshd": """\
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "--noprofile"])
os.set_inheritable(terminal, False)
def show():
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        pass
shown = threading.Thread(target=show)
shown.start()
for line in sys.stdin:
    os.write(terminal, line.encode())
shown.join()
os.waitpid(pid, 0)
""",
}


class Programs(NamedTuple):
    """The scripts, in a directory whose name no other process has in its path."""

    directory: Path
    word: str

    def filter(self) -> str:
        """Tetragon's allow list for what they are and what they start, at any depth."""
        fields = ("binary_regex", "parent_binary_regex", "ancestor_binary_regex")
        return "export-allowlist:\n" + "".join(f"- {field}: ['{self.word}']\n" for field in fields)

    def command(self, name: str, *arguments: str) -> list[str]:
        """Run the script in a session of its own whose parent has no terminal."""
        return [str(self.directory / "launcher"), str(self.directory / name), *arguments]

    def run(self, name: str, *arguments: str) -> None:
        """Run the script to its end."""
        subprocess.run(
            self.command(name, *arguments),
            env=ENVIRONMENT,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=BOUND_SECONDS,
            check=True,
        )


def write_programs(directory: Path) -> Programs:
    """The scripts, below `directory`."""
    word = f"activity-{marker()}"
    into = directory / word
    into.mkdir()
    for name, code in _SCRIPTS.items():
        script = into / name
        # Isolated: starts no programs of its own accord, whatever this Python's environment has.
        script.write_text(
            f"#!{Path(sys.executable).resolve()} -I\nimport os, pty, subprocess, sys, threading\n{code}\n"
        )
        script.chmod(0o755)
    return Programs(into, word)


class Fed:
    """A script that takes lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def send(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Wait for a line of its own."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        """Send no more, and wait for its end. Does nothing if it has ended before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(BOUND_SECONDS) == 0


@contextmanager
def fed(programs: Programs, name: str) -> Iterator[Fed]:
    """The script, until `Fed.end` or the end of the block."""
    process = subprocess.Popen(
        programs.command(name),
        env=ENVIRONMENT,
        cwd=programs.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Fed(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


@contextmanager
def small_cgroup(name: str) -> Iterator[Path | None]:
    """A cgroup in which there are `OOM_LIMIT_BYTES` of memory; its ``cgroup.procs``. None where there is no such."""
    for root in cgroup_roots():
        top = root / name
        for limit in ("memory.limit_in_bytes", "memory.max"):
            if not _has_memory(root, limit):
                continue
            top.mkdir()
            try:
                (top / limit).write_text(str(OOM_LIMIT_BYTES))
                yield top / "cgroup.procs"
            finally:
                end_cgroups(name)
            return
    yield None


def _has_memory(root: Path, limit: str) -> bool:
    if limit == "memory.limit_in_bytes":
        return (root / limit).exists()
    controllers = root / "cgroup.subtree_control"
    return controllers.exists() and "memory" in controllers.read_text().split()


def uses_memory(procs: Path) -> str:
    """A line for a shell: a Python in the cgroup, which uses more memory than it may."""
    python = Path(sys.executable).resolve()
    return f'echo $$ > {procs} && exec {python} -I -c "bytearray({OOM_LIMIT_BYTES * 4})"'
