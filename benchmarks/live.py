"""What watching costs while it happens: no tracer, ours, bpftrace, execsnoop with exitsnoop, in turn; then auditd.

    python benchmarks/live.py [--rounds N] [--execs N] [--storm-seconds N] [--million N] [--only PART]   (as root)

The load runs on one core, the tracer on the other: short programs started as fast as that core can (`burst` of the
kernel tests' torture program), and a script like those that autoconf makes. Ours sends OTLP over gRPC to a receiver
that does nothing, on the tracer's core; the others write text into a file, one line for each exec and each exit, but
auditd, of which only execs are asked, several for each. A tool that is not installed, or that this machine does not let
work, is left out, and the results say why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from parts import (
    AGENT_CORE,
    OTHER_CORE,
    ROOT,
    arguments,
    cpu_seconds,
    ledger_counts,
    lost,
    receiver,
    resident_mib,
    save,
    shown,
    spread,
)

sys.path.append(str(ROOT))

from tests.kernel.truth import workloads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from parts import Receiver

TORTURE = ROOT / "tests/kernel/truth/torture.c"
BPFTRACE = """\
tracepoint:syscalls:sys_enter_execve { printf("exec %d ", pid); join(args->argv); }
tracepoint:sched:sched_process_exit /pid == tid/ { printf("exit %d %s\\n", pid, comm); }
"""
AUDITD = """\
local_events = yes
write_logs = yes
log_file = {log}
log_group = root
log_format = RAW
flush = INCREMENTAL_ASYNC
freq = 50
max_log_file = 8
max_log_file_action = IGNORE
space_left = 75
space_left_action = IGNORE
admin_space_left = 50
admin_space_left_action = IGNORE
"""
AUDIT_RULE = ("always,exit", "-F", "arch=b64", "-S", "execve", "-S", "execveat", "-k", "procmon-benchmark")
BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
START_S, SETTLE_S, QUIET_S = 30.0, 60.0, 1.0
BUSY = 0.1
"""Of a core: what a tracer takes that has something to do."""


class Load(NamedTuple):
    """What is watched."""

    name: str
    command: tuple[str, ...]
    directory: Path
    program: bytes = b""
    """Which name tells what it runs from what else runs on this machine."""
    execs: int = 0
    """Of that program, and as many exits; 0: not known beforehand."""


class Tracer:
    """A tool that watches: its processes, and where it writes."""

    def __init__(self, name: str, processes: Sequence[subprocess.Popen[bytes]], output: Path, stderr: Path) -> None:
        self.name = name
        self.processes = processes
        self._output = output
        self._stderr = stderr
        # A thread of the kernel's works for auditd only.
        self._helpers = kernel_threads("kauditd") if name == "auditd" else []

    def cpu_s(self) -> float:
        return sum(map(cpu_seconds, [*(process.pid for process in self.processes), *self._helpers]))

    def bpf(self) -> dict[int, tuple[int, int]]:
        """Of each of its BPF programs: how long it ran, in nanoseconds, and how often."""
        found: dict[int, tuple[int, int]] = {}
        for process in self.processes:
            for info in Path(f"/proc/{process.pid}/fdinfo").iterdir():
                with suppress(OSError):
                    fields = dict(line.split(":\t", 1) for line in info.read_text().splitlines() if ":\t" in line)
                    if "prog_id" in fields and "run_time_ns" in fields:
                        found[int(fields["prog_id"])] = int(fields["run_time_ns"]), int(fields["run_cnt"])
        return found

    def lines(self, word: bytes = b"") -> int:
        """How many events of programs with `word` in their name it has told of."""
        lines = self._output.read_bytes().split(b"\n")
        # Of an exec auditd writes several lines.
        return sum(word in line and (self.name != "auditd" or line.startswith(b"type=EXECVE")) for line in lines)

    def progress(self) -> float:
        """Grows while it works."""
        return self.cpu_s()

    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def settle(self) -> None:
        """Wait until it has nothing more to do."""
        deadline = time.monotonic() + SETTLE_S
        before = -1.0
        while time.monotonic() < deadline and (now := self.progress()) > before + BUSY * QUIET_S:
            before = now
            time.sleep(QUIET_S)

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if self.name == "auditd" else signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(SETTLE_S)
            except subprocess.TimeoutExpired:  # noqa: PERF203 - there are two of them at most
                process.kill()
                process.wait()


def on_core(core: int, *command: str) -> list[str]:
    return ["taskset", "-c", str(core), *command]


@contextmanager
def tracer(name: str, directory: Path, to: Receiver) -> Iterator[Tracer | None]:
    """A running tracer, ready."""
    if name == "none":
        yield None
        return
    output, stderr = directory / "output", directory / "stderr"
    output.unlink(missing_ok=True)
    environment = {**os.environ, "LC_ALL": "C"}
    commands = {
        "ours": [[sys.executable, "-m", "otel_procmon", "run", "--spool", str(directory / "spool")]],
        "bpftrace": [["bpftrace", "-e", BPFTRACE]],
        "execsnoop+exitsnoop": [["execsnoop"], ["exitsnoop"]],
        "auditd": [["auditd", "-n", "-c", str(directory)]],
    }[name]
    log = output
    if name == "auditd":
        log = directory / "audit.log"
        log.unlink(missing_ok=True)
        (directory / "auditd.conf").write_text(AUDITD.format(log=log))
    if name == "ours":
        environment = to.environment(metrics=True)
    with output.open("wb") as out, stderr.open("wb") as err:
        processes = [
            subprocess.Popen(
                on_core(AGENT_CORE, *command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            )
            for command in commands
        ]
    running = Tracer(name, processes, log, stderr)
    try:
        if name == "auditd":
            auditctl("-b", "8192")
            auditctl("-a", *AUDIT_RULE)
        wait_until_ready(name, running)
        yield running
    finally:
        if name == "auditd":
            auditctl("-d", *AUDIT_RULE)
        running.stop()
        if name == "auditd":
            auditctl("-e", "0")


def wait_until_ready(name: str, running: Tracer) -> None:
    """Until it sees what happens."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in running.processes):
            raise SystemExit(f"{name} ended: {running.stderr()}")
        if name == "ours":
            if "capturing" in running.stderr():
                break
        else:
            subprocess.run(["/bin/true"], check=True)
            with suppress(FileNotFoundError):
                if running.lines() >= 4 * len(running.processes):
                    break
        time.sleep(0.2)
    # What was found at the start is told by now.
    time.sleep(2)


