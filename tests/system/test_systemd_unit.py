"""``examples/systemd/otel-procmon.service``, as systemd reads it.

What its capabilities let the agent do is tried in ``test_daemonset.py``: systemd itself does not run everywhere.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernel.truth.running import cannot_run
from tests.system.conftest import HINT

pytestmark = pytest.mark.system

UNIT = Path(__file__).parents[2] / "examples/systemd/otel-procmon.service"
PROGRAM = "/opt/otel-procmon/bin/otel-procmon"
EXPOSURE_MAX = 2.5
"""systemd's own measure, from 0 to 10; without any restriction a service has 9.6."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists, which systemd looks for."""
    if shutil.which("systemd-analyze") is None:
        cannot_run("system", f"systemd-analyze is not installed: {HINT}")
    path = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert PROGRAM in text
    path.write_text(text.replace(PROGRAM, "/bin/true"))
    return path


def test_systemd_understands_every_line(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_not_exposed(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX * 10:.0f}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
