"""The commands as people use them: lines that come at once, outputs that fit together, signals, and what cannot work."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.truth.family import Family, exec_id, family, with_word
from tests.kernel.truth.machine import bound
from tests.kernel.truth.otlp import Log, read_logs, read_spans
from tests.kernel.truth.receiver import HOST, refusing_port
from tests.kernel.truth.running import LEDGER, Agent, RunningAgent, cannot_run, run_command
from tests.kernel.truth.shell import marker, shell
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.truth.otlp import Span

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

SOON_SECONDS = 20
"""A tenth of a second is what is promised; a busy machine may need longer to let everybody run."""
ANSWER_SECONDS = bound(60)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
NOBODY = 65534


def otel_procmon(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "otel_procmon", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=ANSWER_SECONDS,
        check=False,
        **options,
    )


def act(word: str, **options: Any) -> None:
    """A few programs and a fork without one, all with `word` among their arguments."""
    script = (
        'sh -c "exit 3" "$0"; (exit 4); sh -c "kill -9 \\$\\$" "$0" "two words" "\x1b[31m"; exec sh -c "exit 5" "$0"'
    )
    subprocess.run(["sh", "-c", script, word], env=ENVIRONMENT, timeout=ANSWER_SECONDS, check=False, **options)


class Screen:
    """The reading end of what an agent writes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._content = b""

    def read_until(self, text: str, times: int = 1) -> str:
        """All that has come so far, when `text` is in it so many times."""
        deadline = time.monotonic() + SOON_SECONDS
        while self._content.count(text.encode()) < times:
            ready, _, _ = select.select([self._descriptor], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} does not come"
            self._content += os.read(self._descriptor, 65536)
        return self._content.decode()


@contextmanager
def watching(directory: Path, *arguments: str, terminal: bool, env: dict[str, str] | None = None) -> Iterator[Screen]:
    """`otel-procmon watch`, on a pipe or on a terminal."""
    read, write = os.openpty() if terminal else os.pipe()
    try:
        with run_command(directory, "watch", *arguments, stdout=write, env=env) as agent:
            os.close(write)
            write = -1
            yield Screen(read)
            # It must not wait for a reader at its end.
            agent.process.send_signal(signal.SIGTERM)
            while agent.process.poll() is None:
                if select.select([read], [], [], 0.05)[0]:
                    try:
                        os.read(read, 65536)
                    except OSError:
                        # What a terminal gives when nobody has its other end any more.
                        break
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def test_watch_shows_lines_as_they_happen(tmp_path: Path) -> None:
    word = marker()
    with watching(tmp_path, "--binary", "/true$", terminal=False) as screen, shell() as started:
        for round_ in ("first", "second"):
            started.run(f"/bin/true {word}.{round_}")
            # Nothing else has to happen for the line to come.
            text = screen.read_until(f"/bin/true {word}.{round_} 0\n")
    lines = [line for line in text.splitlines() if word in line]
    assert [re.sub(r"^(\S+ +\S+) +\S+ ", r"\1 ", line) for line in lines] == [
        f"🚀 process /bin/true {word}.first",
        f"💥 exit /bin/true {word}.first 0",
        f"🚀 process /bin/true {word}.second",
        f"💥 exit /bin/true {word}.second 0",
    ]
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "env", "coloured"),
    [((), {}, True), (("--color", "never"), {}, False), ((), {"NO_COLOR": "1"}, False)],
)
def test_watch_on_a_terminal(arguments: tuple[str, ...], env: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    word = marker()
    with watching(tmp_path, "--binary", "/true$", *arguments, terminal=True, env=env) as screen:
        subprocess.run(["/bin/true", word, "\x1b[31mforged\n"], check=True)
        # In the line of its exit too; other programs of that name may come and go meanwhile.
        text = screen.read_until(word, times=2)
    (began,) = [line for line in text.splitlines() if word in line and "🚀" in line]
    assert bool(ESCAPE.search(began)) == coloured
    # What the program is called with does not reach the terminal as it is.
    assert "\x1b[31mforged" not in text
    assert r"\x1b[31mforged\n" in ESCAPE.sub("", began)


def lines_with(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def test_json_is_tetragons_and_can_be_replayed(running_agent: RunningAgent, tmp_path: Path) -> None:
    word = marker()
    events, lines = tmp_path / "events.json", tmp_path / "lines"
    with running_agent(tmp_path, "-o", f"json:{events}", "-o", f"compact:{lines}") as agent:
        act(word)
    documents = [json.loads(line) for line in events.read_text().splitlines()]
    ours = [document for document in documents if word in json.dumps(document)]
    assert len(ours) >= 8
    for document in ours:
        kind = "process_exec" if "process_exec" in document else "process_exit"
        assert document.keys() == {kind, "node_name", "time"}
        process = document[kind]["process"]
        assert {"exec_id", "pid", "uid", "cwd", "binary", "flags", "start_time", "auid", "parent_exec_id"} >= (
            process.keys() - {"arguments", "tid", "in_init_tree", "docker", "refcnt", "user", "ns", "cap"}
        )
        assert isinstance(process["pid"], int)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6}|\.\d{9})?Z", document["time"])
    ends = [document["process_exit"] for document in ours if "process_exit" in document]
    assert sorted((end.get("status", 0), end.get("signal", "")) for end in ends) == [
        (0, "SIGKILL"),
        (3, ""),
        (4, ""),
        (5, ""),
    ]
    told = {exec_id(log) for log in with_word(agent.logs(), word)}
    assert {document[kind]["process"]["exec_id"] for document in ours for kind in document if "process" in kind} == told

    replayed = otel_procmon("replay", str(events), "-o", "compact")
    assert replayed.returncode == 0, replayed.stderr
    assert lines_with(replayed.stdout, word) == lines_with(lines.read_text(), word)
    again = otel_procmon("replay", str(events), "-o", "json")
    # Of others, which run on this machine too, a reader may take a secret where the writer, who knew each argument by
    # itself, saw none (docs/redaction.md).
    assert sorted(lines_with(again.stdout, word)) == sorted(lines_with(events.read_text(), word))


