"""Pods from the Kubernetes API, over HTTP; a server in this process stands in for it (`kube_server`).

The real API server is asked in the system tier. Configuration and transport are the package kubernetes' own here too.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from otel_procmon.containers import pod_watch
from otel_procmon.containers.kube_access import SERVICE_ACCOUNT, Access, AccessError, ApiServer, find_access
from otel_procmon.containers.pod_watch import PLACE, PodWatch, examine_api
from otel_procmon.doctor import _containers
from otel_procmon.ledger import Ledger
from tests.unit.cri_server import until
from tests.unit.kube_server import KubeServer, pod, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Watch = Callable[..., PodWatch]

ID, OTHER = "c" * 64, "d" * 64


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[KubeServer]:
    server = KubeServer()
    yield server
    server.close()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def watch(server: KubeServer, tmp_path: Path, ledger: Ledger) -> Iterator[Watch]:
    watches: list[PodWatch] = []

    def watching(access: Access | None = None) -> PodWatch:
        access = access or Access(str(server.kubeconfig(tmp_path)))
        watch = PodWatch(
            lambda: ApiServer(access),
            "n1",
            ledger,
            keep_annotation=lambda key: key.startswith("example.com/"),
            back_off_s=(0.01, 0.05),
            refused_s=0.02,
        )
        watches.append(watch)
        return watch

    yield watching
    for one in watches:
        one.close()


def names(watch: PodWatch, *uids: str) -> list[str | None]:
    return [found.name if (found := watch.find(None, uid).pod) else None for uid in uids]


def test_pods_that_are_there_come_go_and_change(server: KubeServer, watch: Watch, ledger: Ledger) -> None:
    server.put(pod("xwing", "u-1"))
    pods = watch()
    until(lambda: names(pods, "u-1") == ["xwing"])
    until(lambda: pods.state == "ready")
    until(server.watches)

    server.put(pod("tiefighter", "u-2"))
    until(lambda: names(pods, "u-2") == ["tiefighter"])
    server.put(pod("xwing", "u-1", status={"podIP": "10.0.0.7", "containerStatuses": [running("spaceship", ID)]}))
    known = until(lambda: pods.find(ID, None).pod and pods.find(ID, None))
    assert (known.container.name, known.pod.ip) == ("spaceship", "10.0.0.7")
    assert known.pod.annotations == {"example.com/owner": "team-a"}
    server.delete("u-2")
    until(lambda: len(pods) == 1)
    # Its processes' exits may come yet.
    assert names(pods, "u-2") == ["tiefighter"]
    assert ledger.counts() == {(PLACE, "listed"): 1}


def test_only_this_nodes_pods_are_asked_for(server: KubeServer, watch: Watch) -> None:
    watch()
    until(server.watches)
    listing, watching = server.queries
    assert listing == {"fieldSelector": "spec.nodeName=n1", "limit": "500", "resourceVersion": "0"}
    seconds = int(watching.pop("timeoutSeconds"))
    assert 240 <= seconds <= 360
    assert watching == {
        "fieldSelector": "spec.nodeName=n1",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "100",
    }


def test_a_long_list_comes_in_pieces(server: KubeServer, watch: Watch) -> None:
    server.piece = 2
    for number in range(5):
        server.put(pod(f"p{number}", f"u-{number}"))
    pods = watch()
    until(lambda: len(pods) == 5)
    assert [query.get("continue") for query in server.lists()] == [None, "2", "4"]
    # Of what is continued, the server knows the version.
    assert [query.get("resourceVersion") for query in server.lists()] == ["0", None, None]


def test_a_list_whose_rest_is_gone_begins_anew(server: KubeServer, watch: Watch, ledger: Ledger) -> None:
    server.piece = 1
    for number in range(2):
        server.put(pod(f"p{number}", f"u-{number}"))
    server.forget()

    def remember_from_the_second_time_on() -> None:
        if len(server.lists()) > 2:
            server.oldest = 0

    server.before_piece = remember_from_the_second_time_on
    pods = watch()
    until(lambda: len(pods) == 2)
    assert ledger.get(PLACE, "noted: history was gone") == 1


def test_a_watch_that_ends_goes_on_where_it_stopped(server: KubeServer, watch: Watch, ledger: Ledger) -> None:
    pods = watch()
    until(server.watches)
    server.put(pod("xwing", "u-1"))
    until(lambda: names(pods, "u-1") == ["xwing"])
    server.cut()
    server.put(pod("tiefighter", "u-2"))
    until(lambda: names(pods, "u-2") == ["tiefighter"])
    assert len(server.lists()) == 1
    assert server.watches()[1] == "101"
    assert pods.state == "ready"


def test_a_bookmark_moves_the_place_to_go_on_from(server: KubeServer, watch: Watch) -> None:
    watch()
    until(server.watches)
    server.bookmark(150)

    def cut_off_at_the_bookmark() -> bool:
        # Until it has come, a watch would begin at 100 again.
        server.cut()
        return server.watches()[-1] == "150"

    until(cut_off_at_the_bookmark)
    assert len(server.lists()) == 1


@pytest.mark.parametrize("told", ["as the answer", "in the watch"])
def test_forgotten_history_is_listed_anew(server: KubeServer, watch: Watch, ledger: Ledger, told: str) -> None:
    server.put(pod("xwing", "u-1"))
    server.put(pod("gone", "u-2"))
    pods = watch()
    until(server.watches)
    if told == "in the watch":
        del server.pods["u-2"]
        server.send(b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}')
        server.version += 1
        server.send(b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}')
    else:
        server.delete("u-2")
        server.version += 50
        server.forget()
        server.cut()
    server.pods["u-3"] = pod("new", "u-3")
    until(lambda: names(pods, "u-1", "u-3") == ["xwing", "new"])
    until(lambda: len(pods) == 2)
    assert ledger.get(PLACE, "noted: history was gone") >= 1
    # Not from the server's memory this time, which may be older than what was known.
    assert "resourceVersion" not in server.lists()[-1]


GARBAGE = {
    "no JSON": b"\xff\xfe not JSON",
    "no object": b'{"type":"ADDED"}',
    "a number": b'{"type":"ADDED","object":7}',
    "no uid": b'{"type":"ADDED","object":{"metadata":{"name":"nobody"}}}',
    "labels of another type": b'{"type":"ADDED","object":{"metadata":{"uid":"u-9","labels":{"a":1}}}}',
    "no UTF-8": b'{"type":"ADDED","object":{"metadata":{"uid":"u-9","name":"\xff"}}}',
    "no UTF-8 in a label": b'{"type":"ADDED","object":{"metadata":{"uid":"u-9","labels":{"a":"\xff"}}}}',
    "no UTF-8 in the envelope": b'{"type":"\xff","object":{"metadata":{"uid":"u-9"}}}',
    "terminal escapes": b'{"type":"ADDED","object":{"metadata":{"uid":"u-9","name":"\\u001b[2J","labels":3}}}',
}


@pytest.mark.parametrize("line", GARBAGE.values(), ids=GARBAGE)
def test_garbage_costs_itself_only(
    server: KubeServer, watch: Watch, ledger: Ledger, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    server.put(pod("agent", "u-0"))
    pods = watch()
    until(server.watches)
    server.version += 1
    server.send(line)
    server.put(pod("xwing", "u-1"))
    until(lambda: names(pods, "u-1") == ["xwing"])
    assert ledger.get(PLACE, "dropped: malformed") == 1
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("the Kubernetes API told of ")
    assert message.isprintable()
    assert len(server.lists()) == 1


def test_a_malformed_pod_in_a_list_is_not_taken_for_deleted(server: KubeServer, watch: Watch, ledger: Ledger) -> None:
    server.put(pod("xwing", "u-1"))
    server.put(pod("tiefighter", "u-2"))
    pods = watch()
    until(lambda: len(pods) == 2)
    server.pods["u-1"]["metadata"]["labels"] = {"class": 7}
    server.version += 50
    server.forget()
    server.cut()
    until(lambda: ledger.get(PLACE, "listed") == 2)
    assert names(pods, "u-1", "u-2") == ["xwing", "tiefighter"]
    assert len(pods) == 2
    assert ledger.get(PLACE, "dropped: malformed") == 1


def test_unknown_kinds_of_changes_are_counted(server: KubeServer, watch: Watch, ledger: Ledger) -> None:
    watch()
    until(server.watches)
    server.version += 1
    server.send(b'{"type":"RENAMED","object":{"metadata":{"uid":"u-1"}}}')
    until(lambda: ledger.get(PLACE, "dropped: of an unknown kind"))


def test_a_server_that_is_away_comes_back(
    server: KubeServer, watch: Watch, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(pod("xwing", "u-1"))
    pods = watch()
    until(server.watches)
    server.refuse = 503, {}
    server.cut()
    until(lambda: pods.state == "away")
    assert names(pods, "u-1") == ["xwing"]
    assert pods.may_come(ID, "u-2")
    until(lambda: ledger.get(PLACE, "failed: no answer") >= 4)
    server.refuse = None
    server.put(pod("tiefighter", "u-2"))
    until(lambda: names(pods, "u-2") == ["tiefighter"])
    assert pods.state == "ready"
    assert len(server.lists()) == 1
    assert [record.message for record in caplog.records] == [
        f"the Kubernetes API at {server.address} does not answer (503: as the test says); it is asked again and again",
        f"the Kubernetes API at {server.address} answers again",
    ]


def test_nobody_there_at_the_start(
    tmp_path: Path, watch: Watch, server: KubeServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = server.kubeconfig(tmp_path)
    server.close()
    pods = watch(Access(str(path)))
    until(lambda: pods.state == "away")
    # That it is away is known a little before it is said.
    assert "does not answer" in until(lambda: caplog.records)[0].message


def test_missing_permission_is_said_once(
    server: KubeServer, watch: Watch, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse = 403, {}
    pods = watch()
    until(lambda: ledger.get(PLACE, "failed: not permitted") >= 3)
    assert pods.state == "off"
    assert not pods.may_come(ID, "u-1")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(
        "the Kubernetes API does not permit to list and watch pods (403: as the test says): grant it to"
    )
    # It may be granted later.
    server.refuse = None
    server.put(pod("xwing", "u-1"))
    until(lambda: names(pods, "u-1") == ["xwing"])
    until(lambda: pods.state == "ready")


def test_a_node_without_pods_may_have_another_name(
    server: KubeServer, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch()
    until(server.watches)
    server.forget()
    server.version += 1
    server.cut()
    until(lambda: len(server.watches()) > 1)
    (record,) = caplog.records
    assert record.message == (
        f"the Kubernetes API at {server.address} has no pods of node n1: if that is not this node's name there, set "
        "NODE_NAME"
    )


def test_a_token_that_has_changed_is_read_again(server: KubeServer, watch: Watch, tmp_path: Path) -> None:
    pods = watch()
    until(server.watches)
    server.token = "second-token"
    server.kubeconfig(tmp_path)
    server.cut()
    server.put(pod("xwing", "u-1"))
    until(lambda: names(pods, "u-1") == ["xwing"])


def test_retry_after_is_obeyed(
    server: KubeServer, watch: Watch, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    server.refuse = 429, {"retry-after": "7"}
    pods = watch()
    event = pods._closing

    def wait(seconds: float = 0) -> bool:
        waited.append(seconds)
        return event.is_set()

    monkeypatch.setattr(event, "wait", wait)
    until(lambda: any(seconds == 7 for seconds in waited))
    pods._closing.set()


def test_a_kubeconfig_that_says_nothing(tmp_path: Path, watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken"
    path.write_text("clusters: 7\n")
    pods = watch(Access(str(path)))
    until(lambda: pods.state == "off")
    assert not pods.may_come(ID, "u-1")
    assert f"{path} does not say how to reach the Kubernetes API" in until(lambda: caplog.records)[0].message


def test_a_watch_that_always_ends_at_once_makes_no_storm(
    server: KubeServer, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: Any) -> Iterator[bytes]:
        yield from ()

    monkeypatch.setattr(pod_watch, "_lines", nothing)
    pods = watch()
    until(lambda: len(server.watches()) >= 4)
    assert pods._failures >= 3
    assert pods.state == "ready"


def test_close_does_not_wait_for_the_server(server: KubeServer, watch: Watch) -> None:
    pods = watch()
    until(server.watches)
    until(lambda: pods._answer is not None)
    pods.close()
    assert not pods._thread.is_alive()


def test_examine(server: KubeServer, tmp_path: Path) -> None:
    access = Access(str(server.kubeconfig(tmp_path)))
    where = f"{server.address}, by {access}"
    answers, what = examine_api(access, "n1")
    assert answers
    assert what == (
        f"the Kubernetes API ({where}) lists 0 pods of this node; is 'n1' this node's name there? If not, set NODE_NAME"
    )
    server.put(pod("xwing", "u-1"))
    assert examine_api(access, "n1") == (True, f"the Kubernetes API ({where}) lists 1 pods of this node")
    server.refuse = 403, {}
    answers, what = examine_api(access, "n1")
    assert not answers
    assert "let the agent's service account get, list and watch pods" in what
    server.close()
    answers, what = examine_api(access, "n1")
    assert not answers
    assert "does not answer" in what
    answers, what = examine_api(Access(str(tmp_path / "nothing")), "n1")
    assert not answers
    assert "does not say how to reach the Kubernetes API" in what


def test_the_doctor_looks_where_there_is_a_sign(server: KubeServer, tmp_path: Path) -> None:
    def found(**environ: str) -> list[tuple[str, str]]:
        return [(finding.state, finding.what) for finding in _containers(environ, tmp_path)]

    assert found() == []
    server.put(pod("xwing", "u-1"))
    kubeconfig = str(server.kubeconfig(tmp_path))
    ((state, what),) = found(KUBECONFIG=kubeconfig, NODE_NAME="n1")
    assert state == "ok"
    assert what == f"the Kubernetes API ({server.address}, by {kubeconfig}) lists 1 pods of this node"
    server.refuse = 403, {}
    states = [state for state, _ in found(KUBECONFIG=kubeconfig, CONTAINER_RUNTIME_ENDPOINT="/nowhere")]
    assert states == ["note", "note"]
    # The agent itself would not start.
    ((state, what),) = found(CONTAINER_RUNTIME_ENDPOINT="tcp://nowhere")
    assert (state, what.split(";")[0]) == ("missing", "CONTAINER_RUNTIME_ENDPOINT is 'tcp://nowhere'")


# Where the way to the API is looked for.


def test_nothing_says_that_there_is_a_kubernetes(tmp_path: Path) -> None:
    assert find_access({}, tmp_path) is None


def test_ways_to_the_api_in_their_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    (home / ".kube/config").write_text("{}")
    environ = {"HOME": str(home)}
    # A file in somebody's home may lead anywhere; on a node it leads to the node's cluster.
    assert find_access(environ, tmp_path) is None
    (tmp_path / "var/lib/kubelet").mkdir(parents=True)
    assert find_access(environ, tmp_path) == Access(str(home / ".kube/config"))
    environ["KUBECONFIG"] = "/a:/b"
    assert find_access(environ, tmp_path) == Access("/a:/b")
    environ["KUBERNETES_SERVICE_HOST"] = "10.96.0.1"
    assert find_access(environ, tmp_path) == Access("/a:/b")
    (tmp_path / SERVICE_ACCOUNT).parent.mkdir(parents=True)
    (tmp_path / SERVICE_ACCOUNT).write_text("token")
    assert find_access(environ, tmp_path) == Access(None)
    assert find_access(environ, tmp_path, "/named") == Access("/named")


def test_a_service_account_outside_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(AccessError, match="the service account does not say how to reach the Kubernetes API"):
        ApiServer(Access(None))


def test_importing_costs_nothing_until_somebody_asks() -> None:
    code = (
        "import sys, otel_procmon.cli\n"
        "print(*(name for name in ('kubernetes', 'grpc', 'pydantic', 'urllib3') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
