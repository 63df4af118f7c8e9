"""Which rights an agent with a certain configuration keeps, once everything is loaded and open.

`privileges` knows how rights are given up; here is decided which. docs/privileges.md has it as a table.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from otel_procmon.capture import KernelCapture
from otel_procmon.containers.kube_access import find_access
from otel_procmon.containers.sources import find_socket
from otel_procmon.privileges import (
    ALL,
    CANDIDATES,
    READERS,
    PrivilegeError,
    drop,
    find_user,
    give_spool,
    least,
    make_way,
    unreadable,
    with_group_of_socket,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_procmon.capture import Capture
    from otel_procmon.config import Config, DeliveryOptions
    from otel_procmon.privileges import Identity

_OF_TLS: Final = ("_CERTIFICATE", "_CLIENT_KEY")
"""Ends of names of variables that name files. They are read again when they have changed."""

_ROOT: Final = Path("/")

_log = logging.getLogger(__name__)


def has_place(delivery: DeliveryOptions) -> bool:
    """Whether this user may have its spool where the configuration has it."""
    if os.geteuid() == 0 or delivery.spool_directory is None:
        return True
    directory = Path(delivery.spool_directory)
    return os.access(directory if directory.exists() else directory.parent, os.W_OK | os.X_OK)


def chosen_user(config: Config, environ: Mapping[str, str], *, local: bool) -> Identity | None:
    """Whom to become; None: nobody else. `local`: events are this host's. Raises PrivilegeError, EndpointError."""
    if config.privileges.user is None:
        return None
    identity = find_user(config.privileges.user)
    if local and config.containers.ask_runtime and (path := find_socket(config.containers, environ, _ROOT)):
        identity, trouble = with_group_of_socket(identity, Path(path))
        if trouble is not None:
            _log.warning("%s", trouble)
    return identity


def give_up(
    config: Config, identity: Identity | None, capture: Capture, environ: Mapping[str, str], *, sends: bool
) -> None:
    """Read what takes rights to be read, then become `identity` with no more capabilities than are needed from now on.

    `sends`: records go over OTLP, for which there is a spool. Raises PrivilegeError, SourceError.
    """
    kernel = capture if isinstance(capture, KernelCapture) else None
    if kernel is not None:
        kernel.look()
    if ALL in config.privileges.keep:
        if identity is not None:
            raise PrivilegeError(f"privileges.keep is [{ALL}], and another user would not have them: leave out one")
        return
    if sends and config.delivery.spool_directory is not None:
        spool = Path(config.delivery.spool_directory)
        make_way(spool)
        if identity is not None:
            give_spool(spool, identity)
    asked = {name.removeprefix("CAP_") for name in config.privileges.keep}
    keep = set(asked)
    if kernel is not None:
        keep |= least(CANDIDATES, kernel.works)
    modules = [Path(os.__file__), Path(yaml.__file__), Path(__file__)]
    if identity is None:
        # Root without rights may not look into another user's home, where a virtual environment may be.
        files = [*modules, *_read_later(config, environ)]
        keep |= least(READERS, lambda: not unreadable(files))
    dropped = drop(identity, keep)
    if secret := unreadable(modules):
        raise PrivilegeError(
            f"user {dropped.uid} may not read {secret[0]}, from where modules are imported: install otel-procmon, and "
            "Python, where that user can read them, such as /opt, or let privileges.user name another"
        )
    if missing := dropped.missing & asked:
        _log.warning("privileges.keep names %s, which this process does not have", ", ".join(sorted(missing)))
    names = ", ".join(sorted(dropped.capabilities)) or "none"
    _log.info("from here on: user %d, groups %s, capabilities: %s", dropped.uid, os.getgroups(), names)


def _read_later(config: Config, environ: Mapping[str, str]) -> list[Path]:
    """Files that are read again and again while the agent runs, as far as it is known by now which."""
    access = find_access(environ, _ROOT, config.containers.kubeconfig) if config.containers.ask_kubernetes else None
    files = [] if access is None or access.kubeconfig is None else access.kubeconfig.split(os.pathsep)
    files += [value for name, value in environ.items() if name.startswith("OTEL_") and name.endswith(_OF_TLS) and value]
    return [Path(file) for file in files]
