"""A running agent for the tests on the kernel, and what a test does where it cannot run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import pytest

from tests.kernel.truth.machine import bound
from tests.kernel.truth.otlp import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.kernel.truth.otlp import Log, Span

START_SECONDS = bound(60)
STOP_SECONDS = bound(120)
"""Bounds after which waiting fails; nothing takes that long unless something is broken."""
ATTACH_SECONDS = 600
"""BCC compiles the program first, which an emulated machine takes minutes for."""
LEDGER = "otel-procmon: ledger: "


def cannot_run(tier: str, reason: str) -> NoReturn:
    """Skip with `reason`, or fail where the environment variable PROCMON_REQUIRE names `tier`."""
    if tier in re.split(r"[\s,]+", os.environ.get("PROCMON_REQUIRE", "")):
        pytest.fail(f"PROCMON_REQUIRE={os.environ['PROCMON_REQUIRE']}, but {reason}", pytrace=False)
    pytest.skip(reason)


def chosen_loader() -> str | None:
    """Who loads the program, from the environment variable PROCMON_SOURCE: ``ebpf`` or ``bcc``; None is the default."""
    loader = os.environ.get("PROCMON_SOURCE") or None
    if loader not in (None, "ebpf", "bcc"):
        pytest.fail(f"PROCMON_SOURCE={loader} is neither ebpf nor bcc", pytrace=False)
    return loader


def pins() -> bool:
    """Whether the chosen loader leaves programs in the kernel. With BCC, what it makes ends with the agent."""
    return chosen_loader() != "bcc"


def require_pins() -> None:
    """Skip what is about pins where the loader has none: that is no gap, whatever tiers are required."""
    if not pins():
        pytest.skip("bcc cannot pin")


class AgentError(Exception):
    """The agent did not start, or did not stop as it should. The message holds what it wrote to stderr."""


class Agent:
    """A running `otel-procmon run`, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], records: Path, stdout: Path, stderr: Path) -> None:
        self.process = process
        self.records = records
        """The OTLP JSON file."""
        self._read = Records(records)
        self._stdout = stdout
        self._stderr = stderr
        self._began_s = time.monotonic()

    @property
    def stdout(self) -> str:
        """What it has written to its standard output so far."""
        return self._stdout.read_text(errors="backslashreplace")

    @property
    def stderr(self) -> str:
        """What it has written to its standard error so far."""
        return self._stderr.read_text(errors="backslashreplace")

    @property
    def told_at_most(self) -> int:
        """How often it may have told of one trouble so far: once a minute."""
        return 1 + int((time.monotonic() - self._began_s) // 60)

    def logs(self) -> list[Log]:
        """The log records that it has written so far: all of them after the ``with`` block."""
        return self._read.logs()

    def spans(self) -> list[Span]:
        """The spans that it has written so far: all of them after the ``with`` block."""
        return self._read.spans()

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Wait for `condition`; AgentError naming `what` if the agent ends first, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None and not condition():
                raise AgentError(self._account(f"the agent exited {self.process.returncode} before {what}"))
            if time.monotonic() > deadline:
                raise AgentError(self._account(f"the agent is not done in {seconds} s: {what}"))
            time.sleep(0.02)

    def ledger(self) -> dict[str, dict[str, int]]:
        """The last ledger line that it has written: counts by place and outcome."""
        line = [line for line in self.stderr.splitlines() if line.startswith(LEDGER)][-1].removeprefix(LEDGER)
        places = (place.partition(": ") for place in line.split("; "))
        return {
            place: {outcome: int(number) for outcome, number in re.findall(r"(?:^|, )(.*?) (\d+)(?=, |$)", outcomes)}
            for place, _, outcomes in places
        }

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Send the signal and wait. AgentError unless it exits 0. Does nothing if it has been stopped before."""
        if self.process.returncode is not None:
            return
        self.process.send_signal(signal_number)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AgentError(self._account(f"the agent did not stop in {STOP_SECONDS} s")) from None
        if code != 0:
            raise AgentError(self._account(f"the agent exited {code}"))

    def kill(self) -> None:
        """End it at once, whatever its state."""
        self.process.kill()
        self.process.wait()

    def _account(self, message: str) -> str:
        return f"{message}\n--- its stderr:\n{self.stderr}"


class RunningAgent(Protocol):
    """The type of the `running_agent` fixture, for annotations."""

    def __call__(
        self, directory: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Agent]:
        """Run the agent with `arguments` and `env` (added to this process's); its files go into `directory`."""


@contextmanager
def run_command(
    directory: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    records: Path | None = None,
    stdout: int | None = None,
    through: Sequence[str] = (),
) -> Iterator[Agent]:
    """`otel-procmon ARGUMENTS` of this Python, attached when the block begins; stopped with SIGTERM after it.

    Of this process's environment, OTEL_ variables and proxies are left out. Raises AgentError if it does not attach,
    or does not exit 0. May be used many times with one directory: each run gets its own files.

    Args:
        directory: Where standard output and error go.
        arguments: Of the command line, the command first.
        env: Added to the environment.
        records: Where these arguments make it write OTLP JSON, if they do.
        stdout: A descriptor to be its standard output instead of a file.
        through: A command that runs the arguments that follow in its own process, by which the agent is run.
    """
    run = sum(1 for _ in directory.glob("agent-*.stderr"))
    out_path, err_path = directory / f"agent-{run}.stdout", directory / f"agent-{run}.stderr"
    records = records or directory / f"agent-{run}.jsonl"
    records.touch()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OTEL_") and not name.lower().endswith("_proxy")
    }
    if arguments[0] in {"run", "watch"} and "--source" not in arguments and (loader := chosen_loader()) is not None:
        arguments += ("--source", loader)
    if arguments[0] in {"run", "watch"} and "--spool" not in arguments:
        arguments += ("--spool", str(directory / f"agent-{run}.spool"))
    with out_path.open("wb") as out, err_path.open("wb") as err:
        process = subprocess.Popen(
            [*through, sys.executable, "-m", "otel_procmon", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out if stdout is None else stdout,
            stderr=err,
            env={**kept, **(env or {})},
        )
    agent = Agent(process, records, out_path, err_path)
    try:
        agent.wait_until(lambda: "capturing" in agent.stderr, "it was capturing", ATTACH_SECONDS)
        yield agent
        agent.stop()
    finally:
        if process.poll() is None:
            agent.kill()


@contextmanager
def run_agent(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Agent]:
    """`run_command` of ``run``, with OTLP JSON as an output."""
    records = directory / f"agent-{sum(1 for _ in directory.glob('agent-*.stderr'))}.jsonl"
    with run_command(directory, "run", "-o", f"otlp-json:{records}", *arguments, env=env, records=records) as agent:
        yield agent
