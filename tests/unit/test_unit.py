"""systemd services in cgroup paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.containers.unit import Service, parse_unit

ID = "1fb931d2f6e5e4cfdbaf30fdb8e2fdd81320bdb3047ded50120a4f82838209ce"
USER = "/user.slice/user-1000.slice/user@1000.service"

SERVICES = {
    "/system.slice/nginx.service": Service("nginx.service", None, "nginx"),
    "/system.slice/systemd-journald.service": Service("systemd-journald.service", None, "systemd-journald"),
    "/system.slice/NetworkManager.service": Service("NetworkManager.service", None, "NetworkManager"),
    "/system.slice/dbus-org.freedesktop.hostname1.service": Service(
        "dbus-org.freedesktop.hostname1.service", None, "dbus-org.freedesktop.hostname1"
    ),
    # Slices of an administrator's own, or none at all (Slice=-.slice)
    "/web.slice/web-front.slice/nginx.service": Service("nginx.service", None, "nginx"),
    "/nginx.service": Service("nginx.service", None, "nginx"),
    # A delegated subtree is the service's own
    "/system.slice/containerd.service/runtime": Service("containerd.service", None, "containerd"),
    "/system.slice/containerd.service/nginx.service": Service("containerd.service", None, "containerd"),
    "/system.slice/systemd-udevd.service/udev": Service("systemd-udevd.service", None, "systemd-udevd"),
    # Templates: the instance is no other service
    r"/system.slice/system-postgresql.slice/postgresql@15-main.service": Service(
        "postgresql@15-main.service", None, "postgresql"
    ),
    r"/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service": Service(
        "serial-getty@ttyS0.service", None, "serial-getty"
    ),
    r"/system.slice/system-systemd\x2dfsck.slice/systemd-fsck@dev-disk-by\x2duuid-1A2B\x2d3C4D.service": Service(
        r"systemd-fsck@dev-disk-by\x2duuid-1A2B\x2d3C4D.service", None, "systemd-fsck"
    ),
    "/system.slice/system-sshd.slice/sshd@7-192.0.2.1:22-192.0.2.9:51234.service": Service(
        "sshd@7-192.0.2.1:22-192.0.2.9:51234.service", None, "sshd"
    ),
    # Names that clash with the kernel's files
    "/system.slice/_cpu.service": Service("cpu.service", None, "cpu"),
    "/system.slice/__private.service": Service("_private.service", None, "_private"),
    # Nobody has named these
    "/system.slice/run-u42.service": Service("run-u42.service"),
    f"/system.slice/run-r{ID[:32]}.service": Service(f"run-r{ID[:32]}.service"),
    "/system.slice/run-p4711-i4712.service": Service("run-p4711-i4712.service"),
    f"/system.slice/{ID}.service": Service(f"{ID}.service"),
    f"/system.slice/{ID}-4bd7f1a2.service": Service(f"{ID}-4bd7f1a2.service"),
    # A user's own services
    f"{USER}/app.slice/syncthing.service": Service("user@1000.service", "syncthing.service", "syncthing"),
    f"{USER}/session.slice/pipewire.service": Service("user@1000.service", "pipewire.service", "pipewire"),
    f"{USER}/app.slice/run-u3.service": Service("user@1000.service", "run-u3.service"),
    f"{USER}/app.slice/podman.service/nginx.service": Service("user@1000.service", "podman.service", "podman"),
    f"{USER}/app.slice/app-firefox@6f2c1a52.service": Service(
        "user@1000.service", "app-firefox@6f2c1a52.service", "app-firefox"
    ),
}

NO_SERVICES = [
    "",
    "/",
    "/init.scope",
    "/system.slice",
    "/user.slice/user-1000.slice/session-3.scope",
    "/user.slice/user-1000.slice/session-3.scope/nginx.service",
    "/system.slice/run-r1234.scope",
    "/system.slice/cups.socket",
    "/system.slice/tmp.mount",
    "/dev-hugepages.mount",
    # A user's manager itself, and what is no service below it
    USER,
    f"{USER}/init.scope",
    f"{USER}/app.slice",
    f"{USER}/app.slice/app-gnome-firefox-4711.scope",
    f"{USER}/user.slice/podman-4711.scope",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    f"/machine.slice/libpod-{ID}.scope/container/system.slice/nginx.service",
    # OpenRC, runit, a cgroup of one's own
    "/openrc.nginx",
    "/batch/jobs/nginx.service",
    # No unit's names
    "/system.slice/.service",
    "/system.slice/@.service",
    "/system.slice/ng inx.service",
    "/system.slice/nginx.service\n",
    "/system.slice/n\ud800.service",
    f"/system.slice/{'n' * 248}.service",
]


@pytest.mark.parametrize(("path", "expected"), SERVICES.items())
def test_services(path: str, expected: Service) -> None:
    assert parse_unit(path) == expected


@pytest.mark.parametrize("path", NO_SERVICES)
def test_what_is_no_service(path: str) -> None:
    assert parse_unit(path) is None


PIECES = ["/", "@", "_", ".", ".service", ".slice", ".scope", "user@1000.service", "system.slice", "nginx", r"\x2d"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from([*PIECES, "\ud800", "\n"]), max_size=10).map("".join)))
def test_anything_is_taken_and_nothing_invented(path: str) -> None:
    found = parse_unit(path)
    if found is not None:
        unit = found.user_unit or found.unit
        assert unit in path
        assert unit.endswith(".service")
        assert unit.isascii()
        assert unit.isprintable()
        assert found.name is None or unit.startswith(found.name)


@given(st.sampled_from(list(SERVICES)), st.text("abc.@-", min_size=1, max_size=9))
def test_what_is_below_a_service_belongs_to_it(path: str, child: str) -> None:
    assert parse_unit(f"{path}/{child}.service") == parse_unit(path)
