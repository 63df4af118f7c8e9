"""The Resource of the host, which is also that of every process outside of containers and systemd services."""

from __future__ import annotations

import logging
import os
import platform
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from otel_procmon.convert import attributes as names
from otel_procmon.convert.records import Resource
from otel_procmon.convert.text import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from otel_procmon.convert.records import Attributes

AGENT_SERVICE_NAME: Final = "otel-procmon"

SHARED: Final = ("k8s.cluster.", "k8s.node.", "host.", "os.")
"""Configured facts that hold for a container too, because it shares them with its host."""

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
    node_name: str | None = None,
    cluster_name: str | None = None,
    cluster_uid: str | None = None,
) -> Resource:
    """The Resource of processes that belong to nothing smaller.

    Args:
        environ: For OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, which win over everything else. The container and
            the pod that they name are the agent's own, and not told here.
        root: The host's root directory, whose ``/etc/os-release`` and machine id are read.
        host_name: What the host calls itself; asked of the kernel if None.
        machine: As ``uname -m`` says; asked of the kernel if None.
        local: Whether the processes run on this host. If not, nothing of it is told.
        node_name: What Kubernetes calls the host, if it does.
        cluster_name: Of the Kubernetes cluster, if it is configured.
        cluster_uid: Likewise.
    """
    attributes: Attributes = {names.OS_TYPE: "linux"}
    if local:
        name = host_name or os.uname().nodename
        machine = machine or platform.machine()
        found = {
            names.HOST_NAME: name,
            names.HOST_ID: _machine_id(root) or name,
            names.HOST_ARCH: _ARCHITECTURES.get(machine, machine),
            names.K8S_NODE_NAME: node_name,
            **_os_release(root),
        }
        attributes.update((key, encodable(value)) for key, value in found.items() if value)
    cluster = {names.K8S_CLUSTER_NAME: cluster_name, names.K8S_CLUSTER_UID: cluster_uid}
    attributes.update((key, encodable(value)) for key, value in cluster.items() if value)
    attributes[names.SERVICE_NAME] = AGENT_SERVICE_NAME
    attributes.update(
        (name, value)
        for name, value in environment_attributes(environ).items()
        if name.startswith(SHARED) or not name.startswith(("container.", "k8s."))
    )
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
