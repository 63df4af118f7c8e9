"""How much a test asks of the machine: less where every instruction is emulated.

`tests/kernel/boot/run` tells its guest which accelerator it has (PROCMON_ACCELERATOR). By plain emulation everything
takes ten times as long and more; what is arbitrary about a test is made smaller there, and bounds are wider.
"""

from __future__ import annotations

import os

EMULATED = os.environ.get("PROCMON_ACCELERATOR") == "tcg"


def fewer(count: int) -> int:
    """How many processes to make where `count` is a number that just has to be large."""
    return count // 10 if EMULATED else count


def bound(seconds: int) -> int:
    """How long something may take before it counts as stuck."""
    return seconds * 10 if EMULATED else seconds
