"""The agent as a pod of the node, from the image of the Dockerfile, with the manifests of ``examples/kubernetes``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.truth.family import with_word
from tests.kernel.truth.receiver import receiver
from tests.kernel.truth.running import cannot_run
from tests.kernel.truth.shell import marker
from tests.system.bed.enclosure import wait_until
from tests.system.bed.node import ADDRESS, NAME
from tests.system.bed.pods import container, pod
from tests.system.conftest import BED, HINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.truth.otlp import Log
    from tests.kernel.truth.receiver import Received
    from tests.system.bed.node import Node

pytestmark = pytest.mark.system

MANIFESTS = Path(__file__).parents[2] / "examples/kubernetes"
IMAGE = BED / "otel-procmon.tar"
NAMESPACE = "otel-procmon"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:otel-procmon"
CAN_READ_PODS = {"pods": {"get", "list", "watch"}}
OTLP_PORT = 4318

# The image's name is all that is changed: nobody here can pull the one that the manifests have.
OVERLAY = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
bases: [base]
images:
  - {name: ghcr.io/otel-procmon/otel-procmon, newName: localhost/otel-procmon, newTag: test}
"""


@pytest.fixture(scope="module")
def collected(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Received]:
    """What a Collector on the node gets, while the DaemonSet runs."""
    if not IMAGE.exists():
        cannot_run("system", f"there is no image at {IMAGE}: {HINT}")
    node.import_image(IMAGE)
    overlay = tmp_path_factory.mktemp("overlay")
    shutil.copytree(MANIFESTS, overlay / "base")
    (overlay / "kustomization.yaml").write_text(OVERLAY)
    with node.place.network_of_this_thread():
        listening = receiver("http/protobuf", OTLP_PORT, ADDRESS)
        received = listening.__enter__()
    try:
        node.kubectl("apply", "-k", str(overlay))
        wait_until(lambda: "capturing" in agent_log(node), "the agent's pod captures", 300)
        yield received
    finally:
        node.kubectl("delete", "--ignore-not-found", "-k", str(overlay))
        listening.__exit__(None, None, None)


def agent_log(node: Node) -> str:
    """What the agent's pod says; nothing while there is none."""
    pods = node.get("pods", "-n", NAMESPACE)["items"]
    if not pods or pods[0]["status"]["phase"] != "Running":
        return ""
    return node.kubectl("logs", "-n", NAMESPACE, pods[0]["metadata"]["name"])


def wait_for(received: Received, word: str, event_name: str, *, in_a_container: bool) -> Log:
    """The one log record of the event with `word`."""

    def found() -> list[Log]:
        return [
            log
            for log in with_word(received.logs, word)
            if log.event_name == event_name and ("container.id" in log.resource) == in_a_container
        ]

    wait_until(lambda: bool(found()), f"{event_name} with {word} has arrived")
    return found()[0]


def test_it_sees_the_host(collected: Received) -> None:
    word = marker()
    subprocess.run(["bash", "-c", "exit 7", word], check=False, env={"PATH": os.environ["PATH"]})
    log = wait_for(collected, word, "process.exit", in_a_container=False)
    assert log.attributes["process.exit.code"] == 7
    assert log.attributes["process.user.name"] == "root"
    machine_id = Path("/etc/machine-id").read_text().strip()
    assert log.resource["host.id"] == machine_id
    assert log.resource["host.name"] == NAME
    assert "k8s.pod.name" not in log.resource
    (name,) = re.findall(r'^PRETTY_NAME="(.*)"$', Path("/etc/os-release").read_text(), re.MULTILINE)
    assert log.resource["os.description"] == name


def test_it_sees_pods_and_knows_them(node: Node, collected: Received) -> None:
    word = marker()
    node.apply(
        pod("seen", container("main", "/bin/sh", "-c", "exit 0", word), labels={"a": "b"}, restartPolicy="Never")
    )
    log = wait_for(collected, word, "process.exit", in_a_container=True)
    assert log.resource["k8s.pod.name"] == "seen"
    assert log.resource["k8s.container.name"] == "main"
    assert log.resource["k8s.pod.label.a"] == "b"
    assert "procmon.metadata.incomplete" not in log.attributes
    node.kubectl("delete", "pod", "seen", "--wait=false")


def test_it_tells_what_ran_before_with_its_path(node: Node, collected: Received) -> None:
    """That takes the capability SYS_PTRACE."""

    def kubelets() -> list[Log]:
        known = with_word(collected.logs, f"--config={node.place.directory}/kubelet.yaml")
        return [log for log in known if log.event_name == "process.discovered"]

    wait_until(lambda: bool(kubelets()), "the kubelet was discovered")
    (kubelet,) = kubelets()
    assert kubelet.attributes["process.executable.path"].endswith("/kubelet")
    assert kubelet.attributes["process.working_directory"].startswith("/")


def test_its_own_pod_is_a_pod_like_others(collected: Received) -> None:
    def own() -> list[Log]:
        return [log for log in collected.logs if log.resource.get("k8s.daemonset.name") == "otel-procmon"]

    wait_until(lambda: bool(own()), "the agent has told of its own pod")
    assert own()[0].resource["k8s.namespace.name"] == NAMESPACE
    assert own()[0].resource["service.name"] == "otel-procmon"


