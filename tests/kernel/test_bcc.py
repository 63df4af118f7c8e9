"""What only the program has that BCC makes: perf buffers, and a check of its headers. Needs PROCMON_SOURCE=bcc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_procmon.source.bcc import OUTPUT_VARIABLE
from tests.kernel.test_gaps import LOST_KINDS, assert_balanced, configuration, fill_ring, lost
from tests.kernel.truth.family import exec_id, with_word
from tests.kernel.truth.load import load
from tests.kernel.truth.machine import bound, fewer
from tests.kernel.truth.shell import marker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.truth.running import RunningAgent

PERF = {OUTPUT_VARIABLE: "perf"}

pytestmark = [pytest.mark.kernel, pytest.mark.only_bcc, pytest.mark.usefixtures("require_kernel")]


def test_perf_buffers_tell_all_in_its_order(running_agent: RunningAgent, tmp_path: Path) -> None:
    with load(tmp_path / "load") as made:
        with running_agent(tmp_path, *made.filter, env=PERF) as agent:
            made.run(fewer(100))
        made.assert_told(agent.logs(), agent.spans())
    assert_balanced(agent)
    assert "lost" not in " ".join(agent.ledger()["kernel"])
    logs = [log for log in agent.logs() if log.event_name != "process.discovered"]
    assert [log.time_unix_ns for log in logs] == sorted(log.time_unix_ns for log in logs), "whatever their CPUs"


def test_perf_buffers_that_are_full(running_agent: RunningAgent, tmp_path: Path) -> None:
    config = configuration(tmp_path, "capture: {ring: 256KiB}\nlineage: {sweep_interval: 1s}\n")
    known, burst = marker(), marker()
    with running_agent(tmp_path, "--config", config, env=PERF) as agent:
        process = subprocess.Popen(["sh", "-c", "read line", known], stdin=subprocess.PIPE)
        try:
            agent.wait_until(lambda: bool(with_word(agent.logs(), known)), "what lives was told")
            agent.process.send_signal(signal.SIGSTOP)
            os.waitpid(agent.process.pid, os.WUNTRACED)
            fill_ring(burst)
        finally:
            process.kill()
            process.wait()
        agent.process.send_signal(signal.SIGCONT)

        def settled() -> bool:
            over = {exec_id(log) for log in agent.logs() if log.event_name == "process.exit"}
            begun = {exec_id(log) for word in (known, burst) for log in with_word(agent.logs(), word)}
            return begun <= over

        agent.wait_until(settled, "the sweep found out what was lost")
    assert_balanced(agent)
    # No room is kept for any kind, so all of them are lost.
    assert all(agent.ledger()["kernel"][f"lost: ring full, {kind}"] > 0 for kind in LOST_KINDS)
    assert any(lost(log) for log in with_word(agent.logs(), burst) if log.event_name == "process.exit")


def test_perf_buffers_hold_no_longer_arguments(running_agent: RunningAgent, tmp_path: Path) -> None:
    word = marker()
    with running_agent(tmp_path, env=PERF) as agent:
        subprocess.run(["sh", "-c", ":", word, "x" * 60_000], check=True)
    (log,) = [log for log in with_word(agent.logs(), word) if log.event_name == "process.exec"]
    assert "args" in log.attributes["procmon.truncated"]
    assert 40_000 < len(log.attributes["process.command_args"][-1]) < 60_000
    assert_balanced(agent)


def test_doctor_with_nothing_but_bcc() -> None:
    """What a kernel without BTF looks like to it: it takes BCC, and that works."""
    script = 'mount -t tmpfs tmpfs /sys/kernel/btf && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "otel_procmon", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=bound(300),
    )
    assert "ok       --source auto takes bcc: this kernel has no type information" in done.stdout, done.stdout
    assert "ok       the BPF program loads, and sees what starts" in done.stdout
    assert done.returncode == 0
