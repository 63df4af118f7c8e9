"""An hour of mixed load: does anything grow, and does the account balance at the end?

    python benchmarks/soak.py [--minutes N] [--phase-seconds N] [--picture PNG]   (as root; needs matplotlib)

Rounds of ten phases of a minute: scripts like those that autoconf makes; short programs as fast as a core can start
them, with pauses; a C project that is built; many programs side by side, some of which fail; children that outlive who
started them; shells in sessions of their own; the receiver away while scripts run; and, three times, nothing. Every ten
seconds the agent tells its ledger and its gauges, through OpenTelemetry's console exporter of metrics, and /proc its
memory, threads and descriptors. All of it goes into a picture and, in short, into the results.

It fails where the account does not balance, or where more descriptors or threads are there at the end than were at the
beginning. Whether memory is flat, the picture says, and the medians of the phases in which nothing happened.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from parts import ROOT, arguments, cpu_seconds, ledger_counts, lost, machine, receiver, resident_mib, save

sys.path.append(str(ROOT))

from tests.kernel.truth import workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from parts import Receiver

SAMPLE_S = 10.0
LEFT = 3
"""As many descriptors or threads more may be a connection that is being made."""
BURST = 20_000
BESIDE = 200
TORTURE = ROOT / "tests/kernel/truth/torture.c"
PICTURE = ROOT / "docs/soak.png"
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
GAUGES = (
    "procmon.processes",
    "procmon.images",
    "procmon.delivery.waiting",
    "procmon.spool.records",
    "procmon.ring.utilization",
)


class Sample(NamedTuple):
    """What was seen at one moment."""

    at_s: float
    resident_mib: float
    cpu_s: float
    threads: int
    descriptors: int


class Work:
    """The kinds of load. Each takes the moment at which it is to end, by the monotonic clock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._configure = directory / "configure"
        workloads.write_configure(self._configure)
        self._tiny = directory / "tiny"
        workloads.compile_tiny(TORTURE, self._tiny)
        self._torture = directory / "torture"
        workloads.compile_torture(TORTURE, self._torture)
        self._project = directory / "project"
        self._project.mkdir()
        workloads.write_c_project(self._project, 20)

    def scripts(self, until: float) -> None:
        """One after the other."""
        while time.monotonic() < until:
            self._run("sh", str(self._configure))

    def bursts(self, until: float) -> None:
        """Of tens of thousands of programs, with a pause after each."""
        while time.monotonic() < until:
            self._run(str(self._torture), "burst", str(self._tiny), str(BURST))
            self._pause(until, 10)

    def builds(self, until: float) -> None:
        """A make of a C project."""
        while time.monotonic() < until:
            self._run("make", "-s", "-j2", cwd=self._project)
            for built in [*self._project.glob("*.o"), self._project / "program", self._project / "libparts.a"]:
                built.unlink(missing_ok=True)

    def beside(self, until: float) -> None:
        """Many at one time, of which some fail."""
        while time.monotonic() < until:
            scripts = ("sleep 2", "sleep 1; exit 3", "sleep 1; kill -9 $$", "sleep 2; /nonexistent")
            running = [
                subprocess.Popen(["sh", "-c", random.choice(scripts)], **QUIET)  # type: ignore[call-overload]
                for _ in range(BESIDE)
            ]
            for process in running:
                process.wait()

    def orphans(self, until: float) -> None:
        """Children that outlive who started them."""
        while time.monotonic() < until:
            self._run("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 1 & sleep 1 &' ; done; exec true")
            self._pause(until, 0.2)

    def sessions(self, until: float) -> None:
        """Shells that lead sessions, and live long enough to be announced."""
        while time.monotonic() < until:
            script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do /bin/true; sleep 1; done"
            shells = [
                subprocess.Popen(["sh", "-c", script], start_new_session=True, **QUIET)  # type: ignore[call-overload]
                for _ in range(20)
            ]
            for process in shells:
                process.wait()

    def nothing(self, until: float) -> None:
        """What there is anyway."""
        self._pause(until, float("inf"))

    def _run(self, *command: str, cwd: Path | None = None) -> None:
        subprocess.run(command, cwd=cwd or self._directory, env=workloads.ENVIRONMENT, check=True, **QUIET)  # type: ignore[call-overload]

    @staticmethod
    def _pause(until: float, most_s: float) -> None:
        time.sleep(max(0.0, min(most_s, until - time.monotonic())))


