"""How the package is built: by setuptools, and with mypyc as well where PROCMON_COMPILE is set (see ``setup.py``)."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403 - a build backend is what it has of hooks

_COMPILING = Path(__file__).with_name("requirements-compile.txt")


def get_requires_for_build_wheel(config_settings: dict[str, str | list[str] | None] | None = None) -> list[str]:  # noqa: ARG001
    """What must be there to build a wheel, besides setuptools."""
    if not os.environ.get("PROCMON_COMPILE"):
        return []
    return [line for line in _COMPILING.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
