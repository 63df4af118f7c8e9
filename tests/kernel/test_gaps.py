"""What happens before the agent looks, and while it cannot: nothing is told twice, nothing lost uncounted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_procmon.source.recording import RecordingSource
from tests.kernel.truth.family import exec_id, family, with_word
from tests.kernel.truth.machine import bound, fewer
from tests.kernel.truth.shell import marker, shell
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.truth.family import Record
    from tests.kernel.truth.otlp import Log, Span
    from tests.kernel.truth.running import Agent, RunningAgent

pytestmark = pytest.mark.kernel

STORMS = 3
BEFORE = 20
"""Rounds before an agent starts."""
BURST = 300
WAIT_SECONDS = bound(60)
LOST_KINDS = ("fork", "exec", "exit")

STORM = """\
i=0
while [ ! -e "$1" ] && [ $i -lt 10000 ]; do
  i=$((i + 1))
  sh -c 'exit $1' "$0" $((i % 100))
  (exit $((100 + i % 50)))
  sh -c 'exec sh -c "exit \\$1" "$0" "$1"' "$0" $((150 + i % 50))
  if [ $((i % 20)) = 0 ]; then sh -c 'sleep 0.3; exit 250' "$0.slow.$i" & fi
  echo $i
done
wait
"""
"""Each round: a program, a fork that runs none, and two programs in one process; now and then one that lives longer.

Their exit codes tell which round and which of them it was.
"""


def codes(rounds: int) -> list[int]:
    """The exit codes of a storm's children, in their order; without those that live longer."""
    return [code for i in range(1, rounds + 1) for code in (i % 100, 100 + i % 50, 150 + i % 50)]


class Storm:
    """A running `STORM`. `rounds` is how many are over."""

    def __init__(self, directory: Path, stop: Path, number: int) -> None:
        self.word = marker()
        self._rounds = directory / f"rounds-{number}"
        with self._rounds.open("wb") as out:
            self.process = subprocess.Popen(["sh", "-c", STORM, self.word, stop], stdout=out, env=ENVIRONMENT)

    @property
    def rounds(self) -> int:
        return self._rounds.read_bytes().count(b"\n")


@contextmanager
def storms(directory: Path) -> Iterator[tuple[list[Storm], Path]]:
    """Storms that go on until the file is there."""
    stop = directory / "stop"
    running = [Storm(directory, stop, number) for number in range(STORMS)]
    try:
        yield running, stop
    finally:
        stop.touch()
        for storm in running:
            storm.process.wait(WAIT_SECONDS)


def wait_for_rounds(running: list[Storm], more: int) -> None:
    goals = [storm.rounds + more for storm in running]
    deadline = time.monotonic() + WAIT_SECONDS
    while any(storm.rounds < goal for storm, goal in zip(running, goals, strict=True)):
        assert time.monotonic() < deadline, "the storm has abated"
        time.sleep(0.01)


def configuration(directory: Path, text: str) -> str:
    path = directory / "procmon.yaml"
    path.write_text(text)
    return str(path)


def twice(records: list[Log]) -> list[str]:
    """The identities that come more than once."""
    ids = [exec_id(record) for record in records]
    return sorted({image for image in ids if ids.count(image) > 1}) if len(set(ids)) < len(ids) else []


def main_span(spans: list[Span], of: Record) -> Span:
    """The span of an image that others name; where it has two, the opening one."""
    (span,) = [s for s in spans if exec_id(s) == exec_id(of) and s.attributes.get("procmon.span") != "life"]
    return span


def life_span(spans: list[Span], of: Record) -> Span:
    """The span of an image that tells of its end."""
    (span,) = [s for s in spans if exec_id(s) == exec_id(of) and s.attributes.get("procmon.span") != "open"]
    return span


def lost(record: Record) -> bool:
    return record.attributes.get("procmon.exit.reason") == "lost"


def assert_balanced(agent: Agent) -> None:
    """The kernel's counters and what was read add up, machine-wide and exactly."""
    ledger = agent.ledger()
    kernel = ledger["kernel"]
    made = sum(kernel[f"made: {kind}"] for kind in LOST_KINDS)
    gone = sum(
        kernel.get(f"lost: ring full, {kind}", 0) + kernel.get(f"lost: no buffer, {kind}", 0) for kind in LOST_KINDS
    )
    assert made == ledger["source"]["read"] + gone, agent.stderr


