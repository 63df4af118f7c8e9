"""A real OTLP receiver gets what the agent tells of real processes: over both protocols, late, or never."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from otel_procmon.convert.attributes import ATTRIBUTES
from tests.kernel.truth.family import exec_id, family, with_word
from tests.kernel.truth.otlp import Log
from tests.kernel.truth.receiver import HOST, Protocol, Received, receiver, refusing_port
from tests.kernel.truth.running import run_command
from tests.kernel.truth.shell import marker, only_marked
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

    from otel_procmon.convert.attributes import Place
    from tests.kernel.truth.family import Family
    from tests.kernel.truth.otlp import Span

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

PROTOCOLS: list[Protocol] = ["grpc", "http/protobuf"]
ACTIVITY = 'bash -c "whoami; (ls; false)"; sleep 1'
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_BLRP_SCHEDULE_DELAY": "100"}
ANSWER_SECONDS = 60

KIND_INTERNAL = 1
STATUS_UNSET, STATUS_ERROR = 0, 2
INFO, WARN = 9, 13


def environment(protocol: Protocol, port: int, **more: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        **QUICK,
        **more,
    }


def act(directory: Path) -> int:
    """What somebody does on this host. Returns the shell's pid."""
    shell = subprocess.Popen(
        ["bash", "-c", ACTIVITY, marker()],
        cwd=directory,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert shell.wait(ANSWER_SECONDS) == 0
    return shell.pid


def true(word: str) -> None:
    subprocess.run(["/bin/true", word], env=ENVIRONMENT, check=True, timeout=ANSWER_SECONDS)


def arrived(received: Received, event_name: str, word: str) -> list[Log]:
    return [log for log in with_word(received.logs, word) if log.event_name == event_name]


class Activity(NamedTuple):
    """The records of `act`, and its first image's span."""

    family: Family
    first: Span

    @property
    def logs(self) -> list[Log]:
        return self.family.logs

    @property
    def spans(self) -> list[Span]:
        return self.family.spans


@pytest.fixture(scope="module", params=PROTOCOLS)
def activity(
    request: pytest.FixtureRequest, require_kernel: None, tmp_path_factory: pytest.TempPathFactory
) -> Activity:
    protocol: Protocol = request.param
    directory = tmp_path_factory.mktemp("activity")
    (directory / "a file").touch()
    with receiver(protocol) as received:
        with run_command(directory, "run", env=environment(protocol, received.port)) as agent:
            pid = act(directory)
        assert not received.problems
        assert "cannot reach" not in agent.stderr
        ledger = agent.ledger()
        for lane, records in (("delivery.logs", received.logs), ("delivery.traces", received.spans)):
            assert ledger[lane] == {"exported": len(records)}
        (first,) = [
            log
            for log in with_word(received.logs, ACTIVITY)
            if log.attributes["process.pid"] == pid
            if log.event_name == "process.exec"
        ]
        told = family(received.logs, received.spans, exec_id(first))
        return Activity(told, told.span(exec_id(first)))


def paths(activity: Activity) -> dict[str, str]:
    """Each span's name and the names above it in its trace, e.g. ``bash/bash/ls``; by span id."""
    by_id = {span.span_id: span for span in activity.spans}

    def path(span: Span) -> str:
        parent = by_id.get(span.parent_span_id)
        return span.name if parent is None else f"{path(parent)}/{span.name}"

    return {span.span_id: path(span) for span in activity.spans}


def test_one_trace_that_is_the_process_tree(activity: Activity) -> None:
    assert {span.trace_id for span in activity.spans} == {activity.first.trace_id}
    assert sorted(paths(activity).values()) == sorted(
        # The second bash, the subshell in it, and what they run. The first one runs sleep as its last command, in its
        # own process if this bash is so clever; sleep is its child either way.
        ["bash", "bash/bash", "bash/bash/whoami", "bash/bash/bash", "bash/bash/bash/ls", "bash/sleep"]
    )


def test_root_of_the_trace_says_why_it_begins(activity: Activity) -> None:
    """Or it belongs to the trace of whoever runs the test, where that is done on a terminal."""
    entries = [span for span in activity.spans if "procmon.entry.reason" in span.attributes]
    if os.isatty(0) or entries:
        assert entries in ([], [activity.first])
    for span in entries:
        assert span.attributes["procmon.entry.reason"] == "session"
        assert not span.parent_span_id
        ((trace_id, _),) = span.links
        assert trace_id != span.trace_id
    assert all(span.parent_span_id for span in activity.spans if span not in entries)


def test_one_exec_for_each_image_and_one_exit_for_each_process(activity: Activity) -> None:
    forked_only = {"bash/bash/bash"}
    by_path = {path: span_id for span_id, path in paths(activity).items()}
    images = sorted(span_id for path, span_id in by_path.items() if path not in forked_only)
    assert sorted(log.span_id for log in activity.family.of("process.exec")) == images
    exits = activity.family.of("process.exit")
    pids = {span.attributes["process.pid"] for span in activity.spans}
    assert sorted(log.attributes["process.pid"] for log in exits) == sorted(pids)
    assert {log.event_name for log in activity.logs} == {"process.exec", "process.exit"}
    # Of a process with two images, the last one exits, and the first one's span says what became of it.
    replaced = {span.span_id for span in activity.spans} - {log.span_id for log in exits}
    for span in activity.spans:
        assert (span.attributes.get("procmon.exit.reason") == "exec") == (span.span_id in replaced)


def test_logs_and_spans_share_ids(activity: Activity) -> None:
    by_exec_id = {exec_id(span): (span.trace_id, span.span_id) for span in activity.spans}
    assert len(set(by_exec_id.values())) == len(activity.spans)
    for log in activity.logs:
        assert (log.trace_id, log.span_id) == by_exec_id[exec_id(log)]
        assert re.fullmatch("[0-9a-f]{32}", log.trace_id)
        assert re.fullmatch("[0-9a-f]{16}", log.span_id)


def test_exit_codes_decide_status_and_severity(activity: Activity) -> None:
    expected = {
        "bash": 0,
        "bash/bash": 1,
        "bash/bash/whoami": 0,
        "bash/bash/bash": 1,
        "bash/bash/bash/ls": 0,
        "bash/sleep": 0,
    }
    told = paths(activity)
    for span in activity.spans:
        code = expected[told[span.span_id]]
        replaced = span.attributes.get("procmon.exit.reason") == "exec"
        assert span.attributes.get("process.exit.code") == (None if replaced else code)
        assert span.status == (STATUS_ERROR if code else STATUS_UNSET)
        assert span.attributes.get("error.type") == (str(code) if code else None)
    for log in activity.family.of("process.exit"):
        code = expected[told[log.span_id]]
        assert log.attributes["process.exit.code"] == code
        assert log.severity_number == (WARN if code else INFO)
    assert {log.severity_number for log in activity.family.of("process.exec")} == {INFO}


def test_spans_say_when_and_how(activity: Activity) -> None:
    by_id = {span.span_id: span for span in activity.spans}
    now = time.time_ns()
    for span in activity.spans:
        assert span.kind == KIND_INTERNAL
        assert span.name == span.attributes["process.executable.name"]
        assert now - 600 * 10**9 < span.start_unix_ns <= span.end_unix_ns <= now
        parent = by_id.get(span.parent_span_id)
        if parent is not None:
            assert parent.start_unix_ns <= span.start_unix_ns
    (sleep,) = [span for span in activity.spans if span.name == "sleep"]
    assert sleep.end_unix_ns - sleep.start_unix_ns >= 10**9


def test_log_times_are_the_spans(activity: Activity) -> None:
    by_id = {span.span_id: span for span in activity.spans}
    for log in activity.logs:
        span = by_id[log.span_id]
        assert log.time_unix_ns == (span.start_unix_ns if log.event_name == "process.exec" else span.end_unix_ns)
        assert log.time_unix_ns <= log.observed_unix_ns <= time.time_ns()


def test_bodies_are_the_compact_lines(activity: Activity) -> None:
    node = activity.first.resource["host.name"]
    told = paths(activity)
    bodies = {(told[log.span_id], log.event_name): log.body for log in activity.logs}
    assert bodies["bash/bash/whoami", "process.exec"] == f"🚀 process {node} /usr/bin/whoami"
    assert bodies["bash/bash/bash/ls", "process.exit"] == f"💥 exit    {node} /usr/bin/ls 0"
    assert bodies["bash/bash", "process.exit"] == f'💥 exit    {node} /usr/bin/bash -c "whoami; (ls; false)" 1'


def test_resource(activity: Activity) -> None:
    for record in activity.family.records():
        assert record.resource["service.name"]
        assert record.resource["host.id"]
        assert record.resource["os.type"] == "linux"


PYTHON_TYPES: dict[str, type] = {"string": str, "int": int, "double": float, "boolean": bool}


def is_of(value: Any, type_name: str) -> bool:
    """Whether `value` is of the type that the documentation names, and says anything."""
    if type_name == "string[]":
        return isinstance(value, list) and bool(value) and all(isinstance(element, str) for element in value)
    return type(value) is PYTHON_TYPES[type_name] and value not in ("", 2**32 - 1)


def test_every_attribute_is_a_documented_one(activity: Activity) -> None:
    documented = {(place, attribute.name): attribute.type for attribute in ATTRIBUTES for place in attribute.places}
    found: list[tuple[Place, str, Any]] = []
    for record in activity.family.records():
        place: Place = "log" if isinstance(record, Log) else "span"
        found += [(place, name, value) for name, value in record.attributes.items()]
        found += [("resource", name, value) for name, value in record.resource.items()]
    wrong = [
        f"{name} = {value!r} in a {place}"
        for place, name, value in found
        if (place, name) not in documented or not is_of(value, documented[place, name])
    ]
    assert not wrong
    always = {"process.pid", "procmon.exec_id", "service.name", "host.id", "os.type", "process.executable.path"}
    assert always <= {name for _, name, _ in found}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gzip(protocol: Protocol, tmp_path: Path) -> None:
    word = marker()
    with receiver(protocol) as received:
        env = environment(protocol, received.port, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
        with run_command(tmp_path, "run", env=env) as agent:
            true(word)
        agent.wait_until(lambda: bool(received.compressed), "its connections were closed")
        assert not received.problems
        assert all(received.compressed)
        assert len(arrived(received, "process.exec", word)) == 1
        assert len(arrived(received, "process.exit", word)) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_receiver_comes_up_later(protocol: Protocol, tmp_path: Path) -> None:
    """What happened before that arrives, too."""
    before, after = marker(), marker()
    arguments = ("run", *only_marked(tmp_path))
    with refusing_port() as port, run_command(tmp_path, *arguments, env=environment(protocol, port)) as agent:
        true(before)
        agent.wait_until(lambda: agent.stderr.count("cannot reach") >= 2, "it said that nobody answers")
        with receiver(protocol, port) as received:
            true(after)
            agent.wait_until(lambda: agent.stderr.count("sending works again") >= 2, "it said that somebody does")
            for word in (before, after):
                agent.wait_until(lambda: bool(arrived(received, "process.exit", word)), "logs arrived")  # noqa: B023
                agent.wait_until(lambda: bool(with_word(received.spans, word)), "spans arrived")  # noqa: B023
            agent.stop()
    for word in (before, after):
        assert len(arrived(received, "process.exec", word)) == len(arrived(received, "process.exit", word)) == 1
        assert len(with_word(received.spans, word)) == 1
    ledger = agent.ledger()
    for lane, records in (("delivery.logs", received.logs), ("delivery.traces", received.spans)):
        assert f"{lane}: sending works again" in agent.stderr
        assert ledger[lane] == {"exported": len(records)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_receiver_at_all(protocol: Protocol, tmp_path: Path) -> None:
    with refusing_port() as port, run_command(tmp_path, "run", env=environment(protocol, port)) as agent:
        true(marker())
        agent.wait_until(lambda: agent.stderr.count("cannot reach") >= 2, "it said that nobody answers")
        began = time.monotonic()
        agent.stop(signal.SIGTERM)
        assert time.monotonic() - began < 30
    said = [line for line in agent.stderr.splitlines() if "cannot reach" in line]
    assert sorted(re.match(r"otel-procmon: (delivery\.\w+): ", line)[1] for line in said) == [  # type: ignore[index]
        "delivery.logs",
        "delivery.traces",
    ]
    for line in said:
        assert f"cannot reach http://{HOST}:{port} (connection refused)" in line
        assert "start a Collector there or set OTEL_EXPORTER_OTLP_ENDPOINT" in line
    assert len(agent.stderr.splitlines()) == 4, "greeting, one line a signal, ledger"
    ledger = agent.ledger()
    for lane in ("delivery.logs", "delivery.traces"):
        # The next agent sends them.
        assert ledger[lane].keys() == {"waiting: spooled"}
        assert ledger[lane]["waiting: spooled"] > 0
