"""Entries: where a trace begins, and why. Design rules 1 to 5, in their order, and what is near to them."""

from __future__ import annotations

from typing import Any

import pytest

from otel_procmon.config import TraceOptions
from otel_procmon.events import Process
from otel_procmon.lineage.entry import began, entry_reason
from otel_procmon.lineage.image import Image, SpanRef

S = 1_000_000_000
NOW = 1_700_000_000 * S
OPTIONS = TraceOptions()


def process(**fields: Any) -> Process:
    known: dict[str, Any] = {
        "exec_id": "e",
        "pid": 200,
        "binary": "/bin/ls",
        "start_unix_ns": NOW,
        "creation_unix_ns": NOW,
        "parent_pid": 100,
        "session_id": 90,
        "tty": False,
    }
    return Process(**{**known, **fields})


def parent_image(*, trace_age_s: float = 0, trace_images: int = 1, **fields: Any) -> Image:
    """Another program in the same session, just begun."""
    image = Image(process(**{"pid": 100, "binary": "/bin/sh", **fields}), SpanRef(b"T" * 16, b"S" * 8))
    image.trace_start_unix_ns = NOW - int(trace_age_s * S)
    image.trace_images = [trace_images]
    return image


def reason(
    parent: Image | None, at_fork: Process | None = None, *, options: TraceOptions = OPTIONS, **fields: Any
) -> str | None:
    own = process(**fields)
    return entry_reason(own, began(own), parent, at_fork, options)


def test_joins_its_parent() -> None:
    assert reason(parent_image()) is None


@pytest.mark.parametrize(
    ("parent", "fields", "expected"),
    [
        (None, {}, "unknown_parent"),
        (None, {"parent_pid": None}, "unknown_parent"),
        (None, {"parent_pid": 1}, "init_parent"),
        ({"pid": 1}, {"parent_pid": 1}, "init_parent"),
        ({"pid": 2, "kernel_thread": True}, {"parent_pid": 2}, "kernel_parent"),
        ({"pid": 1, "kernel_thread": True}, {}, "kernel_parent"),
        ({"container_id": "a" * 64}, {}, "container"),
        ({}, {"container_id": "a" * 64}, "container"),
        ({"container_id": "a" * 64}, {"container_id": "b" * 64}, "container"),
        ({"container_id": "a" * 64}, {"container_id": "a" * 64}, None),
        ({"container_id": "a" * 31}, {"container_id": "a" * 64}, None),
        ({"container_id": "a" * 64}, {"container_id": "a" * 31}, None),
        ({"container_id": "ab" * 15 + "a"}, {"container_id": "a" * 64}, "container"),
        ({"container_id": ""}, {"container_id": "a" * 64}, "container"),
        ({}, {"session_id": 200}, "session"),
        ({"tty": True}, {"session_id": 200}, None),
        ({"tty": None}, {"session_id": 200}, None),
        # The session that init was born in has no leader, but is one.
        ({"session_id": 0}, {}, "session"),
        ({"session_id": 0}, {"session_id": 0}, None),
        ({}, {"session_id": None}, None),
        ({"session_id": None}, {}, None),
        ({"creation_unix_ns": NOW - 301 * S}, {}, "service"),
        ({"creation_unix_ns": NOW - 300 * S}, {}, None),
        ({"creation_unix_ns": NOW - 301 * S, "tty": True}, {}, None),
        ({"creation_unix_ns": NOW - 301 * S, "tty": None}, {}, None),
        # It is the process that is old, whatever it runs by now.
        ({"creation_unix_ns": NOW - 301 * S, "start_unix_ns": NOW}, {}, "service"),
        ({"creation_unix_ns": None, "start_unix_ns": NOW - 301 * S}, {}, "service"),
    ],
)
def test_rules(parent: Any, fields: Any, expected: str | None) -> None:
    assert reason(None if parent is None else parent_image(**parent), **fields) == expected


def test_first_rule_that_holds_is_told() -> None:
    old = {"creation_unix_ns": NOW - 9999 * S, "trace_age_s": 9999, "trace_images": 9999}
    assert reason(parent_image(**old, pid=1, container_id="a"), session_id=7) == "init_parent"
    assert reason(parent_image(**old, container_id="a"), session_id=7) == "container"
    assert reason(parent_image(**old), session_id=7) == "session"
    assert reason(parent_image(**old)) == "service"
    assert reason(parent_image(**old, tty=True)) == "limit"


def test_limits_of_a_trace() -> None:
    assert reason(parent_image(trace_age_s=3600)) is None
    assert reason(parent_image(trace_age_s=3601)) == "limit"
    assert reason(parent_image(trace_images=3999)) is None
    assert reason(parent_image(trace_images=4000)) == "limit"
    tight = TraceOptions(max_age_ns=S, max_spans=2, service_age_ns=5 * S)
    assert reason(parent_image(trace_age_s=2), options=tight) == "limit"
    assert reason(parent_image(trace_images=2), options=tight) == "limit"
    assert reason(parent_image(creation_unix_ns=NOW - 6 * S), options=tight) == "service"


def test_session_and_terminal_of_the_parent_are_those_at_the_fork() -> None:
    """The parent's own record is from its exec; it may have led a new session since."""
    daemon = parent_image(session_id=50, tty=True)
    # It made a session of its own without a terminal, and forks from there.
    assert reason(daemon, process(session_id=100, tty=False), session_id=100, tty=False) is None
    # Its child leads one of its own, between fork and exec, as cron's does.
    assert reason(daemon, process(session_id=100, tty=False), session_id=200, tty=False) == "session"
    # sudo with a pty: a session of its own, but the parent had a terminal.
    assert reason(parent_image(tty=False), process(session_id=90, tty=True), session_id=200) is None


def test_program_that_takes_the_place_of_another_one() -> None:
    """It belongs to what its process began, unless it is in another container, or the process only now begins it."""
    before = parent_image(creation_unix_ns=NOW - 301 * S)
    own = process(session_id=200)
    for began_trace, expected in ((False, "session"), (True, None)):
        before.began_trace = began_trace
        assert entry_reason(own, NOW, before, None, OPTIONS, replaces=True) == expected
        assert entry_reason(own, NOW, before, None, OPTIONS) == "session"
        assert entry_reason(process(), NOW, before, None, OPTIONS, replaces=True) is None
        assert entry_reason(process(), NOW, before, None, OPTIONS) == "service"
        assert entry_reason(process(container_id="a"), NOW, before, None, OPTIONS, replaces=True) == "container"
    old = parent_image(trace_age_s=3601)
    assert entry_reason(process(), NOW, old, None, OPTIONS, replaces=True) == "limit"


def test_began() -> None:
    assert began(process(creation_unix_ns=5)) == 5
    assert began(process(creation_unix_ns=None, start_unix_ns=6)) == 6
    assert began(process(creation_unix_ns=0)) == 0
