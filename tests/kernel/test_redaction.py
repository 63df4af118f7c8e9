"""A secret on a real command line: whatever leaves the agent, and whatever it leaves on the disk, is without it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.truth.family import with_word
from tests.kernel.truth.receiver import HOST, refusing_port
from tests.kernel.truth.running import run_command
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

MARK = "*****"


def test_a_secret_leaves_by_no_output(tmp_path: Path) -> None:
    """Of a process that runs before the agent, of one that it sees, of what both of them fork and start."""
    word, secret = marker(), marker()
    script = 'read line; (exit 1); /bin/true --token "$2" "$0"; PGPASSWORD=x /bin/true "https://bob:$2@h/" "$0"'
    command = ["sh", "-c", script, word, "--password", secret]
    records, lines, events, spool = (tmp_path / name for name in ("records.jsonl", "lines", "events.json", "spool"))
    options = ("-o", f"otlp-json:{records}", "-o", f"compact:{lines}", "-o", f"json:{events}", "-o", "otlp")
    early = subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT)
    with refusing_port() as port:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}", "OTEL_METRICS_EXPORTER": "none"}
        with run_command(tmp_path, "run", *options, "--spool", str(spool), env=env, records=records) as agent:
            late = subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT)
            for process in (early, late):
                process.communicate(b"\n", 60)
    told = with_word(agent.logs(), word)
    assert {log.event_name for log in told} == {"process.discovered", "process.exec", "process.exit"}
    assert agent.ledger()["redact"]["replaced: option"] > 0
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len([path for path in written if path.is_relative_to(spool)]) > 1, "nothing waits in the spool"
    for path in (records, lines, events):
        assert MARK.encode() in written[path]
    assert [path for path, content in written.items() if secret.encode() in content] == []
    assert secret not in agent.stderr
