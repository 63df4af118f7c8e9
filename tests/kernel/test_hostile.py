"""Processes that mean no good: the agent keeps its bounds, its ledger is exact, and it tells of the next process.

Each bomb is in a cgroup before it goes off, which ends all that is in it, whatever becomes of the test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.test_gaps import assert_balanced
from tests.kernel.truth.family import exec_id, with_word
from tests.kernel.truth.limits import PID_MAX, few_pids, limited, room_for
from tests.kernel.truth.running import run_command
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.truth.running import Agent

pytestmark = pytest.mark.kernel

SOURCE = Path(__file__).parent / "truth" / "hostile.c"

# docs/hostile-input.md has these.
REST_MIB = 128
"""What the agent takes with all that it writes and reads, whatever happens on the host."""
IMAGE_KIB = 3
"""What each process that runs adds to that."""

NEXT_SECONDS, NEXT_MAX = 10, 6

BOMB_SECONDS = 2
BOMB_PIDS = 512
RENAMES = 100_000
CROWD = 65_000
CROWD_KIB = 48
"""What each of a crowd takes of the kernel's memory, at most."""
REUSES = 3000
WRAP_MAX = 65_536
"""Pids come round by themselves in some seconds where there are no more than these."""
FEW, ROUNDS = 1024, 6
SHORT_CODE = 5
"""What a process of ``hostile short`` exits with."""


@pytest.fixture(scope="module")
def hostile(require_kernel: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, SOURCE], check=True)
    return program


class Watched:
    """A running agent that tells of what has `word` among its arguments, as records and as lines."""

    def __init__(self, agent: Agent, word: str, lines: Path) -> None:
        self.agent = agent
        self.word = word
        self._lines = lines
        self._next = 0

    def lines(self) -> list[str]:
        """The compact view. Of bytes: what ends a line for a terminal must not be hidden."""
        return self._lines.read_bytes().decode().split("\n")[:-1]

    def tells_of_the_next(self) -> None:
        """Another process is told of when it has begun and ended; or one after that, where the ring is still full."""
        for number in range(self._next, self._next + NEXT_MAX):
            self._next = number + 1
            subprocess.run(["/bin/true", self.word, f"next-{number}"], check=True)
            deadline = time.monotonic() + NEXT_SECONDS
            while time.monotonic() < deadline:
                told = [log.event_name for log in with_word(self.agent.logs(), f"next-{number}")]
                if told == ["process.exec", "process.exit"]:
                    return
                assert self.agent.process.poll() is None, self.agent.stderr
                time.sleep(0.05)
        pytest.fail(f"the agent tells of nothing any more: {self.agent.stderr}")

    def most_mib(self) -> float:
        """The most memory that it ever had."""
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.agent.process.pid}/status").read_text())
        return int(kib) / 1024


@contextmanager
def watched(directory: Path, word: str) -> Iterator[Watched]:
    """Afterwards its ledger was exact, and its view one that can be looked at."""
    allow = directory / "allow.yaml"
    allow.write_text(f"export-allowlist:\n- arguments_regex: ['{word}']\n")
    records, lines = directory / "records.jsonl", directory / "lines"
    options = ("-o", f"otlp-json:{records}", "-o", f"compact:{lines}", "--filter-file", str(allow))
    with run_command(directory, "run", *options, records=records) as agent:
        told = Watched(agent, word, lines)
        yield told
    assert_accounted(agent)
    assert_lines_are_lines(told)


def assert_accounted(agent: Agent) -> None:
    """Every event that the kernel made was lost there, or read and then decoded; what passed the filter was exported."""
    assert_balanced(agent)
    ledger = agent.ledger()
    assert not [place for place in ledger if place.startswith("decode")], agent.stderr
    outcomes = ("noted: fork", "told: exec", "told: exit", "told: exit of an unknown image", "dropped: told twice")
    lineage = ledger["lineage"]
    accounted = sum(lineage.get(outcome, 0) for outcome in (*outcomes, "noted: exit of a kernel thread"))
    assert accounted == ledger["source"]["read"], agent.stderr
    assert "evicted: table full" not in lineage
    assert ledger["output.otlp-json.logs"] == {"exported": len(agent.logs())}
    assert ledger["output.otlp-json.traces"] == {"exported": len(agent.spans())}


def assert_lines_are_lines(told: Watched) -> None:
    """Nothing that a process chose has made a line, or anything else that a terminal does not only show."""
    lines = told.lines()
    assert len(lines) == told.agent.ledger()["output.compact"]["written"]
    for line in lines:
        assert line.startswith(("🚀 process ", "💥 exit    "))
        assert line.isprintable()


