"""Whatever runs in a pod is told with its pod: however shortly it lives, and whoever is there to be asked.

What is looked for has a word among its arguments that nothing else has, so that what was not named is found, too.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.truth.family import exec_id, with_word
from tests.kernel.truth.shell import marker
from tests.system.bed.enclosure import wait_until
from tests.system.bed.node import NAME
from tests.system.bed.pods import container, cron_job, deployment, job, pod

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.truth.otlp import Log
    from tests.kernel.truth.running import Agent
    from tests.system.bed.node import Node
    from tests.system.conftest import AgentOnNode

pytestmark = pytest.mark.system

MANY = 100
AWAY_SECONDS = 60
"""Long enough for the waits between two tries to grow."""
FAR_AWAY = "0 0 1 1 *"
"""A schedule that does not come due while a test runs, but for one midnight a year."""


@pytest.fixture(autouse=True)
def clean(node: Node) -> Iterator[None]:
    """Take back what a test has created."""
    yield
    node.kubectl("delete", "deployments,jobs,cronjobs", "--all", "--wait=false")
    # The kubelet takes up to a minute to say that a pod is gone; no test minds those of another.
    node.kubectl("delete", "pods", "--all", "--wait=false", "--force", "--grace-period=0")


def shell(word: str, script: str) -> tuple[str, ...]:
    """A command that runs `script`, with `word` among the shell's arguments."""
    return ("/bin/sh", "-c", script, word)


def told(agent: Agent, word: str, event_name: str = "process.exec") -> list[Log]:
    """Of what runs in a container: `kubectl` and `ctr` have the word among their arguments, too.

    Forks have it as well, and an exit of their own; busybox's shell forks for its applets and executes nothing.
    """
    logs = [log for log in with_word(agent.logs(), word) if "container.id" in log.resource]
    images = {exec_id(log) for log in logs if log.event_name != "process.exit"}
    return [log for log in logs if log.event_name == event_name and exec_id(log) in images]


def wait_for(
    agent: Agent, word: str, number: int = 1, event_name: str = "process.exec", seconds: float = 120
) -> list[Log]:
    """Wait until `number` records of the event with `word` have been written. Returns them."""
    agent.wait_until(
        lambda: len(told(agent, word, event_name)) >= number, f"{number} {event_name} with {word}", seconds
    )
    return told(agent, word, event_name)


def is_complete(log: Log) -> bool:
    return "procmon.metadata.incomplete" not in log.attributes


def container_id(told: dict[str, Any]) -> str:
    """The bare id of the one container of a pod."""
    return str(told["status"]["containerStatuses"][0]["containerID"]).removeprefix("containerd://")


def complaints(agent: Agent) -> list[str]:
    """What the agent said of the Kubernetes API, but for that it answers."""
    lines = (line for line in agent.stderr.splitlines() if "Kubernetes API" in line)
    return [line for line in lines if "answers again" not in line]


