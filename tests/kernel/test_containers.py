"""Which container something runs in, as the kernel's cgroup path tells it: real containers of runc, and moved processes.

Nobody is asked for metadata. What every runtime names its cgroups is in the unit tier (``test_cgroup.py``); here some
of those names are given to runc, and the kernel is asked.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.kernel.truth.family import with_word
from tests.kernel.truth.machine import bound
from tests.kernel.truth.running import cannot_run
from tests.kernel.truth.shell import marker, shell
from tests.system.bed.enclosure import cgroup_roots
from tests.system.bed.images import busybox_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.truth.otlp import Log
    from tests.kernel.truth.running import Agent, RunningAgent

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

FORMS = {
    "kubelet, cgroupfs driver": ("/kubepods/besteffort/pod{uid}/{id}", None, True),
    "kubelet, guaranteed": ("/kubepods/pod{uid}/{id}", None, True),
    "kubelet, a level deeper": ("/a-test/kubepods/burstable/pod{uid}/{id}", None, True),
    "kubelet, systemd driver": (
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/cri-containerd-{id}.scope",
        "containerd",
        True,
    ),
    "CRI-O": (
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid_}.slice/crio-{id}.scope/container",
        "cri-o",
        True,
    ),
    "docker, cgroupfs driver": ("/docker/{id}", "docker", False),
    "docker, systemd driver": ("/system.slice/docker-{id}.scope", "docker", False),
    "podman, cgroupfs": ("/libpod_parent/libpod-{id}", "podman", False),
    "podman, systemd": ("/machine.slice/libpod-{id}.scope/container", "podman", False),
    "docker in docker": ("/docker/{outer}/docker/{id}", "docker", False),
    "kind": ("/docker/{outer}/kubelet/kubepods/besteffort/pod{uid}/{id}", None, True),
}
"""A cgroup's path, the runtime that it tells, and whether it tells a pod."""

OF_EVERY_KERNEL = ("kubelet, cgroupfs driver", "CRI-O", "kind")
"""Those that are tried on every kernel: one of the usual, the longest name, the deepest."""


class Identity(NamedTuple):
    """What is put into a path."""

    id: str
    outer: str
    uid: str

    @classmethod
    def new(cls) -> Identity:
        """One that nobody has had."""
        return cls(uuid.uuid4().hex * 2, uuid.uuid4().hex * 2, str(uuid.uuid4()))

    def path(self, form: str) -> str:
        """The path of that form."""
        return form.format(id=self.id, outer=self.outer, uid=self.uid, uid_=self.uid.replace("-", "_"))


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory for containers."""
    for program, package in (("runc", "runc"), ("busybox", "busybox-static")):
        if shutil.which(program) is None:
            cannot_run("kernel", f"{program} is not installed: apt-get install {package}")
    return busybox_tree(tmp_path_factory.mktemp("busybox"))


@pytest.fixture(scope="module")
def agent(running_agent: RunningAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One for all of these tests, that knows of containers what the kernel tells, and no more."""
    directory = tmp_path_factory.mktemp("agent")
    config = directory / "asks-nobody.yaml"
    config.write_text("containers: {ask_runtime: false, ask_kubernetes: false}\n")
    with running_agent(directory, "--config", str(config)) as running:
        yield running


@contextmanager
def cgroups(path: str, roots: list[Path]) -> Iterator[list[Path]]:
    """The cgroup `path` in the hierarchies `roots`. Those that had to be made are removed; nothing may be left in them."""
    wanted = [root / path[1:] for root in roots]
    made = []
    for cgroup in wanted:
        made += [each for each in (cgroup, *cgroup.parents) if not each.exists()]
        cgroup.mkdir(parents=True, exist_ok=True)
        _initialise_cpuset(cgroup)
    try:
        yield wanted
    finally:
        for directory in sorted(made, key=lambda each: -len(each.parts)):
            # runc has removed its own; of the others one may be in use by somebody else meanwhile.
            with suppress(OSError):
                directory.rmdir()


