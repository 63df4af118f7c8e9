"""``python -m otel_procmon.config`` prints ``docs/configuration.md``, and with ``example`` the example's file."""

from __future__ import annotations

import sys

from otel_procmon.config.pages import document, example

sys.stdout.write(example() if sys.argv[1:] == ["example"] else document())