class Cost(NamedTuple):
    """Of one run of a load."""

    wall_s: float
    cpu_s: float
    """Of the load itself."""
    tracer_s: float
    """CPU time of the tracer."""
    bpf: dict[int, tuple[int, int]]
    captured: float | None
    """Which part of the execs and exits the tracer told of."""
    resident_mib: float


def run_load(load: Load, watching: Tracer | None) -> tuple[float, float]:
    """Wall and CPU time of a load, on its core."""
    begin = time.monotonic()
    process = subprocess.Popen(
        on_core(OTHER_CORE, *load.command),
        cwd=load.directory,
        env=workloads.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{load.name}: exit code {process.returncode}")
    del watching
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime


def watched(load: Load, name: str, directory: Path, to: Receiver) -> tuple[Cost, dict[str, int]]:
    """One run of `load` under a tracer; for ours with the ledger."""
    with tracer(name, directory, to) as running:
        if running is None:
            wall, cpu = run_load(load, None)
            return Cost(wall, cpu, 0.0, {}, None, 0.0), {}
        began_cpu, began_bpf = running.cpu_s(), running.bpf()
        began_lines = 0 if name == "ours" else running.lines(load.program)
        wall, cpu = run_load(load, running)
        running.settle()
        tracer_s = running.cpu_s() - began_cpu
        bpf = {
            key: (time_ns - began_bpf.get(key, (0, 0))[0], runs - began_bpf.get(key, (0, 0))[1])
            for key, (time_ns, runs) in running.bpf().items()
        }
        memory = sum(resident_mib(process.pid, "VmHWM") for process in running.processes)
    ledger: dict[str, int] = {}
    if name == "ours":
        ledger = ledger_counts(running.stderr())
        # By the kernel side's own counters, which also count what else ran.
        made = ledger["kernel: made: exec"] + ledger["kernel: made: exit"]
        kernel_threads = ledger.get("lineage: noted: exit of a kernel thread", 0)
        told = sum(number for place, number in ledger.items() if re.match(r"lineage: told: ex(ec|it)", place))
        captured: float | None = (told + kernel_threads) / made
    elif load.execs:
        told = running.lines(load.program) - began_lines
        # Only execs are asked of auditd.
        captured = told / (load.execs if name == "auditd" else 2 * load.execs)
    else:
        captured = None
    return Cost(wall, cpu, tracer_s, bpf, captured, memory), ledger


def truth_of(load: Load, directory: Path, to: Receiver) -> tuple[int, int]:
    """How many execs and exits the load has, by the kernel side's own counters."""
    _, ledger = watched(load, "ours", directory, to)
    return ledger["kernel: made: exec"], ledger["kernel: made: exit"]


@contextmanager
def bpf_stats() -> Iterator[None]:
    """Let the kernel time every run of a BPF program; that costs time itself, so only where it is asked for."""
    before = BPF_STATS.read_text()
    BPF_STATS.write_text("1")
    try:
        yield
    finally:
        BPF_STATS.write_text(before)


def compare(load: Load, names: Sequence[str], rounds: int, directory: Path, to: Receiver) -> dict[str, Any]:
    """The tracers in turn, each with a run alone before it."""
    execs, exits = (load.execs, load.execs) if load.execs else truth_of(load, directory, to)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    losses: dict[str, int] = {}
    for _ in range(rounds):
        for name in names:
            alone, _ = watched(load, "none", directory, to)
            cost, ledger = watched(load, name, directory, to)
            for place, number in lost(ledger).items():
                losses[place] = losses.get(place, 0) + number
            if name == "ours":
                # Of what it told, so that what else ran meanwhile does not count against it.
                processes = sum(number for place, number in ledger.items() if "lineage: told: exit" in place)
                tracer_us = cost.tracer_s / processes * 1e6
            else:
                tracer_us = cost.tracer_s / exits * 1e6
            values = {
                "wall_ratio": cost.wall_s / alone.wall_s,
                "added_us_per_exec": (cost.cpu_s - alone.cpu_s) / execs * 1e6,
                "tracer_s_per_10k_execs": cost.tracer_s / execs * 1e4,
                "tracer_us_per_process": tracer_us,
                "resident_mib": cost.resident_mib,
                "execs_per_s_alone": execs / alone.wall_s,
                "execs_per_s": execs / cost.wall_s,
            }
            if cost.captured is not None:
                values["captured"] = cost.captured
            for key, value in values.items():
                found[name].setdefault(key, []).append(value)
    with bpf_stats():
        for name in [name for name in names if name != "auditd"]:
            for _ in range(min(rounds, 3)):
                cost, _ = watched(load, name, directory, to)
                total_ns = sum(time_ns for time_ns, _ in cost.bpf.values())
                found[name].setdefault("bpf_us_per_exec_and_exit", []).append(total_ns / execs / 1e3)
    return {
        "execs": execs,
        "exits": exits,
        "ours_lost": losses,
        "tracers": {name: {key: spread(values) for key, values in one.items()} for name, one in found.items()},
    }


def memory_parts(pid: int) -> dict[str, float]:
    """What resident memory is made of. The ring is mapped twice in a row, and so counts twice."""
    ring, ring_kib, own_kib = False, 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ring = "bpf-map" in line or "bpf_ringbuf" in line
        elif line.startswith("Rss:"):
            rss = int(line.split()[1])
            ring_kib += rss if ring else 0
        elif line.startswith("Anonymous:"):
            own_kib += int(line.split()[1])
    shared_kib = round(resident_mib(pid) * 1024) - own_kib - ring_kib
    return {
        "own": round(own_kib / 1024, 1),
        "ring": round(ring_kib / 1024, 1),
        "programs_and_libraries": round(shared_kib / 1024, 1),
    }


def storm(tiny: Load, seconds: float, million: int, to: Receiver, directory: Path) -> dict[str, Any]:
    """Memory of ours: idle, while one core starts programs as fast as it can for `seconds`, after `million` of them."""
    with tracer("ours", directory, to) as running:
        assert running is not None
        (process,) = running.processes
        time.sleep(5)
        idle, idle_parts = resident_mib(process.pid), memory_parts(process.pid)
        count = int(tiny.command[3])
        done, marks = 0, []
        in_storm = idle
        began = time.monotonic()
        storm_execs = 0
        storm_began_cpu = running.cpu_s()
        storm_cpu = 0.0
        while done < million or time.monotonic() - began < seconds:
            run_load(tiny, running)
            done += count
            now = resident_mib(process.pid)
            if time.monotonic() - began < seconds or not storm_execs:
                in_storm = max(in_storm, now)
            elif not storm_cpu:
                storm_cpu = running.cpu_s() - storm_began_cpu
            if time.monotonic() - began >= seconds and not storm_execs:
                storm_execs, storm_s = done, time.monotonic() - began
            marks.append([done, round(now, 1), round(time.monotonic() - began, 1)])
        running.settle()
        after, after_parts = resident_mib(process.pid), memory_parts(process.pid)
        most = resident_mib(process.pid, "VmHWM")
    ledger = ledger_counts(running.stderr())
    made = sum(number for place, number in ledger.items() if place.startswith("kernel: made: "))
    lost_ = lost(ledger)
    return {
        "storm_seconds": round(storm_s, 1),
        "storm_execs_per_s": round(storm_execs / storm_s),
        "processes": done,
        "idle_mib": round(idle, 1),
        "idle_parts_mib": idle_parts,
        "after_parts_mib": after_parts,
        "storm_mib": round(in_storm, 1),
        "after_mib": round(after, 1),
        "most_mib": round(most, 1),
        "marks": marks,
        "made": made,
        "lost": lost_,
        "captured": 1 - sum(number for place, number in lost_.items() if place.startswith("kernel")) / made,
        "ledger": ledger,
    }


def auditctl(*arguments: str) -> str:
    """What auditctl says."""
    done = subprocess.run(["auditctl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def no_auditd() -> str | None:
    """Why auditd cannot be measured; None if it can."""
    if shutil.which("auditctl") is None or shutil.which("auditd") is None:
        return "not installed"
    status = auditctl("-s")
    if re.search(r"enabled 0$", status, re.MULTILINE) is None:
        return f"the kernel's audit is in use already, or cannot be: {status.strip()}"
    return None


def kernel_threads(name: str) -> list[int]:
    """Their pids."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().strip() == name:
                found.append(int(comm.parent.name))
    return found


PARTS = ("burst", "configure", "storm", "auditd")
COLUMNS = (
    ("wall ratio", "wall_ratio", 2),
    ("added µs/exec", "added_us_per_exec", 1),
    ("tracer s/10k execs", "tracer_s_per_10k_execs", 3),
    ("tracer µs/process", "tracer_us_per_process", 0),
    ("captured", "captured", 4),
    ("most MiB", "resident_mib", 0),
    ("BPF µs/exec+exit", "bpf_us_per_exec_and_exit", 1),
)


def table(result: dict[str, Any]) -> str:
    lines = []
    for load, one in result["loads"].items():
        lines.append(f"{load}: {one['execs']} execs, {one['exits']} exits; medians (least to most)")
        heads = [head for head, _, _ in COLUMNS]
        rows = [["", *heads]]
        for name, values in one["tracers"].items():
            rows.append([name, *(shown(values[key], digits) if key in values else "-" for _, key, digits in COLUMNS)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if "ours" in one["tracers"]:
            lines.append(f"  ours lost: {one['ours_lost'] or 'nothing'}")
    if "storm" in result:
        one = result["storm"]
        lines.append(
            f"storm: {one['storm_execs_per_s']} execs/s for {one['storm_seconds']} s; ours captured "
            f"{one['captured']:.3%}, lost {one['lost'] or 'nothing'}"
        )
        lines.append(
            f"  resident: {one['idle_mib']} MiB idle, {one['storm_mib']} in the storm, {one['after_mib']} after "
            f"{one['processes']} processes, {one['most_mib']} at most"
        )
    for name, why in result["left_out"].items():
        lines.append(f"{name}: {why}")
    return "\n".join(lines)


def in_own_mounts() -> None:
    """The others need tracefs, which not every host has mounted: in a mount namespace of this process's own."""
    if Path("/sys/kernel/tracing/events").exists() and Path("/sys/kernel/debug/tracing/events").exists():
        return
    if os.environ.get("PROCMON_BENCH_MOUNTS"):
        return
    script = (
        "mount -t debugfs nodev /sys/kernel/debug 2>/dev/null; mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null; "
        'exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    os.execvpe(command[0], command, {**os.environ, "PROCMON_BENCH_MOUNTS": "1"})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--execs", type=int, default=30_000, help="of one burst")
    parser.add_argument("--checks", type=int, default=150, help="of the configure-like script")
    parser.add_argument("--storm-seconds", type=float, default=60)
    parser.add_argument("--million", type=int, default=1_000_000, help="processes until memory is looked at again")
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    in_own_mounts()
    # So that whatever was started ends with this, and BPF is not timed for good.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    only = options.only or PARTS
    left_out = {}
    names = ["ours"]
    for name, program in (("bpftrace", "bpftrace"), ("execsnoop+exitsnoop", "execsnoop")):
        if shutil.which(program):
            names.append(name)
        else:
            left_out[name] = "not installed"
    result: dict[str, Any] = {"loads": {}, "left_out": left_out}
    if options.json.exists():
        # So that parts can be measured one by one.
        before = json.loads(options.json.read_text()).get("live", {})
        result = {**before, "loads": before.get("loads", {}), "left_out": left_out}
    with tempfile.TemporaryDirectory() as work_name, tempfile.TemporaryDirectory() as scratch_name:
        work, scratch = Path(work_name), Path(scratch_name)
        workloads.compile_tiny(TORTURE, work / "tiny")
        workloads.compile_torture(TORTURE, work / "torture")
        workloads.write_configure(work / "configure", checks=options.checks)
        burst = Load(
            "burst", ("./torture", "burst", "./tiny", str(options.execs), "benchmark"), work, b"tiny", options.execs
        )
        with receiver("grpc", core=AGENT_CORE) as to:
            for load in (burst, Load("configure", ("./configure",), work)):
                if load.name in only:
                    result["loads"][load.name] = compare(load, names, options.rounds, scratch, to)
            if "storm" in only:
                result["storm"] = storm(burst, options.storm_seconds, options.million, to, scratch)
            if "auditd" in only:
                # Last: once it was enabled, the kernel does more at every system call until the next boot.
                why = no_auditd()
                if why is None:
                    result["loads"]["burst, auditd"] = compare(burst, ["auditd"], options.rounds, scratch, to)
                else:
                    left_out["auditd"] = why
    save(options.json, "live", result)
    print(table(result))


if __name__ == "__main__":
    main()
