"""Containers and pods in cgroup paths: one case for each form that a runtime is known to make."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_procmon.containers.cgroup import CgroupIdentity, parse_cgroup

ID = "1fb931d2f6e5e4cfdbaf30fdb8e2fdd81320bdb3047ded50120a4f82838209ce"
OUTER = "c1146e7ccca9ab4436abd69923c07d097b37b762ed21cc3f24584c2f84e77c57"
UID = "eb052b63-ea96-4728-ab4a-64ab3babccd7"
UID_ = UID.replace("-", "_")
OUTER_UID = "13cb8437-00ed-40e4-99d8-e17193a58086"
STATIC = "09a70ae9ccc491e651e5c773579b3490"
SLICE = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice"
USER = "/user.slice/user-1000.slice/user@1000.service"

CONTAINERS = {
    # Kubernetes, cgroupfs driver
    f"/kubepods/besteffort/pod{UID}/{ID}": (ID, None, UID),
    f"/kubepods/burstable/pod{UID}/{ID}": (ID, None, UID),
    f"/kubepods/pod{UID}/{ID}": (ID, None, UID),
    f"/kubepods/burstable/pod{STATIC}/{ID}": (ID, None, STATIC),
    f"/kubepods/besteffort/pod{UID}/crio-{ID}": (ID, "cri-o", UID),
    f"/kubepods/{ID}": (ID, None, None),
    # Kubernetes, systemd driver
    f"{SLICE}/cri-containerd-{ID}.scope": (ID, "containerd", UID),
    f"{SLICE}/crio-{ID}.scope": (ID, "cri-o", UID),
    f"{SLICE}/crio-{ID}.scope/container": (ID, "cri-o", UID),
    f"{SLICE}/docker-{ID}.scope": (ID, "docker", UID),
    f"{SLICE}/futurerun-{ID}.scope": (ID, None, UID),
    f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope": (ID, "containerd", UID),
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{ID}.scope": (
        ID,
        "cri-o",
        STATIC,
    ),
    # kubelet with the systemd driver, the runtime without
    f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}": (ID, "containerd", UID),
    f"/kubepods-pod{UID_}.slice:cri-containerd:{ID}": (ID, "containerd", UID),
    # docker
    f"/docker/{ID}": (ID, "docker", None),
    f"/docker-ce/docker/{ID}": (ID, "docker", None),
    f"/system.slice/docker-{ID}.scope": (ID, "docker", None),
    f"{USER}/user.slice/docker-{ID}.scope": (ID, "docker", None),
    f"/system.slice/system.slice:docker:{ID}": (ID, "docker", None),
    f"/actions_job/{ID}": (ID, None, None),
    # podman
    f"/libpod_parent/libpod-{ID}": (ID, "podman", None),
    f"/machine.slice/libpod-{ID}.scope": (ID, "podman", None),
    f"/machine.slice/libpod-{ID}.scope/container": (ID, "podman", None),
    f"{USER}/user.slice/libpod-{ID}.scope/container": (ID, "podman", None),
    f"{USER}/app.slice/web.service/libpod-payload-{ID}": (ID, "podman", None),
    f"/machine.slice/machine-libpod_pod_{OUTER}.slice/libpod-{ID}.scope": (ID, "podman", None),
    f"/libpod_parent/{OUTER}/libpod-{ID}": (ID, "podman", None),
    # nerdctl and containerd's namespaces
    f"/system.slice/nerdctl-{ID}.scope": (ID, "containerd", None),
    f"/default/{ID}": (ID, None, None),
    f"/{ID}": (ID, None, None),
    ID: (ID, None, None),
    # What goes on below a container belongs to it
    f"/system.slice/docker-{ID}.scope/init.scope": (ID, "docker", None),
    f"/system.slice/docker-{ID}.scope/system.slice/kubelet.service": (ID, "docker", None),
    f"{SLICE}/cri-containerd-{ID}.scope/user.slice/user-0.slice/session-1.scope": (ID, "containerd", UID),
    f"/docker/{ID}/buildkit/jvifp9a6b1lxa1kuw8bwfcovf": (ID, "docker", None),
    f"/docker/{ID}/libpod_parent/conmon": (ID, "docker", None),
    f"/docker/{OUTER}/machine.slice/libpod-conmon-{ID}.scope": (OUTER, "docker", None),
    # Nested: the innermost container and the innermost pod
    f"/docker/{OUTER}/docker/{ID}": (ID, "docker", None),
    f"/kubepods/burstable/pod{UID}/{OUTER}/docker/{ID}": (ID, "docker", UID),
    f"/system.slice/docker-{OUTER}.scope{SLICE}/cri-containerd-{ID}.scope": (ID, "containerd", UID),
    f"/docker/{OUTER}/kubelet/kubepods/burstable/pod{STATIC}/{ID}": (ID, None, STATIC),
    f"/docker/{OUTER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope": (
        ID,
        "containerd",
        UID,
    ),
    # kind by podman; docker in docker with systemd's driver outside; k3d
    f"/machine.slice/libpod-{OUTER}.scope/container/kubelet.slice/kubelet-kubepods.slice"
    f"/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope": (
        ID,
        "containerd",
        UID,
    ),
    f"/system.slice/docker-{OUTER}.scope/docker/{ID}": (ID, "docker", None),
    f"/docker/{OUTER}/kubepods/besteffort/pod{UID}/{ID}": (ID, None, UID),
    # The node's own services, which are in the outer container
    f"/docker/{OUTER}/system.slice/kubelet.service": (OUTER, "docker", None),
    f"/docker/{OUTER}/kubelet/kubepods/besteffort/pod{UID}": (OUTER, "docker", UID),
    f"/kubepods/pod{OUTER_UID}/{OUTER}/kubelet/kubepods/besteffort/pod{UID}/{ID}": (ID, None, UID),
    f"/kubepods/pod{UID}/{ID}/system.slice/containerd.service": (ID, None, UID),
    f"/lxc.payload.host/system.slice/docker-{ID}.scope": (ID, "docker", None),
    # Seen from a cgroup namespace; a cgroup that was removed
    f"/../cri-containerd-{ID}.scope": (ID, "containerd", None),
    f"/../../pod{UID}/{ID}": (ID, None, UID),
    f"/docker/{ID} (deleted)": (ID, "docker", None),
    # Amazon ECS, Cloud Foundry's Garden
    f"/ecs/cluster/5a0d5ceddf6c44c1928d367a815d890f/{ID}": (ID, None, None),
    f"/ecs/55091c13-b8cf-4801-b527-f4601742204d/{ID}": (ID, None, None),
    f"/ecstasks.slice/ecstasks-e95a40efbde84cbc8600660a109ec194.slice/docker-{ID}.scope": (ID, "docker", None),
    "/ecs/34dc0b5e626f2c5c4c5170e34b10e765-1234567890": ("34dc0b5e626f2c5c4c5170e34b10e765-1234567890", None, None),
    "/ecs/34dc0b5e626f2c5c4c5170e34b10e765/34dc0b5e626f2c5c4c5170e34b10e765-42": (
        "34dc0b5e626f2c5c4c5170e34b10e765-42",
        None,
        None,
    ),
    "/system.slice/garden.service/garden/6f265890-5165-7fab-6b52-18d1": ("6f265890-5165-7fab-6b52-18d1", None, None),
    f"/garden/{UID}": (UID, None, None),
    # LXC, LXD, Proxmox; systemd-nspawn
    "/lxc.payload.web": ("web", "lxc", None),
    "/lxc.payload.web/system.slice/nginx.service": ("web", "lxc", None),
    "/lxc.payload/web": ("web", "lxc", None),
    "/lxc/101/ns/init.scope": ("101", "lxc", None),
    f"/lxc/{ID}": (ID, "lxc", None),
    "/machine.slice/machine-jammy.scope/payload/init.scope": ("jammy", "systemd-nspawn", None),
    r"/machine.slice/machine-my\x2dbox.scope/payload": ("my-box", "systemd-nspawn", None),
    "/machine.slice/systemd-nspawn@web.service/payload": ("web", "systemd-nspawn", None),
}

# The pod, where there is one, is told all the same.
NO_CONTAINERS = {
    "": None,
    "/": None,
    "/..": None,
    "/init.scope": None,
    "/system.slice/docker.service": None,
    "/system.slice/containerd.service": None,
    "/user.slice/user-1000.slice/session-3.scope": None,
    f"{USER}/init.scope": None,
    f"{USER}/app.slice/app-gnome-firefox-4711.scope": None,
    f"{USER}/app.slice/run-r{STATIC}.scope": None,
    f"{USER}/user.slice/podman-4711.scope": None,
    f"{USER}/user.slice/podman-pause-1fb931d2.scope": None,
    "/kubepods.slice": None,
    SLICE: UID,
    f"/kubepods/besteffort/pod{UID}": UID,
    f"/kubepods/burstable/pod{STATIC}": STATIC,
    # Processes that serve a container from outside
    f"/machine.slice/libpod-conmon-{ID}.scope": None,
    "/libpod_parent/conmon": None,
    f"/libpod_parent/{ID}": None,
    f"/libpod_parent/{ID}/conmon": None,
    f"{SLICE}/crio-conmon-{ID}.scope": UID,
    f"/kubepods/besteffort/pod{UID}/crio-conmon-{ID}": UID,
    f"/system.slice/{ID}.service": None,  # podman's health check
    f"/system.slice/{ID}-4bd7f1a2.service": None,
    f"/system.slice/docker-{ID}.mount": None,
    f"/kata_overhead/{ID}": None,
    f"/kata_overhead/kubepods/pod{UID}/{ID}": UID,
    f"/kubepods/pod{UID}/kata_{ID}": UID,
    "/lxc.monitor.web": None,
    "/lxc.monitor/101": None,
    "/machine.slice/systemd-nspawn@web.service/supervisor": None,
    r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator": None,
    # Steps of a build have ids of 25 characters
    "/system.slice/system.slice:docker:jvifp9a6b1lxa1kuw8bwfcovf": None,
    "/docker/buildx/jvifp9a6b1lxa1kuw8bwfcovf": None,
    f"/buildkit/{ID}": None,
    # Almost an id
    f"/docker/{ID[1:]}": None,
    f"/docker/{ID}0": None,
    f"/docker/{ID.upper()}": None,
    f"/docker/{ID[:63]}g": None,
    f"/docker/x{ID}": None,
    f"/system.slice/docker-{ID[:12]}.scope": None,
    f"/system.slice/docker-{ID[1:]}.scope": None,
    "/ecs/34dc0b5e626f2c5c4c5170e34b10e765": None,
    "/elsewhere/34dc0b5e626f2c5c4c5170e34b10e765-1234567890": None,
    f"/elsewhere/{UID}": None,
    f"/kubepods/besteffort/pod{UID}x": None,
    "/lxc.payload.": None,
    "/lxc.payload.a\tb": None,
    r"/machine.slice/machine-a\x0ab.scope/payload": None,
}


@pytest.mark.parametrize(("path", "expected"), CONTAINERS.items())
def test_containers(path: str, expected: tuple[str, str | None, str | None]) -> None:
    assert parse_cgroup(path) == CgroupIdentity(*expected)


@pytest.mark.parametrize(("path", "pod_uid"), NO_CONTAINERS.items())
def test_not_containers(path: str, pod_uid: str | None) -> None:
    assert parse_cgroup(path) == CgroupIdentity(pod_uid=pod_uid)


PIECES = [
    "/",
    "-",
    ":",
    ".scope",
    ".slice",
    ".service",
    "pod",
    "payload",
    "lxc",
    "machine-",
    r"\x2d",
    r"\x0a",
    "..",
    " (deleted)",
]
PATHS = st.one_of(
    st.text(max_size=100),
    st.lists(
        st.sampled_from([*PIECES, ID, UID, UID_, STATIC, "docker", "crio", "conmon", "kubepods", "garden", "ecs", "a"]),
        max_size=12,
    ).map("".join),
)


def unescaped(path: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda escape: chr(int(escape[1], 16)), path)


@given(PATHS)
@example("\ud800/\0")
def test_anything_is_taken_and_nothing_invented(path: str) -> None:
    found = parse_cgroup(path)
    if found.container_id is None:
        assert found.runtime is None
    else:
        assert found.container_id in unescaped(path)
        assert re.fullmatch("[A-Za-z0-9._-]+", found.container_id)
    if found.pod_uid is not None:
        assert found.pod_uid in path.replace("_", "-")


@given(st.sampled_from(list(CONTAINERS)), st.text("abc.@-", min_size=1, max_size=9))
def test_what_is_below_a_container_belongs_to_it(path: str, child: str) -> None:
    if not path.endswith(" (deleted)"):
        assert parse_cgroup(f"{path}/{child}.service") == parse_cgroup(path)


def test_answers_are_remembered_within_bounds() -> None:
    bound = parse_cgroup.cache_info().maxsize
    assert bound is not None
    for number in range(bound + 10):
        parse_cgroup(f"/user.slice/{number}")
    assert parse_cgroup.cache_info().currsize == bound
