"""How long it takes from an exec until a receiver has its log record, with the default settings; and to start.

    python benchmarks/latency.py [--seconds N] [--per-second N] [--starts N]   (as root)

The agent sends over gRPC. Short programs are started at random moments; for each log record of an exec, the time in it
is taken from the time when the receiver got it. Cold start: from the start of Python until the first exec that is seen,
while short programs are started all the time; and until the first record is at the receiver.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parts import AGENT_CORE, arguments, receiver, save, shown, spread

if TYPE_CHECKING:
    from parts import Receiver

EXEC = "process.exec"
MOST_START_S = 30.0


def start(directory: Path, to: Receiver) -> subprocess.Popen[bytes]:
    """The agent, on its core."""
    command = [sys.executable, "-m", "otel_procmon", "run", "--spool", str(directory / "spool")]
    return subprocess.Popen(
        ["taskset", "-c", str(AGENT_CORE), *command],
        env=to.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def stop(agent: subprocess.Popen[bytes]) -> None:
    agent.send_signal(signal.SIGTERM)
    if agent.wait():
        raise SystemExit(f"the agent exited {agent.returncode}")


def run_one() -> None:
    subprocess.run(["/bin/true"], check=True)


def latencies(seconds: float, per_second: float, to: Receiver, directory: Path) -> dict[str, Any]:
    agent = start(directory, to)
    # What it does at its start is another matter.
    time.sleep(5)
    to.report()
    began_unix_ns = time.time_ns()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(random.expovariate(per_second))
        run_one()
    ended_unix_ns = time.time_ns()
    time.sleep(5)
    times = to.report()["times"]
    stop(agent)
    found = sorted(
        (came_unix_ns - at_unix_ns) / 1e9
        for at_unix_ns, came_unix_ns, name in times
        if name == EXEC and began_unix_ns <= at_unix_ns <= ended_unix_ns
    )
    return {
        "execs": len(found),
        "p50_s": found[len(found) // 2],
        "p99_s": found[len(found) * 99 // 100],
        "most_s": found[-1],
    }


def cold_start(to: Receiver, directory: Path) -> tuple[float, float]:
    """Seconds until the first exec that is seen, and until the receiver has the first record of one."""
    to.report()
    began_unix_ns = time.time_ns()
    agent = start(directory, to)
    until = time.monotonic() + MOST_START_S
    seen: list[tuple[int, int]] = []
    while not seen and time.monotonic() < until:
        for _ in range(20):
            run_one()
            time.sleep(0.002)
        seen = [(at, came) for at, came, name in to.report()["times"] if name == EXEC]
    stop(agent)
    if not seen:
        raise SystemExit(f"nothing came in {MOST_START_S} s")
    return (min(at for at, _ in seen) - began_unix_ns) / 1e9, (min(came for _, came in seen) - began_unix_ns) / 1e9


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--per-second", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, receiver("grpc", keep=True) as to:
        result = latencies(options.seconds, options.per_second, to, Path(name))
        starts = [cold_start(to, Path(name)) for _ in range(options.rounds)]
    result["cold_start_s"] = spread([seen for seen, _ in starts])
    result["cold_start_to_receiver_s"] = spread([came for _, came in starts])
    save(options.json, "latency", result)
    print(
        f"from exec to the receiver, {result['execs']} execs in {options.seconds:.0f} s: "
        f"p50 {result['p50_s']:.2f} s, p99 {result['p99_s']:.2f} s, most {result['most_s']:.2f} s"
    )
    print(
        f"cold start: to the first exec that is seen {shown(result['cold_start_s'], 2)} s, to the first one at the "
        f"receiver {shown(result['cold_start_to_receiver_s'], 2)} s"
    )


if __name__ == "__main__":
    main()
