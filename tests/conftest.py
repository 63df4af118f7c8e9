"""Shared by all tests: they import each other as ``tests.…``."""

from __future__ import annotations

import sys
from pathlib import Path

# Last, so that an installed otel_procmon (a wheel under test) goes before the one of the source tree.
sys.path.append(str(Path(__file__).parents[1]))
