"""Which rights are kept: what is decided of a configuration, and what is said where that cannot be."""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_procmon.capture import TetragonCapture
from otel_procmon.config import Config, ContainerOptions, DeliveryOptions, PrivilegeOptions
from otel_procmon.ledger import Ledger
from otel_procmon.privileges import PrivilegeError
from otel_procmon.rights import chosen_user, give_up, has_place
from otel_procmon.source.tetragon import TetragonSource
from tests.unit.test_privileges import in_child, needs_root

if TYPE_CHECKING:
    from typing import Any

USER = "4000000:4000001"


def config(user: str | None = USER, **options: Any) -> Config:
    keep = options.pop("keep", ())
    return replace(Config(), privileges=PrivilegeOptions(user, keep), **options)


def test_nobody_is_chosen() -> None:
    assert chosen_user(config(None), {}, local=True) is None


def test_the_group_of_the_runtimes_socket_is_joined_where_containers_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    path.chmod(0o660)
    environ = {"CONTAINER_RUNTIME_ENDPOINT": f"unix://{path}"}
    for options, local, groups in (
        (ContainerOptions(), True, (path.stat().st_gid,)),
        (ContainerOptions(), False, ()),
        (ContainerOptions(ask_runtime=False), True, ()),
    ):
        found = chosen_user(config(containers=options), environ, local=local)
        assert found is not None
        assert (found.uid, found.gid, found.groups) == (4000000, 4000001, groups)


def test_a_socket_that_helps_nobody_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environ = {"CONTAINER_RUNTIME_ENDPOINT": str(tmp_path / "none")}
    assert chosen_user(config(), environ, local=True) is not None
    assert "cannot be looked at now" in caplog.text


@pytest.fixture
def capture(tmp_path: Path) -> TetragonCapture:
    path = tmp_path / "events"
    path.touch()
    return TetragonCapture(TetragonSource(str(path), follow=False), Config(), Ledger(), live=False)


def test_all_rights_and_another_user_do_not_go_together(capture: TetragonCapture) -> None:
    wanted = config(keep=("all",))
    with pytest.raises(PrivilegeError, match=r"privileges.keep is \[all\], and another user would not have them"):
        give_up(wanted, chosen_user(wanted, {}, local=False), capture, {}, sends=False)


@needs_root
@pytest.mark.parametrize("sends", [True, False])
def test_a_spool_is_made_only_where_something_is_sent(sends: bool, capture: TetragonCapture, tmp_path: Path) -> None:
    spool = tmp_path / "a" / "spool"
    wanted = config(None, delivery=DeliveryOptions(spool_directory=str(spool)))

    def work() -> Any:
        give_up(wanted, None, capture, {}, sends=sends)
        return spool.parent.exists()

    assert in_child(work) is sends


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_root_may_go_on_reading_a_kubeconfig_of_another_user(
    mode: int, capture: TetragonCapture, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("")
    os.chown(kubeconfig, 4711, 4711)
    kubeconfig.chmod(mode)
    wanted = config(None, containers=ContainerOptions(kubeconfig=str(kubeconfig)))

    def work() -> Any:
        give_up(wanted, None, capture, {}, sends=False)
        return kubeconfig.read_text()

    assert in_child(work) == ""


@needs_root
def test_the_default_place_of_the_spool() -> None:
    """Root's; another user's only where somebody has made it for that user, as systemd does."""
    # What pytest makes only root may enter.
    with tempfile.TemporaryDirectory() as directory:
        theirs, roots = Path(directory, "theirs"), Path(directory, "roots")
        for path in (theirs, roots):
            path.mkdir()
        os.chown(theirs, 65534, 65534)
        Path(directory).chmod(0o755)
        found = in_child(lambda: places_before_and_after(theirs, roots))
    assert found == [[True, True], [True, False, True]]


def places_before_and_after(theirs: Path, roots: Path) -> Any:
    """Where root would have a spool, and then, having become it, another user."""
    places = [DeliveryOptions(spool_directory=str(path / "spool")) for path in (theirs, roots)]
    before = [has_place(place) for place in places]
    os.setresuid(65534, 65534, 65534)
    return [before, [has_place(place) for place in (*places, DeliveryOptions(spool_directory=None))]]
