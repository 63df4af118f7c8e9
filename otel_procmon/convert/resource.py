"""Resources: the host, container or pod that a process belongs to, one object for each.

``process.*`` never goes here, and neither does ``telemetry.sdk.*``: that names the SDK inside of the observed entity,
and there is none.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from otel_procmon.convert import attributes as names
from otel_procmon.convert.records import Resource
from otel_procmon.convert.text import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from otel_procmon.convert.records import Attributes
    from otel_procmon.events import Container, Pod, Process

AGENT_SERVICE_NAME: Final = "otel-procmon"
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

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv6l": "arm32",
    "armv7l": "arm32",
    "armv8l": "arm32",
    "i386": "x86",
    "i686": "x86",
    "ia64": "ia64",
    "ppc": "ppc32",
    "ppc64": "ppc64",
    "ppc64le": "ppc64",
    "s390x": "s390x",
}
"""``host.arch`` by machine name; another machine name stands for itself."""

_FACTS: Final = ("container.", "host.", "k8s.", "os.", "process.", "telemetry.")
"""Where a process runs is observed; neither the agent's own environment nor a pod's annotation may claim otherwise."""

_SHARED: Final = ("k8s.cluster.", "k8s.node.", "host.", "os.")
"""Configured facts that hold for a container too, because it shares them with its host."""

_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")

_log = logging.getLogger(__name__)


def environment_attributes(environ: Mapping[str, str]) -> dict[str, str]:
    """What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say; the latter wins.

    As the specification demands, one bad pair makes the whole of OTEL_RESOURCE_ATTRIBUTES void; it is logged.
    """
    attributes: dict[str, str] = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        if not pair.strip():
            continue
        key, equals, value = pair.partition("=")
        try:
            name, text = (unquote(part.strip(), errors="strict") for part in (key, value))
        except UnicodeDecodeError:
            name = text = ""
        if not equals or not name:
            _log.warning(
                "OTEL_RESOURCE_ATTRIBUTES is ignored as a whole, because %r in it is not key=value, percent-encoded",
                pair,
            )
            attributes.clear()
            break
        attributes[name] = text
    if service_name := environ.get("OTEL_SERVICE_NAME"):
        attributes[names.SERVICE_NAME] = service_name
    return {
        name: encodable(value)
        for name, value in attributes.items()
        if value and not name.startswith(("process.", "telemetry."))
    }


def host_resource(
    environ: Mapping[str, str],
    root: Path,
    *,
    host_name: str | None = None,
    machine: str | None = None,
    local: bool = True,
) -> Resource:
    """The Resource of processes outside of any container.

    Args:
        environ: For OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, which win over what is found out.
        root: The host's root directory, whose ``/etc/os-release`` and machine id are read.
        host_name: What the host calls itself; asked of the kernel if None.
        machine: As ``uname -m`` says; asked of the kernel if None.
        local: Whether the processes run on this host. If not, nothing of it is told.
    """
    attributes: Attributes = {names.OS_TYPE: "linux"}
    if local:
        name = host_name or os.uname().nodename
        machine = machine or platform.machine()
        found = {
            names.HOST_NAME: name,
            names.HOST_ID: _machine_id(root) or name,
            names.HOST_ARCH: _ARCHITECTURES.get(machine, machine),
            **_os_release(root),
        }
        attributes.update((key, encodable(value)) for key, value in found.items() if value)
    attributes[names.SERVICE_NAME] = AGENT_SERVICE_NAME
    attributes.update(environment_attributes(environ))
    return Resource(attributes, names.SCHEMA_URL)


def _machine_id(root: Path) -> str | None:
    """The machine id, from the two files that the conventions name for ``host.id``.

    They forbid detectors the privileged sources (DMI). A file that systemd has not initialised yet does not count.
    """
    for path in (root / "etc/machine-id", root / "var/lib/dbus/machine-id"):
        if (text := _read(path)) and _MACHINE_ID.fullmatch(text.strip()):
            return text.strip()
    return None


def _os_release(root: Path) -> dict[str, str]:
    """``os.*`` from os-release(5); the second place is where that page puts the fallback."""
    text = _read(root / "etc/os-release") or _read(root / "usr/lib/os-release") or ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            fields[key] = re.sub(r"\\(.)", r"\1", value.strip("\"'"))
    return {
        names.OS_NAME: fields.get("NAME", ""),
        names.OS_VERSION: fields.get("VERSION_ID", ""),
        names.OS_DESCRIPTION: fields.get("PRETTY_NAME", ""),
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


class ImageReference(NamedTuple):
    """A container image's name taken apart: ``docker.io/tgraf/netperf:latest@sha256:…``."""

    name: str | None
    tag: str | None
    digest: str | None


