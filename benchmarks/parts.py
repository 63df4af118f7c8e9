"""What the benchmarks share: the receiver, CPU times, medians, and the file that the results go into."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from otel_procmon import wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
HERE = ROOT / "benchmarks"
RESULTS = HERE / "results/latest.json"

AGENT_CORE, OTHER_CORE = 1, 0
"""What is measured has a core of its own."""

Protocol = Literal["grpc", "http"]


class Receiver:
    """A running `receiver.py`."""

    def __init__(self, process: subprocess.Popen[str], protocol: Protocol, port: int) -> None:
        self._process = process
        self._protocol = protocol
        self.port = port
        self.pid = process.pid

    def environment(self, *, compression: str = "none", metrics: bool = False) -> dict[str, str]:
        """For what is to send to it: this process's environment without what is OpenTelemetry's, and where to send."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        # What is measured is what is installed, compiled perhaps, and not the checkout that is the working directory.
        kept |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(HERE)}
        if compression != "none":
            # The SDK's exporter over gRPC does not know the word "none".
            kept["OTEL_EXPORTER_OTLP_COMPRESSION"] = compression
        return {
            **kept,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if self._protocol == "grpc" else "http/protobuf",
            # The agent's own. A receiver that keeps what it gets takes all that is no log for traces.
            "OTEL_METRICS_EXPORTER": "otlp" if metrics else "none",
            "NO_PROXY": "127.0.0.1",
        }

    def report(self) -> dict[str, Any]:
        """What has come since the last one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._process.stdout.readline())
        return result


@contextmanager
def receiver(protocol: Protocol, *, keep: bool = False, core: int = OTHER_CORE, port: int = 0) -> Iterator[Receiver]:
    """A receiver in a process of its own, on `core`; on `port`, or else on a free one."""
    command = [sys.executable, HERE / "receiver.py", protocol, "--core", str(core), "--port", str(port)]
    process = subprocess.Popen(
        command + (["--keep"] if keep else []), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Receiver(process, protocol, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process: now, or at its most (VmHWM)."""
    (kib,) = re.findall(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) / 1024


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": len(values)}


def shown(one: Mapping[str, float], digits: int = 1) -> str:
    """A spread as text."""
    return f"{one['median']:.{digits}f} ({one['least']:.{digits}f} to {one['most']:.{digits}f})"


def ledger_counts(stderr: str) -> dict[str, int]:
    """The counts in the agent's last ledger line, by ``place: outcome``."""
    lines = [line for line in stderr.splitlines() if "ledger: " in line]
    if not lines:
        raise SystemExit(f"the agent said no ledger:\n{stderr}")
    counts: dict[str, int] = {}
    for place in lines[-1].partition("ledger: ")[2].split("; "):
        name, _, outcomes = place.partition(": ")
        for outcome, number in re.findall(r"(?:^|, )(.*?) (\d+)(?=, |$)", outcomes):
            counts[f"{name}: {outcome}"] = int(number)
    return counts


def lost(counts: Mapping[str, int]) -> dict[str, int]:
    """Of a ledger's counts, those of what was lost."""
    return {name: number for name, number in counts.items() if "lost" in name.partition(": ")[2]}


def machine() -> dict[str, Any]:
    """Where the results are from."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiled": str(wire.__file__).endswith(".so"),
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": round(os.getloadavg()[0], 2),
    }


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what all have."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS, help="results are put into this file")
    return parser


def save(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """Put `result` into the file under `name`, with the machine and the load; what others put there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    all_results = json.loads(path.read_text()) if path.exists() else {}
    all_results[name] = {"machine": machine(), **result}
    path.write_text(json.dumps(all_results, indent=1) + "\n")
