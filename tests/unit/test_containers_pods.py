"""The API's pods: what is read of them, what is remembered, and all sources put together."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from otel_procmon.config import ContainerOptions
from otel_procmon.containers import pods as module
from otel_procmon.containers.metadata import NOTHING, Found, Known, Metadata, State
from otel_procmon.containers.pods import Pods, PodState, decode_pod
from otel_procmon.containers.sources import EndpointError, find_socket, open_metadata
from otel_procmon.events import Container, Owner, Pod
from otel_procmon.ledger import Ledger
from tests.unit.kube_server import pod, running

if TYPE_CHECKING:
    from pathlib import Path

ID, OTHER, THIRD = "c" * 64, "d" * 64, "e" * 64
UID = "8d7f0b54-0c1e-4f0a-9a55-0d9d8b8f6f0a"
HASH = "c4cb2c5a0d4f3a9c7a0f6c1d2e3f4a5b"


def decoded(one: dict[str, Any]) -> PodState:
    return decode_pod(json.dumps(one).encode())


def owned(kind: str, name: str, generate: str = "x-", **labels: str) -> PodState:
    meta = {
        "ownerReferences": [
            {"kind": "Backup", "name": "no-controller"},
            {"kind": kind, "name": name, "controller": True, "apiVersion": "v1", "uid": "o"},
        ],
        "generateName": generate,
        "labels": labels,
    }
    return decoded(pod("p", UID, metadata=meta))


def test_what_is_read_of_a_pod() -> None:
    status = {
        "podIP": "10.0.0.7",
        "startTime": "2024-03-01T08:10:00Z",
        "initContainerStatuses": [
            {**running("init", THIRD), "state": {"terminated": {"startedAt": "2024-03-01T08:10:00Z"}}}
        ],
        "containerStatuses": [running("spaceship", ID, restartCount=3)],
        "ephemeralContainerStatuses": [running("debugger", OTHER)],
    }
    state = decoded(pod("xwing", UID, status=status))

    assert state.pod == Pod(
        namespace="default",
        name="xwing",
        uid=UID,
        ip="10.0.0.7",
        start_time="2024-03-01T08:10:00Z",
        labels={"class": "xwing"},
        annotations={"example.com/owner": "team-a"},
        workload="xwing",
        workload_kind="Pod",
    )
    assert [(one.id, one.name) for one in state.containers] == [
        (THIRD, "init"),
        (ID, "spaceship"),
        (OTHER, "debugger"),
    ]
    assert state.containers[1] == Container(
        id=ID,
        runtime="containerd",
        name="spaceship",
        image_id="docker.io/tgraf/netperf@sha256:8e86",
        image_name="docker.io/tgraf/netperf:latest",
        image_repo_digests=("docker.io/tgraf/netperf@sha256:8e86",),
        restart_count=3,
        start_time="2024-03-01T08:10:01Z",
    )
    assert state.hash is None


OWNERS = {
    "a Deployment's": (
        owned("ReplicaSet", "web-7c5ddbdf54", **{"pod-template-hash": "7c5ddbdf54"}),
        [("ReplicaSet", "web-7c5ddbdf54"), ("Deployment", "web")],
    ),
    "a ReplicaSet's own": (owned("ReplicaSet", "web"), [("ReplicaSet", "web")]),
    "another hash": (
        owned("ReplicaSet", "web-7c5ddbdf54", **{"pod-template-hash": "123"}),
        [("ReplicaSet", "web-7c5ddbdf54")],
    ),
    "nothing but a hash": (
        owned("ReplicaSet", "-7c5d", **{"pod-template-hash": "7c5d"}),
        [("ReplicaSet", "-7c5d")],
    ),
    "a CronJob's": (owned("Job", "backup-28497120"), [("Job", "backup-28497120"), ("CronJob", "backup")]),
    "a CronJob's, in seconds": (
        owned("Job", "backup-1709280600"),
        [("Job", "backup-1709280600"), ("CronJob", "backup")],
    ),
    "a Job's own": (owned("Job", "migrate-7"), [("Job", "migrate-7")]),
    "a DaemonSet's": (owned("DaemonSet", "proxy"), [("DaemonSet", "proxy")]),
    "a StatefulSet's": (owned("StatefulSet", "db"), [("StatefulSet", "db")]),
    "a static pod's mirror": (owned("Node", "n1", ""), []),
}


@pytest.mark.parametrize(("state", "owners"), OWNERS.values(), ids=OWNERS)
def test_owners(state: PodState, owners: list[tuple[str, str]]) -> None:
    assert state.pod.owners == tuple(Owner(*owner) for owner in owners)
    kind, name = owners[-1] if owners else ("Pod", "p")
    assert (state.pod.workload_kind, state.pod.workload) == (kind, name)


def test_the_run_before_the_last_restart() -> None:
    before = {"terminated": {"containerID": f"containerd://{OTHER}", "startedAt": "2024-03-01T08:00:00Z"}}
    status = {"containerStatuses": [running("spaceship", ID, restartCount=1, lastState=before)]}
    now, then = decoded(pod("xwing", UID, status=status)).containers
    assert (now.id, now.restart_count) == (ID, 1)
    assert (then.id, then.restart_count, then.start_time) == (OTHER, 0, "2024-03-01T08:00:00Z")


@pytest.mark.parametrize("key", ["kubernetes.io/config.hash", "kubernetes.io/config.mirror"])
def test_a_static_pod_is_found_by_its_hash(key: str) -> None:
    pods = Pods()
    pods.put(decoded(pod("etcd-n1", UID, metadata={"annotations": {key: HASH}})))
    by_hash, by_uid = pods.find(ID, HASH), pods.find(None, UID)
    assert by_hash == by_uid
    assert by_hash.pod is not None
    assert by_hash.pod.name == "etcd-n1"
    assert pods.find(None, "1" * 32) == NOTHING


def test_a_container_goes_before_the_path() -> None:
    pods = Pods()
    pods.put(decoded(pod("xwing", UID, status={"containerStatuses": [running("spaceship", ID)]})))
    pods.put(decoded(pod("other", "u-2")))
    known = pods.find(ID, "u-2")
    assert known.pod is not None
    assert known.pod.name == "xwing"


def test_one_pod_is_one_object_until_it_changes() -> None:
    pods = Pods()
    status = {"containerStatuses": [running("spaceship", ID)]}
    pods.put(decoded(pod("xwing", UID, status=status)))
    first = pods.find(ID, UID)
    pods.put(decoded(pod("xwing", UID, status=status, metadata={"resourceVersion": "7"})))
    assert pods.find(ID, UID) is first
    pods.put(decoded(pod("xwing", UID, metadata={"labels": {"class": "ywing"}})))
    changed = pods.find(ID, UID)
    # The pod's, although this status has no containers.
    assert changed.pod is not None
    assert changed.pod.labels == {"class": "ywing"}
    assert changed.container == first.container


def test_containers_of_earlier_runs_are_remembered_up_to_a_bound() -> None:
    pods = Pods()
    ids = [f"{number:064x}" for number in range(40)]
    for one in ids:
        pods.put(decoded(pod("xwing", UID, status={"containerStatuses": [running("spaceship", one)]})))
    remembered = [one for one in ids if pods.find(one, None) != NOTHING]
    assert remembered == ids[-17:]
    assert len(pods._containers) == len(remembered)


def test_the_deleted_are_remembered_for_a_while() -> None:
    now_s = 0.0
    pods = Pods(lambda: now_s)
    pods.put(decoded(pod("xwing", UID, status={"containerStatuses": [running("spaceship", ID)]})))
    pods.put(decoded(pod("etcd", "u-2", metadata={"annotations": {"kubernetes.io/config.hash": HASH}})))
    pods.keep_only(["u-2"])
    pods.remove("u-2")
    assert len(pods) == 0
    now_s = 119.0
    pods.remove("never there")
    assert pods.find(ID, None).container is not None
    assert pods.find(None, HASH).pod is not None
    now_s = 121.0
    pods.remove("never there")
    assert pods.find(ID, UID) == NOTHING
    assert pods.find(None, HASH) == NOTHING
    assert [pods._entries, pods._uids, pods._containers, pods._gone] == [{}, {}, {}, {}]


def test_no_more_than_so_many_deleted_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GONE_MAX", 3)
    pods = Pods(lambda: 0.0)
    for number in range(10):
        pods.put(decoded(pod(f"p{number}", f"u-{number}")))
        pods.remove(f"u-{number}")
    assert [pods.find(None, f"u-{number}") != NOTHING for number in range(10)] == [False] * 7 + [True] * 3


def test_who_comes_back_is_there() -> None:
    now_s = 0.0
    pods = Pods(lambda: now_s)
    one = decoded(pod("xwing", UID))
    pods.put(one)
    pods.remove(UID)
    pods.put(one)
    now_s = 1000.0
    pods.put(decoded(pod("other", "u-2")))
    assert pods.find(None, UID).pod is not None
    assert len(pods) == 2


KEYS = [
    *("metadata", "uid", "labels", "ownerReferences", "kind", "name", "controller", "status", "spec"),
    *("containerStatuses", "containerID", "state", "lastState", "terminated", "restartCount", "imageID"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**40) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_are_too_strange(data: bytes) -> None:
    try:
        state = decode_pod(data)
    except ValueError:
        return
    pods = Pods()
    pods.put(state)
    pods.remove(state.pod.uid or "")


# All sources put together.


class Source:
    """A source that knows what it is told to know."""

    def __init__(self, state: State = "ready", *, coming: bool = True, **known: Known) -> None:
        self.state: State = state
        self.coming = coming
        self.known = known
        self.calls: list[str] = []

    def find(self, container_id: str | None, pod_uid: str | None) -> Known:
        return self.known.get(container_id or "", self.known.get(pod_uid or "", NOTHING))

    def seek(self, container_id: str) -> None:
        self.calls.append(f"seek {container_id}")

    def may_come(self, container_id: str | None, pod_uid: str | None) -> bool:  # noqa: ARG002
        return self.coming

    def settle(self, timeout_s: float) -> None:  # noqa: ARG002
        self.calls.append("settle")

    def close(self) -> None:
        self.calls.append("close")


BY_RUNTIME = Container(id="c", name="spaceship", runtime="containerd", start_time="by the runtime")
BY_API = Container(id="c", name="spaceship", runtime="containerd", start_time="by the API")
SANDBOXED = Pod(namespace="default", name="xwing", uid="u")
WHOLE = Pod(namespace="default", name="xwing", uid="u", workload="xwing", workload_kind="Deployment")
RUNTIME = Source(c=Known(BY_RUNTIME, SANDBOXED))
BOTH = {
    "the runtime alone": (RUNTIME, None, Found(BY_RUNTIME, SANDBOXED, pending=False)),
    "the API alone": (None, Source(c=Known(BY_API, WHOLE)), Found(BY_API, WHOLE, pending=False)),
    "the API alone, before the container's status": (
        None,
        Source(u=Known(None, WHOLE)),
        Found(None, WHOLE, pending=True),
    ),
    "the API alone, of a container of which it will not be told": (
        None,
        Source(coming=False, u=Known(None, WHOLE)),
        Found(None, WHOLE, pending=False),
    ),
    "both: the container from here, the pod from there": (
        RUNTIME,
        Source(c=Known(BY_API, WHOLE)),
        Found(BY_RUNTIME, WHOLE, pending=False),
    ),
    "both, before the container's status": (
        RUNTIME,
        Source(u=Known(None, WHOLE)),
        Found(BY_RUNTIME, WHOLE, pending=False),
    ),
    "the API does not know the pod yet": (RUNTIME, Source(), Found(BY_RUNTIME, SANDBOXED, pending=True)),
    "the API has not answered yet": (RUNTIME, Source("starting"), Found(BY_RUNTIME, SANDBOXED, pending=True)),
    "the API is away": (RUNTIME, Source("away"), Found(BY_RUNTIME, SANDBOXED, pending=False)),
    "the API refuses": (RUNTIME, Source("off", coming=False), Found(BY_RUNTIME, SANDBOXED, pending=False)),
    "the runtime does not know it": (Source(), Source(c=Known(BY_API, WHOLE)), Found(BY_API, WHOLE, pending=False)),
    "nobody knows it yet": (Source(), Source(), Found(None, None, pending=True)),
    "only one may": (Source(coming=False), Source(), Found(None, None, pending=True)),
    "nobody will": (Source(coming=False), Source(coming=False), Found(None, None, pending=False)),
}


@pytest.mark.parametrize(("runtime", "api", "found"), BOTH.values(), ids=BOTH)
def test_the_sources_together(runtime: Source | None, api: Source | None, found: Found) -> None:
    assert Metadata(runtime, api).find("c", "u") == found


def test_the_runtime_knows_a_pods_address_earlier() -> None:
    api = Source(c=Known(BY_API, WHOLE))
    metadata = Metadata(Source(c=Known(BY_RUNTIME, replace(SANDBOXED, ip="10.0.0.7"))), api)
    pod = metadata.find("c", "u").pod
    assert pod == replace(WHOLE, ip="10.0.0.7")
    # One object, as the API's own would be.
    assert metadata.find("c", "u").pod is pod
    api.known["c"] = Known(BY_API, replace(WHOLE, labels={"new": "1"}))
    assert metadata.find("c", "u").pod == replace(WHOLE, ip="10.0.0.7", labels={"new": "1"})
    api.known["c"] = Known(BY_API, replace(WHOLE, ip="10.0.0.8"))
    assert metadata.find("c", "u").pod == replace(WHOLE, ip="10.0.0.8")


def test_the_runtime_tells_which_pod_to_look_for() -> None:
    assert Metadata(RUNTIME, Source(u=Known(None, WHOLE))).find("c", None) == Found(BY_RUNTIME, WHOLE, pending=False)


def test_all_sources_are_asked_and_closed() -> None:
    runtime, api = Source(), Source()
    metadata = Metadata(runtime, api)
    metadata.seek("c")
    metadata.settle(0)
    metadata.close()
    assert runtime.calls == api.calls == ["seek c", "settle", "close"]


# What this host has.


def test_sockets_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_socket(ContainerOptions(), {}, tmp_path) is None
    # Relative, for a socket's path has 107 bytes at most.
    monkeypatch.chdir(tmp_path)
    # Docker has a containerd of its own beside that of Kubernetes.
    for place in ("run/containerd/containerd.sock", "run/crio/crio.sock", "run/k3s/containerd/containerd.sock"):
        (tmp_path / place).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(place)
        assert find_socket(ContainerOptions(), {}, tmp_path) == str(tmp_path / place)
    environ = {"CONTAINER_RUNTIME_ENDPOINT": "unix:///run/other.sock"}
    assert find_socket(ContainerOptions(), environ, tmp_path) == "/run/other.sock"
    assert find_socket(ContainerOptions(runtime_endpoint="/run/third.sock"), environ, tmp_path) == "/run/third.sock"


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    place = tmp_path / "run/containerd/containerd.sock"
    place.parent.mkdir(parents=True)
    place.write_text("")
    assert find_socket(ContainerOptions(), {}, tmp_path) is None


@pytest.mark.parametrize(
    "endpoint", ["tcp://10.0.0.1:2376", "unix://run/relative.sock", "containerd.sock", "npipe:////./x"]
)
def test_endpoints_that_are_none(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(EndpointError, match=r"^CONTAINER_RUNTIME_ENDPOINT is ") as failure:
        find_socket(ContainerOptions(), {"CONTAINER_RUNTIME_ENDPOINT": endpoint}, tmp_path)
    assert str(failure.value).endswith("; write the runtime's socket, as in unix:///run/containerd/containerd.sock")
    with pytest.raises(EndpointError, match=r"^containers\.runtime_endpoint is "):
        find_socket(ContainerOptions(runtime_endpoint=endpoint), {}, tmp_path)


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (ContainerOptions(), {}),
        (
            ContainerOptions(ask_runtime=False, ask_kubernetes=False),
            {"CONTAINER_RUNTIME_ENDPOINT": "/run/x.sock", "KUBECONFIG": "/x"},
        ),
    ],
)
def test_nobody_is_asked(tmp_path: Path, options: ContainerOptions, environ: dict[str, str]) -> None:
    opened = open_metadata(options, environ, tmp_path, node="n1", keep_annotation=bool, ledger=Ledger())
    assert opened is None


def test_who_is_there_is_asked(tmp_path: Path) -> None:
    environ = {"CONTAINER_RUNTIME_ENDPOINT": str(tmp_path / "s"), "KUBECONFIG": str(tmp_path / "k")}
    opened = open_metadata(ContainerOptions(), environ, tmp_path, node="n1", keep_annotation=bool, ledger=Ledger())
    assert opened is not None
    try:
        assert len(opened._sources) == 2
    finally:
        opened.close()
