"""``python -m otel_procmon`` is ``otel-procmon``."""

from __future__ import annotations

import sys

from otel_procmon.cli import main

if __name__ == "__main__":
    sys.exit(main())
