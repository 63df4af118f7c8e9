r"""Which container and pod a cgroup path belongs to.

Nothing but the path is looked at, and its owner chose it: who may make cgroups (a user with a delegated subtree, a
container with a writable hierarchy) can name one like a container. So the answer says where a process was put, and
only in the subtree of whoever put it there.

The innermost container counts, and the innermost pod. What lies below a container belongs to it (its own systemd's
units, podman's ``/container``), what lies above does not (the unit that started it, the slices of the pod). The
runtime is named only where the path names it: 64 hexadecimal digits below a pod may be anyone's.

A pod's first container, its sandbox (pause), looks like any other here; only the runtime can tell.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class CgroupIdentity(NamedTuple):
    """What a cgroup path tells; None for what it does not."""

    container_id: str | None = None
    """64 hexadecimal digits as a rule; a name for LXC and systemd-nspawn, which have no other ids."""
    runtime: str | None = None
    """As Kubernetes has it before ``://``: containerd, cri-o, docker; else podman, lxc, systemd-nspawn."""
    pod_uid: str | None = None
    """With dashes. A static pod's is the hash of its file, 32 digits (annotation ``kubernetes.io/config.hash``)."""


_REMOVED = " (deleted)"
"""The kernel's addition in ``/proc/<pid>/cgroup`` when a cgroup was removed before its last process had gone."""

# <slice>:<prefix>:<name> is how systemd's driver is told of a cgroup; a runtime without that driver takes it as a name
# (tests of cilium/tetragon and of opentelemetry-java-contrib).
_CONTAINER = re.compile(r"(?:[^:]*:(?P<scope>[^:]*):|(?P<prefix>.*)-)?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_POD = re.compile(
    r"(?:.*-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?::.*)?"
)

_RUNTIMES = {
    "containerd": "containerd",
    "cri-containerd": "containerd",
    "crio": "cri-o",
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",  # podman run --cgroups=split, and so every Quadlet unit
    "lxc": "lxc",
    "nerdctl": "containerd",
}
"""By what stands before the id, or as the name of the directory around it."""

_MONITOR = "conmon"
"""`libpod-conmon-<id>` and `crio-conmon-<id>` hold the host's process that waits for the container's end."""

_ALSO_64_DIGITS = {
    "buildkit",  # a step of a build
    "libpod_parent",  # a pod of podman's; its containers below are libpod-<id>
}
"""Directories in which 64 hexadecimal digits alone are no container's."""

_KATA_OVERHEAD = "kata_overhead"
"""Here Kata Containers repeats a sandbox's path, for the hypervisor on the host (its docs/design/host-cgroups.md)."""

# AWS Fargate: <task>-<number>; Cloud Foundry's Garden: a UUID, or one that was cut (tests of DataDog's and Elastic's
# APM agents).
_NAMED_BY_PARENT = {
    "ecs": re.compile("[0-9a-f]{32}-[0-9]{1,20}"),
    "garden": re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-(?:[0-9a-f]{12}|[0-9a-f]{4})"),
}

# lxc/src/lxc/cgroups/cgroup.h: `lxc.payload.<name>`, before 4.0 `lxc/<name>`, as still in Proxmox. `lxc.monitor.<name>`
# is the host's process.
_LXC_PREFIX = "lxc.payload."
_LXC_PARENTS = ("lxc", "lxc.payload")
# systemd, src/nspawn/nspawn-cgroup.c: the container is in `payload`, nspawn itself in `supervisor`. Virtual machines
# have `machine-….scope` too, but nothing of that name in it.
_NSPAWN = re.compile(r"(?:machine-(?P<machine>.+)\.scope|systemd-nspawn@(?P<instance>.+)\.service)")
_NSPAWN_PAYLOAD = "payload"
_UNIT_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@lru_cache(maxsize=1024)
def parse_cgroup(path: str) -> CgroupIdentity:
    """The container and the pod of `path`, a path in any cgroup hierarchy, from its root or from a cgroup namespace's.

    Takes any text. The last 1024 answers are remembered: all processes of a container have the same few paths.
    """
    names = [name for name in path.removesuffix(_REMOVED).split("/") if name]
    pod_uid = None
    container: tuple[str, str | None] | None = None
    overhead = names.index(_KATA_OVERHEAD) if _KATA_OVERHEAD in names else len(names)
    for index in range(len(names) - 1, -1, -1):
        if container is None and index < overhead:
            container = _container(names, index)
        if pod_uid is None and (pod := _POD.fullmatch(names[index])):
            pod_uid = pod["uid"].replace("_", "-")
    container_id, runtime = container or (None, None)
    return CgroupIdentity(container_id, runtime, pod_uid)


def _container(names: Sequence[str], index: int) -> tuple[str, str | None] | None:
    """Id and runtime of the container whose cgroup `names[index]` is; None if it is no container's."""
    name = names[index]
    parents = names[max(0, index - 3) : index]
    parent = parents[-1] if parents else ""
    if match := _CONTAINER.fullmatch(name):
        prefix = match["prefix"] if match["scope"] is None else match["scope"]
        if prefix is None:
            return None if parent in _ALSO_64_DIGITS else (match["id"], _RUNTIMES.get(parent))
        # A runtime that is not in the table is one all the same.
        return None if prefix.endswith(_MONITOR) else (match["id"], _RUNTIMES.get(prefix))
    if name.startswith(_LXC_PREFIX):
        return _named(name[len(_LXC_PREFIX) :], "lxc")
    if parent in _LXC_PARENTS:
        return _named(name, "lxc")
    if name == _NSPAWN_PAYLOAD and (match := _NSPAWN.fullmatch(parent)):
        return _named(_UNIT_ESCAPE.sub(_unescaped, match["machine"] or match["instance"]), "systemd-nspawn")
    for place, pattern in _NAMED_BY_PARENT.items():
        if place in parents and pattern.fullmatch(name):
            return name, None
    return None


def _named(name: str, runtime: str) -> tuple[str, str] | None:
    return (name, runtime) if _NAME.fullmatch(name) else None


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16))
