"""The units in which options are written: nanoseconds and bytes."""

from __future__ import annotations

from typing import Final

MS: Final = 1_000_000
S: Final = 1000 * MS
MINUTE: Final = 60 * S
HOUR: Final = 60 * MINUTE
KIB: Final = 1024
MIB: Final = 1024 * KIB
