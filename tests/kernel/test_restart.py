"""Identities that outlive the agent: what was named before a restart is found again after it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.kernel.truth.family import exec_id, with_word
from tests.kernel.truth.shell import Shell, marker, only_marked, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.truth.family import Record
    from tests.kernel.truth.otlp import Log, Span
    from tests.kernel.truth.running import Agent, RunningAgent

pytestmark = pytest.mark.kernel

CLOCK_SLACK_NS = 50_000_000
"""The agent's idea of when this host booted may be corrected meanwhile."""


@pytest.fixture
def a_shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """A shell of one of the kinds that decide differently in which trace its children are."""
    with shell(session=request.param == "session", terminal=request.param == "terminal") as started:
        yield started


def stop(agent: Agent) -> None:
    agent.stop()


def kill(agent: Agent) -> None:
    agent.kill()


def child(of: Shell, agent: Agent) -> tuple[Log, Log, Span]:
    """Has the shell run a program, and gives what was told of it: its exec, its exit, its span."""
    word = marker()
    assert of.run(f"/bin/true {word}") == 0
    agent.wait_until(lambda: len(with_word(agent.logs(), word)) >= 2, "a child was told of")
    agent.wait_until(lambda: bool(with_word(agent.spans(), word)), "its span was sent")
    (exec_, exit_) = with_word(agent.logs(), word)
    (span,) = with_word(agent.spans(), word)
    assert (exec_.event_name, exit_.event_name) == ("process.exec", "process.exit")
    return exec_, exit_, span


def parent_of(record: Record) -> str:
    told: str = record.attributes["procmon.parent_exec_id"]
    return told


def spans_of(agent: Agent, image: str) -> dict[str, Span]:
    """The spans of an image: by ``procmon.span``, ``""`` where it has one only."""
    spans = [span for span in agent.spans() if exec_id(span) == image]
    told = {span.attributes.get("procmon.span", ""): span for span in spans}
    assert len(told) == len(spans)
    return told


def named(agent: Agent, image: str) -> tuple[str, str]:
    """Trace and span id under which an image was sent, as those that it started name it."""
    told = spans_of(agent, image)
    if set(told) == {""}:
        return told[""].trace_id, told[""].span_id
    assert set(told) == {"open", "life"}
    assert (told["life"].trace_id, told["life"].parent_span_id) == (told["open"].trace_id, told["open"].span_id)
    return told["open"].trace_id, told["open"].span_id


@pytest.mark.parametrize(
    ("end", "a_shell"),
    [
        (stop, "session"),
        pytest.param(kill, "session", marks=pytest.mark.every_loader),
        (kill, "plain"),
        (kill, "terminal"),
    ],
    indirect=["a_shell"],
)
def test_shell_is_the_parent_that_its_children_named(
    end: Callable[[Agent], None], a_shell: Shell, running_agent: RunningAgent, tmp_path: Path
) -> None:
    with running_agent(tmp_path, *only_marked(tmp_path)) as first:
        before_exec, before_exit, before_span = child(a_shell, first)
        end(first)
    with running_agent(tmp_path, *only_marked(tmp_path)) as second:
        after_exec, after_exit, after_span = child(a_shell, second)
        a_shell.end()
    image = parent_of(before_exec)
    assert {parent_of(record) for record in (before_exit, before_span, after_exec, after_exit, after_span)} == {image}
    assert named(second, image) == (before_span.trace_id, before_span.parent_span_id)
    assert named(second, image) == (after_span.trace_id, after_span.parent_span_id)
    (exit_,) = [log for log in second.logs() if exec_id(log) == image and log.event_name == "process.exit"]
    assert (exit_.trace_id, exit_.span_id) == (before_span.trace_id, before_span.parent_span_id)


def test_shell_that_began_before_the_restart(running_agent: RunningAgent, tmp_path: Path) -> None:
    """Its exec told all that it has as a discovered process."""
    with running_agent(tmp_path, *only_marked(tmp_path)) as first, shell(session=True) as started:
        first.wait_until(lambda: bool(with_word(first.logs(), started.marker)), "the shell was told of")
        first.kill()
        (began,) = with_word(first.logs(), started.marker)
        with running_agent(tmp_path, *only_marked(tmp_path)) as second:
            second.wait_until(lambda: bool(with_word(second.logs(), started.marker)), "the shell was discovered")
            started.end()
    (found, _) = with_word(second.logs(), started.marker)
    assert found.event_name == "process.discovered"
    assert (exec_id(found), found.trace_id, found.span_id) == (exec_id(began), began.trace_id, began.span_id)
    same = ("process.pid", "process.executable.path", "process.command_args", "process.working_directory")
    for name in (*same, "process.session_leader.pid", "process.vpid", "procmon.parent_exec_id", "procmon.ancestors"):
        assert found.attributes.get(name) == began.attributes.get(name)


