"""What knowing thousands of pods costs: agents on a node of a cluster that has them, against the real API server.

    python benchmarks/pods.py [--pods 5000] [--seconds 60]

Needs root and what `tests/system/bed/prepare` builds. The pods are objects only: they are assigned to nodes that do not
exist, so that nobody runs them. Half of them are spread over a hundred nodes, the others are all on one. Prints, for
agents that ask nobody, that ask an API server without pods, and that are on one of either kind of node: resident memory
(and the part that is not shared), CPU time until it is ready, at rest, and for each change of a pod that it is told of.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import urllib3

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from tests.kernel.truth.running import Agent, run_command  # noqa: E402
from tests.system.bed.enclosure import wait_until  # noqa: E402
from tests.system.bed.node import ADDRESS, ADMIN, Node, running_node  # noqa: E402
from tests.system.conftest import BED  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NODES = 100
CROWDED = "crowded"
CHANGES = 1000
PODS = "/api/v1/namespaces/default/pods"
IMAGE_DIGEST = "8e86f744bfea165fd4ce68caa05abc96500f40130b857773186401926af7e9e6"


class Measured(NamedTuple):
    """What one agent took."""

    rss_mib: float
    private_mib: float
    start_cpu_s: float
    rest_cpu_s: float
    """For each minute."""
    change_cpu_ms: float | None
    """For each change of a pod; None where there were none."""


class Pods:
    """Makes pods, and changes them, over one connection to the API server, which the node's network leads to."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pool = urllib3.HTTPSConnectionPool(
            ADDRESS, 6443, ca_certs=str(node.place.directory / "pki/ca.crt"), timeout=60, maxsize=1
        )

    def request(self, method: str, path: str, body: object, kind: str = "application/json") -> None:
        """Send one request. RuntimeError unless it is answered as wanted."""
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": kind}
        with self._node.place.network_of_this_thread():
            answer = self._pool.request(method, path, body=json.dumps(body), headers=headers)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status}: {answer.data[:500]!r}")

    def make(self, numbers: Iterable[int], node_name: Callable[[int], str], prefix: str) -> None:
        """Running pods with two containers each, as Deployments make them."""
        for number in numbers:
            name = f"{prefix}-7d4b9c{number // 50:04d}-{number:05d}"
            self.request("POST", PODS, _pod(name, prefix, number, node_name(number)))
            self.request("PUT", f"{PODS}/{name}/status", _pod(name, prefix, number, node_name(number)))

    def change(self, number: int, prefix: str, word: int) -> None:
        """Give a pod another annotation, of which the agent is told."""
        name = f"{prefix}-7d4b9c{number // 50:04d}-{number:05d}"
        body = {"metadata": {"annotations": {"change": str(word)}}}
        self.request("PATCH", f"{PODS}/{name}", body, "application/merge-patch+json")


def _pod(name: str, prefix: str, number: int, node_name: str) -> dict[str, object]:
    """A pod as large as usual: labels, annotations, an owner, environment, probes, and the status of two containers."""
    workload = f"{prefix}-{number // 50:04d}"
    containers = [
        {
            "name": each,
            "image": f"registry.example.com/shop/{each}:1.{number // 50}",
            "env": [{"name": f"SETTING_{index}", "value": f"value-{index}-of-{workload}"} for index in range(12)],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
        }
        for each in ("web", "proxy")
    ]
    statuses = [
        {
            "name": each,
            "containerID": f"containerd://{index}{number:063x}",
            "image": f"registry.example.com/shop/{each}:1.{number // 50}",
            "imageID": f"registry.example.com/shop/{each}@sha256:{IMAGE_DIGEST}",
            "ready": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
        for index, each in enumerate(("web", "proxy"))
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": workload,
                "app.kubernetes.io/part-of": "shop",
                "pod-template-hash": f"7d4b9c{number // 50:04d}",
                "team": f"team-{number % 20}",
            },
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": IMAGE_DIGEST},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"{workload}-7d4b9c{number // 50:04d}",
                    "uid": f"00000000-0000-0000-0000-{number // 50:012d}",
                    "controller": True,
                }
            ],
        },
        "spec": {"nodeName": node_name, "containers": containers, "terminationGracePeriodSeconds": 30},
        "status": {
            "phase": "Running",
            "podIP": f"10.{number // 65536}.{number // 256 % 256}.{number % 256}",
            "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": statuses,
        },
    }