def sampled(pid: int, began: float) -> Sample:
    """What /proc says of the agent now."""
    tasks = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - names are all that is wanted
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    return Sample(time.monotonic() - began, resident_mib(pid), cpu_seconds(pid), tasks, descriptors)


def told(stdout: Path) -> Iterator[dict[str, Any]]:
    """What the console exporter wrote: one JSON object after another. The last may be cut."""
    decoder = json.JSONDecoder()
    text = stdout.read_text()
    position = 0
    while (position := text.find("{", position)) >= 0:
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError:
            return
        yield value


def points(metrics: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], float, int]]:
    """Name, attributes, value and Unix time in nanoseconds of each point of one export."""
    for group in metrics["resource_metrics"]:
        for scope in group["scope_metrics"]:
            for metric in scope["metrics"]:
                for point in metric["data"]["data_points"]:
                    yield metric["name"], point["attributes"], point["value"], point["time_unix_nano"]


def series(stdout: Path, began_unix_s: float) -> dict[str, list[tuple[float, float]]]:
    """Of each gauge, and of the ledger's ends (read, told, exported, lost), the values over time, in seconds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for export in told(stdout):
        sums = dict.fromkeys(("kernel made", "read", "exported", "lost"), 0.0)
        at_s = 0.0
        for name, attributes, value, unix_ns in points(export):
            at_s = unix_ns / 1e9 - began_unix_s
            if name in GAUGES:
                found.setdefault(name, []).append((at_s, value))
            elif name == "procmon.ledger":
                place, outcome = attributes["procmon.place"], attributes["procmon.outcome"]
                if place == "kernel" and outcome.startswith("made"):
                    sums["kernel made"] += value
                elif (place, outcome) == ("source", "read"):
                    sums["read"] += value
                elif place.startswith("delivery.") and outcome == "exported":
                    sums["exported"] += value
                elif outcome.startswith("lost: "):
                    sums["lost"] += value
        for name, value in sums.items():
            found.setdefault(name, []).append((at_s, value))
    return found


def draw(
    picture: Path, samples: list[Sample], values: dict[str, list[tuple[float, float]]], phases: list[tuple[str, float]]
) -> None:
    """Everything over time, in minutes."""
    import matplotlib as mpl  # noqa: PLC0415 - only the picture needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(5, 1, figsize=(12, 15), sharex=True, layout="constrained")
    minutes = [sample.at_s / 60 for sample in samples]

    def gauge(axis: Any, name: str) -> None:
        axis.plot([at / 60 for at, _ in values.get(name, [])], [value for _, value in values.get(name, [])], label=name)

    axes[0].plot(minutes, [sample.resident_mib for sample in samples], label="resident, MiB")
    axes[1].plot(minutes, [sample.descriptors for sample in samples], label="descriptors")
    axes[1].plot(minutes, [sample.threads for sample in samples], label="threads")
    gauge(axes[2], "procmon.processes")
    gauge(axes[2], "procmon.images")
    gauge(axes[3], "procmon.delivery.waiting")
    gauge(axes[3], "procmon.spool.records")
    for name in ("kernel made", "read", "exported", "lost"):
        gauge(axes[4], name)
    for axis, limit in zip(axes, (0, 0, None, None, 0), strict=True):
        axis.legend(loc="upper left")
        axis.grid(alpha=0.3)
        if limit is not None:
            axis.set_ylim(bottom=limit)
        else:
            axis.set_yscale("symlog")
        for _, at_s in phases:
            axis.axvline(at_s / 60, color="grey", linewidth=0.4)
    for name, at_s in phases:
        axes[0].text(at_s / 60, axes[0].get_ylim()[1], name, rotation=60, fontsize=6, va="bottom")
    axes[-1].set_xlabel("minutes")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)


class Watch:
    """The agent, with what is asked of it every `SAMPLE_S`."""

    def __init__(self, directory: Path, to: Receiver) -> None:
        self.stdout, self.stderr = directory / "metrics", directory / "stderr"
        environment = to.environment(compression="gzip") | {
            "OTEL_METRICS_EXPORTER": "console",
            "OTEL_METRIC_EXPORT_INTERVAL": str(int(SAMPLE_S * 1000)),
        }
        command = [sys.executable, "-m", "otel_procmon", "run", "--spool", str(directory / "spool")]
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        self.began, self.began_unix_s = time.monotonic(), time.time()
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S) and self.process.poll() is None:
            self.samples.append(sampled(self.process.pid, self.began))

    def end(self) -> dict[str, int]:
        """Stop the agent. Its ledger."""
        self._ended.set()
        self._thread.join()
        self.process.send_signal(signal.SIGINT)
        if self.process.wait(120):
            raise SystemExit(f"the agent's exit code is {self.process.returncode}:\n{self.stderr.read_text()}")
        return ledger_counts(self.stderr.read_text())


def imbalance(counts: dict[str, int]) -> list[str]:
    """Where the ledger does not balance, in words."""
    made = sum(number for name, number in counts.items() if name.startswith("kernel: made: "))
    kernel_lost = sum(number for name, number in counts.items() if name.startswith("kernel: lost: "))
    read = counts.get("source: read", 0)
    problems = [] if made == read + kernel_lost else [f"made {made}, read {read}, lost in the kernel {kernel_lost}"]
    waiting = {name: number for name, number in counts.items() if "waiting: " in name}
    return problems + ([f"still waiting: {waiting}"] if waiting else [])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--phase-seconds", type=float, default=60)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="procmon-soak-"))
    phases: list[tuple[str, float]] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        work = Work(directory)
        here = ExitStack()
        stack.callback(here.close)
        to = here.enter_context(receiver("grpc"))
        watch = Watch(directory, to)
        stack.callback(lambda: watch.process.poll() is None and watch.process.kill())
        kinds: list[tuple[str, Callable[[float], None]]] = [
            ("nothing", work.nothing),
            ("scripts", work.scripts),
            ("bursts", work.bursts),
            ("builds", work.builds),
            ("nothing", work.nothing),
            ("side by side", work.beside),
            ("orphans", work.orphans),
            ("sessions", work.sessions),
            ("receiver away", work.scripts),
            ("nothing", work.nothing),
        ]
        end = watch.began + options.minutes * 60
        number = 0
        while time.monotonic() < end:
            name, load = kinds[number % len(kinds)]
            number += 1
            phases.append((name, time.monotonic() - watch.began))
            print(f"{phases[-1][1]:7.0f} s  {name}", flush=True)
            if name == "receiver away":
                port = to.port
                here.close()
                load(min(end, time.monotonic() + options.phase_seconds))
                to = here.enter_context(receiver("grpc", port=port))
            else:
                load(min(end, time.monotonic() + options.phase_seconds))
            if watch.process.poll() is not None:
                raise SystemExit(f"the agent ended:\n{watch.stderr.read_text()}")
        # What waits is sent by then; the longest pause between two tries is half a minute.
        settled = time.monotonic() + 120
        while time.monotonic() < settled and spooled(directory):
            time.sleep(1)
        counts = watch.end()
        values = series(watch.stdout, watch.began_unix_s)
    draw(options.picture, watch.samples, values, phases)
    result = summary(watch.samples, counts, phases, options.phase_seconds)
    save(options.json, "soak", {**result, "machine": machine(), "minutes": options.minutes})
    print(json.dumps(result, indent=1))
    first, last = result["quiet"][0], result["quiet"][-1]
    left = [name for name in ("descriptors", "threads") if last[name] > first[name] + LEFT]
    if problems := imbalance(counts) + [f"{name}: {first[name]} at first, {last[name]} at last" for name in left]:
        raise SystemExit("; ".join(problems))


def spooled(directory: Path) -> list[Path]:
    """The files of records that wait on disk."""
    return [path for path in (directory / "spool").glob("*.*.*") if path.is_file()]


def summary(
    samples: list[Sample], counts: dict[str, int], phases: list[tuple[str, float]], phase_s: float
) -> dict[str, Any]:
    """The figures for the page; `quiet` has those of each phase in which nothing happened."""
    quiet: list[tuple[float, list[Sample]]] = []
    for (name, at_s), following in zip(phases, [*phases[1:], ("", float("inf"))], strict=True):
        if name == "nothing":
            # The second half: what is to be forgotten has been.
            within = [sample for sample in samples if at_s + phase_s / 2 < sample.at_s < following[1]]
            if within:
                quiet.append((at_s, within))
    rows = [
        {
            "at_minute": round(at_s / 60, 1),
            "resident_mib": round(statistics.median(sample.resident_mib for sample in within), 1),
            "descriptors": round(statistics.median(sample.descriptors for sample in within)),
            "threads": round(statistics.median(sample.threads for sample in within)),
        }
        for at_s, within in quiet
    ]
    return {
        "quiet": rows,
        "resident_mib_most": round(max(sample.resident_mib for sample in samples), 1),
        "cpu_s": round(samples[-1].cpu_s, 1),
        "ledger": counts,
        "lost": lost(counts),
    }


if __name__ == "__main__":
    main()
