"""Compiles the path that every event takes, from the kernel's record to OTLP, where PROCMON_COMPILE is set.

mypyc makes C extensions of the same modules that run as they are without it, so there is one source for both. It needs
a C compiler and Python's headers (Debian: gcc, python3-dev).
"""

from __future__ import annotations

import os

from setuptools import setup

COMPILED = (
    "agent",
    "clock",
    "containers/cgroup",
    "convert/happenings",
    "convert/resource",
    "decode/kernel",
    "deliver/sender",
    "encode/otlp",
    "ledger",
    "lineage/arguments",
    "lineage/entry",
    "lineage/ids",
    "lineage/image",
    "lineage/init_tree",
    "lineage/succession",
    "lineage/table",
    "redact/find",
    "redact/stage",
    "redact/words",
    "rfc3339",
    "source/ring",
    "view/arguments",
    "view/compact",
    "wire",
)

if os.environ.get("PROCMON_COMPILE"):
    from mypyc.build import mypycify  # only there when it was asked for (build_backend.py)

    setup(ext_modules=mypycify([f"otel_procmon/{module}.py" for module in COMPILED], opt_level="3", debug_level="0"))
else:
    setup()