def run_limited(procs: Path, *command: str | Path, **how: object) -> subprocess.Popen[bytes]:
    """`command`, in the cgroup from its beginning, and last in the queue for the processor."""
    script = 'echo $$ > "$0" && exec nice -n 19 "$@"'
    return subprocess.Popen(["sh", "-c", script, procs, *command], env=ENVIRONMENT, **how)  # type: ignore[call-overload,no-any-return]


def test_fork_bomb(hostile: Path, tmp_path: Path) -> None:
    """As many processes as the cgroup lets live at once, and tens of thousands one after another."""
    with watched(tmp_path, marker()) as told:
        with limited(BOMB_PIDS) as procs:
            bomb = run_limited(procs, hostile, "bomb", str(BOMB_SECONDS))
            assert bomb.wait(60) == 0
        told.tells_of_the_next()
        most_mib = told.most_mib()
    made = told.agent.ledger()["kernel"]["made: fork"]
    print(f"{made} forks, {most_mib:.0f} MiB at most")
    assert made > BOMB_PIDS
    assert most_mib < REST_MIB + BOMB_PIDS * IMAGE_KIB / 1024


def test_process_that_renames_itself(hostile: Path, tmp_path: Path) -> None:
    """Names are no events. Who it is stays known, by what it was called with."""
    with watched(tmp_path, marker()) as told:
        renaming = subprocess.run([hostile, "rename", str(RENAMES), told.word], check=False, env=ENVIRONMENT)
        assert renaming.returncode == 0
        told.tells_of_the_next()
        most_mib = told.most_mib()
    print(f"{most_mib:.0f} MiB at most")
    assert most_mib < REST_MIB
    (began,) = [
        log
        for log in with_word(told.agent.logs(), told.word)
        if log.event_name == "process.exec" and "rename" in log.attributes["process.command_args"]
    ]
    assert began.attributes["process.executable.name"] == "hostile"
    children = [
        log
        for log in told.agent.logs()
        if log.attributes.get("procmon.parent_exec_id") == exec_id(began) and log.event_name == "process.exit"
    ]
    assert len(children) == RENAMES // 1000
    assert {log.attributes["process.exit.code"] for log in children} == {7}
    assert {log.attributes["process.executable.name"] for log in children} == {"hostile"}