def own(logs: list[Log], spans: list[Span], word: str) -> Family:
    """The records below the first image that was called with `word`, as a recording can give them back."""
    first = next(log for log in logs if word in log.attributes.get("process.command_args", []))
    return family(logs, spans, exec_id(first))


def comparable(records: list[Log] | list[Span]) -> list[str]:
    """Records as text, without when they were read, and what only the host knows where they were made."""
    comparable_ = []
    for record in records:
        attributes = {name: value for name, value in record.attributes.items() if name != "process.user.name"}
        changed = replace(record, attributes=attributes, resource={"host.name": record.resource["host.name"]})
        comparable_.append(repr(replace(changed, observed_unix_ns=0) if isinstance(changed, Log) else changed))
    return sorted(comparable_)


def test_recording_gives_the_same_records(running_agent: RunningAgent, tmp_path: Path) -> None:
    """Ids, times, attributes, opening spans, what was discovered: all but when it was read."""
    config = tmp_path / "procmon.yaml"
    config.write_text("trace: {open_after: 150ms}\n")
    recording, replayed = tmp_path / "recording", tmp_path / "replayed.jsonl"
    words = [marker() for _ in range(3)]
    # Runs already when the agent starts; lives on; has children that end soon and late.
    recorded = ("--config", str(config), "--record", str(recording))
    with shell(session=True) as before, running_agent(tmp_path, *recorded) as agent:
        agent.wait_until(lambda: bool(with_word(agent.logs(), before.marker)), "the shell was discovered")
        with shell() as parent:
            act(words[0])
            for _ in range(8):
                parent.run(f"sh -c 'sleep 0.1; exit 3' {words[1]}")
            before.run(f"/bin/true {words[2]}")
        before.end()
    assert recording.stat().st_mode & 0o777 == 0o600
    done = otel_procmon("replay", str(recording), "-o", f"otlp-json:{replayed}", "--config", str(config))
    assert done.returncode == 0, done.stderr
    again_logs, again_spans = read_logs(replayed), read_spans(replayed)
    for word in (words[0], parent.marker, before.marker):
        live = own(agent.logs(), agent.spans(), word)
        again = own(again_logs, again_spans, word)
        assert len(live.logs) >= 3
        assert comparable(again.logs) == comparable(live.logs)
        assert comparable(again.spans) == comparable(live.spans)
    assert any(
        span.attributes.get("procmon.span") == "open" for span in own(agent.logs(), agent.spans(), parent.marker).spans
    )
    # And in the same order, which no outage has disturbed.
    assert [log.time_unix_ns for log in with_word(again_logs, words[1])] == [
        log.time_unix_ns for log in with_word(agent.logs(), words[1])
    ]


def kept(agent: Agent, *words: str) -> list[bool]:
    """For each word whether anything was told of the programs that were called with it."""
    return [bool(with_word(agent.logs(), word)) for word in words]


def test_filter_by_binary(running_agent: RunningAgent, tmp_path: Path) -> None:
    yes, no = marker(), marker()
    with running_agent(tmp_path, "--binary", "/tr.e$", "--binary", "^/nowhere") as agent:
        subprocess.run(["/bin/true", yes], check=True)
        subprocess.run(["/bin/sh", "-c", ":", no], check=True)
    assert kept(agent, yes, no) == [True, False]
    assert {log.attributes["process.executable.name"] for log in agent.logs()} == {"true"}
    assert {span.name for span in agent.spans()} == {"true"}
    counts = agent.ledger()["filter"]
    assert counts["passed"] >= 2
    assert counts["filtered on purpose"] >= 2
    # The lineage of what passes is whole: its parent was filtered only afterwards.
    (exec_, _) = with_word(agent.logs(), yes)
    assert exec_.attributes["procmon.ancestors"]