def _initialise_cpuset(cgroup: Path) -> None:
    """Nothing can be moved into a cpuset of v1 that has no processors yet; a new one has none."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        for directory in reversed([cgroup, *cgroup.parents]):
            file = directory / name
            if file.exists() and not file.read_text().strip() and (directory.parent / name).exists():
                file.write_text((directory.parent / name).read_text())


def run_container(rootfs: Path, bundle: Path, path: str, *command: str) -> None:
    """Run a command in a container of runc whose cgroup is `path`, until it ends."""
    subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(terminal=False, args=list(command))
    # Raising a limit needs CAP_SYS_RESOURCE, which a machine in a cloud may lack.
    del config["process"]["rlimits"]
    config["root"]["path"] = str(rootfs)
    config["linux"]["cgroupsPath"] = path
    # As every runtime does it: inside, the container's own cgroup is the root. The path that is told is the host's.
    config["linux"]["namespaces"].append({"type": "cgroup"})
    config["linux"]["namespaces"] = [
        {"type": kind} for kind in {each["type"] for each in config["linux"]["namespaces"]}
    ]
    (bundle / "config.json").write_text(json.dumps(config))
    name = uuid.uuid4().hex
    subprocess.run(["runc", "run", "--bundle", bundle, name], check=True, stdin=subprocess.DEVNULL, timeout=bound(60))


def in_containers(agent: Agent, word: str, exits: int = 1) -> list[Log]:
    """What was told with `word` when so many ended; not of the runtime, which has it among its arguments if anything."""

    def found() -> list[Log]:
        return [log for log in with_word(agent.logs(), word) if "container.id" in log.resource]

    agent.wait_until(lambda: [log.event_name for log in found()].count("process.exit") == exits, "it was told to end")
    return found()


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=[pytest.mark.every_loader] if form in OF_EVERY_KERNEL else []) for form in FORMS],
)
def test_a_container_is_known_by_its_path(form: str, busybox: Path, agent: Agent, tmp_path: Path) -> None:
    template, runtime, has_pod = FORMS[form]
    identity = Identity.new()
    words = marker(), marker()
    path = identity.path(template)
    with cgroups(path, cgroup_roots()):
        script = f"/bin/sh -c 'exit 3' {words[1]}; exit 0"
        run_container(busybox, tmp_path, path, "/bin/sh", "-c", script, words[0])
    for word in words:
        logs = in_containers(agent, word)
        assert [log.event_name for log in logs] == ["process.exec", "process.exit"]
        for log in logs:
            assert log.resource["container.id"] == identity.id
            assert log.resource.get("container.runtime.name") == runtime
            assert log.resource.get("k8s.pod.uid") == (identity.uid if has_pod else None)
            assert log.attributes["process.linux.cgroup"] == path


def hierarchies() -> dict[str, list[Path]]:
    """Which of this host's hierarchies may have a container's cgroup, while the others have the process in their root.

    Not the named ones alone (``name=systemd``): no controller belongs to them, by which a program could find them.
    """
    roots = cgroup_roots()
    if len(roots) == 1:
        return {"v2": roots}
    unified = [root for root in roots if (root / "cgroup.controllers").exists()]
    v1 = [root for root in roots if root not in unified]
    found = {"v1": v1, **{f"v1, {root.name} alone": [root] for root in v1 if root.name in {"memory", "pids"}}}
    return {**found, "all": roots, "unified alone": unified} if unified else found


@pytest.mark.every_loader
@pytest.mark.parametrize("where", hierarchies())
def test_a_process_that_is_moved_is_where_it_is_when_it_starts_something(where: str, agent: Agent) -> None:
    roots = hierarchies()[where]
    identity = Identity.new()
    before, inside, other, after = (marker() for _ in range(4))
    other_identity = Identity.new()
    first, second = (each.path("/kubepods/besteffort/pod{uid}/{id}") for each in (identity, other_identity))
    with cgroups(first, roots) as firsts, cgroups(second, roots) as seconds, shell() as running:
        for word, targets in ((before, roots), (inside, firsts), (other, seconds), (after, roots)):
            for target in targets:
                (target / "cgroup.procs").write_text(str(running.pid))
            running.run(f"/bin/sh -c 'exit 0' {word}")
        running.end()
    agent.wait_until(lambda: len(with_word(agent.logs(), after)) == 2, "the last was told to end")
    told = {word: with_word(agent.logs(), word) for word in (before, inside, other, after)}
    assert {word: {log.resource.get("container.id") for log in logs} for word, logs in told.items()} == {
        before: {None},
        inside: {identity.id},
        other: {other_identity.id},
        after: {None},
    }


@pytest.mark.every_loader
def test_what_a_container_forks_is_in_the_container(busybox: Path, agent: Agent, tmp_path: Path) -> None:
    identity = Identity.new()
    word = marker()
    path = identity.path("/docker/{id}")
    with cgroups(path, cgroup_roots()):
        run_container(busybox, tmp_path, path, "/bin/sh", "-c", "(exit 5) & wait $!; exit 0", word)
    logs = in_containers(agent, word, exits=2)
    assert sorted(log.attributes["process.exit.code"] for log in logs if log.event_name == "process.exit") == [0, 5]
    assert {log.resource["container.id"] for log in logs} == {identity.id}
