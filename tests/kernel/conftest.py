"""What every test on the running kernel needs: a check that it can run here, and a running agent.

`running_agent` is a fixture that gives a context manager (`truth.running.run_agent`)::

    with running_agent(tmp_path, "--pid", "1") as agent:
        subprocess.run(["true"], check=True)
    assert agent.logs()
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.truth.running import RunningAgent, cannot_run, chosen_loader, run_agent

BTF = Path("/sys/kernel/btf/vmlinux")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can run in a guest only (`boot/matrix.py`), or by BCC only, which is tried there."""
    elsewhere = {
        "only_bcc": chosen_loader() != "bcc",
        # `boot/run` tells its guests.
        "own_machine": "PROCMON_ACCELERATOR" not in os.environ,
    }
    others = [item for item in items if any(elsewhere.get(mark.name) for mark in item.iter_markers())]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def require_kernel() -> None:
    """Skip the test where no BPF program can be loaded, or fail it where PROCMON_REQUIRE contains ``kernel``."""
    if os.geteuid() != 0:
        cannot_run("kernel", "BPF programs need root")
    if chosen_loader() != "bcc" and not BTF.exists():
        cannot_run("kernel", f"this kernel has no BTF ({BTF})")


@pytest.fixture(scope="session")
def running_agent(require_kernel: None) -> RunningAgent:
    """`run_agent`, where a BPF program can be loaded."""
    return run_agent