def test_filter_by_pid(running_agent: RunningAgent, tmp_path: Path) -> None:
    no = marker()
    with (
        shell() as one,
        shell() as other,
        running_agent(tmp_path, "--pid", str(one.pid), "--pid", str(other.pid)) as agent,
    ):
        agent.wait_until(lambda: kept(agent, one.marker, other.marker) == [True, True], "they were discovered")
        one.run(f"/bin/true {no}")
        one.end()
        agent.wait_until(lambda: len(with_word(agent.logs(), one.marker)) == 2, "its end was told")
    assert kept(agent, no) == [False]
    assert {log.attributes["process.pid"] for log in agent.logs()} == {one.pid, other.pid}


def test_filter_by_user(running_agent: RunningAgent, tmp_path: Path) -> None:
    yes, no = marker(), marker()
    with running_agent(tmp_path, "--uid", str(NOBODY)) as agent:
        subprocess.run(["/bin/true", yes], check=True, user=NOBODY, group=NOBODY, extra_groups=[])
        subprocess.run(["/bin/true", no], check=True)
    assert kept(agent, yes, no) == [True, False]
    assert {log.attributes["process.user.id"] for log in agent.logs()} == {NOBODY}


def test_sigusr1_asks_for_the_ledger(running_agent: RunningAgent, tmp_path: Path) -> None:
    word = marker()
    with running_agent(tmp_path) as agent:
        subprocess.run(["/bin/true", word], check=True)
        agent.wait_until(lambda: len(with_word(agent.logs(), word)) == 2, "something was told")
        for asked in (1, 2):
            agent.process.send_signal(signal.SIGUSR1)
            agent.wait_until(lambda: agent.stderr.count(LEDGER) == asked, "it said the ledger")  # noqa: B023
        counts = agent.ledger()
        assert counts["kernel"]["made: exec"] > 0
        assert counts["source"]["read"] > 0
        assert counts["lineage"]["told: discovered"] > 0
        subprocess.run(["/bin/true", word], check=True)
        agent.wait_until(lambda: len(with_word(agent.logs(), word)) == 4, "it goes on")
    assert agent.stderr.count(LEDGER) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_when_all_is_told(number: signal.Signals, running_agent: RunningAgent, tmp_path: Path) -> None:
    words = [marker() for _ in range(5)]
    with running_agent(tmp_path, "--binary", "/true$") as agent:
        for word in words:
            subprocess.run(["/bin/true", word], check=True)
        # What has happened by now has not been read yet, as a rule.
        agent.stop(number)
    for word in words:
        assert [log.event_name for log in with_word(agent.logs(), word)] == ["process.exec", "process.exit"]
        assert len(with_word(agent.spans(), word)) == 1
    assert agent.process.returncode == 0
    ledger = agent.ledger()
    kernel = ledger["kernel"]
    assert sum(kernel.values()) == ledger["source"]["read"], "nothing is counted but what was made, and that was read"
    assert "Traceback" not in agent.stderr


@pytest.mark.every_kernel
def test_doctor_finds_that_this_host_can_capture() -> None:
    with refusing_port() as port:
        env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}"}
        done = otel_procmon("doctor", env=env)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert not done.stderr
    assert lines[-1] == "This host can capture."
    states = [re.match(r"(ok|note) +\S", line) for line in lines[:-1]]
    assert all(states), lines
    assert any("the BPF program loads, and sees what starts" in line for line in lines)
    assert any("capability SYS_PTRACE: what runs already is told with its path" in line for line in lines)
    assert any(f"nobody answers at {HOST}:{port} (connection refused)" in line for line in lines)


def unprivileged(*command: str) -> list[str]:
    """`command` as the user nobody; it may read all files, since Python may be installed where only root can."""
    if shutil.which("setpriv") is None:
        cannot_run("kernel", "setpriv is missing (util-linux)")
    capability = "-all,+dac_read_search"
    limits = [f"--inh-caps={capability}", f"--ambient-caps={capability}", f"--bounding-set={capability}"]
    return ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *limits, "--", *command]


@pytest.mark.parametrize("command", ["run", "watch"])
def test_nobody_needs_root(command: str) -> None:
    done = subprocess.run(
        unprivileged(sys.executable, "-m", "otel_procmon", command, "-o", "compact"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "otel-procmon: Loading a BPF program needs root, or the capabilities BPF, PERFMON and SYS_RESOURCE: run it by "
        "sudo.\n"
    )


def test_doctor_tells_nobody_what_is_missing() -> None:
    done = subprocess.run(
        unprivileged(sys.executable, "-m", "otel_procmon", "doctor"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"^missing +Loading a BPF program needs root", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "This host cannot capture yet: see what is missing."


@pytest.mark.every_kernel
def test_root_without_capabilities() -> None:
    """As in a container that is not privileged."""
    if shutil.which("setpriv") is None:
        cannot_run("kernel", "setpriv is missing (util-linux)")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", sys.executable, "-m", "otel_procmon", "watch"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"otel-procmon: The kernel does not allow BPF programs here \(.*\): in a container, add the capabilities BPF, "
        r"PERFMON and SYS_RESOURCE, or run it privileged\.\n",
        done.stderr,
    )