@pytest.mark.every_loader
def test_start_in_the_middle_of_a_storm(running_agent: RunningAgent, tmp_path: Path) -> None:
    with storms(tmp_path) as (running, stop):
        wait_for_rounds(running, BEFORE)
        with running_agent(tmp_path) as agent:
            # The round that goes on now may have begun before.
            captured = [storm.rounds + 2 for storm in running]
            wait_for_rounds(running, fewer(200))
            stop.touch()
            for storm in running:
                assert storm.process.wait(WAIT_SECONDS) == 0
    assert_balanced(agent)
    logs, spans = agent.logs(), agent.spans()
    starts = [log for log in logs if log.event_name != "process.exit"]
    exits = [log for log in logs if log.event_name == "process.exit"]
    assert not twice(starts)
    assert not twice(exits)
    assert not {outcome for outcome in agent.ledger()["lineage"] if "gap" in outcome or "twice" in outcome}

    for storm, first in zip(running, captured, strict=True):
        # Those that ended before the snapshot are known by their exits only, which do not tell their arguments.
        ended = sorted(
            (log.time_unix_ns, log.attributes["process.exit.code"])
            for log in exits
            if log.attributes["process.parent_pid"] == storm.process.pid and log.attributes["process.exit.code"] != 250
        )
        expected = codes(storm.rounds)
        assert [code for _, code in ended] == expected[-len(ended) :]
        assert len(ended) >= len(codes(storm.rounds - first + 1))

        slow = [log for log in exits if log.attributes.get("process.exit.code") == 250]
        for number in (number for number in range(first + 1, storm.rounds + 1) if number % 20 == 0):
            assert len(with_word(slow, f"{storm.word}.slow.{number}")) == 1

        own = [log for log in starts if log.attributes.get("process.command_args", [])[3:4] == [storm.word]]
        assert len(own) >= 3 * (storm.rounds - first + 1), "the program, and the two of one process"
        (image,) = {exec_id(log) for log in logs if log.attributes["process.pid"] == storm.process.pid}
        below = family(logs, spans, image)
        ids = {span.span_id for span in below.spans}
        begun = {exec_id(log) for log in starts}
        for span in below.spans:
            if span.attributes.get("procmon.entry.reason") == "unknown_parent":
                # Known by its exit only, and its parent had no event yet.
                assert exec_id(span) not in begun
            else:
                assert exec_id(span) == image or span.parent_span_id in ids
        assert not [record for record in below.records() if lost(record)]
        ended_images = {exec_id(log) for log in below.of("process.exit")}
        replaced = {exec_id(span) for span in below.spans if span.attributes.get("procmon.exit.reason") == "exec"}
        assert {exec_id(record) for record in below.records()} == ended_images | replaced
        assert not ended_images & replaced


def living(word: str, stack: ExitStack) -> subprocess.Popen[bytes]:
    """A program that lives until its standard input ends, and forks nothing."""
    process = subprocess.Popen(["sh", "-c", "read line", word], stdin=subprocess.PIPE, env=ENVIRONMENT)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def fill_ring(word: str) -> None:
    """Runs so many programs that what they make does not fit into 256 KiB. Each makes more than 2 KiB."""
    script = f'i=0; while [ $i -lt {BURST} ]; do i=$((i+1)); sh -c : "$0" "$1"; done'
    subprocess.run(["sh", "-c", script, word, "x" * 2048], env=ENVIRONMENT, check=True, timeout=WAIT_SECONDS)


