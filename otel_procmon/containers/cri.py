"""Containers and pods from the runtime itself, over the Container Runtime Interface: containerd, CRI-O, cri-dockerd.

The runtime knows a container as soon as it is made, long before the API server is told. One thread asks it: for all
that there is at the start, then for each container that somebody seeks. Where the runtime tells of new containers by
itself (GetContainerEvents: containerd 1.7, CRI-O if so configured), a second thread has them sought at once.

Import this only when it is asked for: gRPC costs 17 MB of memory.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

# What gRPC's core has to say it would write to standard error, at each try; the outcome says it in a sentence.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # type: ignore[import-untyped]

from otel_procmon.containers.metadata import NOTHING, Known, State
from otel_procmon.containers.proto import cri_pb2 as cri
from otel_procmon.events import Container, Pod
from otel_procmon.rfc3339 import format_rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from otel_procmon.ledger import Ledger

_log = logging.getLogger(__name__)

PLACE: Final = "containers.cri"

_VERSIONS: Final = ("v1", "v1alpha2")
"""Of the API, the newer first. What is read of both has the same numbers; the older one went in Kubernetes 1.26."""
_CALL_S: Final = 2.0
_WHOLE_LIST_S: Final = 10.0
_BETWEEN_TRIES_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""A sandbox is told of only when all of it is set up, its network included. The last one goes on."""
_PROBABLY_NOT_THERE: Final = 4
"""After so many tries in vain (0.75 s) what is in no pod by its path is taken for no container of Kubernetes'."""
_AWAY_S: Final = 1.0
_SOUGHT_AGAIN_S: Final = 30.0
_REMEMBERED: Final = 4096
"""Containers, and as many that are sought; each with its pod takes some 3 KiB."""
_EVENTS_AGAIN_S: Final = 5.0

# k8s.io/kubelet/pkg/types/labels.go: the kubelet adds them to the pod's own labels.
_OF_THE_KUBELET: Final = frozenset(
    {"io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid", "io.kubernetes.container.name"}
)

_NO_SUCH_SERVICE: Final = grpc.StatusCode.UNIMPLEMENTED
_OF_THE_RUNTIME: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNAVAILABLE,
        _NO_SUCH_SERVICE,
    }
)
"""Errors that say nothing of the container that was asked for. cri-dockerd has UNKNOWN for what it does not have."""

Answer = TypeVar("Answer", bound="Message")


