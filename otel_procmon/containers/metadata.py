"""What is known of containers and pods, from all sources together: from memory, at once.

The runtime (`cri`) knows a container as soon as it is made; the Kubernetes API (`pods`) knows a pod's owners, and its
labels as they are now. So a container is the runtime's where it has it, and a pod the API's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from msgspec.structs import replace

if TYPE_CHECKING:
    from otel_procmon.events import Container, Pod


class Known(NamedTuple):
    """A container and its pod, as far as they are known.

    A pod's sandbox (pause) is a container without a name.
    """

    container: Container | None = None
    pod: Pod | None = None


NOTHING = Known()

State = Literal["starting", "ready", "away", "off"]
"""Of a source: it has not answered yet; it answers; it does not now; it never will (no such service, no permission)."""


class MetadataSource(Protocol):
    """Answers from memory, and looks for what it does not know in a thread of its own. Nothing here ever waits."""

    @property
    def state(self) -> State:
        """Whether it answers."""

    def find(self, container_id: str | None, pod_uid: str | None) -> Known:
        """What is known of a container and its pod, or of a pod by what the cgroup path has as its uid."""

    def seek(self, container_id: str) -> None:
        """Find out about a container soon."""

    def may_come(self, container_id: str | None, pod_uid: str | None) -> bool:
        """Whether to wait for what is not known yet makes sense."""

    def settle(self, timeout_s: float) -> None:
        """Wait until all that was sought has been looked for once. The one call that waits."""

    def close(self) -> None:
        """End."""


_ADDRESSED_MAX: Final = 1024


class Found(NamedTuple):
    """What all sources together know."""

    container: Container | None
    pod: Pod | None
    pending: bool
    """Something is missing, and may come."""


class Metadata:
    """All sources as one; at least one of the two is there."""

    def __init__(self, runtime: MetadataSource | None, api: MetadataSource | None) -> None:
        self._runtime = runtime
        self._api = api
        self._sources = [source for source in (runtime, api) if source is not None]
        self._addressed: dict[str, tuple[Pod, Pod]] = {}
        """The API's pods that have no address there yet, and with the runtime's; by uid."""

    def find(self, container_id: str | None, pod_uid: str | None) -> Found:
        """What is known of a container, by its id and by the uid that its cgroup path has for its pod."""
        container, pod = NOTHING
        if self._runtime is not None:
            container, pod = self._runtime.find(container_id, pod_uid)
        if self._api is not None:
            # What is in no pod by its path may be in one by what the runtime says.
            told = self._api.find(container_id, pod_uid or (None if pod is None else pod.uid))
            if container is None:
                container = told.container
            if told.pod is not None:
                pod = self._with_address(told.pod, pod)
            elif container is not None and pod is not None:
                # The runtime does not know the pod's owners. They decide what the service is called, so they are worth
                # waiting for, unless they cannot be had now.
                return Found(container, pod, self._api.state in ("starting", "ready"))
        if container is not None and pod is not None:
            return Found(container, pod, pending=False)
        pending = any(source.may_come(container_id, pod_uid) for source in self._sources)
        return Found(container, pod, pending)

    def _with_address(self, pod: Pod, runtimes: Pod | None) -> Pod:
        """The API's `pod` with the address that the runtime knows earlier; one object for as long as it is needed.

        Else a pod's first records, and all records of one that lives shortly, would be without.
        """
        if pod.ip is not None or runtimes is None or runtimes.ip is None or pod.uid is None:
            return pod
        known = self._addressed.get(pod.uid)
        if known is None or known[0] is not pod:
            if len(self._addressed) >= _ADDRESSED_MAX:
                self._addressed.clear()
            known = self._addressed[pod.uid] = (pod, replace(pod, ip=runtimes.ip))
        return known[1]

    def seek(self, container_id: str) -> None:
        """Find out about a container soon."""
        for source in self._sources:
            source.seek(container_id)

    def settle(self, timeout_s: float) -> None:
        """Wait until all that was sought has been looked for once."""
        for source in self._sources:
            source.settle(timeout_s)

    def close(self) -> None:
        """End all sources."""
        for source in self._sources:
            source.close()
