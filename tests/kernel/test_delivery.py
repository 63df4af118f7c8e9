"""Delivery under load and under every kind of trouble: real processes, the real agent, and an exact account.

Where an agent tells only of the load's processes (`Load.filter`), all of its figures are known: each unit makes so many
log records and spans, and each of them was exported, is lost for a reason, or waits.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_procmon.source.ebpf import depth
from tests.kernel.test_gaps import assert_balanced, configuration
from tests.kernel.truth.load import LOGS, SPANS, load, storm
from tests.kernel.truth.otlp import read_logs, read_spans
from tests.kernel.truth.programs import loaded_programs, pinned_program
from tests.kernel.truth.receiver import HOST, Protocol, receiver, refusing_port
from tests.kernel.truth.running import AgentError, cannot_run, require_pins, run_command
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import compile_tiny
from tests.unit import otlp_receiver as misbehaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from tests.kernel.truth.running import Agent
    from tests.unit.otlp_receiver import Handler, Received, Request

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

OUTAGE_SECONDS = float(os.environ.get("PROCMON_OUTAGE_SECONDS", "5"))
"""Long enough for the agent to give up hope for a while. 180 was tried, too."""
MUCH = int(OUTAGE_SECONDS * 100)
"""Records of a signal."""
BACK_SECONDS = 90
"""The longest pause between two tries is 30 seconds."""
UNITS = 20
STORM = 20_000
KILLS = 10
TINY = Path(__file__).parent / "truth" / "torture.c"

PLACES = {"delivery.logs": LOGS, "delivery.traces": SPANS}


def environment(port: int, protocol: str = "http/protobuf", **more: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
        **more,
    }


@pytest.fixture
def roomy(tmp_path: Path) -> tuple[str, str]:
    """Arguments for an agent that loses nothing, whatever else happens on this machine meanwhile.

    And one that opens nothing: on a slow machine the load lives long enough for that, and the spans are counted. A pinned ring is held back for the next agent only while less than half of it is taken.
    """
    return "--config", configuration(tmp_path, "capture: {ring: 256MiB}\ntrace: {open_after: 1h}\n")


def spooled(spool: Path) -> dict[str, int]:
    """How many records wait in a spool, by place. The names of its files say it."""
    found = dict.fromkeys(PLACES, 0)
    for path in spool.glob("*.*.*"):
        if match := re.fullmatch(r"\d+\.(\w+)\.(\d+)", path.name):
            found[f"delivery.{match[1]}"] += int(match[2])
    return found


def assert_exact(agent: Agent, units: int) -> dict[str, dict[str, int]]:
    """All that passed the filter, and was found, is exported, lost or waits. Gives the ledger."""
    ledger = agent.ledger()
    assert ledger.get("filter", {}).get("passed", 0) == LOGS * units, agent.stderr
    for place, each in PLACES.items():
        outcomes = dict(ledger.get(place, {}))
        found = outcomes.pop("found: in the spool", 0)
        assert all(re.match("exported|lost: |waiting: ", outcome) for outcome in outcomes), outcomes
        assert sum(outcomes.values()) == each * units + found, (place, ledger[place])
    return ledger


# A receiver that goes away


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_receiver_that_is_away_for_a_while(protocol: Protocol, roomy: tuple[str, str], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with ExitStack() as stack:
        made = stack.enter_context(load(tmp_path / "load"))
        port = stack.enter_context(refusing_port())
        options = ("run", "--spool", str(spool), *made.filter, *roomy)
        with run_command(tmp_path, *options, env=environment(port, protocol)) as agent:
            with receiver(protocol, port) as before:
                made.run(UNITS)
                agent.wait_until(lambda: len(before.logs) >= LOGS * UNITS, "it delivered")
                made.resume()
                agent.wait_until(lambda: len(before.logs) > LOGS * UNITS, "it delivered under load")
            gone = time.monotonic()
            agent.wait_until(lambda: time.monotonic() - gone > OUTAGE_SECONDS, "that", OUTAGE_SECONDS + 60)
            with receiver(protocol, port) as after:
                # The load goes on while what has gathered leaves.
                agent.wait_until(lambda: bool(after.logs) and bool(after.spans), "it delivered again", BACK_SECONDS)
                units = made.pause()

                def all_there() -> bool:
                    # What the first receiver took but did not live to acknowledge arrives twice.
                    logs = {(log.event_name, log.span_id, log.time_unix_ns) for log in before.logs + after.logs}
                    spans = {span.span_id for span in before.spans + after.spans}
                    return len(logs) >= LOGS * units and len(spans) >= SPANS * units

                agent.wait_until(all_there, "all was delivered", BACK_SECONDS)
                agent.stop()
    logs, spans = [*before.logs, *after.logs], [*before.spans, *after.spans]
    made.assert_told(logs, spans)
    ledger = assert_exact(agent, units)
    for place, each in PLACES.items():
        assert ledger[place] == {"exported": each * units}
        assert f"{place}: sending works again" in agent.stderr
    told = agent.stderr.count("cannot reach") + agent.stderr.count("closed the connection")
    assert len(PLACES) <= told <= len(PLACES) * agent.told_at_most, "once a minute"
    assert "nothing is lost yet" in agent.stderr
    assert sum(spooled(spool).values()) == 0
    assert len(before.logs) + len(after.logs) >= ledger["delivery.logs"]["exported"]


def test_agent_that_is_killed_while_the_receiver_is_away(roomy: tuple[str, str], tmp_path: Path) -> None:
    protocol: Protocol = "grpc"
    spool = tmp_path / "spool"
    with ExitStack() as stack:
        made = stack.enter_context(load(tmp_path / "load"))
        port = stack.enter_context(refusing_port())
        options, env = ("run", "--spool", str(spool), *made.filter, *roomy), environment(port, protocol)
        with run_command(tmp_path, *options, env=env) as first:
            made.resume()
            first.wait_until(lambda: min(spooled(spool).values()) > MUCH, "much waited on disk", OUTAGE_SECONDS + 60)
            units = made.pause()
            expected = {place: each * units for place, each in PLACES.items()}
            first.wait_until(lambda: spooled(spool) == expected, "all waited on disk")
            first.kill()
        with run_command(tmp_path, *options, env=env) as second:
            made.resume()
            more = SPANS * units + MUCH // 5
            second.wait_until(lambda: min(spooled(spool).values()) > more, "more waited on disk", OUTAGE_SECONDS + 60)
            with receiver(protocol, port) as received:
                units_then = made.pause()

                def all_there() -> bool:
                    return len(received.logs) >= LOGS * units_then and len(received.spans) >= SPANS * units_then

                second.wait_until(all_there, "all was delivered", BACK_SECONDS)
                second.stop()
    made.assert_told(received.logs, received.spans)
    ledger = assert_exact(second, units_then - units)
    for place, each in PLACES.items():
        assert ledger[place] == {"found: in the spool": each * units, "exported": each * units_then}
    assert sum(spooled(spool).values()) == 0


# An agent that does not run for a while


@pytest.mark.parametrize("ring", ["64MiB", "4MiB"])
def test_agent_that_is_stopped_during_many_execs(ring: str, tmp_path: Path) -> None:
    """To the last record: it was read, or is counted as lost."""
    tiny, word = tmp_path / "tiny", marker()
    compile_tiny(TINY, tiny)
    command = storm(tmp_path, STORM, tiny, word)
    config = configuration(tmp_path, f"capture: {{ring: {ring}}}\nlineage: {{sweep_interval: 1h}}\n")
    told = tmp_path / "told.json"
    options = ("--config", config, "--binary", f"^{tiny}$", "-o", f"json:{told}")
    with run_command(tmp_path, "run", *options) as agent:
        agent.process.send_signal(signal.SIGSTOP)
        os.waitpid(agent.process.pid, os.WUNTRACED)
        subprocess.run(command, check=True, timeout=300)
        agent.process.send_signal(signal.SIGCONT)
        # It ends when it has read what was there.
    assert_balanced(agent)
    kernel = agent.ledger()["kernel"]
    lost = kernel.get("lost: ring full, exec", 0)
    # Parsing all of it would take longer than making it.
    lines = told.read_text(encoding="utf-8").splitlines()
    number = re.compile(f'"arguments":"0 {word} ([0-9]+)"')
    execs, exits = (
        [int(match[1]) for line in lines if line.startswith(f'{{"{kind}"') if (match := number.search(line))]
        for kind in ("process_exec", "process_exit")
    )
    assert execs == sorted(set(execs)), "in their order, and each once"
    assert exits == sorted(set(exits))
    assert len(execs) + lost >= STORM
    assert kernel["made: exec"] >= STORM
    if ring == "64MiB":
        assert (len(execs), len(exits), lost) == (STORM, STORM, 0)
    else:
        assert 0 < len(execs) < STORM
        # What the ring had no room for came last.
        assert execs == list(range(len(execs)))


# An agent that is killed, with its programs pinned


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    require_pins()
    path = tmp_path / "bpf"
    path.mkdir()
    if subprocess.run(["mount", "-t", "bpf", "bpf", path], check=False, capture_output=True).returncode:
        cannot_run("kernel", "a BPF file system cannot be mounted")
    yield path
    subprocess.run(["umount", path], check=True)


def seeing(bpffs: Path | None) -> tuple[str, ...]:
    """The command that runs another one which has `bpffs`, or none, where everybody looks for it."""
    place = "mount --bind" if bpffs else "mount -t tmpfs"
    return ("unshare", "--mount", "sh", "-c", f'{place} "$0" /sys/fs/bpf && exec "$@"', str(bpffs or "tmpfs"))


def pinned_programs(bpffs: Path) -> set[int]:
    """Those that are pinned here. Other agents may run on this machine."""
    paths = list(bpffs.glob("otel-procmon/*/on_*"))
    assert len(paths) == 3 * depth()
    return {pinned_program(path) for path in paths}


def assert_unloaded(programs: set[int]) -> None:
    """The kernel lets go of a program a moment after the last reference to it has gone."""
    deadline = time.monotonic() + 30
    while programs & loaded_programs():
        assert time.monotonic() < deadline, "programs are still loaded"
        time.sleep(0.02)


def procmon(bpffs: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of otel-procmon that ends by itself."""
    command = [*seeing(bpffs), sys.executable, "-m", "otel_procmon", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def unread(agent: Agent) -> int:
    """How many of the records that its pinned programs have made, up to the time of its last line, wait in the ring."""
    ledger = agent.ledger()
    made = sum(number for outcome, number in ledger["kernel"].items() if outcome.startswith("made: "))
    lost = sum(number for outcome, number in ledger["kernel"].items() if outcome.startswith("lost: "))
    return made - lost - ledger["source"]["read"] - ledger["source"].get("read by earlier agents", 0)


class Way(NamedTuple):
    """Where the agents of one test tell what happens, and what has arrived there."""

    options: Sequence[str]
    env: dict[str, str]
    logs: Callable[[], list[Any]]
    spans: Callable[[], list[Any]]


@contextmanager
def into_a_file(directory: Path) -> Iterator[Way]:
    path = directory / "told.jsonl"
    yield Way(("-o", f"otlp-json:{path}"), {}, lambda: read_logs(path), lambda: read_spans(path))


@contextmanager
def to_a_receiver(directory: Path) -> Iterator[Way]:
    with receiver("http/protobuf") as received:
        options = ("-o", "otlp", "--spool", str(directory / "spool"))
        yield Way(options, environment(received.port), lambda: received.logs[:], lambda: received.spans[:])


@pytest.mark.parametrize("way", [into_a_file, to_a_receiver])
def test_pinned_programs_outlive_agents_that_are_killed(
    way: Callable[[Path], AbstractContextManager[Way]], bpffs: Path, roomy: tuple[str, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        made = stack.enter_context(load(tmp_path / "load", rate=60))
        told = stack.enter_context(way(tmp_path))
        options = ("run", "--pin", *roomy, *told.options)
        for number in range(KILLS):
            with run_command(tmp_path, *options, env=told.env, through=seeing(bpffs)) as agent:
                assert ("going on where the last agent stopped" in agent.stderr) == (number > 0)
                made.resume()
                units = len(made.pids)
                agent.wait_until(lambda units=units: len(made.pids) >= units + 10, "some were run")  # type: ignore[misc]
                agent.kill()
        pinned = pinned_programs(bpffs)
        with run_command(tmp_path, *options, env=told.env, through=seeing(bpffs)) as agent:
            made.pause()
        assert "lost: ring full" not in agent.stderr, "the load does not fit"
        assert unread(agent) >= 0
        assert pinned_programs(bpffs) == pinned, "the first agent's"
        # A busy machine's receiver may not have taken all of it by the end.
        if sum(spooled(tmp_path / "spool").values()):
            options = ("run", "--spool", str(tmp_path / "spool"), "--binary", "^nothing$")
            with run_command(tmp_path, *options, env=told.env) as last:
                last.wait_until(
                    lambda: sum(spooled(tmp_path / "spool").values()) == 0, "the rest was sent", BACK_SECONDS
                )
        made.assert_told(told.logs(), told.spans(), seen=False)
    done = procmon(bpffs, "unpin")
    assert (done.returncode, done.stderr) == (0, "otel-procmon: everything that was pinned is removed\n")
    assert list(bpffs.glob("otel-procmon*")) == []
    assert_unloaded(pinned)
    done = procmon(bpffs, "unpin")
    assert (done.returncode, done.stderr) == (0, "otel-procmon: nothing was pinned\n")


@pytest.mark.every_kernel
def test_what_happens_between_two_agents_is_told_by_the_second(
    bpffs: Path, roomy: tuple[str, str], tmp_path: Path
) -> None:
    with load(tmp_path / "load") as made:
        options = ("run", "--pin", *roomy, "-o", f"otlp-json:{tmp_path / 'told.jsonl'}")
        with run_command(tmp_path, *options, through=seeing(bpffs)) as first:
            made.run(UNITS)
        assert "going on" not in first.stderr
        made.run(UNITS)
        with run_command(tmp_path, *options, through=seeing(bpffs)) as second:
            made.run(UNITS)
        assert "going on where the last agent stopped" in second.stderr
        assert second.ledger()["source"]["read by earlier agents"] == first.ledger()["source"]["read"]
        assert unread(first) >= 0
        assert unread(second) >= 0
        made.assert_told(read_logs(tmp_path / "told.jsonl"), read_spans(tmp_path / "told.jsonl"))
    procmon(bpffs, "unpin")


def test_another_configuration_begins_anew_and_says_so(bpffs: Path, tmp_path: Path) -> None:
    with run_command(tmp_path, "run", "--pin", "-o", f"json:{tmp_path / 'a'}", through=seeing(bpffs)):
        old = pinned_programs(bpffs)
    assert old <= loaded_programs()
    config = configuration(tmp_path, "capture: {ring: 1MiB}\n")
    options = ("run", "--pin", "--config", config, "-o", f"json:{tmp_path / 'a'}")
    with run_command(tmp_path, *options, through=seeing(bpffs)) as agent:
        assert "what an agent of another version or configuration had pinned was removed" in agent.stderr
        assert "going on" not in agent.stderr
        assert_unloaded(old)
        assert len(list((bpffs / "otel-procmon").iterdir())) == 1
    assert agent.ledger()["kernel"]["lost: pinned by another version, with what it held"] == 1
    procmon(bpffs, "unpin")


def test_only_one_agent_has_the_pins(bpffs: Path, tmp_path: Path) -> None:
    with run_command(tmp_path, "run", "--pin", "-o", f"json:{tmp_path / 'a'}", through=seeing(bpffs)):
        for command in (("run", "--pin", "-o", f"json:{tmp_path / 'b'}"), ("unpin",)):
            done = procmon(bpffs, *command)
            assert done.returncode == 1
            assert done.stderr == (
                "otel-procmon: Another agent uses the pinned programs: end it, or run without --pin.\n"
            ), command
    procmon(bpffs, "unpin")


def test_pins_need_a_bpf_file_system(tmp_path: Path) -> None:
    for command in (("run", "--pin", "-o", f"json:{tmp_path / 'a'}"), ("unpin",)):
        done = procmon(None, *command)
        assert done.returncode == 1
        assert done.stderr == (
            "otel-procmon: /sys/fs/bpf is no BPF file system, so nothing can be pinned: mount -t bpf bpf /sys/fs/bpf, or "
            "run without --pin.\n"
        )
    assert not (tmp_path / "a").exists()


# Receivers that misbehave


class Case(NamedTuple):
    """How a receiver answers, and what is to be said of it."""

    protocol: Protocol
    answer: Any
    words: str


def http(answer: Callable[[Handler], None], words: str, id_: str) -> Any:
    return pytest.param(Case("http/protobuf", answer, words), id=id_)


def rpc(code: str, details: str, words: str, id_: str, *, retry_s: int | None = None) -> Any:
    def answer(context: Any) -> bytes:
        import grpc  # type: ignore[import-untyped]  # noqa: PLC0415 - as in otlp_receiver

        status = None if retry_s is None else retry_info(retry_s)
        return misbehaving.fails(grpc.StatusCode[code], details, status)(context)

    return pytest.param(Case("grpc", answer, words), id=id_)


def retry_info(seconds: int) -> bytes:
    """A google.rpc.Status that asks for a pause."""
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # noqa: PLC0415
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # noqa: PLC0415

    info = RetryInfo()
    info.retry_delay.seconds = seconds
    status = Status(code=8)
    status.details.add().Pack(info)
    whole: bytes = status.SerializeToString()
    return whole


def a_receiver(protocol: str) -> AbstractContextManager[Received]:
    return misbehaving.grpc_receiver() if protocol == "grpc" else misbehaving.http_receiver()


def place_of(request: Request) -> str:
    return "delivery.traces" if "race" in request.path else "delivery.logs"


def count(place: str, body: bytes) -> int:
    """How many records a request has."""
    message: Any = ExportTraceServiceRequest if place == "delivery.traces" else ExportLogsServiceRequest
    names = ("resource_spans", "scope_spans", "spans")
    if place == "delivery.logs":
        names = ("resource_logs", "scope_logs", "log_records")
    return sum(
        len(getattr(scope, names[2]))
        for group in getattr(message.FromString(body), names[0])
        for scope in getattr(group, names[1])
    )


def said(agent: Agent, words: str) -> list[str]:
    """The lines that have these words, of which there is to be one for each signal, and no other within the minute."""
    lines = [line for line in agent.stderr.splitlines() if words in line]
    told = Counter(line.split(": ")[1] for line in lines)
    assert told.keys() == PLACES.keys(), agent.stderr
    assert max(told.values()) <= agent.told_at_most, agent.stderr
    assert "Traceback" not in agent.stderr
    return lines


@contextmanager
def delivering(tmp_path: Path, env: dict[str, str]) -> Iterator[Agent]:
    """An agent that has `UNITS` to tell of, and must have an exact account of them in the end."""
    roomy = ("--config", configuration(tmp_path, "capture: {ring: 256MiB}\ntrace: {open_after: 1h}\n"))
    with (
        load(tmp_path / "load") as made,
        run_command(tmp_path, "run", "--spool", str(tmp_path / "spool"), *made.filter, *roomy, env=env) as agent,
    ):
        made.run(UNITS)
        yield agent
        agent.stop()
    assert_exact(agent, UNITS)


def settled(agent: Agent) -> bool:
    """Whether the ledger, which it is asked for, has all records; they can only be in it once they are not on their way."""
    lines = agent.stderr.count("ledger: ")
    agent.process.send_signal(signal.SIGUSR1)
    agent.wait_until(lambda: agent.stderr.count("ledger: ") > lines or agent.process.poll() is not None, "it answered")
    ledger = agent.ledger()
    return all(
        sum(number for outcome, number in ledger.get(place, {}).items() if "found" not in outcome) == each * UNITS
        for place, each in PLACES.items()
    )


@pytest.mark.parametrize(
    "case",
    [
        http(
            misbehaving.answer(429, headers={"Retry-After": "1"}),
            "cannot take the records now (429 Too Many Requests)",
            "429 with Retry-After",
        ),
        http(misbehaving.answer(503), "cannot take the records now (503 Service Unavailable)", "503"),
        http(misbehaving.resets, "closed the connection before it had answered", "reset"),
        http(misbehaving.says(b"\x16\x00\xff garbage\r\n\r\n"), "does not speak HTTP", "garbage"),
        http(misbehaving.hangs, "does not answer in time", "slow"),
        rpc(
            "RESOURCE_EXHAUSTED",
            "slow down",
            "cannot take the records now (RESOURCE_EXHAUSTED: slow down)",
            "RESOURCE_EXHAUSTED with RetryInfo",
            retry_s=1,
        ),
        rpc("UNAVAILABLE", "restarting", "cannot take the records now (UNAVAILABLE: restarting)", "UNAVAILABLE"),
    ],
)
def test_receiver_that_takes_it_later(case: Case, tmp_path: Path) -> None:
    with a_receiver(case.protocol) as received:
        good, received.answer = received.answer, case.answer
        env = environment(received.port, case.protocol, OTEL_EXPORTER_OTLP_TIMEOUT="1000")
        with delivering(tmp_path, env) as agent:
            agent.wait_until(lambda: agent.stderr.count(case.words) >= len(PLACES), "it said what is wrong")
            received.answer = good
            agent.wait_until(lambda: agent.stderr.count("sending works again") >= len(PLACES), "it works", BACK_SECONDS)
            agent.wait_until(lambda: sum(spooled(tmp_path / "spool").values()) == 0, "all was sent")
    for place, each in PLACES.items():
        assert agent.ledger()[place] == {"exported": each * UNITS}
    assert all(line.endswith("nothing is lost yet") for line in said(agent, case.words))


@pytest.mark.parametrize(
    "case",
    [
        http(misbehaving.answer(400), "refused the records (400 Bad Request)", "400"),
        rpc(
            "RESOURCE_EXHAUSTED",
            "over quota",
            "refused the records (RESOURCE_EXHAUSTED: over quota)",
            "RESOURCE_EXHAUSTED without RetryInfo",
        ),
    ],
)
def test_receiver_that_refuses(case: Case, tmp_path: Path) -> None:
    """What it refuses is lost, and not sent again; and it does not block what comes later."""
    with a_receiver(case.protocol) as received:
        good = received.answer
        # Small batches, so that there are several.
        env = environment(
            received.port,
            case.protocol,
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8",
            OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="8",
        )
        received.answer = case.answer
        with delivering(tmp_path, env) as agent:
            agent.wait_until(lambda: {place_of(request) for request in received.requests} == set(PLACES), "it sent")
            received.answer = good
            agent.wait_until(lambda: settled(agent), "all was sent")
        sent = dict.fromkeys(PLACES, 0)
        for request in received.requests:
            sent[place_of(request)] += count(place_of(request), request.body)
    for place, each in PLACES.items():
        assert sent[place] == each * UNITS, "each record was sent once"
        assert agent.ledger()[place]["lost: refused by the receiver"] > 0
    assert all(re.search("; [0-9]+ records were lost$", line) for line in said(agent, case.words))


def test_receiver_that_takes_a_part(tmp_path: Path) -> None:
    def partly(handler: Handler) -> None:
        if handler.path == "/v1/traces":
            spans = ExportTraceServiceResponse()
            spans.partial_success.rejected_spans = 1
            spans.partial_success.error_message = "trace too old"
            misbehaving.answer(body=spans.SerializeToString())(handler)
        else:
            logs = ExportLogsServiceResponse()
            logs.partial_success.rejected_log_records = 2
            logs.partial_success.error_message = "no such tenant"
            misbehaving.answer(body=logs.SerializeToString())(handler)

    with misbehaving.http_receiver() as received:
        received.answer = partly
        with delivering(tmp_path, environment(received.port)) as agent:
            agent.wait_until(lambda: settled(agent), "all was sent")
        ledger = agent.ledger()
        for place, rejected in (("delivery.traces", 1), ("delivery.logs", 2)):
            sizes = [count(place, request.body) for request in received.requests if place_of(request) == place]
            # No more than there were, whatever it says.
            assert ledger[place]["lost: rejected by the receiver"] == sum(min(rejected, size) for size in sizes)
            assert sum(sizes) == PLACES[place] * UNITS
    assert {
        line.partition(": the receiver says: ")[2].partition(";")[0] for line in said(agent, "the receiver says")
    } == {
        "trace too old",
        "no such tenant",
    }


@pytest.mark.parametrize("largest", [6000, 200])
def test_receiver_that_takes_smaller_messages_only(largest: int, tmp_path: Path) -> None:
    """Messages are halved until they are taken. What is too large by itself is lost."""

    def picky(handler: Handler) -> None:
        status = 413 if int(handler.headers["Content-Length"]) > largest else 200
        misbehaving.answer(status)(handler)

    with misbehaving.http_receiver() as received:
        received.answer = picky
        with delivering(tmp_path, environment(received.port)) as agent:
            agent.wait_until(lambda: settled(agent), "all was sent")
        taken = dict.fromkeys(PLACES, 0)
        for request in received.requests:
            if int(request.headers["content-length"]) <= largest:
                taken[place_of(request)] += count(place_of(request), request.body)
    ledger = agent.ledger()
    for place, each in PLACES.items():
        if largest > 1000:
            assert ledger[place] == {"exported": each * UNITS}
            assert taken[place] == each * UNITS
        else:
            assert ledger[place] == {"lost: larger than the receiver takes": each * UNITS}
            assert taken[place] == 0
    if largest < 1000:
        assert all("raise the receiver's message limit" in line for line in said(agent, "takes smaller messages only"))


def test_receiver_that_is_none(tmp_path: Path) -> None:
    """It says that all is well, but is a web site."""
    with misbehaving.http_receiver() as received:
        received.answer = misbehaving.answer(200, b"<html>It works!</html>", content_type="text/html")
        with delivering(tmp_path, environment(received.port)) as agent:
            agent.wait_until(lambda: settled(agent), "all was sent")
    assert said(agent, "does not answer as a receiver of OTLP (text/html)")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_receiver_with_a_wrong_certificate(protocol: Protocol, tmp_path: Path) -> None:
    """It may be somebody else: nothing goes there, and all of it waits."""
    known, unknown = (misbehaving.make_authority(tmp_path, name) for name in ("known", "unknown"))
    with ExitStack() as stack:
        if protocol == "grpc":
            credentials = misbehaving.server_credentials(unknown.issue("server"))
            received = stack.enter_context(misbehaving.grpc_receiver(credentials))
        else:
            context = misbehaving.server_context(unknown.issue("server"))
            received = stack.enter_context(misbehaving.http_receiver(context))
        env = environment(
            received.port,
            protocol,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"https://localhost:{received.port}",
            OTEL_EXPORTER_OTLP_CERTIFICATE=str(known.certificate),
        )
        with delivering(tmp_path, env) as agent:
            agent.wait_until(lambda: agent.stderr.count("certificate") >= len(PLACES), "it said what is wrong")
        assert not received.requests
    for place, each in PLACES.items():
        assert agent.ledger()[place] == {"waiting: spooled": each * UNITS}
    for line in said(agent, f"https://localhost:{received.port} has a certificate that is not trusted"):
        assert "let OTEL_EXPORTER_OTLP_CERTIFICATE name the file" in line


# Disks that misbehave


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    options = "size=1m,mode=0755"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False).returncode:
        cannot_run("kernel", "a tmpfs cannot be mounted")
    yield path
    subprocess.run(["umount", path], check=True)


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)


def away(port: int) -> dict[str, str]:
    """A receiver that is not there, and many small files for what waits."""
    return environment(port, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8", OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="8")


def test_spool_on_a_disk_that_cannot_be_written(disk: Path, roomy: tuple[str, str], tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(refusing_port())
        made = stack.enter_context(load(tmp_path / "load"))
        spool = disk / "spool"
        options = ("run", "--spool", str(spool), *made.filter, *roomy)
        with run_command(tmp_path, *options, env=away(port)) as agent:
            made.run(UNITS)
            agent.wait_until(lambda: min(spooled(spool).values()) > 0, "it waited on disk")
            remount(disk, "ro")
            made.run(UNITS)
            agent.wait_until(lambda: "cannot be written" in agent.stderr, "it said that nothing can be kept")
            remount(disk, "rw")
            made.run(UNITS)
            agent.wait_until(lambda: "writing works again" in agent.stderr, "it goes on")
    ledger = assert_exact(agent, 3 * UNITS)
    waiting = spooled(spool)
    for place in PLACES:
        assert ledger[place].keys() <= {"waiting: spooled", "lost: spool cannot be written"}
        assert ledger[place]["waiting: spooled"] == waiting[place]
    assert sum(ledger[place].get("lost: spool cannot be written", 0) for place in PLACES) > 0
    (line,) = [line for line in agent.stderr.splitlines() if "cannot be written" in line and "ledger" not in line]
    assert line.startswith(f"otel-procmon: delivery.spool: the spool {spool} cannot be written (read-only file system)")
    assert line.endswith("records were lost")


def test_spool_on_a_disk_that_cannot_be_written_from_the_start(disk: Path, tmp_path: Path) -> None:
    remount(disk, "ro")
    command = ("run", "--spool", str(disk / "spool"))
    with pytest.raises(AgentError) as failed, run_command(tmp_path, *command):
        pass
    assert "the agent exited 1" in str(failed.value)
    assert (
        f"\notel-procmon: the spool {disk}/spool cannot be used (read-only file system); set delivery.spool_directory to "
        "a directory that can be written, or to null\n"
    ) in str(failed.value)


def test_spool_on_a_disk_that_is_full(disk: Path, roomy: tuple[str, str], tmp_path: Path) -> None:
    spool = disk / "spool"
    with ExitStack() as stack:
        port = stack.enter_context(refusing_port())
        made = stack.enter_context(load(tmp_path / "load", rate=400))
        options = ("run", "--spool", str(spool), *made.filter, *roomy)
        with run_command(tmp_path, *options, env=away(port)) as agent:
            made.resume()
            agent.wait_until(lambda: "no space left" in agent.stderr, "it said that the disk is full")
            full = made.pause()
            made.run(UNITS)
    units = full + UNITS
    ledger = assert_exact(agent, units)
    waiting = spooled(spool)
    for place in PLACES:
        assert ledger[place].keys() == {"waiting: spooled", "lost: spool cannot be written"}
        assert ledger[place]["waiting: spooled"] == waiting[place]
    assert agent.stderr.count("(no space left on device)") == 1
    assert not [path.name for path in spool.iterdir() if not re.fullmatch(r"\d+\.\w+\.\d+", path.name)]


def test_spool_with_a_file_that_was_cut(roomy: tuple[str, str], tmp_path: Path) -> None:
    """And one that was overwritten: each costs itself."""
    spool = tmp_path / "spool"
    with ExitStack() as stack:
        port = stack.enter_context(refusing_port())
        made = stack.enter_context(load(tmp_path / "load"))
        options = ("run", "--spool", str(spool), *made.filter, *roomy)
        with run_command(tmp_path, *options, env=away(port)) as first:
            made.run(UNITS)
            expected = {place: each * UNITS for place, each in PLACES.items()}
            first.wait_until(lambda: spooled(spool) == expected, "all waited on disk")
            first.kill()
        cut, overwritten, *_ = sorted(spool.glob("*.logs.*"))
        os.truncate(cut, cut.stat().st_size // 2)
        overwritten.write_bytes(overwritten.read_bytes()[:-20] + bytes(20))
        bad = sum(int(path.name.rpartition(".")[2]) for path in (cut, overwritten))
        received = stack.enter_context(receiver("http/protobuf", port))
        with run_command(tmp_path, *options, env=away(port)) as second:
            second.wait_until(lambda: sum(spooled(spool).values()) == 0, "all was sent")
    ledger = assert_exact(second, 0)
    assert ledger["delivery.traces"] == {
        "found: in the spool": expected["delivery.traces"],
        "exported": expected["delivery.traces"],
    }
    assert ledger["delivery.logs"] == {
        "found: in the spool": expected["delivery.logs"],
        "exported": expected["delivery.logs"] - bad,
        "lost: spool file unreadable": bad,
    }
    assert len(received.logs) == expected["delivery.logs"] - bad
    (line,) = [line for line in second.stderr.splitlines() if "is passed over" in line]
    # Two are sent at a time, and the first one to be found is told of.
    assert re.search(rf"the spool file ({cut} has|{overwritten} is damaged)", line)
    assert line.endswith("records were lost")
