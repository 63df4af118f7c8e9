"""Resources: the host, systemd service, container or pod that a process belongs to, one object for each.

``process.*`` never goes here, and neither does ``telemetry.sdk.*``: that names the SDK inside of the observed entity,
and there is none.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from fnmatch import translate
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from otel_procmon.containers.unit import parse_unit
from otel_procmon.convert import attributes as names
from otel_procmon.convert.host import AGENT_SERVICE_NAME, SHARED
from otel_procmon.convert.image_reference import ImageReference, image_reference
from otel_procmon.convert.records import Resource
from otel_procmon.convert.text import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from otel_procmon.containers.unit import Service
    from otel_procmon.convert.records import Attributes
    from otel_procmon.events import Container, Pod, Process

ANNOTATION_PREFIX: Final = "resource.opentelemetry.io/"

_WORKLOADS: Final = {
    "deployment": names.K8S_DEPLOYMENT_NAME,
    "replicaset": names.K8S_REPLICASET_NAME,
    "statefulset": names.K8S_STATEFULSET_NAME,
    "daemonset": names.K8S_DAEMONSET_NAME,
    "cronjob": names.K8S_CRONJOB_NAME,
    "job": names.K8S_JOB_NAME,
    "replicationcontroller": names.K8S_REPLICATIONCONTROLLER_NAME,
}
"""Attribute by the kind of workload. The order is the conventions' for ``service.name``, which lacks the last."""

_SERVICE_NAME_ORDER: Final = (*list(_WORKLOADS.values())[:-1], names.K8S_POD_NAME, names.K8S_CONTAINER_NAME)

_FACTS: Final = ("container.", "host.", "k8s.", "os.", "process.", "procmon.", "telemetry.")
"""Where a process runs is observed; neither the agent's own environment nor a pod's annotation may claim otherwise."""


