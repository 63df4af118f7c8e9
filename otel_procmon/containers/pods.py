"""The pods of this node, as the Kubernetes API tells of them: decoding, and what is remembered.

Of a pod's JSON only what is used is decoded; the rest is skipped unread. What is deleted is remembered for a while: its
processes' exits come later.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from otel_procmon.containers.metadata import NOTHING, Known
from otel_procmon.events import Container, Owner, Pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_REMEMBERED_S: Final = 120.0
_GONE_MAX: Final = 1024
_FORMER_MAX: Final = 16
"""Containers of a pod, besides those that it has now, that are remembered: it was started anew."""

# k8s.io/kubernetes/pkg/kubelet/types: the kubelet's own id of a static pod, which is in the cgroup path and in the
# runtime, is a hash; what the API has is a mirror of that pod with a uid of its own.
_CONFIG_HASHES: Final = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash")
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""The whole manifest once more: long, and may hold anything."""
_TEMPLATE_HASH: Final = "pod-template-hash"
_OF_CRON_JOB: Final = re.compile(r"(?P<name>.+)-\d{8,10}")


class _Struct(msgspec.Struct, rename="camel", gc=False):
    """What is read of an object in the API; everything may be missing."""


class _Owner(_Struct):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class _Meta(_Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    generate_name: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


class _Run(_Struct):
    started_at: str | None = None
    container_id: str = msgspec.field(default="", name="containerID")


class _State(_Struct):
    running: _Run | None = None
    terminated: _Run | None = None


class _Status(_Struct):
    name: str = ""
    container_id: str = msgspec.field(default="", name="containerID")
    image: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    restart_count: int = 0
    state: _State | None = None
    last_state: _State | None = None


class _PodStatus(_Struct):
    pod_ip: str = msgspec.field(default="", name="podIP")
    start_time: str | None = None
    container_statuses: list[_Status] | None = None
    init_container_statuses: list[_Status] | None = None
    ephemeral_container_statuses: list[_Status] | None = None


class _Exec(_Struct):
    command: list[str] | None = None


class _Probe(_Struct):
    exec: _Exec | None = None


class _Specified(_Struct):
    name: str = ""
    liveness_probe: _Probe | None = None
    readiness_probe: _Probe | None = None
    startup_probe: _Probe | None = None


class _Spec(_Struct):
    containers: list[_Specified] | None = None
    init_containers: list[_Specified] | None = None


class _PodObject(_Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class PodState(NamedTuple):
    """One pod at one moment."""

    resource_version: str
    pod: Pod
    hash: str | None
    """A static pod's id at the kubelet, which is in the cgroup path in the uid's place."""
    containers: tuple[Container, ...]


_DECODER: Final = msgspec.json.Decoder(_PodObject)

_SAME_MAX: Final = 8192
_same_texts: dict[str, str] = {}
_same_labels: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}


def _same(text: str) -> str:
    """One object for equal texts: thousands of pods have the same few images, owners and times."""
    if len(_same_texts) >= _SAME_MAX:
        _same_texts.clear()
    return _same_texts.setdefault(text, text)


def _same_dict(labels: dict[str, str]) -> dict[str, str]:
    """One object for equal labels: all pods of a workload have the same."""
    key = tuple((_same(name), _same(value)) for name, value in labels.items())
    if len(_same_labels) >= _SAME_MAX:
        _same_labels.clear()
    return _same_labels.setdefault(key, dict(key))


def decode_pod(data: bytes | msgspec.Raw, keep_annotation: Callable[[str], bool] = lambda _: True) -> PodState:
    """One pod of the API. Raises ValueError for what is not a pod with a uid."""
    found = _DECODER.decode(data)
    meta, status = found.metadata, found.status
    if not meta.uid:
        raise msgspec.DecodeError("a pod without metadata.uid")
    labels = meta.labels or {}
    annotations = meta.annotations or {}
    owners = _owners(meta, labels)
    workload = _workload(meta, owners)
    pod = Pod(
        namespace=_same(meta.namespace) or None,
        name=meta.name or None,
        uid=meta.uid,
        ip=status.pod_ip or None,
        start_time=_same(status.start_time) if status.start_time else None,
        owners=owners,
        labels=_same_dict(labels),
        annotations=_same_dict(
            {key: value for key, value in annotations.items() if key != _LAST_APPLIED and keep_annotation(key)}
        ),
        workload=workload.name,
        workload_kind=workload.kind,
        exec_probes=_exec_probes(found.spec),
    )
    statuses = (
        *(status.init_container_statuses or ()),
        *(status.container_statuses or ()),
        *(status.ephemeral_container_statuses or ()),
    )
    containers = tuple(container for one in statuses for container in _containers(one))
    static = next((annotations[key] for key in _CONFIG_HASHES if annotations.get(key)), None)
    return PodState(meta.resource_version, pod, static, containers)


def _owners(meta: _Meta, labels: dict[str, str]) -> tuple[Owner, ...]:
    """The controller, and what made that one as far as names tell: nothing but pods may be read of the API.

    The rules are Tetragon's (pkg/podhelpers).
    """
    controller = next((owner for owner in meta.owner_references or () if owner.controller), None)
    # A static pod's mirror belongs to its node.
    if controller is None or controller.kind == "Node" or not controller.name:
        return ()
    nearest = Owner(_same(controller.kind), _same(controller.name))
    suffix = f"-{labels[_TEMPLATE_HASH]}" if labels.get(_TEMPLATE_HASH) else ""
    if controller.kind == "ReplicaSet" and suffix and len(controller.name) > len(suffix):
        if controller.name.endswith(suffix):
            return nearest, Owner("Deployment", _same(controller.name.removesuffix(suffix)))
    elif controller.kind == "Job" and (match := _OF_CRON_JOB.fullmatch(controller.name)):
        return nearest, Owner("CronJob", _same(match["name"]))
    return (nearest,)


def _exec_probes(spec: _Spec) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The commands of the exec probes of each container that has any."""
    probes = {}
    for container in (*(spec.containers or ()), *(spec.init_containers or ())):
        commands = tuple(
            tuple(probe.exec.command)
            for probe in (container.liveness_probe, container.readiness_probe, container.startup_probe)
            if probe is not None and probe.exec is not None and probe.exec.command
        )
        if commands:
            probes[container.name] = tuple(dict.fromkeys(commands))
    return probes


def _workload(meta: _Meta, owners: tuple[Owner, ...]) -> Owner:
    """What Tetragon calls the workload. A pod that nobody generated is one by itself."""
    return owners[-1] if owners and meta.generate_name else Owner("Pod", meta.name)


def _containers(status: _Status) -> Iterator[Container]:
    """The container that a status is about, and the one before it, if it was started anew."""
    state, last = status.state or _State(), status.last_state or _State()
    now = state.running or state.terminated or _Run()
    before = last.terminated
    ended = state.terminated.container_id if state.terminated is not None else ""
    if status.container_id:
        yield _container(status, status.container_id, now.started_at, status.restart_count)
    elif ended:
        yield _container(status, ended, now.started_at, status.restart_count)
    if before is not None and before.container_id and before.container_id != status.container_id:
        yield _container(status, before.container_id, before.started_at, max(0, status.restart_count - 1))


def _container(status: _Status, container_id: str, started_at: str | None, restart_count: int) -> Container:
    runtime, _, bare_id = container_id.rpartition("://")
    reference = status.image_id.rpartition("://")[2]
    return Container(
        id=bare_id,
        runtime=_same(runtime) or None,
        name=_same(status.name) or None,
        image_id=_same(status.image_id) or None,
        image_name=_same(status.image) or None,
        image_repo_digests=(_same(reference),) if "@" in reference else (),
        restart_count=restart_count,
        start_time=_same(started_at) if started_at else None,
    )


class _Entry(NamedTuple):
    pod: Pod
    hash: str | None
    ids: tuple[str, ...]
    """Of its containers, the latest last."""


class Pods:
    """The node's pods. One thread tells, another one asks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds, for how long what is deleted is remembered."""
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        """By the API's uid."""
        self._uids: dict[str, str] = {}
        """The API's uid by a static pod's hash."""
        self._containers: dict[str, Known] = {}
        self._gone: dict[str, float] = {}
        """Uids of pods that were deleted, and when they may be forgotten; the oldest first."""

    def __len__(self) -> int:
        return len(self._entries) - len(self._gone)

    def find(self, container_id: str | None, pod_uid: str | None) -> Known:
        """A container with its pod; else only the pod, by its uid or a static pod's hash."""
        known = self._containers.get(container_id) if container_id is not None else None
        if known is not None:
            return known
        if pod_uid is None:
            return NOTHING
        entry = self._entries.get(pod_uid) or self._entries.get(self._uids.get(pod_uid, ""))
        return NOTHING if entry is None else Known(None, entry.pod)

    def put(self, state: PodState) -> None:
        """A pod is new, or has changed."""
        pod = state.pod
        uid = pod.uid
        assert uid is not None
        self._gone.pop(uid, None)
        before = self._entries.get(uid)
        # So that one pod stays one object for as long as nothing that is told of it changes.
        if before is not None and before.pod == pod:
            pod = before.pod
        elif before is not None:
            for container_id in before.ids:
                known = self._containers.get(container_id)
                if known is not None:
                    self._containers[container_id] = Known(known.container, pod)
        for container in state.containers:
            known = self._containers.get(container.id)
            if known is None or known.container != container or known.pod is not pod:
                self._containers[container.id] = Known(container, pod)
        now = tuple(dict.fromkeys(container.id for container in state.containers))
        former = tuple(one for one in (before.ids if before is not None else ()) if one not in now)
        for container_id in former[:-_FORMER_MAX]:
            self._containers.pop(container_id, None)
        self._entries[uid] = _Entry(pod, state.hash, (*former[-_FORMER_MAX:], *now))
        if state.hash is not None:
            self._uids[state.hash] = uid
        self._forget()

    def remove(self, uid: str) -> None:
        """A pod was deleted."""
        if uid in self._entries and uid not in self._gone:
            self._gone[uid] = self._clock() + _REMEMBERED_S
        self._forget()

    def keep_only(self, uids: Iterable[str]) -> None:
        """These are all pods that there are."""
        there = set(uids)
        for uid in [uid for uid in self._entries if uid not in there]:
            self.remove(uid)

    def _forget(self) -> None:
        now_s = self._clock()
        while self._gone:
            uid, until_s = next(iter(self._gone.items()))
            if until_s > now_s and len(self._gone) <= _GONE_MAX:
                return
            del self._gone[uid]
            entry = self._entries.pop(uid)
            for container_id in entry.ids:
                self._containers.pop(container_id, None)
            if entry.hash is not None and self._uids.get(entry.hash) == uid:
                del self._uids[entry.hash]
