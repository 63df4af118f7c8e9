r"""Which systemd service a cgroup path belongs to, for processes outside of containers.

Found as systemd itself does it (src/basic/cgroup-util.c, ``cg_path_get_unit`` and ``cg_path_get_user_unit``): from the
root down, slices are passed over, and what comes then is the unit. What lies below it is the unit's own affair, so a
service with a delegated subtree cannot name another one. Only below a user's own manager (``user@1000.service``) there
is a second unit, the user's; its name is the user's choice, which is why it is told apart.

Scopes are not services: a login session, what somebody runs by ``systemd-run --scope``, a desktop's applications. What
a path tells is worth as much here as in `otel_procmon.containers.cgroup`. Ask about containers first: below one, the
same names are those of another systemd, or of none.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Service(NamedTuple):
    """A systemd service."""

    unit: str
    """``nginx.service``; for a user's service that of the user's manager, ``user@1000.service``."""
    user_unit: str | None = None
    """The user's service below that, as in journald's ``_SYSTEMD_USER_UNIT``."""
    name: str | None = None
    """What people call it: without ``.service``, and of a template (``postgresql@15-main.service``) without the
    instance, of which there may be one for each connection. None where nobody has named it."""


# systemd, src/basic/unit-name.c: VALID_CHARS and MAX_UNIT_NAME_LENGTH
_SERVICE = re.compile(r"(?P<name>[A-Za-z0-9:_.\\-]+)(?:@[A-Za-z0-9:_.\\@-]*)?\.service")
_NAME_MAX = 255
_USER_MANAGER = re.compile(r"user@[0-9]+\.service")

_UNNAMED = re.compile(
    r"""
      run-u[0-9]+               # systemd-run without --unit: src/run/run.c
    | run-r[0-9a-f]{32}
    | run-p[0-9]+-i[0-9]+
    | [0-9a-f]{64}(-[0-9a-f]+)? # podman's health checks
    """,
    re.VERBOSE,
)
"""Names that a program made up, a new one each time: as ``service.name`` they would be a service each."""


@lru_cache(maxsize=1024)
def parse_unit(path: str) -> Service | None:
    """The service of `path`, a path of the cgroup hierarchy from its root; None if it is of none.

    Takes any text. The last 1024 answers are remembered.
    """
    names = [name for name in path.split("/") if name]
    unit, rest = _below_slices(names)
    if unit is None:
        return None
    if not _USER_MANAGER.fullmatch(unit):
        return _service(unit)
    user_unit, _ = _below_slices(rest)
    service = None if user_unit is None else _service(user_unit)
    return None if service is None else service._replace(unit=unit, user_unit=user_unit)


def _below_slices(names: list[str]) -> tuple[str | None, list[str]]:
    """The first of `names` that is no slice, and those after it."""
    for index, name in enumerate(names):
        if not name.endswith(".slice"):
            # A name that would clash with a file of the kernel's (cpu.service) is escaped by `_`: cg_escape().
            return name.removeprefix("_"), names[index + 1 :]
    return None, []


def _service(unit: str) -> Service | None:
    match = _SERVICE.fullmatch(unit)
    if match is None or len(unit) > _NAME_MAX:
        return None
    return Service(unit, None, None if _UNNAMED.fullmatch(match["name"]) else match["name"])
