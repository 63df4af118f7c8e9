"""Whose a process is: a systemd service's by its cgroup in whichever hierarchy, its container's first one's or not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.test_usage import run, told
from tests.kernel.truth.cgroups import cgroup
from tests.kernel.truth.running import Agent, RunningAgent, cannot_run
from tests.kernel.truth.shell import marker, only_marked
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.every_loader, pytest.mark.usefixtures("require_kernel")]


def hierarchies() -> dict[str, Path]:
    """Those of this host that a service may be in and whose path is told: v2, and v1's controllers that systemd uses."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        path, options = Path(fields.split()[4]), kind.split()[-1].split(",")
        if kind.startswith("cgroup2 "):
            found["v2"] = path
        elif kind.startswith("cgroup ") and "pids" in options:
            found["v1 pids"] = path
    return found


@pytest.fixture(scope="module")
def agent(running_agent: RunningAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("agent")
    with running_agent(directory, *only_marked(directory), "-o", f"json:{directory / 'events'}") as running:
        yield running


@pytest.mark.parametrize("hierarchy", hierarchies())
@pytest.mark.parametrize(
    ("names", "service", "units"),
    [
        (("system.slice", "procmon-web.service", "worker"), "procmon-web", ("procmon-web.service", None)),
        (
            ("system.slice", "system-procmon.slice", "procmon@15-main.service"),
            "procmon",
            ("procmon@15-main.service", None),
        ),
        (
            ("user.slice", "user-4711.slice", "user@4711.service", "app.slice", "procmon-sync.service"),
            "procmon-sync",
            ("user@4711.service", "procmon-sync.service"),
        ),
        (("user.slice", "user-4711.slice", "session-4711.scope"), "otel-procmon", (None, None)),
    ],
    ids=["service", "template", "user's", "session"],
)
def test_a_systemd_service(
    hierarchy: str, names: tuple[str, ...], service: str, units: tuple[str | None, str | None], agent: Agent
) -> None:
    word = marker()
    with cgroup(hierarchies()[hierarchy], *names) as processes:
        outer = run("sh", "-c", f'echo $$ > "{processes}"; /bin/true {word}; exit 0')
        assert outer.status == 0
    one = told(agent, word)
    for record in one:
        assert record.resource["service.name"] == service
        found = record.resource.get("procmon.systemd.unit"), record.resource.get("procmon.systemd.user_unit")
        assert found == units
    assert one.exec.attributes["process.linux.cgroup"] == "/" + "/".join(names)


def test_init_tree(agent: Agent) -> None:
    """As a container's first process and an exec into it: a pid namespace's first one, and nsenter."""
    events = agent.records.parent / "events"
    first, child, entered, below = (marker() for _ in range(4))
    script = f"/bin/true {child}; echo ready; read line; exit 0"
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script, first],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as inside:
        assert inside.stdout is not None
        if inside.stdout.readline() != b"ready\n":
            inside.kill()
            cannot_run("kernel", "no pid namespace can be made")
        (pid,) = Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text().split()
        subprocess.run(
            ["nsenter", "--pid", "-t", pid, "sh", "-c", f"/bin/true {below}; exit 0", entered],
            env=ENVIRONMENT,
            check=True,
        )
        inside.communicate(b"\n")

    def found() -> dict[str, set[tuple[bool, bool]]]:
        """What was told of the shells and what they ran, at their beginning and at their end."""
        found: dict[str, set[tuple[bool, bool]]] = {}
        for document in map(json.loads, events.read_text().rpartition("\n")[0].splitlines()):
            process = document.get("process_exit", document.get("process_exec"))["process"]
            word = process.get("arguments", "").rpartition(" ")[2]
            if process["binary"].endswith(("/sh", "/true")) and word in {first, child, entered, below}:
                told = process["in_init_tree"], "inInitTree" in process["flags"].split()
                found.setdefault(word, set()).add(told)
                ended.update([word] if "process_exit" in document else [])
        return found

    ended: set[str] = set()
    agent.wait_until(lambda: bool(found()) and ended == {first, child, entered, below}, "all have ended")
    inside_, outside = {(True, True)}, {(False, False)}
    assert found() == {first: inside_, child: inside_, entered: outside, below: outside}
