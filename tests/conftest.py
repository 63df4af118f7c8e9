"""Shared by all tests: they import each other as ``tests.…``."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# Last, so that an installed otel_procmon (a wheel under test) goes before the one of the source tree.
sys.path.append(str(Path(__file__).parents[1]))

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