@pytest.mark.every_loader
def test_ring_that_is_full(running_agent: RunningAgent, tmp_path: Path) -> None:
    config = configuration(tmp_path, "capture: {ring: 256KiB}\nlineage: {sweep_interval: 1s}\n")
    known, unknown, burst = marker(), marker(), marker()
    with running_agent(tmp_path, "--config", config) as agent, ExitStack() as stack:
        doomed = [living(known, stack) for _ in range(5)]
        agent.wait_until(lambda: len(with_word(agent.logs(), known)) == len(doomed), "what lives was told")

        agent.process.send_signal(signal.SIGSTOP)
        os.waitpid(agent.process.pid, os.WUNTRACED)
        fill_ring(burst)
        for process in doomed:
            process.kill()
            process.wait()
        survivors = [living(unknown, stack) for _ in range(5)]
        agent.process.send_signal(signal.SIGCONT)

        def settled() -> bool:
            logs, spans = agent.logs(), agent.spans()
            ours = [*with_word(logs, known), *with_word(logs, burst)]
            over = {exec_id(span) for span in spans if span.attributes.get("procmon.span") != "open"}
            return {exec_id(log) for log in ours} <= over and len(with_word(logs, unknown)) == len(survivors)

        agent.wait_until(settled, "the sweep found out what was lost")
        for process in survivors:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    assert_balanced(agent)
    ledger = agent.ledger()
    lost_of = {kind: ledger["kernel"][f"lost: ring full, {kind}"] for kind in LOST_KINDS}
    # Without its exit a process would seem to run for ever, so exits have room when nothing else has any more.
    assert lost_of["exec"] > lost_of["fork"] > lost_of["exit"] > 0
    logs, spans = agent.logs(), agent.spans()
    assert not twice([log for log in logs if log.event_name != "process.exit"])
    assert not twice([log for log in logs if log.event_name == "process.exit"])

    for process in doomed:
        began, ended = [log for log in with_word(logs, known) if log.attributes["process.pid"] == process.pid]
        span = life_span(spans, began)
        assert (began.event_name, ended.event_name) == ("process.exec", "process.exit")
        for record in (ended, span):
            assert lost(record)
            assert not {"process.exit.code", "process.exit.time", "procmon.exit.signal"} & record.attributes.keys()
    for process in survivors:
        began, ended = [log for log in with_word(logs, unknown) if log.attributes["process.pid"] == process.pid]
        assert (began.event_name, ended.event_name) == ("process.discovered", "process.exit")
        assert not lost(ended)
        assert ended.attributes["process.exit.code"] == 1, "read found the end of its input"
    # Of the burst, some are whole; where the ring filled, something is lost, and found out.
    told = with_word(logs, burst)
    assert 0 < len([log for log in told if log.event_name == "process.exec"]) < BURST
    assert any(lost(log) for log in told if log.event_name == "process.exit")


@pytest.mark.every_kernel
def test_program_that_changed_unseen(running_agent: RunningAgent, tmp_path: Path) -> None:
    """The exec was lost: what ran before ended then, and what runs now is its child."""
    config = configuration(tmp_path, "capture: {ring: 256KiB}\nlineage: {sweep_interval: 1s}\n")
    word = marker()
    script = 'read line; exec sh -c "read line" "$0.after"'
    with running_agent(tmp_path, "--config", config) as agent, ExitStack() as stack:
        process = subprocess.Popen(
            ["sh", "-c", script, word], stdin=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True
        )
        assert process.stdin is not None
        stack.callback(process.wait)
        stack.callback(process.kill)
        agent.wait_until(lambda: bool(with_word(agent.logs(), word)), "it was told")

        agent.process.send_signal(signal.SIGSTOP)
        os.waitpid(agent.process.pid, os.WUNTRACED)
        fill_ring(marker())
        process.stdin.write(b"\n")
        process.stdin.flush()
        after = f"{word}.after"
        arguments = Path("/proc", str(process.pid), "cmdline")
        agent.wait_until(lambda: after.encode() in arguments.read_bytes(), "it ran the other program")
        agent.process.send_signal(signal.SIGCONT)
        agent.wait_until(lambda: bool(with_word(agent.logs(), after)), "that was discovered")
        process.stdin.close()
        process.wait()
    logs, spans = agent.logs(), agent.spans()
    (began,) = with_word(logs, word)
    found, ended = with_word(logs, after)
    first, second = (main_span(spans, record) for record in (began, found))
    assert (began.event_name, found.event_name, ended.event_name) == (
        "process.exec",
        "process.discovered",
        "process.exit",
    )
    assert life_span(spans, began).attributes["procmon.exit.reason"] == "exec"
    assert found.attributes["procmon.parent_exec_id"] == exec_id(began)
    assert (second.trace_id, second.parent_span_id) == (first.trace_id, first.span_id)


