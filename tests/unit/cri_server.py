"""A container runtime on a socket of its own, which answers over the Container Runtime Interface as it is told to.

The real ones are in the system tier. This one can be made to know nothing, to be slow in knowing, to have another
version of the API, to go away and to come back.
"""

from __future__ import annotations

import threading
import time
from concurrent import futures
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]

from otel_procmon.containers.proto import cri_pb2 as cri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BOUND_S = 10.0
"""Longer than anything takes here, on a slow machine too."""


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as that is true. Fails when it never is."""
    end_s = time.monotonic() + BOUND_S
    while not (value := condition()):
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.002)
    return value


class RuntimeServer:
    """Serves what is in its attributes, which tests change as they like."""

    def __init__(self, path: Path, version: str = "v1") -> None:
        self.path = path
        self.version = version
        self.containers: dict[str, cri.ContainerStatus] = {}
        self.sandboxes: dict[str, cri.PodSandboxStatus] = {}
        self.sandbox_of: dict[str, str] = {}
        self.calls: list[str] = []
        """``Method id`` of each call."""
        self.error: grpc.StatusCode | None = None
        """Instead of any answer."""
        self.not_there = grpc.StatusCode.NOT_FOUND
        self.tells_events = False
        self._events: list[cri.ContainerEventResponse] = []
        self._changed = threading.Condition()
        self._stopped = True
        self._server: Any = None
        self.start()

    def start(self) -> None:
        """Listen, again if need be."""
        self._stopped = False
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._counted(name, method),
                request_deserializer=request.FromString,
                response_serializer=lambda response: response.SerializeToString(),
            )
            for name, method, request in (
                ("Version", self._version, cri.VersionRequest),
                ("ListContainers", self._list, cri.ListContainersRequest),
                ("ContainerStatus", self._container, cri.ContainerStatusRequest),
                ("PodSandboxStatus", self._sandbox, cri.PodSandboxStatusRequest),
            )
        }
        if self.tells_events:
            handlers["GetContainerEvents"] = grpc.unary_stream_rpc_method_handler(
                self._tell,
                request_deserializer=cri.GetEventsRequest.FromString,
                response_serializer=cri.ContainerEventResponse.SerializeToString,
            )
        service = f"runtime.{self.version}.RuntimeService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        assert self._server.add_insecure_port(f"unix://{self.path}")
        self._server.start()

    def stop(self) -> None:
        """Vanish."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._server.stop(None).wait(BOUND_S)

    def run(self, container_id: str, sandbox_id: str = "5" * 64, **metadata: Any) -> None:
        """A container of the pod default/xwing, or of the one in `metadata`."""
        name, namespace, uid = (
            metadata.get(key, default) for key, default in (("name", "xwing"), ("namespace", "default"), ("uid", "u-1"))
        )
        kubelets = {
            "io.kubernetes.pod.name": name,
            "io.kubernetes.pod.namespace": namespace,
            "io.kubernetes.pod.uid": uid,
        }
        self.sandboxes[sandbox_id] = cri.PodSandboxStatus(
            id=sandbox_id,
            metadata=cri.PodSandboxMetadata(name=name, namespace=namespace, uid=uid),
            network=cri.PodSandboxNetworkStatus(ip="10.0.0.7"),
            labels={**kubelets, "class": "xwing"},
            annotations={"example.com/owner": "team-a", "other": "x"},
        )
        self.sandbox_of[container_id] = sandbox_id
        self.containers[container_id] = cri.ContainerStatus(
            id=container_id,
            metadata=cri.ContainerMetadata(name="spaceship", attempt=2),
            created_at=1_709_280_601_000_000_000,
            started_at=1_709_280_601_500_000_000,
            image=cri.ImageSpec(image="docker.io/tgraf/netperf:latest"),
            image_ref="docker.io/tgraf/netperf@sha256:8e86f744bfea165fd4ce68caa05abc96500f40130b857773186401926af7e9e6",
            labels={**kubelets, "io.kubernetes.container.name": "spaceship"},
        )

    def tell(self, container_id: str, what: cri.ContainerEventType) -> None:
        """Tell of it by itself."""
        with self._changed:
            self._events.append(cri.ContainerEventResponse(container_id=container_id, container_event_type=what))
            self._changed.notify_all()

    def asked(self, call: str) -> int:
        """How often it was asked this."""
        return self.calls.count(call)

    def _counted(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: Any) -> Any:
            of = getattr(request, "container_id", "") or getattr(request, "pod_sandbox_id", "")
            if name == "ListContainers":
                of = request.filter.id
            self.calls.append(f"{name} {of}".strip())
            if self.error is not None:
                context.abort(self.error, "as the test says")
            return method(request, context)

        return answer

    def _version(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return cri.VersionResponse(runtime_name="containerd", runtime_version="1.6", runtime_api_version=self.version)

    def _list(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return cri.ListContainersResponse(
            containers=[
                cri.Container(id=one, pod_sandbox_id=self.sandbox_of[one])
                for one in list(self.containers)
                if one.startswith(request.filter.id)
            ]
        )

    def _container(self, request: Any, context: Any) -> Any:
        found = self.containers.get(request.container_id)
        if found is None:
            context.abort(self.not_there, "no such container")
        return cri.ContainerStatusResponse(status=found)

    def _sandbox(self, request: Any, context: Any) -> Any:
        found = self.sandboxes.get(request.pod_sandbox_id)
        if found is None:
            context.abort(self.not_there, "no such sandbox")
        return cri.PodSandboxStatusResponse(status=found)

    def _tell(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: ARG002
        for number in count():
            with self._changed:
                self._changed.wait_for(partial(self._is_over_or_has, number), BOUND_S)
                if self._stopped or len(self._events) <= number:
                    return
                event = self._events[number]
            yield event

    def _is_over_or_has(self, number: int) -> bool:
        return self._stopped or len(self._events) > number