def test_a_deployments_pod_names_the_deployment(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    word = marker()
    with agent_on_node(tmp_path) as agent:
        node.apply(deployment("web", *shell(word, "sleep 3600")))
        (log,) = wait_for(agent, word)
    owner = node.get("pods", "-l", "app=web")["items"][0]["metadata"]["ownerReferences"][0]
    assert log.resource["k8s.deployment.name"] == "web"
    assert log.resource["k8s.replicaset.name"] == owner["name"]
    assert log.resource["service.name"] == "web"
    assert log.resource["k8s.container.name"] == "main"
    assert log.resource["k8s.pod.label.app"] == "web"
    assert is_complete(log)


def test_a_jobs_pod_names_the_job_and_the_cron_job(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    word = marker()
    with agent_on_node(tmp_path) as agent:
        node.apply(cron_job("nightly", FAR_AWAY, *shell(word, "exit 3")))
        # Named as the controller would name it.
        node.kubectl("create", "job", "nightly-1606262400", "--from=cronjob/nightly")
        (log,) = wait_for(agent, word, event_name="process.exit")
    assert log.resource["k8s.job.name"] == "nightly-1606262400"
    assert log.resource["k8s.cronjob.name"] == "nightly"
    assert log.resource["k8s.pod.name"].startswith("nightly-1606262400-")
    assert log.attributes["process.exit.code"] == 3


def test_a_pod_that_lives_for_50_ms_is_named(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    word = marker()
    with agent_on_node(tmp_path) as agent:
        brief = container("main", *shell(word, "usleep 50000; exit 0"))
        node.apply(pod("brief", brief, labels={"life": "short"}, restartPolicy="Never"))
        (ended,) = wait_for(agent, word, event_name="process.exit")
        (began,) = told(agent, word)
    for log in (began, ended):
        assert log.resource["k8s.pod.name"] == "brief"
        assert log.resource["k8s.container.name"] == "main"
        assert log.resource["k8s.pod.label.life"] == "short"
        assert is_complete(log)
    assert ended.time_unix_ns > began.time_unix_ns


def test_a_hundred_pods_that_start_together_are_all_named(
    node: Node, agent_on_node: AgentOnNode, tmp_path: Path
) -> None:
    word = marker()
    with agent_on_node(tmp_path) as agent:
        node.apply(job("crowd", *shell(word, "usleep 50000; exit 0"), at_once=MANY))
        logs = wait_for(agent, word, MANY, "process.exit", 600)
    logs += told(agent, word)
    pods = {item["metadata"]["name"] for item in node.get("pods", "-l", "job-name=crowd")["items"]}
    assert len(pods) == MANY
    assert {log.resource.get("k8s.pod.name") for log in logs} == pods
    assert {log.resource.get("k8s.job.name") for log in logs} == {"crowd"}
    assert all(is_complete(log) for log in logs)


def test_a_container_that_is_restarted_is_told_with_its_count(
    node: Node, agent_on_node: AgentOnNode, tmp_path: Path
) -> None:
    word = marker()
    with agent_on_node(tmp_path) as agent:
        node.apply(pod("again", container("main", *shell(word, "exit 1"))))
        first, second = wait_for(agent, word, 2)[:2]
    assert first.resource["container.id"] != second.resource["container.id"]
    assert [log.resource["k8s.container.restart_count"] for log in (first, second)] == [0, 1]
    assert first.resource["k8s.pod.uid"] == second.resource["k8s.pod.uid"]


def test_a_static_pod_is_named(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    word = marker()
    manifest = node.static_pods / "fixed.yaml"
    with agent_on_node(tmp_path) as agent:
        manifest.write_text(json.dumps(pod("fixed", container("main", *shell(word, "sleep 3600")))))
        try:
            (log,) = wait_for(agent, word)
            node.wait_for_phase(f"fixed-{NAME}")
        finally:
            manifest.unlink()
    # The kubelet puts the node's name behind a static pod's own.
    assert log.resource["k8s.pod.name"] == f"fixed-{NAME}"
    assert log.resource["k8s.container.name"] == "main"


def test_what_ends_with_its_pod_is_still_named(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    word = marker()
    with agent_on_node(tmp_path) as agent:
        node.apply(pod("doomed", container("main", *shell(word, "sleep 3600 & wait"))))
        wait_for(agent, word)
        node.kubectl("delete", "pod", "doomed", "--grace-period=1")
        (log,) = wait_for(agent, word, event_name="process.exit")
    assert log.resource["k8s.pod.name"] == "doomed"
    assert log.resource["k8s.container.name"] == "main"


@pytest.mark.parametrize("asked", ["api", "cri"])
def test_either_source_alone_names_pods(node: Node, agent_on_node: AgentOnNode, tmp_path: Path, asked: str) -> None:
    words = marker(), marker()
    node.apply(
        pod("early", container("main", *shell(words[0], "while sleep 1; do :; done")), labels={"when": "before"})
    )
    node.wait_for_phase("early")
    with agent_on_node(tmp_path, api=asked == "api", cri=asked == "cri") as agent:
        node.apply(pod("late", container("main", *shell(words[1], "sleep 3600")), labels={"when": "after"}))
        (early,) = wait_for(agent, words[0], event_name="process.discovered")
        (late,) = wait_for(agent, words[1])
    for log, name, when in ((early, "early", "before"), (late, "late", "after")):
        assert log.resource["k8s.namespace.name"] == "default"
        assert log.resource["k8s.pod.name"] == name
        assert log.resource["k8s.container.name"] == "main"
        assert log.resource["k8s.pod.label.when"] == when
        assert log.resource["container.image.name"] == "localhost/busybox"
        assert is_complete(log)


def test_without_anybody_to_ask_records_keep_the_ids(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    word = marker()
    with agent_on_node(tmp_path, api=False, cri=False) as agent:
        node.apply(pod("nameless", container("main", *shell(word, "sleep 3600"))))
        (log,) = wait_for(agent, word)
        known = node.wait_for_phase("nameless")
    assert log.resource["k8s.pod.uid"] == known["metadata"]["uid"]
    assert log.resource["container.id"] == container_id(known)
    assert "k8s.pod.name" not in log.resource


@pytest.mark.parametrize("cri", [True, False])
def test_without_permission_that_is_said_once_and_the_agent_goes_on(
    node: Node, agent_on_node: AgentOnNode, tmp_path: Path, cri: bool
) -> None:
    first, second = marker(), marker()
    with agent_on_node(tmp_path, cri=cri, kubeconfig=node.nobody_kubeconfig) as agent:
        agent.wait_until(lambda: "forbidden" in agent.stderr, "the refusal is told")
        node.apply(pod("one", container("main", *shell(first, "sleep 3600"))))
        node.apply(pod("two", container("main", *shell(second, "sleep 3600"))))
        logs = [*wait_for(agent, first), *wait_for(agent, second)]
    names = ["one", "two"] if cri else [None, None]
    assert [log.resource.get("k8s.pod.name") for log in logs] == names
    uids = [node.get("pod", name)["metadata"]["uid"] for name in ("one", "two")]
    assert [log.resource["k8s.pod.uid"] for log in logs] == uids
    assert sum("forbidden" in line for line in agent.stderr.splitlines()) == 1


def test_a_runtime_that_is_restarted_is_found_again(node: Node, agent_on_node: AgentOnNode, tmp_path: Path) -> None:
    words = marker(), marker()
    with agent_on_node(tmp_path, api=False) as agent:
        node.apply(pod("before", container("main", *shell(words[0], "while sleep 1; do :; done"))))
        (before,) = wait_for(agent, words[0])
        # Containers go on meanwhile: their shims do not end with it.
        node.containerd.stop()
        node.start_containerd()
        node.apply(pod("after", container("main", *shell(words[1], "sleep 3600"))))
        (after,) = wait_for(agent, words[1])
    assert [log.resource.get("k8s.pod.name") for log in (before, after)] == ["before", "after"]
    assert is_complete(after)


def test_an_api_server_that_is_away_for_a_minute_is_missed_once_and_found_again(
    node: Node, agent_on_node: AgentOnNode, tmp_path: Path
) -> None:
    again, during, after = marker(), marker(), marker()
    # Until `end` is there it runs; then the kubelet starts it again, by itself.
    script = "while ! [ -e /tmp/end ]; do usleep 100000; done"
    node.apply(pod("steady", container("main", *shell(again, script)), labels={"kind": "steady"}))
    first = container_id(node.wait_for_phase("steady"))
    with agent_on_node(tmp_path) as agent:
        wait_for(agent, again, event_name="process.discovered")
        node.api_server.stop()
        stopped_at = time.monotonic()
        try:
            # In a container that is known.
            node.run_in_container(first, *shell(during, "exit 0"))
            (known,) = wait_for(agent, during)
            # In one that came when nobody but the runtime could tell of it.
            node.run_in_container(first, "/bin/sh", "-c", ": > /tmp/end")
            (new,) = wait_for(agent, again, seconds=300)
            agent.wait_until(lambda: len(complaints(agent)) > 0, "the agent misses the API server")
            wait_until(lambda: time.monotonic() - stopped_at > AWAY_SECONDS, "it was away for long enough")
        finally:
            node.start_api_server()
        agent.wait_until(lambda: "answers again" in agent.stderr, "the agent has found the API server again", 120)
        node.apply(deployment("later", *shell(after, "sleep 3600")))
        (later,) = wait_for(agent, after)
    assert known.resource["k8s.pod.name"] == "steady"
    assert new.resource["k8s.pod.name"] == "steady"
    assert new.resource["container.id"] != first
    assert new.resource["k8s.pod.label.kind"] == "steady"
    assert later.resource["k8s.deployment.name"] == "later"
    assert len(complaints(agent)) == 1