def image_reference(text: str) -> ImageReference:
    """Take a container image's name apart. What is only an id (``sha256:…``) has a digest and no name.

    A scheme before it (``docker-pullable://``, from the kubelet) is dropped. A colon begins a tag only after the last
    slash; before that it begins a registry's port.
    """
    text = text.rpartition("://")[2]
    if text.startswith("sha256:"):
        return ImageReference(None, None, text)
    rest, _, digest = text.partition("@")
    path, slash, last = rest.rpartition("/")
    last, _, tag = last.partition(":")
    return ImageReference(f"{path}{slash}{last}" or None, tag or None, digest or None)


class _Known(NamedTuple):
    container: Container | None
    pod: Pod | None
    resource: Resource


class Resources:
    """Finds the Resource that a process belongs to. Thread-safe.

    The same container gives the same object for as long as what is known of it stays the same; at most `remembered`
    are kept, the least recently used goes first.
    """

    def __init__(
        self, host: Resource, *, local: bool = True, well_known_labels: bool = False, remembered: int = 4096
    ) -> None:
        """Remember how to make Resources.

        Args:
            host: The host's own, of `host_resource` with the same `local`.
            local: Whether events are of this host. If not, each event's node stands for its host.
            well_known_labels: Whether ``app.kubernetes.io/`` labels count for ``service.*``. The conventions want this
                to be asked for, since users may not know that their labels are used so.
            remembered: Most containers to remember.
        """
        self._host = host
        self._local = local
        self._well_known_labels = well_known_labels
        self._remembered = remembered
        self._known: OrderedDict[tuple[str | None, ...], _Known] = OrderedDict()
        self._lock = threading.Lock()
        self._container_base: Attributes = {
            name: value
            for name, value in host.attributes.items()
            if name.startswith(_SHARED) or not name.startswith((*_FACTS, "service."))
        }

    def of(self, process: Process) -> Resource:
        """The Resource of `process`."""
        container, pod = process.container, process.pod
        key = (
            None if self._local else process.node,
            container.id if container else process.container_id,
            pod.namespace if pod else None,
            pod.name if pod else None,
            (pod.uid if pod else None) or process.pod_uid,
            # On this host a process outside of any pod says nothing of the node.
            process.node if pod or process.pod_uid else None,
        )
        if self._local and not any(key):
            return self._host
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.container == container and known.pod == pod:
                self._known.move_to_end(key)
                return known.resource
            resource = Resource(self._attributes(process), names.SCHEMA_URL)
            self._known[key] = _Known(container, pod, resource)
            self._known.move_to_end(key)
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
            return resource

    def _attributes(self, process: Process) -> Attributes:
        container, pod = process.container, process.pod
        container_id = container.id if container else process.container_id
        pod_uid = (pod.uid if pod else None) or process.pod_uid
        if not container_id and not pod and not pod_uid:
            attributes = dict(self._host.attributes)
        else:
            attributes = dict(self._container_base)
        if not self._local and process.node:
            # A node's machine id is not in its events. Kubernetes keeps node names unique in a cluster, and Jaeger's
            # clock-skew adjustment takes two spans for one host's by comparing host.id: what counts is one key for all
            # of a node's records.
            attributes[names.HOST_NAME] = attributes[names.HOST_ID] = encodable(process.node)
        facts: dict[str, str | None] = {names.CONTAINER_ID: container_id, names.K8S_POD_UID: pod_uid}
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
            reference = (container.image_id or "").rpartition("://")[2]
            if "@" in reference:
                attributes[names.CONTAINER_IMAGE_REPO_DIGESTS] = (encodable(reference),)
        if pod is not None or pod_uid:
            facts[names.K8S_NODE_NAME] = process.node
        if pod is not None:
            facts[names.K8S_NAMESPACE_NAME] = pod.namespace
            facts[names.K8S_POD_NAME] = pod.name
            if pod.workload and (kind := _WORKLOADS.get((pod.workload_kind or "").lower())):
                facts[kind] = pod.workload
        attributes.update((name, encodable(value)) for name, value in facts.items() if value)
        if pod is not None:
            prefix = names.K8S_POD_LABEL.removesuffix("<key>")
            # The conventions record an empty label as "", for it says something.
            attributes.update((encodable(prefix + key), encodable(value)) for key, value in pod.labels.items())
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


def _image(container: Container) -> ImageReference:
    """Name and tag from the image's name, digest from its id where the name has none."""
    named = image_reference(container.image_name or "")
    identified = image_reference(container.image_id or "")
    return ImageReference(named.name or identified.name, named.tag, named.digest or identified.digest)
