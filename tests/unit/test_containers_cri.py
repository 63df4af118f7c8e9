"""The container runtime, asked over a real socket; a server in this process stands in for it (`cri_server`).

containerd itself is asked in the system tier.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc  # type: ignore[import-untyped]
import pytest

from otel_procmon.containers import cri as module
from otel_procmon.containers.cri import PLACE, RuntimeSource, examine_runtime
from otel_procmon.containers.metadata import NOTHING, Known
from otel_procmon.containers.proto import cri_pb2
from otel_procmon.events import Container, Pod
from otel_procmon.ledger import Ledger
from tests.unit.cri_server import BOUND_S, RuntimeServer, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ask = Callable[..., RuntimeSource]

ID, OTHER, SANDBOX = "c" * 64, "d" * 64, "5" * 64
UID = "b611161b-1943-406a-9e51-6cd481f95388"

POD = Pod(
    namespace="default",
    name="xwing",
    uid="u-1",
    ip="10.0.0.7",
    labels={"class": "xwing"},
    annotations={"example.com/owner": "team-a"},
)
REFERENCE = "docker.io/tgraf/netperf@sha256:8e86f744bfea165fd4ce68caa05abc96500f40130b857773186401926af7e9e6"
SPACESHIP = Container(
    id=ID,
    runtime="containerd",
    name="spaceship",
    image_id=REFERENCE,
    image_name="docker.io/tgraf/netperf:latest",
    image_repo_digests=(REFERENCE,),
    restart_count=2,
    start_time="2024-03-01T08:10:01.500Z",
)


def pod_of(source: RuntimeSource, container_id: str) -> Pod | None:
    return source.find(container_id, UID).pod


@pytest.fixture
def place() -> Iterator[Path]:
    # The path of a socket has 107 bytes at most; pytest's own directories are longer at times.
    directory = tempfile.mkdtemp(prefix="cri")
    yield Path(directory) / "s"
    shutil.rmtree(directory)


@pytest.fixture
def server(place: Path) -> Iterator[RuntimeServer]:
    server = RuntimeServer(place)
    yield server
    server.stop()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def ask(place: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    monkeypatch.setattr(module, "_AWAY_S", 0.02)
    monkeypatch.setattr(module, "_EVENTS_AGAIN_S", 0.02)
    monkeypatch.setattr(module, "_BETWEEN_TRIES_S", (0.001,))
    sources: list[RuntimeSource] = []

    def asking(patience_s: float = BOUND_S) -> RuntimeSource:
        source = RuntimeSource(
            str(place), ledger, patience_s=patience_s, keep_annotation=lambda key: key.startswith("example.com/")
        )
        sources.append(source)
        return source

    yield asking
    for source in sources:
        source.close()


def test_a_container_that_is_sought(server: RuntimeServer, ask: Ask, ledger: Ledger) -> None:
    source = ask()
    until(lambda: source.state == "ready")
    assert source.find(ID, UID) == NOTHING
    assert source.may_come(ID, UID)

    server.run(ID)
    source.seek(ID)
    known = until(lambda: source.find(ID, UID) != NOTHING and source.find(ID, UID))
    assert known == Known(SPACESHIP, POD)
    assert ledger.counts() == {(PLACE, "found"): 1}

    # It is remembered.
    calls = len(server.calls)
    source.seek(ID)
    source.settle(BOUND_S)
    assert len(server.calls) == calls
    assert source.find(ID, UID) is known


def test_what_runs_at_the_start_is_known_unasked(server: RuntimeServer, ask: Ask) -> None:
    server.run(ID)
    source = ask()
    until(lambda: source.find(ID, None) == Known(SPACESHIP, POD))


def test_a_sandbox_is_a_container_without_a_name(server: RuntimeServer, ask: Ask) -> None:
    server.run(ID)
    source = ask()
    source.seek(SANDBOX)
    known = until(lambda: source.find(SANDBOX, UID).container and source.find(SANDBOX, UID))
    assert known == Known(Container(id=SANDBOX, runtime="containerd"), POD)


def test_containers_of_one_pod_share_it(server: RuntimeServer, ask: Ask) -> None:
    server.run(ID)
    server.run(OTHER)
    source = ask()
    first, second = (until(partial(pod_of, source, one)) for one in (ID, OTHER))
    assert first is second
    assert server.asked(f"PodSandboxStatus {SANDBOX}") == 1


def test_what_is_slow_to_be_known_is_asked_for_again(server: RuntimeServer, ask: Ask) -> None:
    source = ask()
    source.seek(SANDBOX)
    until(lambda: server.asked(f"PodSandboxStatus {SANDBOX}") >= 3)
    # In a pod it may still come; in none, it is somebody else's by now.
    assert source.may_come(SANDBOX, UID)
    until(lambda: not source.may_come(SANDBOX, None))
    server.run(ID)
    until(lambda: source.find(SANDBOX, UID).pod)


@pytest.mark.parametrize("not_there", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN])
def test_what_is_not_there_is_not_asked_for_for_ever(
    server: RuntimeServer, ask: Ask, ledger: Ledger, not_there: grpc.StatusCode
) -> None:
    server.not_there = not_there
    source = ask(patience_s=0.01)
    source.seek(OTHER)
    until(lambda: ledger.get(PLACE, "not found"))
    assert not source.may_come(OTHER, UID)
    calls = len(server.calls)
    source.seek(OTHER)
    source.settle(BOUND_S)
    assert len(server.calls) == calls
    # One container that is not there says nothing of others.
    server.run(ID)
    source.seek(ID)
    until(lambda: source.find(ID, UID).pod)
    assert source.state == "ready"


def test_what_was_not_there_is_asked_for_later(
    server: RuntimeServer, ask: Ask, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SOUGHT_AGAIN_S", 0.0)
    source = ask(patience_s=0.0)
    source.seek(ID)
    until(lambda: ledger.get(PLACE, "not found"))
    server.run(ID)
    assert source.may_come(ID, UID)
    assert not source.may_come(ID, None)
    source.seek(ID)
    until(lambda: source.find(ID, UID).pod)


def test_settle_waits_for_one_look(server: RuntimeServer, ask: Ask) -> None:
    server.run(ID)
    source = ask()
    for one in (ID, OTHER):
        source.seek(one)
    source.settle(BOUND_S)
    assert source.find(ID, None).pod is not None
    assert server.asked(f"ListContainers {OTHER}") >= 1


def test_the_older_version_of_the_api(place: Path, ask: Ask) -> None:
    server = RuntimeServer(place, "v1alpha2")
    try:
        server.run(ID)
        source = ask()
        until(lambda: source.find(ID, None) == Known(SPACESHIP, POD))
    finally:
        server.stop()


def test_a_service_that_is_no_runtime_is_not_asked_again(
    place: Path, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = RuntimeServer(place, "v0")
    try:
        source = ask()
        source.seek(ID)
        until(lambda: source.state == "off")
        assert not source.may_come(ID, UID)
        source.settle(BOUND_S)
        assert [record.message for record in caplog.records] == [
            f"{place} is no runtime of Kubernetes': it does not have the CRI"
        ]
        assert caplog.records[0].levelno == logging.INFO
    finally:
        server.stop()


def test_a_runtime_that_comes_later_goes_and_comes_back(
    place: Path, ask: Ask, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    source = ask()
    source.seek(ID)
    until(lambda: source.state == "away")
    # It may come; but what is in no pod does not wait for that.
    assert source.may_come(ID, UID)
    until(lambda: ledger.get(PLACE, "failed: no answer") >= 3)
    assert len(caplog.records) == 1
    assert caplog.records[0].message == (
        f"the container runtime at {place} does not answer (no such file or directory): until it does, containers have "
        "no names"
    )
    server = RuntimeServer(place)
    try:
        server.run(ID)
        until(lambda: source.find(ID, UID).pod)
        assert caplog.records[1].message == f"the container runtime at {place} answers again"
        server.stop()
        source.seek(OTHER)
        until(lambda: source.state == "away")
        # What is known is known.
        assert source.find(ID, UID) == Known(SPACESHIP, POD)
        server.run(OTHER)
        server.start()
        until(lambda: source.find(OTHER, UID).pod)
    finally:
        server.stop()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
def test_errors_of_the_runtime_are_not_the_containers(
    server: RuntimeServer, ask: Ask, ledger: Ledger, code: grpc.StatusCode
) -> None:
    source = ask()
    until(lambda: source.state == "ready")
    server.run(ID)
    server.error = code
    source.seek(ID)
    until(lambda: ledger.get(PLACE, "failed: no answer"))
    server.error = None
    until(lambda: source.find(ID, UID).pod)


def test_a_runtime_that_tells_of_containers_by_itself(place: Path, ask: Ask) -> None:
    server = RuntimeServer(place)
    server.stop()
    server.tells_events = True
    server.start()
    try:
        source = ask()
        until(lambda: source.state == "ready")
        server.run(ID)
        server.tell(OTHER, cri_pb2.CONTAINER_DELETED_EVENT)
        server.tell(ID, cri_pb2.CONTAINER_CREATED_EVENT)
        until(lambda: source.find(ID, UID).pod)
        assert server.asked(f"ListContainers {OTHER}") == 0
    finally:
        server.stop()


def test_memory_is_bounded(server: RuntimeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    source = ask()
    until(lambda: source.state == "ready")
    ids = [f"{number:064x}" for number in range(6)]
    for number, one in enumerate(ids):
        server.run(one, f"{number + 100:064x}")
        source.seek(one)
        until(partial(pod_of, source, one))
    assert [source.find(one, UID).pod is not None for one in ids] == [False] * 3 + [True] * 3
    # What was forgotten is found again.
    source.seek(ids[0])
    until(lambda: source.find(ids[0], UID).pod)


def test_no_more_are_sought_at_once_than_fit(
    place: Path, ask: Ask, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    source = ask()
    for number in range(5):
        source.seek(f"{number:064x}")
    assert ledger.get(PLACE, "not asked: too many at once") == 2


def test_close_ends_the_threads(server: RuntimeServer, ask: Ask) -> None:
    source = ask()
    source.seek(ID)
    until(lambda: source.state == "ready")
    source.close()
    assert not any(thread.is_alive() for thread in source._threads)


def test_examine(place: Path) -> None:
    answers, what = examine_runtime(str(place))
    assert not answers
    assert what == (
        f"the container runtime at {place} does not answer (no such file or directory): start it, run as root, mount "
        "its socket into the agent's pod, or name another one in CONTAINER_RUNTIME_ENDPOINT"
    )
    server = RuntimeServer(place, "v0")
    answers, what = examine_runtime(str(place))
    server.stop()
    assert not answers
    assert "not as a runtime of Kubernetes'" in what
    server = RuntimeServer(place)
    server.run(ID)
    assert examine_runtime(str(place)) == (True, "the container runtime answers: containerd 1.6, 1 containers")
    server.stop()
