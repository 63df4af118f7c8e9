"""The seed's demonstration on a real node: ``kubectl exec -it xwing -- /bin/bash``, ``whoami``, and what is told of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.system.bed.node import NAME
from tests.system.bed.pods import interactive, xwing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.truth.otlp import Log, Span
    from tests.system.bed.node import Node
    from tests.system.conftest import AgentOnNode

pytestmark = pytest.mark.system

THREE_LINES = [
    "🚀 process default/xwing /bin/bash",
    "🚀 process default/xwing /usr/bin/whoami",
    "💥 exit    default/xwing /usr/bin/whoami 0",
]
LAST_LINE = "💥 exit    default/xwing /bin/bash 0"


class Demonstration(NamedTuple):
    """What an agent told of it."""

    pod: dict[str, Any]
    """The pod, as the API server has it."""
    lines: list[str]
    events: list[dict[str, Any]]
    """Tetragon's JSON, without what ran before the agent."""
    logs: list[Log]
    discovered: list[Log]
    """Of what ran before the agent."""
    spans: list[Span]
    all_spans: list[Span]
    """Those of an agent without a filter, for what is outside of the pod."""

    def span(self, name: str) -> Span:
        """The one span of the program."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    @property
    def container_id(self) -> str:
        """Bare."""
        status = self.pod["status"]["containerStatuses"][0]
        return str(status["containerID"]).removeprefix("containerd://")


@pytest.fixture(scope="module")
def demonstration(
    node: Node, agent_on_node: AgentOnNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demonstration]:
    directory = tmp_path_factory.mktemp("demonstration")
    node.apply(xwing())
    pod = node.wait_for_phase("xwing")
    events = directory / "events.json"
    arguments = ("--namespace", "default", "--pod", "xwing", "-o", "compact", "-o", f"json:{events}")
    with (
        agent_on_node(directory) as witness,
        agent_on_node(directory, *arguments) as agent,
        interactive(node, "xwing", "/bin/bash") as terminal,
    ):
        terminal.type("whoami", until="root")
        agent.wait_until(lambda: "exit" in agent.stdout, "whoami has ended")
        while_bash_runs = agent.stdout.splitlines()
        terminal.leave()
        agent.wait_until(lambda: LAST_LINE in agent.stdout, "bash has ended")
        assert while_bash_runs == THREE_LINES
        # The witness stops first: then it has seen all that the agent has told.
        agent.stop()
        witness.stop()
        yield Demonstration(
            pod=pod,
            lines=agent.stdout.splitlines(),
            events=[event for event in map(json.loads, events.read_text().splitlines()) if not _ran_before(event)],
            logs=[log for log in agent.logs() if log.event_name != "process.discovered"],
            discovered=[log for log in agent.logs() if log.event_name == "process.discovered"],
            spans=agent.spans(),
            all_spans=witness.spans(),
        )
    node.kubectl("delete", "pod", "xwing")


def _ran_before(event: dict[str, Any]) -> bool:
    return "procFS" in event.get("process_exec", {}).get("process", {}).get("flags", "").split()


def test_the_terminal_shows_the_three_lines_and_the_shells_end(demonstration: Demonstration) -> None:
    assert demonstration.lines == [*THREE_LINES, LAST_LINE]


def test_tetragons_json_has_the_same_events_with_the_pod(demonstration: Demonstration) -> None:
    events = [
        (kind, content["process"]["binary"])
        for event in demonstration.events
        for kind, content in event.items()
        if kind.startswith("process_")
    ]
    assert events == [
        ("process_exec", "/bin/bash"),
        ("process_exec", "/usr/bin/whoami"),
        ("process_exit", "/usr/bin/whoami"),
        ("process_exit", "/bin/bash"),
    ]
    status = demonstration.pod["status"]["containerStatuses"][0]
    for event in demonstration.events:
        process = next(content for kind, content in event.items() if kind.startswith("process_"))["process"]
        pod = process["pod"]
        assert event["node_name"] == NAME
        assert (pod["namespace"], pod["name"]) == ("default", "xwing")
        assert pod["pod_labels"] == demonstration.pod["metadata"]["labels"]
        assert pod["container"]["id"] == status["containerID"]
        assert pod["container"]["name"] == "spaceship"
        assert pod["container"]["image"]["name"] == "localhost/bash:1"
        # The API server has whole seconds, the runtime nanoseconds.
        assert pod["container"]["start_time"].startswith(status["state"]["running"]["startedAt"].removesuffix("Z"))
        assert pod["container"]["pid"] > 1
        assert process["docker"] == demonstration.container_id[:31]


def test_otlp_has_the_same_events_as_log_records(demonstration: Demonstration) -> None:
    assert [(log.event_name, log.attributes["process.executable.path"]) for log in demonstration.logs] == [
        ("process.exec", "/bin/bash"),
        ("process.exec", "/usr/bin/whoami"),
        ("process.exit", "/usr/bin/whoami"),
        ("process.exit", "/bin/bash"),
    ]
    assert [log.body for log in demonstration.logs] == demonstration.lines
    bash, whoami = demonstration.span("bash"), demonstration.span("whoami")
    assert [log.span_id for log in demonstration.logs] == [
        bash.span_id,
        whoami.span_id,
        whoami.span_id,
        bash.span_id,
    ]
    assert {log.trace_id for log in demonstration.logs} == {bash.trace_id}


def test_bash_is_the_root_of_a_trace_and_whoami_its_child(demonstration: Demonstration) -> None:
    bash, whoami = demonstration.span("bash"), demonstration.span("whoami")
    assert bash.parent_span_id == ""
    assert whoami.parent_span_id == bash.span_id
    assert whoami.trace_id == bash.trace_id
    assert whoami.links == ()
    assert {span.span_id for span in demonstration.spans} == {bash.span_id, whoami.span_id}


def test_bash_is_linked_to_what_started_it_in_the_container_only(demonstration: Demonstration) -> None:
    (link,) = demonstration.span("bash").links
    # What a runtime runs to start a process in a container, by whatever name: runc, which the container's shim ran.
    (starter,) = [span for span in demonstration.all_spans if (span.trace_id, span.span_id) == link]
    assert starter.name == "runc"
    assert "containerd-shim-runc-v2" in starter.attributes["procmon.ancestors"]
    assert "k8s.pod.name" not in starter.resource


def test_the_resource_is_the_pods_container(demonstration: Demonstration) -> None:
    metadata, status = demonstration.pod["metadata"], demonstration.pod["status"]
    expected = {
        "k8s.namespace.name": "default",
        "k8s.node.name": NAME,
        "k8s.pod.name": "xwing",
        "k8s.pod.uid": metadata["uid"],
        "k8s.pod.ip": status["podIP"],
        "k8s.pod.start_time": status["startTime"],
        "k8s.pod.label.app.kubernetes.io/name": "xwing",
        "k8s.pod.label.class": "xwing",
        "k8s.pod.label.org": "alliance",
        "k8s.container.name": "spaceship",
        "k8s.container.restart_count": 0,
        "container.id": demonstration.container_id,
        "container.image.name": "localhost/bash",
        "container.image.tags": ["1"],
        "container.runtime.name": "containerd",
        "service.name": "xwing",
        "service.namespace": "default",
    }
    records: list[Log | Span] = [*demonstration.logs, *demonstration.spans]
    for record in records:
        assert {name: record.resource.get(name) for name in expected} == expected
        assert "procmon.metadata.incomplete" not in record.attributes
        # Annotations are told only where they are asked for.
        assert not [name for name in record.resource if name.startswith("k8s.pod.annotation")]


def test_what_ran_before_is_the_pods_too(demonstration: Demonstration) -> None:
    resources = {log.attributes["process.executable.path"]: log.resource for log in demonstration.discovered}
    assert set(resources) == {"/pause", "/usr/bin/sleep"}
    assert {resource["k8s.pod.name"] for resource in resources.values()} == {"xwing"}
    assert resources["/usr/bin/sleep"]["k8s.container.name"] == "spaceship"
    # The sandbox is no container of the pod's.
    assert "k8s.container.name" not in resources["/pause"]