@pytest.mark.every_kernel
def test_busy_machine_gives_sweeps_nothing_to_tell(running_agent: RunningAgent, tmp_path: Path) -> None:
    """Of nothing that was seen to begin or to end do they say otherwise, machine-wide."""
    config = configuration(tmp_path, "lineage: {sweep_interval: 1s}\n")
    recording = tmp_path / "recording"

    def sweeps() -> int:
        if not recording.stat().st_size:
            return 0
        source = RecordingSource(str(recording))
        source.open()
        try:
            found = 0
            while batch := source.read():
                found += batch.is_snapshot
            return found
        finally:
            source.close()

    with ExitStack() as stack:
        quiet = [living(marker(), stack) for _ in range(3)]
        with running_agent(tmp_path, "--config", config, "--record", str(recording)) as agent:
            agent.wait_until(lambda: sweeps() == 1, "the first snapshot was made")
            agent.wait_until(lambda: "process.discovered" in {log.event_name for log in agent.logs()}, "it was told")
            first = [log for log in agent.logs() if log.event_name == "process.discovered"]
            with storms(tmp_path) as (running, _):
                agent.wait_until(lambda: sweeps() >= 4, "three sweeps were made")
            assert all(storm.rounds for storm in running)
        discovered = [log for log in agent.logs() if log.event_name == "process.discovered"]
    assert {process.pid for process in quiet} <= {log.attributes["process.pid"] for log in discovered}
    assert not twice(discovered)
    assert len(discovered) == len(first)
    assert not [span for span in agent.spans() if lost(span)]
    assert not {outcome for outcome in agent.ledger()["lineage"] if "gap" in outcome or "twice" in outcome}
    assert_balanced(agent)


def test_opening_span_of_a_parent_that_lives_on(running_agent: RunningAgent, tmp_path: Path) -> None:
    config = configuration(tmp_path, "trace: {open_after: 200ms}\n")
    early, late = marker(), marker()

    def spans(agent: Agent, of: Record, kind: str | None) -> list[Span]:
        return [
            span
            for span in agent.spans()
            if exec_id(span) == exec_id(of) and span.attributes.get("procmon.span") == kind
        ]

    with running_agent(tmp_path, "--config", config) as agent, shell(session=True) as parent:
        # Whether it ends before or after the 200 ms: the opening span comes.
        parent.run(f"/bin/true {early}")
        agent.wait_until(lambda: bool(with_word(agent.logs(), parent.marker)), "the parent was told of")
        (began,) = with_word(agent.logs(), parent.marker)
        agent.wait_until(lambda: bool(spans(agent, began, "open")), "the parent's opening span was sent")
        parent.run(f"/bin/true {late}")
        agent.wait_until(lambda: bool(with_word(agent.spans(), late)), "a later child's span was sent")
        assert not spans(agent, began, "life")
        parent.end()
    (opening,), (life,) = spans(agent, began, "open"), spans(agent, began, "life")
    assert not spans(agent, began, None)
    assert (life.trace_id, life.parent_span_id) == (opening.trace_id, opening.span_id)
    assert life.span_id != opening.span_id
    assert (began.trace_id, began.span_id) == (opening.trace_id, opening.span_id)
    assert began.time_unix_ns == opening.start_unix_ns == life.start_unix_ns == opening.end_unix_ns - 1000
    assert "process.exit.code" not in opening.attributes
    assert life.attributes["process.exit.code"] == 0
    (ended,) = [log for log in with_word(agent.logs(), parent.marker) if log.event_name == "process.exit"]
    assert (ended.time_unix_ns, ended.span_id) == (life.end_unix_ns, opening.span_id)
    assert ("procmon.entry.reason" in life.attributes, life.links) == (False, ())
    every = agent.spans()
    for word in (early, late):
        (child,) = with_word(every, word)
        assert (child.trace_id, child.parent_span_id) == (opening.trace_id, opening.span_id)
    assert every.index(opening) < every.index(with_word(every, late)[0])