class Runtime:
    """A runtime's answers. Every call raises grpc.RpcError."""

    def __init__(self, path: str) -> None:
        """Open nothing yet: the channel connects, and connects again, by itself."""
        self._channel = grpc.insecure_channel(
            f"unix://{path}",
            options=[
                # Servers in Go refuse the escaped path that gRPC would send (grpc/grpc-go#2628).
                ("grpc.default_authority", "localhost"),
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self._version = _VERSIONS[0]

    def version(self) -> cri.VersionResponse:
        """Name and version of the runtime. From here on the API's version is used that it has."""
        for version in _VERSIONS:
            self._version = version
            try:
                return self._call("Version", cri.VersionRequest(), cri.VersionResponse)
            except grpc.RpcError as error:
                if error.code() != _NO_SUCH_SERVICE or version == _VERSIONS[-1]:
                    raise
        raise AssertionError

    def containers(self, container_id: str = "") -> list[cri.Container]:
        """All containers, or the one with this id."""
        request = cri.ListContainersRequest()
        if container_id:
            request.filter.id = container_id
        timeout_s = _CALL_S if container_id else _WHOLE_LIST_S
        return list(self._call("ListContainers", request, cri.ListContainersResponse, timeout_s).containers)

    def container(self, container_id: str) -> cri.ContainerStatus:
        """One container."""
        request = cri.ContainerStatusRequest(container_id=container_id)
        return self._call("ContainerStatus", request, cri.ContainerStatusResponse).status

    def sandbox(self, sandbox_id: str) -> cri.PodSandboxStatus:
        """One pod's sandbox."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id)
        return self._call("PodSandboxStatus", request, cri.PodSandboxStatusResponse).status

    def events(self) -> Any:
        """An endless iterator of ContainerEventResponse."""
        return self._channel.unary_stream(
            f"/runtime.{self._version}.RuntimeService/GetContainerEvents",
            request_serializer=cri.GetEventsRequest.SerializeToString,
            response_deserializer=cri.ContainerEventResponse.FromString,
        )(cri.GetEventsRequest())

    def close(self) -> None:
        """End all calls."""
        self._channel.close()

    def _call(self, name: str, request: Message, answer: type[Answer], timeout_s: float = _CALL_S) -> Answer:
        method = self._channel.unary_unary(
            f"/runtime.{self._version}.RuntimeService/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        response: Answer = method(request, timeout=timeout_s)
        return response


class _Search:
    """A container that somebody seeks."""

    __slots__ = ("due_s", "tries", "until_s")

    def __init__(self, now_s: float, until_s: float) -> None:
        self.due_s = now_s
        self.until_s = until_s
        self.tries = 0


class RuntimeSource:
    """A `MetadataSource`."""

    def __init__(
        self,
        path: str,
        ledger: Ledger,
        *,
        patience_s: float,
        keep_annotation: Callable[[str], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start asking.

        Args:
            path: The runtime's socket. It need not be there yet.
            ledger: Counts what was asked.
            patience_s: How long a container is looked for that the runtime does not know.
            keep_annotation: Which of a pod's annotations are kept, by their keys.
            clock: Seconds; a clock that never goes back.
        """
        self._path = path
        self._ledger = ledger
        self._patience_s = patience_s
        self._keep_annotation = keep_annotation
        self._clock = clock
        self._runtime = Runtime(path)
        self._name: str | None = None
        self._known: dict[str, Known] = {}
        self._pods: dict[str, Pod] = {}
        """By the sandbox's id."""
        self._absent: dict[str, float] = {}
        """What was looked for in vain, and when it may be looked for again."""
        self._sought: dict[str, _Search] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._told = False
        self.state: State = "starting"
        self._threads = [
            threading.Thread(target=self._ask, name="cri", daemon=True),
            threading.Thread(target=self._listen, name="cri-events", daemon=True),
        ]
        self._threads[0].start()

    def find(self, container_id: str | None, pod_uid: str | None) -> Known:  # noqa: ARG002 - the id tells all here
        """See `MetadataSource.find`."""
        return NOTHING if container_id is None else self._known.get(container_id, NOTHING)

    def seek(self, container_id: str) -> None:
        """See `MetadataSource.seek`."""
        if container_id in self._known or self.state == "off":
            return
        with self._changed:
            now_s = self._clock()
            if container_id in self._sought or self._absent.get(container_id, now_s) > now_s:
                return
            if len(self._sought) >= _REMEMBERED:
                self._ledger.count(PLACE, "not asked: too many at once")
                return
            self._absent.pop(container_id, None)
            self._sought[container_id] = _Search(now_s, now_s + self._patience_s)
            self._changed.notify_all()

    def may_come(self, container_id: str | None, pod_uid: str | None) -> bool:
        """See `MetadataSource.may_come`.

        What is in a pod may come for as long as it is looked for. What is not, by its path, is probably another
        runtime's, and not looked for twice.
        """
        if self.state == "off" or container_id is None:
            return False
        search = self._sought.get(container_id)
        if search is None:
            again_s = self._absent.get(container_id)
            return again_s is None or (pod_uid is not None and again_s <= self._clock())
        return pod_uid is not None or search.tries < _PROBABLY_NOT_THERE

    def settle(self, timeout_s: float) -> None:
        """See `MetadataSource.settle`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.state == "off" or all(search.tries for search in self._sought.values()), timeout_s
            )

    def close(self) -> None:
        """See `MetadataSource.close`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._runtime.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_CALL_S)

    # The thread that asks

    def _ask(self) -> None:
        while not self._closing:
            try:
                if self.state != "ready":
                    self._begin()
                container_id = self._next()
                if container_id is None:
                    return
                known = self._look(container_id)
            except (grpc.RpcError, ValueError) as error:
                # ValueError: the channel was closed.
                if self._closing or self._fails(error):
                    return
                continue
            self._learn(container_id, known)

    def _begin(self) -> None:
        version = self._runtime.version()
        self._name = version.runtime_name or None
        ids = [container.id for container in self._runtime.containers()]
        if self._told:
            self._told = False
            _log.warning("the container runtime at %s answers again", self._path)
        self.state = "ready"
        _log.info("containers are known from %s %s at %s", self._name, version.runtime_version, self._path)
        for container_id in ids[-_REMEMBERED:]:
            self.seek(container_id)
        if not self._threads[1].is_alive() and not self._threads[1].ident:
            self._threads[1].start()

    def _next(self) -> str | None:
        """The next container to look for, as soon as its time has come. None at the end."""
        with self._changed:
            while not self._closing:
                now_s = self._clock()
                if self._sought:
                    container_id, search = min(self._sought.items(), key=lambda item: item[1].due_s)
                    if search.due_s <= now_s:
                        return container_id
                    self._changed.wait(search.due_s - now_s)
                else:
                    self._changed.wait()
        return None

    def _look(self, container_id: str) -> Known | None:
        """What the runtime knows of a container, or of the sandbox with this id. None: nothing. Raises RpcError."""
        try:
            listed = [one for one in self._runtime.containers(container_id) if one.id == container_id]
            if listed:
                status = self._runtime.container(container_id)
                return Known(self._container(status), self._pod(listed[0].pod_sandbox_id))
            return Known(Container(id=container_id, runtime=self._name), self._pod(container_id))
        except grpc.RpcError as error:
            if error.code() in _OF_THE_RUNTIME:
                raise
            if error.code() != grpc.StatusCode.NOT_FOUND:
                _log.debug("%s: %s: %s", self._path, container_id, error.details())
            return None

    def _learn(self, container_id: str, known: Known | None) -> None:
        with self._changed:
            search = self._sought[container_id]
            search.tries += 1
            now_s = self._clock()
            if known is not None:
                del self._sought[container_id]
                _bounded(self._known)[container_id] = known
                self._ledger.count(PLACE, "found")
            elif now_s >= search.until_s:
                del self._sought[container_id]
                _bounded(self._absent)[container_id] = now_s + _SOUGHT_AGAIN_S
                self._ledger.count(PLACE, "not found")
            else:
                search.due_s = now_s + _BETWEEN_TRIES_S[min(search.tries, len(_BETWEEN_TRIES_S)) - 1]
            self._changed.notify_all()

    def _container(self, status: cri.ContainerStatus) -> Container:
        reference = status.image_ref
        began_unix_ns = status.started_at or status.created_at
        return Container(
            id=status.id,
            runtime=self._name,
            name=status.metadata.name or None,
            image_id=reference or status.image_id or None,
            image_name=status.image.image or None,
            image_repo_digests=(reference,) if "@" in reference else (),
            restart_count=status.metadata.attempt,
            start_time=format_rfc3339(began_unix_ns) if began_unix_ns > 0 else None,
        )

    def _pod(self, sandbox_id: str) -> Pod:
        pod = self._pods.get(sandbox_id)
        if pod is None:
            status = self._runtime.sandbox(sandbox_id)
            pod = Pod(
                namespace=status.metadata.namespace or None,
                name=status.metadata.name or None,
                uid=status.metadata.uid or None,
                ip=status.network.ip or None,
                labels=_without_the_kubelets(status.labels),
                annotations={key: value for key, value in status.annotations.items() if self._keep_annotation(key)},
            )
            _bounded(self._pods)[sandbox_id] = pod
        return pod

    def _fails(self, error: Exception) -> bool:
        """Say what is wrong, and wait a little. True: it will never be otherwise."""
        code = error.code() if isinstance(error, grpc.RpcError) else None
        if code == _NO_SUCH_SERVICE:
            # Docker's own containerd, for one.
            _log.info("%s is no runtime of Kubernetes': it does not have the CRI", self._path)
            self.state = "off"
            with self._changed:
                self._sought.clear()
                self._changed.notify_all()
            return True
        self.state = "away"
        self._ledger.count(PLACE, "failed: no answer")
        if not self._told:
            self._told = True
            _log.warning(
                "the container runtime at %s does not answer (%s): until it does, containers have no names",
                self._path,
                _reason(error),
            )
        with self._changed:
            now_s = self._clock()
            for container_id, search in list(self._sought.items()):
                search.tries += 1
                if now_s >= search.until_s:
                    # Not absent: nobody knows.
                    del self._sought[container_id]
            self._changed.notify_all()
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, _AWAY_S)
        return self._closing

    # The thread that listens

    def _listen(self) -> None:
        while not self._closing and self.state != "off":
            try:
                for event in self._runtime.events():
                    if event.container_event_type != cri.CONTAINER_DELETED_EVENT:
                        self.seek(event.container_id)
            except (grpc.RpcError, ValueError) as error:
                if not isinstance(error, grpc.RpcError) or error.code() != grpc.StatusCode.UNAVAILABLE:
                    # It does not tell, and need not: what is sought is found without.
                    return
            with self._changed:
                self._changed.wait_for(lambda: self._closing, _EVENTS_AGAIN_S)