def test_crowd(hostile: Path, tmp_path: Path) -> None:
    """65,000 processes alive at once, as far as the machine's memory lets them."""
    (available_kib,) = re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    (threads_max,) = re.findall(r"\d+", Path("/proc/sys/kernel/threads-max").read_text())
    count = min(CROWD, int(available_kib) // 2 // CROWD_KIB, int(threads_max) // 2)
    assert count > 5000
    with watched(tmp_path, marker()) as told, room_for(count), limited(count + 16) as procs:
        crowd = run_limited(procs, hostile, "crowd", str(count), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert crowd.stdout is not None
        assert crowd.stdin is not None
        assert crowd.stdout.readline() == b"all are there\n"
        told.tells_of_the_next()
        crowd.stdin.close()
        assert crowd.wait(60) == 0
        told.tells_of_the_next()
        most_mib = told.most_mib()
    ledger = told.agent.ledger()
    print(f"{count} processes, {most_mib:.0f} MiB at most; {ledger['kernel']}")
    assert ledger["kernel"]["made: fork"] >= count
    assert most_mib < REST_MIB + count * IMAGE_KIB / 1024


def test_pids_that_come_again(hostile: Path, tmp_path: Path) -> None:
    """One pid for thousands of processes, one after another; and all pids once round, where they are few."""
    pid_max = int(PID_MAX.read_text())
    with watched(tmp_path, marker()) as told:
        again = subprocess.run(
            [hostile, "again", str(pid_max - 100), str(REUSES), told.word], check=True, env=ENVIRONMENT, stdout=-1
        )
        if pid_max <= WRAP_MAX:
            with limited(64) as procs:
                assert run_limited(procs, hostile, "short", str(pid_max + 1000)).wait(60) == 0
        told.tells_of_the_next()
        most_mib = told.most_mib()
    print(f"{most_mib:.0f} MiB at most")
    assert most_mib < REST_MIB
    pid = int(again.stdout)
    logs = [log for log in told.agent.logs() if log.attributes["process.pid"] == pid]
    exits = [log for log in logs if log.event_name == "process.exit"]
    # A tenth of them runs another program, whose arguments do not have the word.
    forks = [number for number in range(REUSES) if number % 10]
    assert [log.attributes["process.exit.code"] for log in exits] == [number % 100 for number in forks]
    assert len({exec_id(log) for log in exits}) == len(exits)
    assert len({span.span_id for span in told.agent.spans() if span.attributes["process.pid"] == pid}) == len(exits)
    starts = [log.attributes["process.creation.time"] for log in exits]
    assert starts == sorted(starts)
    assert "gap: exit lost" not in told.agent.ledger()["lineage"]


@pytest.mark.every_kernel
@pytest.mark.own_machine
def test_few_pids(hostile: Path, tmp_path: Path) -> None:
    """All pids that there are come round again and again."""
    with few_pids(FEW), watched(tmp_path, marker()) as told:
        subprocess.run([hostile, "short", str(ROUNDS * FEW), told.word], check=True, env=ENVIRONMENT)
        told.tells_of_the_next()
        most_mib = told.most_mib()
    print(f"{most_mib:.0f} MiB at most")
    assert most_mib < REST_MIB
    ended = [log for log in told.agent.logs() if log.attributes.get("process.exit.code") == SHORT_CODE]
    assert len(ended) == ROUNDS * FEW
    assert len({exec_id(log) for log in ended}) == len(ended)
    starts = [log.attributes["process.creation.time"] for log in ended]
    assert starts == sorted(starts)
    times = Counter(log.attributes["process.pid"] for log in ended)
    assert max(times) <= FEW
    assert min(times.most_common()[: FEW // 2], key=lambda pid: pid[1])[1] >= ROUNDS
    assert "gap: exit lost" not in told.agent.ledger()["lineage"]


def test_arguments_that_cannot_be_read(hostile: Path, tmp_path: Path) -> None:
    """It ran before the agent, which therefore asks ``/proc``; and others end while it asks."""
    word = marker()
    command = [str(hostile), "stall", word + "x" * 10_000]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as stalled:
        try:
            assert stalled.stdout is not None
            assert stalled.stdout.readline() == b"stalled\n"
            with limited(64) as procs:
                bomb = run_limited(procs, hostile, "bomb", "1")
                # The block begins when the agent has listed what runs.
                with watched(tmp_path, word) as told:
                    told.tells_of_the_next()
                    most_mib = told.most_mib()
                assert bomb.wait(60) == 0
        finally:
            stalled.kill()
    assert most_mib < REST_MIB
    (found,) = [log for log in told.agent.logs() if log.event_name == "process.discovered"]
    assert found.attributes["process.pid"] == stalled.pid
    assert found.attributes["process.command_args"][2].startswith(word)


NAMES = {
    "escapes": b"\x1b[2J\x1b]0;owned\x07",
    "lines": "a\n💥 exit    here sh 0\r\n".encode(),
    "not-utf-8": b"\xff\xfe\xed\xa0\x80",
    "turned": "\u202egpj.exe\u2066".encode(),
    "c1": b"\x9b31m\xc2\x9b31m",
    "quotes": b"\"'\\` $(x)",
    "longest": b"n" * 255,
}


def test_names_of_programs_and_directories(hostile: Path, tmp_path: Path) -> None:
    """A path may hold all but NUL and may have 4,096 bytes; what is told is text, and one line."""
    deep = os.fsencode(tmp_path)
    while len(deep) < 4096 - 256 - 122:
        deep += b"/" + b"\x1b[31m\n\xff".ljust(120, b"d")
    deep += b"/" + b"d" * (4095 - 256 - 1 - len(deep))
    Path(os.fsdecode(deep)).mkdir(parents=True)
    with watched(tmp_path, marker()) as told:
        for kind, name in NAMES.items():
            shutil.copy(b"/bin/true", deep + b"/" + name)
            subprocess.run([b"./" + name, kind, told.word, name], cwd=deep, check=True, env=ENVIRONMENT)
        path = deep + b"/" + NAMES["longest"]
        assert len(path) == 4095
        subprocess.run([path, "path", told.word], check=True, env=ENVIRONMENT)
        told.tells_of_the_next()
        most_mib = told.most_mib()
    assert most_mib < REST_MIB
    execs = [log for log in told.agent.logs() if log.event_name == "process.exec"]
    for kind, name in NAMES.items():
        (log,) = [log for log in execs if log.attributes["process.command_args"][1:2] == [kind]]
        shown = name.decode("utf-8", "replace")
        assert log.attributes["process.executable.name"].replace("\ufffd", "") == shown.replace("\ufffd", "")
        assert log.attributes["process.executable.path"].startswith(f"{tmp_path}/\x1b[31m\n\ufffdd")
        assert log.attributes["process.command_args"][3].replace("\ufffd", "") == shown.replace("\ufffd", "")
    (whole,) = [log for log in execs if log.attributes["process.command_args"][1:2] == ["path"]]
    assert os.fsencode(whole.attributes["process.executable.path"].replace("\ufffd", "")) == path.replace(b"\xff", b"")