def test_session_of_its_own_is_an_activity_of_its_own(running_agent: RunningAgent, tmp_path: Path) -> None:
    """What a process without a terminal starts in a new session: a daemon, a job of cron."""
    word = marker()
    with running_agent(tmp_path) as agent, shell(session=True) as parent:
        parent.run(f"setsid sh -c '/bin/true {word}.below' {word}.leader")
        parent.run(f"/bin/true {word}.beside")
    logs, spans = agent.logs(), agent.spans()
    (began,) = [log for log in with_word(logs, parent.marker) if log.event_name == "process.exec"]
    own = family(logs, spans, exec_id(began))
    (leader,) = [span for span in with_word(spans, f"{word}.leader") if span.name == "sh"]
    (setsid,) = [span for span in with_word(spans, f"{word}.leader") if span.name == "setsid"]
    (below,), (beside,) = with_word(spans, f"{word}.below"), with_word(spans, f"{word}.beside")
    assert leader.attributes["process.session_leader.pid"] == leader.attributes["process.pid"]
    assert leader.attributes["procmon.entry.reason"] == "session"
    assert not leader.parent_span_id
    assert leader.trace_id != setsid.trace_id
    assert leader.links == ((setsid.trace_id, setsid.span_id),)
    assert (below.trace_id, below.parent_span_id) == (leader.trace_id, leader.span_id)
    parent_span = own.span(exec_id(began))
    for span in (setsid, beside):
        assert (span.trace_id, span.parent_span_id) == (parent_span.trace_id, parent_span.span_id)


DAEMONIZE = """\
forker=$BASHPID
(
  while kill -0 $forker; do :; done
  exec setsid sh -c 'echo $PPID > "$1.new"; mv "$1.new" "$1"' "$1.daemon" "$2"
) > /dev/null 2>&1 &
"""


@pytest.mark.every_kernel
def test_daemon_that_lost_its_parent(running_agent: RunningAgent, tmp_path: Path) -> None:
    """It is named after whoever forked it, and not after the process that inherited it."""
    word, inherited = marker(), tmp_path / "inherited"
    script = tmp_path / "daemonize"
    script.write_text(DAEMONIZE)
    with running_agent(tmp_path) as agent, shell(session=True) as started:
        started.run(f"bash {script} {word} {inherited}")
        agent.wait_until(lambda: len(with_word(agent.spans(), f"{word}.daemon")) == 2, "the daemon ended")
    logs, spans = agent.logs(), agent.spans()
    (forker,) = [log for log in logs if log.attributes.get("process.command_args", [])[2:3] == [word]][:1]
    setsid, daemon = (log for log in with_word(logs, f"{word}.daemon") if log.event_name == "process.exec")
    assert setsid.attributes["procmon.parent_exec_id"] == exec_id(forker)
    assert setsid.attributes["process.parent_pid"] == forker.attributes["process.pid"] != int(inherited.read_text())
    assert daemon.attributes["procmon.parent_exec_id"] == exec_id(setsid)
    assert daemon.attributes["procmon.ancestors"][:3] == ["setsid", "bash", "bash"]
    own, above = main_span(spans, daemon), main_span(spans, setsid)
    assert own.attributes["procmon.entry.reason"] == "session"
    assert own.links == ((above.trace_id, above.span_id),)


def test_what_an_old_service_starts(running_agent: RunningAgent, tmp_path: Path) -> None:
    config = configuration(tmp_path, "trace: {service_age: 500ms}\n")
    word = marker()
    with running_agent(tmp_path, "--config", config) as agent, shell(session=True) as service:
        born_ns = time.monotonic_ns()
        service.run(f"/bin/true {word}.early")
        agent.wait_until(lambda: time.monotonic_ns() - born_ns > 600_000_000, "the service was old")
        service.run(f"/bin/true {word}.late")
        service.run(f"sh -c '/bin/true {word}.below; exit' {word}.worker")
    spans = agent.spans()
    (parent,) = [span for span in with_word(spans, service.marker) if span.attributes.get("procmon.span") != "life"]
    (early,), (late,), (below,) = (with_word(spans, f"{word}.{kind}") for kind in ("early", "late", "below"))
    (worker,) = with_word(spans, f"{word}.worker")
    for span in (late, worker):
        assert span.attributes["procmon.entry.reason"] == "service"
        assert not span.parent_span_id
        assert span.trace_id != parent.trace_id
        assert span.links == ((parent.trace_id, parent.span_id),)
        assert span.attributes["procmon.parent_exec_id"] == exec_id(parent)
    assert late.trace_id != worker.trace_id
    assert (below.trace_id, below.parent_span_id) == (worker.trace_id, worker.span_id)
    if early.start_unix_ns - parent.start_unix_ns < 400_000_000:
        assert (early.trace_id, early.parent_span_id) == (parent.trace_id, parent.span_id)