REPLACE = ("sh", "-c", 'exec "$@"', "sh")


@pytest.mark.parametrize(
    ("through", "session"),
    [
        pytest.param(REPLACE, True, id="the first program began the trace"),
        pytest.param(("setsid",), False, id="the last program began the trace"),
        pytest.param(
            (*REPLACE, *REPLACE, "setsid", *REPLACE),
            False,
            id="one in between began the trace",
            marks=pytest.mark.every_kernel,
        ),
        pytest.param((*REPLACE, *REPLACE), False, id="none of them began one"),
    ],
)
def test_shell_that_took_the_place_of_other_programs(
    through: tuple[str, ...], session: bool, running_agent: RunningAgent, tmp_path: Path
) -> None:
    """As systemd starts a service, or agetty a login: nobody knows any more where in the process the trace began."""
    with running_agent(tmp_path, *only_marked(tmp_path)) as first, shell(*through, session=session) as started:
        _, _, before = child(started, first)
        first.stop()
        with running_agent(tmp_path, *only_marked(tmp_path)) as second:
            _, _, after = child(started, second)
            started.end()
    assert (after.trace_id, after.parent_span_id) == (before.trace_id, before.parent_span_id)
    assert named(second, parent_of(before)) == (before.trace_id, before.parent_span_id)
    # One process, one trace, and one beginning.
    spans = [span for span in first.spans() if span.attributes["process.pid"] == started.pid]
    assert len({exec_id(span) for span in spans}) >= len(through) // 4
    assert len([span for span in spans if span.trace_id == before.trace_id and not span.parent_span_id]) <= 1


@pytest.mark.parametrize("a_shell", [pytest.param("plain", marks=pytest.mark.every_kernel), "terminal"], indirect=True)
def test_running_shell_is_discovered_once(a_shell: Shell, running_agent: RunningAgent, tmp_path: Path) -> None:
    latest = time.time_ns()
    with running_agent(tmp_path, *only_marked(tmp_path)) as agent:
        agent.wait_until(lambda: bool(with_word(agent.logs(), a_shell.marker)), "the shell was discovered")
        child(a_shell, agent)
        a_shell.end()
    found, ended = with_word(agent.logs(), a_shell.marker)
    assert (found.event_name, ended.event_name) == ("process.discovered", "process.exit")
    assert found.attributes["process.pid"] == a_shell.pid
    assert "procFS" in found.attributes["procmon.flags"]
    # Told now, of what began then.
    assert found.time_unix_ns >= latest - CLOCK_SLACK_NS
    created = datetime.fromisoformat(found.attributes["process.creation.time"].replace("Z", "+00:00")[:26] + "+00:00")
    assert created.timestamp() * 1e9 <= latest + CLOCK_SLACK_NS
    assert latest / 1e9 - created.timestamp() < 600
    (life,) = [span for name, span in spans_of(agent, exec_id(found)).items() if name != "open"]
    assert abs(life.start_unix_ns / 1e9 - created.timestamp()) < 0.001


@pytest.mark.every_kernel
def test_two_agents_do_not_disturb_each_other(running_agent: RunningAgent, tmp_path: Path) -> None:
    with shell() as started, running_agent(tmp_path, *only_marked(tmp_path)) as first:
        with running_agent(tmp_path, *only_marked(tmp_path)) as second:
            both = [child(started, first)]
            word = both[0][0].attributes["process.command_args"][-1]
            second.wait_until(lambda: bool(with_word(second.spans(), word)), "the second one told it too")
            first.stop()
            alone, _, _ = child(started, second)
            started.end()
        image = parent_of(alone)
        for log, other in zip(with_word(first.logs(), word), with_word(second.logs(), word), strict=True):
            assert (log.trace_id, log.span_id, log.event_name) == (other.trace_id, other.span_id, other.event_name)
            assert exec_id(log) == exec_id(other)
        (span,) = with_word(second.spans(), word)
        assert named(second, image) == (span.trace_id, span.parent_span_id)
    for agent in (first, second):
        kernel = agent.ledger()["kernel"]
        made = sum(count for outcome, count in kernel.items() if outcome.startswith("made: "))
        lost = sum(count for outcome, count in kernel.items() if outcome.startswith("lost: "))
        assert made == agent.ledger()["source"]["read"] + lost