def measure(
    node: Node,
    directory: Path,
    node_name: str,
    seconds: float,
    change: Callable[[int], None] | None,
    *,
    api: bool = True,
) -> Measured:
    """Run an agent for the node `node_name`; at its end, `change` is called so many times with a number."""
    config = directory / "pods.yaml"
    # What happens on this host is not what is measured.
    config.write_text(
        f"containers: {{ask_runtime: false, ask_kubernetes: {json.dumps(api)}}}\nfilters: {{binaries: ['^$']}}\n"
    )
    environment = {"NODE_NAME": node_name, "KUBECONFIG": str(node.admin_kubeconfig), "PYTHONSAFEPATH": "1"}
    arguments = ("run", "--config", str(config), "-o", f"compact:{directory}/lines", "-v")
    with run_command(directory, *arguments, env=environment, through=node.place.network) as agent:
        settle(agent)
        start_cpu = cpu_s(agent)
        time.sleep(seconds)
        rest_cpu = (cpu_s(agent) - start_cpu) * 60 / seconds
        rss, private = memory_mib(agent)
        change_cpu = None
        if change is not None:
            before, began = cpu_s(agent), time.monotonic()
            for number in range(CHANGES):
                change(number)
            settle(agent)
            at_rest = rest_cpu * (time.monotonic() - began) / 60
            change_cpu = (cpu_s(agent) - before - at_rest) * 1000 / CHANGES
    return Measured(rss, private, start_cpu, rest_cpu, change_cpu)


def settle(agent: Agent) -> None:
    """Wait until the agent takes less than a twentieth of a processor for two seconds."""

    def quiet() -> bool:
        before = cpu_s(agent)
        time.sleep(2)
        return cpu_s(agent) - before < 0.1

    wait_until(quiet, "the agent is at rest")


def cpu_s(agent: Agent) -> float:
    """CPU time of the agent so far. nsenter has become the agent: it has its pid."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_mib(agent: Agent) -> tuple[float, float]:
    """Resident memory, and the part of it that is this process's alone."""
    text = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text()
    fields = {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return fields["Rss:"] / 1024, (fields["Private_Clean:"] + fields["Private_Dirty:"]) / 1024


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    half = options.pods // 2
    directory = Path(tempfile.mkdtemp(prefix="procmon-", dir="/var/tmp"))
    try:
        with running_node(directory, BED / "kubernetes") as node:
            # It would take away pods of nodes that do not exist.
            node.controllers.stop()
            pods = Pods(node)
            rows = {
                "asks nobody": measure(node, directory, "node-0", options.seconds, None, api=False),
                "API server without pods": measure(node, directory, "node-0", options.seconds, None),
            }
            began = time.monotonic()
            pods.make(range(half), lambda number: f"node-{number % NODES}", "spread")
            pods.make(range(half, options.pods), lambda _: CROWDED, "crowd")
            print(f"{options.pods} pods made in {time.monotonic() - began:.0f} s", file=sys.stderr)
            rows[f"{options.pods} pods, {half // NODES} of them on this node"] = measure(
                node, directory, "node-0", options.seconds, lambda number: pods.change(number % half, "spread", number)
            )
            rows[f"{options.pods} pods, {options.pods - half} of them on this node"] = measure(
                node, directory, CROWDED, options.seconds, lambda number: pods.change(half + number, "crowd", number)
            )
    finally:
        shutil.rmtree(directory)
    print("| agent | RSS, MiB | private, MiB | CPU to start, s | CPU at rest, s a minute | CPU for a change, ms |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, row in rows.items():
        change = "" if row.change_cpu_ms is None else f"{row.change_cpu_ms:.2f}"
        print(
            f"| {name} | {row.rss_mib:.1f} | {row.private_mib:.1f} | {row.start_cpu_s:.2f} | {row.rest_cpu_s:.2f} "
            f"| {change} |"
        )


if __name__ == "__main__":
    main()
