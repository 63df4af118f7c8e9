"""What happened to images, as records: one test for each row of the design's tables."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.convert import attributes as names
from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.records import LogRecord, Resource, Span
from otel_procmon.convert.resource import Resources
from otel_procmon.events import Discovered, Exec, Exit, Process, Usage
from otel_procmon.lineage.image import Ended, Image, Opened, SpanRef, Started

START = 1_700_000_000_123_456_789
END = START + 5_000_000_000
TRACE = bytes(range(16))
SPAN = bytes(range(8))
PARENT_SPAN = b"parent!!"
OTHER = SpanRef(b"T" * 16, b"S" * 8)
HOST = Resource({"host.name": "worker", "service.name": "otel-procmon"}, names.SCHEMA_URL)

FULL: dict[str, Any] = {
    "exec_id": "d29ya2VyOjE6Mg==",
    "pid": 42,
    "binary": "/usr/bin/curl",
    "start_unix_ns": START,
    "creation_unix_ns": START - 1_000_000,
    "flags": ("execve", "clone"),
    "argv": ("curl", "-s", "http://x", ""),
    "args_count": 4,
    "cwd": "/root",
    "parent_pid": 41,
    "vpid": 2,
    "session_id": 40,
    "tty": True,
    "uid": 1000,
    "gid": 1000,
    "euid": 0,
    "egid": 0,
    "auid": 1001,
    "cgroup": "/user.slice",
    "node": "worker",
}


def whole(record: Any) -> Any:
    """The record with all of its attributes as its own."""
    return msgspec.structs.replace(record, attributes=record.all_attributes, shared=())


def image_of(*, ended: Any = None, **fields: Any) -> Image:
    image = Image(Process(**{**FULL, **fields}), SpanRef(TRACE, SPAN))
    image.parent_exec_id = "cGFyZW50"
    image.parent_span_id = PARENT_SPAN
    image.parent_name = "bash"
    image.parent_binary = "/bin/bash"
    image.ancestors = ("bash", "sshd")
    image.ended = ended
    image.end_unix_ns = END if ended else 0
    return image


def converter(
    *, body: Any = lambda _: "line", user_name: Any = {0: "root", 1000: "user"}.get, **options: Any
) -> Converter:
    return Converter(
        Resources(HOST),
        body=body,
        life_span_id=lambda image: bytes(reversed(image.span.span_id)),
        user_name=user_name,
        **options,
    )


def exit_of(image: Image, *, code: Any = 0, **fields: Any) -> Ended:
    image.ended, image.end_unix_ns = "exit", END
    event = Exit(time_unix_ns=END, observed_unix_ns=END + 9, exec_id=image.exec_id, pid=42, code=code, **fields)
    return Ended(image, event, END + 9)


def started(image: Image) -> Started:
    event = Exec(time_unix_ns=START, observed_unix_ns=START + 5, process=image.process, parent_exec_id=None)
    return Started(image, event)


COMMON: dict[str, Any] = {
    "process.pid": 42,
    "process.parent_pid": 41,
    "process.vpid": 2,
    "process.session_leader.pid": 40,
    "process.executable.name": "curl",
    "process.executable.path": "/usr/bin/curl",
    "process.command": "curl",
    "process.command_args": ("curl", "-s", "http://x", ""),
    "process.args_count": 4,
    "process.working_directory": "/root",
    "process.user.id": 0,
    "process.user.name": "root",
    "process.real_user.id": 1000,
    "process.interactive": True,
    "process.creation.time": "2023-11-14T22:13:20.122456789Z",
    "process.linux.cgroup": "/user.slice",
    "procmon.exec_id": "d29ya2VyOjE6Mg==",
    "procmon.flags": ("execve", "clone"),
    "procmon.auid": 1001,
    "procmon.parent_exec_id": "cGFyZW50",
    "procmon.parent.executable.name": "bash",
    "procmon.parent.executable.path": "/bin/bash",
    "procmon.ancestors": ("bash", "sshd"),
}


def test_exec() -> None:
    assert [whole(record) for record in converter().convert(started(image_of()))] == [
        LogRecord(
            resource=HOST,
            event_name="process.exec",
            time_unix_ns=START,
            observed_unix_ns=START + 5,
            severity_number=9,
            body="line",
            attributes=COMMON,
            span=SpanRef(TRACE, SPAN),
        )
    ]


def test_discovered() -> None:
    image = image_of()
    event = Discovered(time_unix_ns=END, observed_unix_ns=END + 1, process=image.process, parent_exec_id=None)
    (record,) = converter(body=lambda _: None).convert(Started(image, event))
    assert isinstance(record, LogRecord)
    assert (record.event_name, record.time_unix_ns, record.all_attributes) == ("process.discovered", END, COMMON)
    assert record.body == "process /usr/bin/curl (pid 42) was already running"


def test_exit() -> None:
    span, log = converter().convert(exit_of(image_of()))
    exited = {**COMMON, "process.exit.code": 0, "process.exit.time": "2023-11-14T22:13:25.123456789Z"}
    assert whole(span) == Span(
        resource=HOST,
        name="curl",
        span=SpanRef(TRACE, SPAN),
        parent_span_id=PARENT_SPAN,
        start_unix_ns=START,
        end_unix_ns=END,
        error=False,
        attributes=exited,
    )
    assert whole(log) == LogRecord(
        resource=HOST,
        event_name="process.exit",
        time_unix_ns=END,
        observed_unix_ns=END + 9,
        severity_number=9,
        body="line",
        attributes=exited,
        span=SpanRef(TRACE, SPAN),
    )


def test_failed_exit() -> None:
    span, log = converter().convert(exit_of(image_of(), code=42))
    assert isinstance(span, Span)
    assert isinstance(log, LogRecord)
    assert span.error
    assert log.severity_number == 13
    for record in span, log:
        assert record.all_attributes["process.exit.code"] == 42
        assert record.all_attributes["error.type"] == "42"


def test_failed_exit_that_is_configured_not_to_be_an_error() -> None:
    span, log = converter(failed_status=False).convert(exit_of(image_of(), code=1))
    assert isinstance(span, Span)
    assert isinstance(log, LogRecord)
    assert not span.error
    assert log.severity_number == 13
    assert "error.type" not in span.all_attributes
    assert "error.type" not in log.all_attributes


def test_death_by_signal_has_no_code() -> None:
    ended = exit_of(image_of(), code=None, signal="SIGKILL", core_dumped=False, oom_killed=True)
    span, log = converter().convert(ended)
    assert isinstance(span, Span)
    assert span.error
    assert isinstance(log, LogRecord)
    assert log.severity_number == 13
    for record in span, log:
        assert "process.exit.code" not in record.all_attributes
        assert record.all_attributes["procmon.exit.signal"] == record.all_attributes["error.type"] == "SIGKILL"
        assert record.all_attributes["procmon.exit.core_dumped"] is False
        assert record.all_attributes["procmon.exit.oom_killed"] is True


def test_exit_of_which_the_code_is_not_known() -> None:
    span, log = converter().convert(exit_of(image_of(), code=None))
    assert isinstance(span, Span)
    assert not span.error
    assert "process.exit.code" not in log.all_attributes


def test_usage() -> None:
    usage = Usage(cpu_user_ns=1_500_000_000, cpu_system_ns=0, max_rss_bytes=4096, read_bytes=7, written_bytes=2**64 - 1)
    (span, _) = converter().convert(exit_of(image_of(), usage=usage))
    assert span.all_attributes["procmon.usage.cpu_user"] == 1.5
    assert span.all_attributes["procmon.usage.cpu_system"] == 0.0
    assert isinstance(span.all_attributes["procmon.usage.cpu_system"], float)
    assert span.all_attributes["procmon.usage.max_rss"] == 4096
    assert span.all_attributes["procmon.usage.io_read"] == 7
    # 64 bits with a sign are all that OTLP has.
    assert "procmon.usage.io_written" not in span.all_attributes


def test_end_by_exec_is_a_span_only() -> None:
    (span,) = converter().convert(Ended(image_of(ended="exec"), None, END + 1))
    assert isinstance(span, Span)
    assert (span.start_unix_ns, span.end_unix_ns, span.error) == (START, END, False)
    assert span.all_attributes == {**COMMON, "procmon.exit.reason": "exec"}


def test_lost_exit() -> None:
    span, log = converter(body=lambda _: None).convert(Ended(image_of(ended="lost"), None, END + 1))
    assert isinstance(span, Span)
    assert isinstance(log, LogRecord)
    lost = {**COMMON, "procmon.exit.reason": "lost"}
    assert (span.end_unix_ns, span.error, span.all_attributes) == (END, False, lost)
    assert (log.event_name, log.time_unix_ns, log.observed_unix_ns) == ("process.exit", END, END + 1)
    assert (log.severity_number, log.all_attributes) == (9, lost)
    assert log.body == "process /usr/bin/curl (pid 42) is gone; its exit was not seen"


def test_fork_without_exec_says_clone() -> None:
    image = image_of(flags=(), creation_unix_ns=None)
    image.forked_only = True
    span, log = converter().convert(exit_of(image))
    for record in span, log:
        assert record.all_attributes["procmon.flags"] == ("clone",)
        assert record.all_attributes["process.creation.time"] == "2023-11-14T22:13:20.123456789Z"


def test_entry_has_a_reason_and_a_link() -> None:
    image = image_of()
    image.parent_span_id, image.entry_reason, image.link = None, "service", OTHER
    span, log = converter().convert(exit_of(image))
    assert isinstance(span, Span)
    assert (span.parent_span_id, list(span.links)) == (None, [OTHER])
    assert span.all_attributes["procmon.entry.reason"] == "service"
    assert "procmon.entry.reason" not in log.all_attributes


def test_opening_span_and_the_life_under_it() -> None:
    image = image_of()
    image.parent_span_id, image.entry_reason, image.link = None, "session", OTHER
    convert = converter()
    (opening,) = convert.convert(Opened(image))
    image.opened = True
    life, log = convert.convert(exit_of(image, code=3))
    assert whole(opening) == Span(
        resource=HOST,
        name="curl",
        span=SpanRef(TRACE, SPAN),
        parent_span_id=None,
        start_unix_ns=START,
        end_unix_ns=START + 1000,
        error=False,
        attributes={**COMMON, "procmon.span": "open", "procmon.entry.reason": "session"},
        links=(OTHER,),
    )
    assert isinstance(life, Span)
    assert life.span == SpanRef(TRACE, bytes(reversed(SPAN)))
    assert (life.parent_span_id, list(life.links)) == (SPAN, [])
    assert (life.start_unix_ns, life.end_unix_ns, life.error) == (START, END, True)
    assert life.all_attributes["procmon.span"] == "life"
    assert "procmon.entry.reason" not in life.all_attributes
    assert isinstance(log, LogRecord)
    assert log.span == SpanRef(TRACE, SPAN)
    assert "procmon.span" not in log.all_attributes


def test_what_is_not_known_is_absent() -> None:
    image = Image(Process(exec_id="e", pid=1, binary="", start_unix_ns=START), SpanRef(TRACE, SPAN))
    (record,) = converter().convert(started(image))
    assert record.all_attributes == {"process.pid": 1, "procmon.exec_id": "e"}
    span, _ = converter().convert(exit_of(image))
    assert isinstance(span, Span)
    assert span.name == "process"


def test_session_without_a_leader_names_none() -> None:
    image = Image(Process(exec_id="e", pid=1, binary="", start_unix_ns=START, session_id=0), SpanRef(TRACE, SPAN))
    (record,) = converter().convert(started(image))
    assert "process.session_leader.pid" not in record.all_attributes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"argv": (), "args_count": 0}, {"process.args_count": 0}),
        ({"argv": ("",), "args_count": None}, {"process.command_args": ("",), "process.args_count": 1}),
        (
            {"argv": None, "arguments": '-c "a b"', "args_count": None},
            {"process.command_line": '/usr/bin/curl -c "a b"'},
        ),
        ({"argv": None, "arguments": "", "args_count": None}, {"process.command_line": "/usr/bin/curl"}),
        ({"argv": None, "arguments": None, "args_count": None}, {}),
        (
            {"argv": ("a",), "args_count": 900, "truncated": ("args",)},
            {"process.command": "a", "process.command_args": ("a",), "process.args_count": 900},
        ),
    ],
)
def test_arguments(fields: Any, expected: Any) -> None:
    (record,) = converter().convert(started(image_of(**fields)))
    about = ("process.command", "process.args_count")
    assert {name: value for name, value in record.all_attributes.items() if name.startswith(about)} == expected


def test_what_really_runs() -> None:
    image = image_of(
        binary="/dev/fd/7",
        executable="/memfd:payload (deleted)",
        executable_deleted=True,
        interpreter="/bin/sh",
        truncated=("argv",),
    )
    (record,) = converter().convert(started(image))
    assert record.all_attributes["process.executable.path"] == "/memfd:payload (deleted)"
    assert record.all_attributes["procmon.executable.deleted"] is True
    assert record.all_attributes["procmon.interpreter"] == "/bin/sh"
    assert record.all_attributes["procmon.truncated"] == ("argv",)


@pytest.mark.parametrize("fields", [{"container_id": "c" * 64}, {"pod_uid": "u"}, {"euid": None}, {"euid": 77}])
def test_no_user_name_for_containers_and_strangers(fields: Any) -> None:
    (record,) = converter().convert(started(image_of(**fields)))
    assert "process.user.name" not in record.all_attributes
    (record,) = converter(user_name=None).convert(started(image_of()))
    assert "process.user.name" not in record.all_attributes


def test_tetragons_one_user_id() -> None:
    (record,) = converter(user_name=None).convert(started(image_of(uid=None, euid=5)))
    assert record.all_attributes["process.user.id"] == 5
    assert "process.real_user.id" not in record.all_attributes


def test_attributes_of_an_image_are_computed_once_and_shared_between_its_records() -> Any:
    looked_up = []

    def user_name(uid: Any) -> Any:
        looked_up.append(uid)
        return "root"

    convert = converter(user_name=user_name)
    image = image_of()
    (first,) = convert.convert(started(image))
    (opening,) = convert.convert(Opened(image))
    span, log = convert.convert(exit_of(image))
    assert looked_up == [0]
    assert len({id(record.shared[0]) for record in (first, opening, span, log)}) == 1
    assert span.shared[1] is log.shared[1]
    for record in (first, opening, span, log):
        assert len(record.all_attributes) == len(record.attributes) + sum(len(s.attributes) for s in record.shared)
    convert.convert(started(image))
    assert looked_up == [0, 0], "what has ended is forgotten"


def test_what_became_known_since_is_told() -> None:
    convert = converter()
    image = image_of()
    convert.convert(started(image))
    image.process = Process(**{**FULL, "cwd": "/elsewhere"})
    image.ancestors = ("other",)
    span, _ = convert.convert(exit_of(image))
    assert span.all_attributes["process.working_directory"] == "/elsewhere"
    assert span.all_attributes["procmon.ancestors"] == ("other",)


def test_memory_is_bounded() -> None:
    convert = converter(remembered=3)
    for pid in range(10):
        convert.convert(started(image_of(pid=pid)))
    assert len(convert._images) == 3


@pytest.mark.parametrize("start", [-5, 2**70])
def test_impossible_times_become_possible(start: Any) -> None:
    image = image_of(start_unix_ns=start, creation_unix_ns=start)
    for happening in (started(image), Opened(image), exit_of(image)):
        for record in converter().convert(happening):
            if isinstance(record, Span):
                assert 0 <= record.start_unix_ns <= record.end_unix_ns < 2**63


def test_no_span_ends_before_it_began() -> None:
    (span, _) = converter().convert(exit_of(image_of(start_unix_ns=END + 700)))
    assert isinstance(span, Span)
    assert span.start_unix_ns == span.end_unix_ns == END + 700


texts = st.text(st.characters(codec=None), max_size=20)


@given(texts, texts, st.lists(texts, max_size=4), texts, st.integers(0, 2**65))
def test_hostile_text_is_encodable_and_loses_nothing_else(
    binary: Any, cwd: Any, argv: Any, body: Any, number: Any
) -> None:
    image = image_of(
        binary=binary, cwd=cwd, argv=tuple(argv), args_count=None, flags=(binary,), auid=number, cgroup=body
    )
    image.ancestors = (binary, cwd)
    image.parent_name = binary
    convert = converter(body=lambda _: body)
    ended = exit_of(image, code=None, signal=binary)
    records = [*convert.convert(started(image)), *convert.convert(Opened(image)), *convert.convert(ended)]
    assert len(records) == 4
    for record in records:
        assert record.all_attributes["process.args_count"] == len(argv)
        for value in record.all_attributes.values():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    text.encode()
        (record.name if isinstance(record, Span) else record.body).encode()
        assert len(cast("tuple[str, ...]", record.all_attributes.get("process.command_args", ()))) == len(argv)


def test_all_written_attributes_are_registered_for_their_place() -> None:
    image = image_of(
        executable_deleted=True,
        interpreter="/bin/sh",
        truncated=("argv",),
        redacted=("option",),
        metadata_incomplete=True,
    )
    image.entry_reason = "init_parent"
    image.own = True
    usage = Usage(cpu_user_ns=1, cpu_system_ns=1, max_rss_bytes=1, read_bytes=1, written_bytes=1)
    convert = converter()
    line = image_of(argv=None, arguments="x")
    opened = image_of()
    opened.opened = True
    written: dict[str, set[str]] = {"log": set(), "span": set()}
    for happening in (
        started(image),
        Opened(image),
        exit_of(image, code=1, usage=usage),
        started(line),
        exit_of(line),
        exit_of(opened),
        exit_of(image_of(), code=None, signal="SIGSEGV", core_dumped=True, oom_killed=False),
        Ended(image_of(ended="lost"), None, END),
    ):
        for record in convert.convert(happening):
            written["log" if isinstance(record, LogRecord) else "span"] |= record.all_attributes.keys()
    for place in ("log", "span"):
        assert written[place] == {a.name for a in names.ATTRIBUTES if place in a.places}