def examine_runtime(path: str) -> tuple[bool, str]:
    """Whether the runtime at the socket `path` answers, and a sentence about it."""
    runtime = Runtime(path)
    try:
        version = runtime.version()
        count = len(runtime.containers())
    except grpc.RpcError as error:
        if error.code() == _NO_SUCH_SERVICE:
            return False, f"{path} answers, but not as a runtime of Kubernetes': containers are known by their ids only"
        return False, (
            f"the container runtime at {path} does not answer ({_reason(error)}): start it, run as root, mount its "
            "socket into the agent's pod, or name another one in CONTAINER_RUNTIME_ENDPOINT"
        )
    finally:
        runtime.close()
    return True, f"the container runtime answers: {version.runtime_name} {version.runtime_version}, {count} containers"


def _reason(error: Exception) -> str:
    """Why a call failed, without gRPC's account of how it got there."""
    if not isinstance(error, grpc.RpcError):
        return str(error)
    # Before gRPC 1.80 it ends with the error's number.
    details = re.sub(r" \(\d+\)$", "", str(error.details() or "").rpartition(": ")[2])
    return details[:1].lower() + details[1:] or error.code().name


def _without_the_kubelets(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key not in _OF_THE_KUBELET}


Kept = TypeVar("Kept")


def _bounded(kept: dict[str, Kept]) -> dict[str, Kept]:
    """`kept` with room for one more: what was learnt first is forgotten first, and asked for again if need be."""
    while len(kept) >= _REMEMBERED:
        del kept[next(iter(kept))]
    return kept
