"""What the tests of the system tier share: one real Kubernetes node with agents that run on it, and real backends.

`tests/system/bed/prepare` installs and builds what the node is made of; PROCMON_BED names the directory that keeps it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.kernel.truth.running import cannot_run, run_command
from tests.system.bed.backends import Programs, Stores, find_programs, stores
from tests.system.bed.node import NAME, Node, running_node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.kernel.truth.running import Agent

BED = Path(os.environ.get("PROCMON_BED") or "/var/cache/otel-procmon-bed")
TOOLS = ("busybox", "containerd", "ctr", "etcd", "gcc", "ip", "iptables", "nsenter", "openssl", "runc")
HINT = "run tests/system/bed/prepare"


@pytest.fixture(scope="session")
def require_bed() -> None:
    """Skip the test where no node can be run, or fail it where PROCMON_REQUIRE contains ``system``."""
    if os.geteuid() != 0:
        cannot_run("system", "a Kubernetes node needs root")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        cannot_run("system", "this kernel has no BTF")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        cannot_run("system", f"not installed: {', '.join(missing)}: {HINT}")
    if not (BED / "kubernetes/kubelet").exists():
        cannot_run("system", f"{BED} has no kubernetes/kubelet: {HINT}")


@pytest.fixture(scope="session")
def require_bpf() -> None:
    """Skip the test where no agent can run, or fail it where PROCMON_REQUIRE contains ``system``."""
    if os.geteuid() != 0:
        cannot_run("system", "BPF programs need root")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        cannot_run("system", "this kernel has no BTF")


@pytest.fixture(scope="session")
def backends(require_bpf: None) -> Programs:
    """The programs of real backends; skips the test, or fails it, likewise."""
    found = find_programs(BED / "backends")
    if not isinstance(found, Programs):
        cannot_run("system", f"there is no {', no '.join(found)} in {BED}/backends: {HINT}")
    return found


@pytest.fixture(scope="session")
def kept(backends: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Jaeger and Loki, and Tempo if there is one, for all tests that do not break them."""
    with stores(backends, tmp_path_factory.mktemp("stores")) as running:
        yield running


@pytest.fixture(scope="session")
def node(require_bed: None) -> Iterator[Node]:
    """A Kubernetes node that runs."""
    # Short, for the paths of sockets, and not in /tmp, which may be a file system that overlays do not work on.
    directory = Path(tempfile.mkdtemp(prefix="procmon-", dir="/var/tmp"))
    try:
        with running_node(directory, BED / "kubernetes") as node:
            yield node
    finally:
        shutil.rmtree(directory)


class AgentOnNode(Protocol):
    """The type of the `agent_on_node` fixture, for annotations."""

    def __call__(
        self, directory: Path, *arguments: str, api: bool = True, cri: bool = True, kubeconfig: Path | None = None
    ) -> AbstractContextManager[Agent]:
        """Run an agent that writes OTLP JSON; what else it does, `arguments` say. Its files go into `directory`.

        Args:
            directory: For its files.
            arguments: Of ``otel-procmon run``.
            api: Whether it may ask the API server.
            cri: Whether it may ask the container runtime.
            kubeconfig: The one to ask the API server with, instead of the administrator's.
        """


@pytest.fixture(scope="session")
def agent_on_node(node: Node) -> AgentOnNode:
    """An agent that runs on this host as it would on the node, outside of Kubernetes."""

    @contextmanager
    def run(
        directory: Path, *arguments: str, api: bool = True, cri: bool = True, kubeconfig: Path | None = None
    ) -> Iterator[Agent]:
        records = directory / f"records-{sum(1 for _ in directory.glob('records-*'))}.jsonl"
        environment = {
            "NODE_NAME": NAME,
            "KUBECONFIG": str(kubeconfig or node.admin_kubeconfig),
            "CONTAINER_RUNTIME_ENDPOINT": f"unix://{node.cri_socket}",
        }
        asked = directory / f"{records.stem}.yaml"
        asked.write_text(f"containers: {{ask_kubernetes: {json.dumps(api)}, ask_runtime: {json.dumps(cri)}}}\n")
        outputs = ("run", "--config", str(asked), "-o", f"otlp-json:{records}", *arguments)
        with run_command(directory, *outputs, env=environment, records=records, through=node.place.network) as agent:
            yield agent

    return run