def test_it_may_read_pods_and_nothing_else(node: Node, collected: Received) -> None:
    table = node.kubectl("auth", "can-i", "--list", "--no-headers", f"--as={ACCOUNT}", "-n", "kube-system").splitlines()
    granted: dict[str, set[str]] = {}
    for line in table:
        resource, _, rest = line.partition(" ")
        # What everybody may: ask what one may, and the API server's own description of itself.
        if resource and not resource.startswith("selfsubject"):
            granted[resource] = set(rest.rpartition("[")[2].rstrip("]").split())
    assert granted == CAN_READ_PODS


def test_it_starts_with_what_it_names_and_gives_it_up(node: Node, collected: Received) -> None:
    (agent,) = node.get("pods", "-n", NAMESPACE)["items"]
    told = agent["spec"]["containers"][0]["securityContext"]
    assert "privileged" not in told
    wanted = sum(1 << number for name, number in CAPABILITIES.items() if name in told["capabilities"]["add"])
    assert len(told["capabilities"]["add"]) == wanted.bit_count()
    pid = agent_process(agent)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    # Without SETPCAP the bounding set stays, of which nobody can get anything, because of NoNewPrivs.
    assert int(status["CapBnd"], 16) == wanted
    assert [int(status[held], 16) for held in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [0, 0, 0, 0]
    assert status["Uid"].split() == ["65534"] * 4
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


CAPABILITIES = {"CHOWN": 0, "SETGID": 6, "SETUID": 7, "SYS_PTRACE": 19, "PERFMON": 38, "BPF": 39}
"""Their numbers in ``linux/capability.h``."""


def agent_process(agent: dict[str, Any]) -> int:
    """The pid of the agent in the pod `agent`."""
    container_id = agent["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    for entry in Path("/proc").iterdir():
        # Others come and go.
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit() and container_id in (entry / "cgroup").read_text():
                return int(entry.name)
    raise AssertionError(f"no process runs in {container_id}")


def test_it_can_capture_without_root(node: Node, collected: Received) -> None:
    """As docs/kubernetes.md and examples/systemd have it: another user, with the capabilities as ambient ones."""
    capabilities = "-all,+bpf,+perfmon,+sys_ptrace"
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={capabilities}")
    script = f"exec {' '.join(as_nobody)} --ambient-caps={capabilities} sh -c 'id -u; otel-procmon doctor'"
    doctor = container("main", "/bin/sh", "-c", script, image="localhost/otel-procmon:test")
    doctor["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": [*CAPABILITIES]},
    }
    node.apply(pod("doctor", doctor, hostPID=True, restartPolicy="Never"))
    node.wait_for_phase("doctor", "Succeeded")
    said = node.kubectl("logs", "doctor").splitlines()
    node.kubectl("delete", "pod", "doctor", "--wait=false")
    assert said[0] == "65534"
    assert said[-1] == "This host can capture."


def test_it_can_capture_under_the_seccomp_profile(node: Node, collected: Received) -> None:
    """As docs/privileges.md has it on the nodes: the kubelet and the runtime take the file as it is."""
    profiles = node.place.own("/var/lib/kubelet") / "seccomp"
    profiles.mkdir(exist_ok=True)
    shutil.copy(MANIFESTS / "seccomp.json", profiles / "otel-procmon.json")
    script = "grep ^Seccomp: /proc/self/status; python3 -c 'import socket; socket.socket().listen()' 2>&1"
    doctor = container("main", "/bin/sh", "-c", f"{script}; otel-procmon doctor", image="localhost/otel-procmon:test")
    doctor["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "seccompProfile": {"type": "Localhost", "localhostProfile": "otel-procmon.json"},
        "capabilities": {"drop": ["ALL"], "add": [*CAPABILITIES]},
    }
    node.apply(pod("confined", doctor, hostPID=True, restartPolicy="Never"))
    node.wait_for_phase("confined", "Succeeded")
    said = node.kubectl("logs", "confined").splitlines()
    node.kubectl("delete", "pod", "confined", "--wait=false")
    assert said[0].split() == ["Seccomp:", "2"]
    assert any("PermissionError: [Errno 1]" in line for line in said), "listening is not allowed"
    assert said[-1] == "This host can capture."


def test_it_ends_in_order_when_it_is_told_to(node: Node, collected: Received) -> None:
    """Last, since nothing captures after that for a while: the DaemonSet makes another pod."""
    (agent,) = node.get("pods", "-n", NAMESPACE)["items"]
    name = agent["metadata"]["name"]
    following = subprocess.Popen(
        [*node.kubectl_command, "logs", "-n", NAMESPACE, "-f", name], stdout=subprocess.PIPE, text=True
    )
    node.kubectl("delete", "pod", "-n", NAMESPACE, name)
    log, _ = following.communicate(timeout=120)
    assert "ledger:" in log
    wait_until(lambda: "capturing" in agent_log(node), "the next agent captures", 300)
