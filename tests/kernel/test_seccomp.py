"""The seccomp profile of the examples: the agent, with everything on, calls nothing that it does not allow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.truth.everything import everything, for_any_user, place_for_pins
from tests.kernel.truth.family import with_word
from tests.kernel.truth.running import cannot_run, run_command
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from tests.kernel.truth.receiver import Protocol

EXAMPLES = Path(__file__).parents[2] / "examples"
PROFILE = EXAMPLES / "kubernetes/seccomp.json"
UNIT = EXAMPLES / "systemd/otel-procmon.service"
STARTED_WITH = ("BPF", "PERFMON", "SYS_PTRACE", "SETUID", "SETGID", "CHOWN")
USER = "65534:65534"
NEVER = (
    "ptrace",
    "process_vm_writev",
    "listen",
    "accept",
    "accept4",
    "mount",
    "setns",
    "unshare",
    "kill",
    "init_module",
)


def confined(directory: Path, profile: Path) -> tuple[str, ...]:
    """The command that runs another one in a container with `profile`."""
    if shutil.which("runc") is None:
        cannot_run("kernel", "runc is not installed: apt-get install runc")
    module = ("-m", "tests.kernel.truth.confined", str(directory / "bundle"), str(profile), ",".join(STARTED_WITH))
    # The tests are not installed: what is run as a module is found in the working directory.
    return ("env", "-u", "PYTHONSAFEPATH", sys.executable, *module)


@pytest.mark.kernel
@pytest.mark.usefixtures("require_kernel")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_nothing_is_refused(protocol: Protocol) -> None:
    inside, outside = marker(), marker()
    with ExitStack() as stack:
        parties = stack.enter_context(everything(protocol))
        pins = stack.enter_context(place_for_pins(parties.directory))
        through = (*for_any_user(parties.directory, pins), *confined(parties.directory, PROFILE))
        options = ("run", *parties.arguments, "--user", USER, "-v")
        agent = stack.enter_context(run_command(parties.directory, *options, env=parties.env, through=through))
        parties.run_in_container(inside)
        subprocess.run(["/bin/sh", "-c", "exit 7", outside], env=ENVIRONMENT, check=False)
        received, seen = parties.received, parties.received.metrics
        for word in (inside, outside):
            agent.wait_until(lambda word=word: len(with_word(received.logs, word)) >= 2, "it delivered logs")  # type: ignore[misc]
            agent.wait_until(lambda word=word: bool(with_word(received.spans, word)), "it delivered spans")  # type: ignore[misc]
        agent.wait_until(lambda: received.metrics > seen, "metrics arrived")
        status = Path(f"/proc/{child_of(agent.process.pid)}/status").read_text()
        told = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
        assert (told["Seccomp"], told["CapPrm"], told["Uid"].split()[0]) == ("2", "0" * 16, "65534")
        # What is not allowed would have ended it, with SIGSYS.
        agent.stop()
        assert agent.ledger()["delivery.logs"]["exported"] > 0


def child_of(pid: int) -> int:
    """The container's process; runc, being Go, has started it from any of its threads."""
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # Threads come and go.
        with suppress(FileNotFoundError, ProcessLookupError):
            children += (task / "children").read_text().split()
    (child,) = children
    return int(child)


@pytest.mark.kernel
@pytest.mark.usefixtures("require_kernel")
def test_what_is_not_allowed_is_the_end(tmp_path: Path) -> None:
    """Without this, the test above would prove nothing."""
    done = subprocess.run(
        [*confined(tmp_path, PROFILE), sys.executable, "-c", "import socket; socket.socket().listen()"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 128 + 31, done.stderr


def allowed() -> set[str]:
    rules = json.loads(PROFILE.read_text())["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_the_profile_names_each_call_once_and_none_that_gives_power_over_others() -> None:
    names = [name for rule in json.loads(PROFILE.read_text())["syscalls"] for name in rule["names"]]
    assert len(names) == len(set(names))
    assert not allowed() & set(NEVER)


def test_the_systemd_unit_allows_the_same() -> None:
    """And clone3, to which RestrictNamespaces= answers ENOSYS, as the profile does."""
    lines = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    names = " ".join(lines).split()
    assert len(names) == len(set(names))
    assert set(names) == allowed() | {"clone3"}
    assert "RestrictNamespaces=yes" in UNIT.read_text().splitlines()