def selects_keys(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a key of a label or an annotation is any of `patterns`, in which ``*`` stands for any characters."""
    pattern = re.compile("|".join(map(translate, patterns)))
    return lambda key: bool(patterns) and pattern.fullmatch(key) is not None


class _Known:
    __slots__ = ("container", "pod", "resource")

    def __init__(self, container: Container | None, pod: Pod | None, resource: Resource) -> None:
        self.container = container
        self.pod = pod
        self.resource = resource


class Resources:
    """Finds the Resource that a process belongs to. Thread-safe.

    The same service or container gives the same object for as long as what is known of it stays the same; at most
    `remembered` are kept, the least recently used goes first.
    """

    def __init__(
        self,
        host: Resource,
        *,
        local: bool = True,
        well_known_labels: bool = False,
        pod_labels: Sequence[str] = ("*",),
        pod_annotations: Sequence[str] = (),
        systemd_services: bool = True,
        remembered: int = 4096,
    ) -> None:
        """Remember how to make Resources.

        Args:
            host: The host's own, of `host_resource` with the same `local`.
            local: Whether events are of this host. If not, each event's node stands for its host.
            well_known_labels: Whether ``app.kubernetes.io/`` labels count for ``service.*``. The conventions want this
                to be asked for, since users may not know that their labels are used so.
            pod_labels: Which of a pod's labels are told; see `selects_keys`.
            pod_annotations: Which of its annotations, likewise.
            systemd_services: Whether processes outside of containers have their systemd service for a ``service.*``.
            remembered: Most Resources to remember.
        """
        self._host = host
        self._local = local
        self._well_known_labels = well_known_labels
        self._tells_label = selects_keys(pod_labels)
        self._tells_annotation = selects_keys(pod_annotations)
        self._systemd_services = systemd_services
        self._remembered = remembered
        self._known: OrderedDict[tuple[object, ...], _Known] = OrderedDict()
        self._lock = threading.Lock()
        self._container_base: Attributes = {
            name: value
            for name, value in host.attributes.items()
            if name.startswith(SHARED) or not name.startswith((*_FACTS, "service."))
        }

    def of(self, process: Process) -> Resource:
        """The Resource of `process`."""
        container, pod = process.container, process.pod
        container_id = container.id if container else process.container_id
        pod_uid = (pod.uid if pod else None) or process.pod_uid
        contained = bool(container_id or pod_uid or pod)
        service = None
        if not contained and self._systemd_services and process.cgroup is not None:
            service = parse_unit(process.cgroup)
        if self._local and service is None and not contained:
            return self._host
        key = (
            None if self._local else (process.node, process.cluster_name),
            service,
            container_id,
            pod.namespace if pod else None,
            pod.name if pod else None,
            pod_uid,
            # On this host a process outside of any pod says nothing of the node.
            process.node if pod or pod_uid else None,
        )
        if container is not None and container.maybe_exec_probe:
            # It is the process's, and not told of the container.
            container = replace(container, maybe_exec_probe=False)
        with self._lock:
            known = self._known.get(key)
            if known is not None and _same(known.container, container) and _same(known.pod, pod):
                self._known.move_to_end(key)
                return known.resource
            attributes = self._of_container(process) if contained else self._of_host(process, service)
            resource = Resource(attributes, names.SCHEMA_URL)
            self._known[key] = _Known(container, pod, resource)
            self._known.move_to_end(key)
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
            return resource

    def _of_host(self, process: Process, service: Service | None) -> Attributes:
        attributes: Attributes = dict(self._host.attributes)
        if service is not None:
            attributes[names.PROCMON_SYSTEMD_UNIT] = service.unit
            if service.user_unit is not None:
                attributes[names.PROCMON_SYSTEMD_USER_UNIT] = service.user_unit
            if service.name is not None:
                # Version, namespace and instance that are configured are the agent's service's.
                attributes = {name: value for name, value in attributes.items() if not name.startswith("service.")}
                attributes[names.SERVICE_NAME] = service.name
        self._add_node(attributes, process)
        return attributes

    def _add_node(self, attributes: Attributes, process: Process) -> None:
        """What an event of another node tells of that."""
        if self._local:
            return
        if process.node:
            # A node's machine id is not in its events. Kubernetes keeps node names unique in a cluster, and Jaeger's
            # clock-skew adjustment takes two spans for one host's by comparing host.id: what counts is one key for all
            # of a node's records.
            attributes[names.HOST_NAME] = attributes[names.HOST_ID] = encodable(process.node)
        if process.cluster_name:
            attributes[names.K8S_CLUSTER_NAME] = encodable(process.cluster_name)

    def _of_container(self, process: Process) -> Attributes:
        container, pod = process.container, process.pod
        attributes: Attributes = dict(self._container_base)
        self._add_node(attributes, process)
        facts: dict[str, str | None] = {
            names.CONTAINER_ID: container.id if container else process.container_id,
            names.K8S_POD_UID: (pod.uid if pod else None) or process.pod_uid,
        }
        image = ImageReference(None, None, None)
        if container is not None:
            # In a pod the name is the one in its specification; the runtime's own is another.
            facts[names.K8S_CONTAINER_NAME if pod else names.CONTAINER_NAME] = container.name
            facts[names.CONTAINER_RUNTIME_NAME] = container.runtime
            facts[names.CONTAINER_IMAGE_ID] = container.image_id
            image = _image(container)
            facts[names.CONTAINER_IMAGE_NAME] = image.name
            if image.tag:
                attributes[names.CONTAINER_IMAGE_TAGS] = (encodable(image.tag),)
            if digests := _repo_digests(container):
                attributes[names.CONTAINER_IMAGE_REPO_DIGESTS] = tuple(map(encodable, digests))
        if (pod is not None or process.pod_uid) and not (self._local and names.K8S_NODE_NAME in attributes):
            facts[names.K8S_NODE_NAME] = process.node
        if pod is not None:
            facts[names.K8S_NAMESPACE_NAME] = pod.namespace
            facts[names.K8S_POD_NAME] = pod.name
            facts[names.K8S_POD_IP] = pod.ip
            facts[names.K8S_POD_START_TIME] = pod.start_time
            facts.update(_workloads(pod))
            if container is not None and container.restart_count is not None:
                attributes[names.K8S_CONTAINER_RESTART_COUNT] = container.restart_count
        attributes.update((name, encodable(value)) for name, value in facts.items() if value)
        if pod is not None:
            attributes.update(_selected(names.K8S_POD_LABEL, pod.labels, self._tells_label))
            attributes.update(_selected(names.K8S_POD_ANNOTATION, pod.annotations, self._tells_annotation))
            self._service_of_pod(attributes, pod, image)
        elif container is not None and container.name:
            attributes[names.SERVICE_NAME] = encodable(container.name)
        if names.SERVICE_NAME not in attributes:
            attributes[names.SERVICE_NAME] = self._host.attributes.get(names.SERVICE_NAME, AGENT_SERVICE_NAME)
        return attributes

    def _service_of_pod(self, attributes: Attributes, pod: Pod, image: ImageReference) -> None:
        """Add ``service.*`` by the order of the conventions' page on attributes in Kubernetes."""
        annotated = {
            encodable(key.removeprefix(ANNOTATION_PREFIX)): encodable(value)
            for key, value in pod.annotations.items()
            if key.startswith(ANNOTATION_PREFIX) and value
        }
        for name, value in annotated.items():
            if name and not name.startswith(_FACTS):
                attributes[name] = value
        labels = pod.labels if self._well_known_labels else {}
        instance = [attributes.get(n) for n in (names.K8S_NAMESPACE_NAME, names.K8S_POD_NAME, names.K8S_CONTAINER_NAME)]
        found = {
            names.SERVICE_NAMESPACE: pod.namespace,
            names.SERVICE_NAME: labels.get("app.kubernetes.io/instance")
            or labels.get("app.kubernetes.io/name")
            or next((str(attributes[name]) for name in _SERVICE_NAME_ORDER if name in attributes), None),
            names.SERVICE_VERSION: labels.get("app.kubernetes.io/version")
            or "@".join(part for part in (image.tag, image.digest) if part),
            names.SERVICE_INSTANCE_ID: ".".join(map(str, instance)) if all(instance) else None,
        }
        for name, service in found.items():
            if service and name not in annotated:
                attributes[name] = encodable(service)


def _same(known: Container | Pod | None, now: Container | Pod | None) -> bool:
    """Whether the same is known. Mostly it is the same object, and then there is no need to look into it."""
    return known is now or known == now


def _image(container: Container) -> ImageReference:
    """Name and tag from the image's name, digest from its id, or from where registries have it."""
    named = image_reference(container.image_name or "")
    identified = image_reference(container.image_id or "")
    published = image_reference(next(iter(_repo_digests(container)), ""))
    # An id without a repository (what CRI-O gives) is the digest of the image's configuration, of which registries know
    # nothing; it is better than none.
    digest = named.digest or published.digest or identified.digest
    return ImageReference(named.name or identified.name, named.tag, digest)


def _repo_digests(container: Container) -> tuple[str, ...]:
    if container.image_repo_digests:
        return container.image_repo_digests
    reference = (container.image_id or "").rpartition("://")[2]
    return (reference,) if "@" in reference else ()


def _workloads(pod: Pod) -> Mapping[str, str]:
    """The attributes that name the pod's owners; of two of one kind the nearer one."""
    found: dict[str, str] = {}
    for owner in pod.owners:
        if attribute := _WORKLOADS.get(owner.kind.lower()):
            found.setdefault(attribute, owner.name)
    if pod.workload and (attribute := _WORKLOADS.get((pod.workload_kind or "").lower())):
        found.setdefault(attribute, pod.workload)
    return found


def _selected(template: str, values: Mapping[str, str], tells: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The attributes of a `template` that ends in ``<key>``. The conventions record an empty value as "" here."""
    prefix = template.removesuffix("<key>")
    for key, value in values.items():
        if tells(key):
            yield encodable(prefix + key), encodable(value)
