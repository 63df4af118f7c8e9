"""How the package is built: by setuptools, and with mypyc as well where PROCMON_COMPILE is set (see ``setup.py``)."""

from __future__ import annotations

import os

from setuptools.build_meta import *  # noqa: F403 - a build backend is what it has of hooks

_COMPILING = ["msgspec>=0.19", "mypy>=1.15", "opentelemetry-proto", "types-PyYAML", "types-protobuf"]
"""mypyc reads the types of what the compiled modules import."""


def get_requires_for_build_wheel(config_settings: dict[str, str | list[str] | None] | None = None) -> list[str]:  # noqa: ARG001
    """What must be there to build a wheel, besides setuptools."""
    return _COMPILING if os.environ.get("PROCMON_COMPILE") else []
