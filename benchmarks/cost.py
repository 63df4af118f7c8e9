"""What watching costs: a workload without and with the agent, in turn, in one run. Needs root, gcc and make.

    python benchmarks/cost.py [--rounds N] [--workload build|burst|configure]

Prints medians: wall time of the workload and their ratio (pair by pair), the agent's CPU time for each process that
ended, its resident memory at the end, and what was lost. Machines are noisy: trust ratios.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from tests.kernel.truth import workloads  # noqa: E402
from tests.kernel.truth.running import Agent, run_agent  # noqa: E402

TORTURE = ROOT / "tests/kernel/truth/torture.c"
BURST = 20_000


def prepare(name: str, directory: Path) -> list[str]:
    """Write the workload into `directory`, and give its command."""
    if name == "build":
        workloads.write_c_project(directory, sources=200)
        return ["sh", "-c", "make -s clean >/dev/null 2>&1; rm -f *.o program; make -s -j2 program >/dev/null"]
    if name == "configure":
        workloads.write_configure(directory / "configure", checks=200)
        return ["./configure"]
    workloads.compile_tiny(TORTURE, directory / "tiny")
    workloads.compile_torture(TORTURE, directory / "torture")
    return ["./torture", "burst", "./tiny", str(BURST), "benchmark"]


def timed(command: list[str], directory: Path) -> float:
    """Seconds that `command` takes."""
    begin = time.monotonic()
    subprocess.run(
        command,
        cwd=directory,
        env=workloads.ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - begin


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) / 1024


def watched(command: list[str], directory: Path, scratch: Path) -> tuple[float, float, float, int, str]:
    """Wall time of the workload, the agent's CPU time and memory, how many exits it told, and its ledger."""
    with run_agent(scratch) as agent:
        before = cpu_seconds(agent.process.pid)
        wall = timed(command, directory)
        settle(agent)
        cpu = cpu_seconds(agent.process.pid) - before
        memory = resident_mib(agent.process.pid)
    ledger = agent.stderr.rpartition("ledger: ")[2].strip()
    exits = sum(int(number) for number in re.findall(r"told: exit(?: of an unknown image)? (\d+)", ledger))
    agent.records.unlink()
    return wall, cpu, memory, exits, ledger


def settle(agent: Agent) -> None:
    """Wait until the agent's file does not grow any more."""
    size = -1
    while size != (size := agent.records.stat().st_size):
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workload", choices=("build", "burst", "configure"), action="append")
    options = parser.parse_args()
    for name in options.workload or ("build", "configure", "burst"):
        with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as scratch:
            command = prepare(name, Path(work))
            timed(command, Path(work))
            without, runs = [], []
            for _ in range(options.rounds):
                without.append(timed(command, Path(work)))
                runs.append(watched(command, Path(work), Path(scratch)))
        ratios = [run[0] / alone for run, alone in zip(runs, without, strict=True)]
        print(f"{name}: {options.rounds} rounds, {runs[0][3]} processes each")
        print(
            f"  wall: {statistics.median(without):.2f} s alone, {statistics.median(r[0] for r in runs):.2f} s watched"
        )
        print(f"  ratio: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
        print(f"  agent: {statistics.median(r[1] / r[3] for r in runs) * 1e6:.0f} µs of CPU for each process")
        print(f"  agent: {statistics.median(r[2] for r in runs):.0f} MiB resident at the end")
        lost = [text for run in runs for text in re.findall(r"lost[^,;]*(?:, \w+)? \d+", run[4])]
        print(f"  lost: {'; '.join(lost) or 'nothing'}")


if __name__ == "__main__":
    main()
