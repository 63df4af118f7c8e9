"""Tetragon's JSON as events: what each field becomes, what is missing or wrong, and anything else."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.decode.errors import DecodeError
from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.events import Container, Event, Exec, Exit, Pod, Process
from otel_procmon.ledger import Ledger
from otel_procmon.rfc3339 import parse_rfc3339
from otel_procmon.source.json_stream import BROKEN_OFF, JsonText
from tests.unit.tetragon_data import OWN_EVENTS, events_in, real_data

OBSERVED = 1_800_000_000_000_000_000
ID = "0123456789abcdef" * 4


def exec_id(pid: int, node: str = "here", ns: int = 7) -> str:
    return base64.b64encode(f"{node}:{ns}:{pid}".encode()).decode()


PROCESS: dict[str, Any] = {
    "exec_id": exec_id(400),
    "pid": 400,
    "uid": 0,
    "cwd": "/home/ada",
    "binary": "/bin/ls",
    "arguments": "-l",
    "flags": "execve clone",
    "start_time": "2024-03-01T08:10:01.5Z",
    "auid": 4294967295,
    "parent_exec_id": exec_id(300),
    "tid": 400,
}
PARENT: dict[str, Any] = {
    "exec_id": exec_id(300),
    "pid": 300,
    "binary": "/bin/bash",
    "start_time": "2024-03-01T08:00:00Z",
    "parent_exec_id": exec_id(200),
}


def exec_event(parent: Any = None, **fields: Any) -> dict[str, Any]:
    """A process_exec; a field that is None is left out."""
    process = {name: value for name, value in {**PROCESS, **fields}.items() if value is not None}
    event: dict[str, Any] = {"process": process}
    if parent is not None:
        event["parent"] = parent
    return {"process_exec": event, "node_name": "here", "time": "2024-03-01T08:10:01.500000400Z"}


def exit_event(*, process: Any = PROCESS, **fields: Any) -> dict[str, Any]:
    return {
        "process_exit": {"process": process, "time": "2024-03-01T08:10:02Z", **fields},
        "node_name": "here",
        "time": "2024-03-01T08:10:02Z",
    }


def decode(document: Any, ledger: Ledger | None = None) -> Event | None:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_tetragon(JsonText(text, "events.json:7"), OBSERVED, ledger or Ledger())


def decode_exec(document: Any, ledger: Ledger | None = None) -> Exec:
    event = decode(document, ledger)
    assert isinstance(event, Exec)
    return event


def decode_exit(document: Any, ledger: Ledger | None = None) -> Exit:
    event = decode(document, ledger)
    assert isinstance(event, Exit)
    return event


def test_exec() -> None:
    document = exec_event(parent=PARENT)
    ledger = Ledger()
    assert decode(document, ledger) == Exec(
        time_unix_ns=parse_rfc3339("2024-03-01T08:10:01.500000400Z"),
        observed_unix_ns=OBSERVED,
        process=Process(
            exec_id=exec_id(400),
            pid=400,
            binary="/bin/ls",
            start_unix_ns=parse_rfc3339("2024-03-01T08:10:01.5Z"),
            flags=("execve", "clone"),
            arguments="-l",
            cwd="/home/ada",
            parent_pid=300,
            euid=0,
            node="here",
        ),
        parent_exec_id=exec_id(300),
        parent=Process(
            exec_id=exec_id(300),
            pid=300,
            binary="/bin/bash",
            start_unix_ns=parse_rfc3339("2024-03-01T08:00:00Z"),
            arguments="",
            parent_pid=200,
            node="here",
        ),
        raw=document,
    )
    assert ledger.counts() == {}


def test_exit() -> None:
    document = exit_event(status=3, parent=PARENT)
    event = decode_exit(document)
    assert (event.time_unix_ns, event.observed_unix_ns) == (parse_rfc3339("2024-03-01T08:10:02Z"), OBSERVED)
    assert (event.exec_id, event.pid, event.code, event.signal) == (exec_id(400), 400, 3, None)
    assert (event.parent_exec_id, event.parent_pid, event.raw) == (exec_id(300), 300, document)
    assert event.process == decode_exec(exec_event(parent=PARENT)).process
    assert event.parent is not None
    assert event.parent.binary == "/bin/bash"


@pytest.mark.parametrize(
    ("fields", "code", "signal"),
    [
        ({}, 0, None),
        ({"status": 0}, 0, None),
        ({"status": 255}, 255, None),
        ({"status": "7"}, 7, None),
        ({"signal": "SIGKILL"}, None, "SIGKILL"),
        ({"signal": "SIGSEGV", "status": 11}, None, "SIGSEGV"),
        ({"signal": ""}, 0, None),
        # No status that anything could exit with: unknown, not 0
        ({"status": 256}, None, None),
        ({"status": -1}, None, None),
        ({"status": "x"}, None, None),
        # Our own word for an exit that nobody saw
        ({"signal": "lost"}, None, None),
    ],
)
def test_how_it_ended(fields: dict[str, Any], code: int | None, signal: str | None) -> None:
    event = decode_exit(exit_event(**fields))
    assert (event.code, event.signal) == (code, signal)


def test_an_exit_of_a_process_that_was_never_seen() -> None:
    event = decode_exit({"process_exit": {"process": {"exec_id": exec_id(5)}}, "time": "2024-03-01T08:10:02Z"})
    assert (event.pid, event.code, event.process, event.parent_exec_id, event.parent_pid) == (5, 0, None, None, None)


@pytest.mark.parametrize(
    ("document", "time"),
    [
        (exec_event(), "2024-03-01T08:10:01.500000400Z"),
        ({**exec_event(), "time": None}, "2024-03-01T08:10:01.5Z"),
        ({**exec_event(start_time=None)}, "2024-03-01T08:10:01.500000400Z"),
        ({**exit_event(), "time": "2024-03-01T10:10:03+02:00"}, "2024-03-01T08:10:03Z"),
        ({**exit_event(), "time": None}, "2024-03-01T08:10:02Z"),
        ({**exit_event(), "time": "yesterday"}, "2024-03-01T08:10:02Z"),
    ],
)
def test_when_it_happened(document: dict[str, Any], time: str) -> None:
    event = decode(document)
    assert event is not None
    assert event.time_unix_ns == parse_rfc3339(time)
    if isinstance(event, Exec):
        assert abs(event.process.start_unix_ns - event.time_unix_ns) <= 400


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"process_exec":{"process":{"exec_id":"x"', "not valid JSON"),
        (b"[]", "a JSON array instead of an object"),
        (b'"x"', "a JSON string instead of an object"),
        (b"null", "a JSON null instead of an object"),
        (b"1", "a JSON number instead of an object"),
        (b"true", "a JSON boolean instead of an object"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply|not valid JSON"),
        (b'{"process_exec":' + b'{"process":' * 70 + b"1" + b"}" * 71, "nested too deeply"),
        ({}, "holds no event"),
        ({"time": "2024-03-01T08:10:02Z", "node_name": "here"}, "holds no event"),
        ({"process_exec": None}, "holds no event"),
        ({"process_exec": [], "time": "2024-03-01T08:10:02Z"}, "process_exec is a JSON array, not an object"),
        ({**exec_event(), **exit_event()}, "more than one event"),
        ({"process_exec": {}}, "process_exec.process is missing"),
        ({"process_exec": {"process": 7}}, "process_exec.process is missing"),
        (exec_event(exec_id=None), "process_exec.process.exec_id is missing"),
        (exec_event(exec_id=""), "process_exec.process.exec_id is missing"),
        (exec_event(exec_id=7), "process_exec.process.exec_id is missing"),
        (exec_event(exec_id="opaque", pid=None), "process_exec.process.pid is missing"),
        (exec_event(exec_id=exec_id(2**32), pid=None), "process_exec.process.pid is missing"),
        ({**exec_event(start_time=None), "time": None}, "process_exec.process.start_time is missing, and so is time"),
        ({"process_exit": {}}, "process_exit.process is missing"),
        ({**exit_event(process={}), "time": None}, "process_exit.process.exec_id is missing"),
        ({**exit_event(time=None), "time": None}, "process_exit.time is missing, and so is time"),
    ],
)
def test_what_is_no_event_is_an_error_that_names_the_place(document: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"^events.json:7: .*({reason})"):
        decode(document)


def test_what_the_stream_could_not_cut_is_an_error_too() -> None:
    with pytest.raises(DecodeError, match=f"^f:1: {BROKEN_OFF}"):
        decode_tetragon(JsonText(b"{", "f:1", BROKEN_OFF), OBSERVED, Ledger())


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("process_kprobe", "passed by: process_kprobe"),
        ("processLoader", "passed by: process_loader"),
        ("rate_limit_info", "passed by: rate_limit_info"),
        ("process_time_travel", "passed by: other"),
        ("x" * 1000, "passed by: other"),
    ],
)
def test_other_kinds_pass_by_counted(kind: str, counted: str) -> None:
    ledger = Ledger()
    assert decode({kind: {"process": PROCESS}, "time": "2024-03-01T08:10:02Z"}, ledger) is None
    assert ledger.counts() == {("decode.tetragon", counted): 1}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pid": None}, {"pid": 400}),
        ({"pid": "401"}, {"pid": 401}),
        ({"pid": 401.0}, {"pid": 401}),
        ({"exec_id": exec_id(9, node=""), "pid": None}, {"pid": 9}),
        ({"exec_id": exec_id(9, node="fe80::1"), "pid": None}, {"pid": 9}),
        ({"parent_exec_id": None}, {"parent_pid": None}),
        ({"parent_exec_id": "opaque"}, {"parent_pid": None}),
        ({"flags": None}, {"flags": ()}),
        ({"flags": "procFS new-word"}, {"flags": ("procFS", "new-word")}),
        ({"cwd": ""}, {"cwd": None}),
        # Tetragon's `uid` is the effective user
        ({"uid": 1000}, {"uid": None, "euid": 1000}),
        ({"uid": 4294967295}, {"euid": None}),
        ({"auid": 1000}, {"auid": 1000}),
        (
            {"uid": 0, "process_credentials": {"uid": 1000, "gid": 7, "euid": 0, "egid": 8}},
            {"uid": 1000, "gid": 7, "euid": 0, "egid": 8},
        ),
        ({"uid": 5, "process_credentials": {"uid": 1000}}, {"uid": 1000, "euid": 5}),
        # What was lost or cut
        ({"arguments": "<enomem>"}, {"arguments": "", "truncated": ("arguments",)}),
        ({"binary": "<enomem>"}, {"binary": "", "truncated": ("binary",)}),
        ({"flags": "execve truncArgs"}, {"arguments": "-l", "truncated": ("arguments",)}),
        ({"flags": "truncFilename errorArgs"}, {"truncated": ("binary", "arguments")}),
        # A file without a name
        ({"binary_properties": {"file": {"inode": {"number": "77", "links": 0}}}}, {"executable_deleted": True}),
        ({"binary_properties": {"file": {"inode": {"number": "77", "links": 1}}}}, {"executable_deleted": False}),
        ({"binary_properties": {"setuid": 0}}, {"executable_deleted": False}),
        # Kernel threads: pid 0, kthreadd, and what it started and never ran a program
        ({"binary": "<kernel>"}, {"kernel_thread": True}),
        ({"exec_id": exec_id(2), "pid": 2, "flags": "procFS"}, {"kernel_thread": True}),
        ({"parent_exec_id": exec_id(2), "flags": "procFS"}, {"kernel_thread": True}),
        ({"parent_exec_id": exec_id(2), "flags": "execve clone"}, {"kernel_thread": False}),
        # Containers and pods
        ({"docker": ID[:31]}, {"container_id": ID[:31], "container": None, "pod": None}),
        ({"pod": {"namespace": "a", "name": "b"}}, {"pod": Pod(namespace="a", name="b"), "container": None}),
        (
            {
                "docker": ID[:31],
                "pod": {
                    "namespace": "shop",
                    "name": "cart",
                    "uid": "u-1",
                    "container": {
                        "id": f"cri-o://{ID}",
                        "name": "c",
                        "image": {"id": "i", "name": "n"},
                        "start_time": "t",
                        "pid": 7,
                        "maybe_exec_probe": True,
                    },
                    "pod_labels": {"app": "cart", "processExec": "x"},
                    "pod_annotations": {"owner": "ada"},
                    "workload": "cart",
                    "workload_kind": "Deployment",
                },
            },
            {
                "container_id": ID,
                "vpid": 7,
                "pod_uid": "u-1",
                "container": Container(
                    id=ID,
                    runtime="cri-o",
                    name="c",
                    image_id="i",
                    image_name="n",
                    start_time="t",
                    maybe_exec_probe=True,
                ),
                "pod": Pod(
                    namespace="shop",
                    name="cart",
                    uid="u-1",
                    labels={"app": "cart", "processExec": "x"},
                    annotations={"owner": "ada"},
                    workload="cart",
                    workload_kind="Deployment",
                ),
            },
        ),
        ({"docker": "d", "pod": {"container": {"id": ID}}}, {"container": Container(id=ID), "container_id": ID}),
        ({"docker": "d", "pod": {"container": {"id": "x://"}}}, {"container": None, "container_id": "d"}),
        ({"docker": "d", "pod": {"container": {"name": "c"}}}, {"container": None, "container_id": "d"}),
    ],
)
def test_process(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    ledger = Ledger()
    process = decode_exec(exec_event(**fields), ledger).process
    assert {name: getattr(process, name) for name in expected} == expected
    assert ledger.counts() == {}


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({"cwd": 7}, "process.cwd"),
        ({"binary": ["/bin/ls"]}, "process.binary"),
        ({"uid": "root"}, "process.uid"),
        ({"uid": -1}, "process.uid"),
        ({"uid": 1.5}, "process.uid"),
        ({"uid": True}, "process.uid"),
        ({"uid": 2**32}, "process.uid"),
        ({"uid": "9" * 5000}, "process.uid"),
        ({"uid": "٣"}, "process.uid"),
        ({"start_time": "yesterday"}, "process.start_time"),
        ({"start_time": 1_709_280_601}, "process.start_time"),
        ({"pod": "xwing"}, "process.pod"),
        ({"pod": {"container": []}}, "pod.container"),
        ({"pod": {"pod_labels": []}}, "pod.pod_labels"),
        ({"pod": {"pod_labels": {"a": 1, "b": "2"}}}, "pod.pod_labels"),
        ({"process_credentials": 0}, "process.process_credentials"),
        ({"parent": "bash"}, "process_exec.parent"),
    ],
)
def test_a_field_of_another_type_is_left_out_and_counted(fields: dict[str, Any], counted: str) -> None:
    ledger = Ledger()
    event = decode_exec(exec_event(**fields), ledger)
    assert event.process.pid == 400
    assert ledger.counts() == {("decode.tetragon", f"ignored: {counted}"): 1}


def test_labels_that_are_text_stay() -> None:
    pod = decode_exec(exec_event(pod={"pod_labels": {"a": 1, "b": "2"}})).process.pod
    assert pod is not None
    assert pod.labels == {"b": "2"}


def camel_case(value: Any) -> Any:
    """What protojson writes without UseProtoNames."""
    if not isinstance(value, dict):
        return value
    words = {name: name.split("_") for name in value}
    return {
        parts[0] + "".join(map(str.capitalize, parts[1:])): child if name == "pod_labels" else camel_case(child)
        for (name, child), parts in zip(value.items(), words.values(), strict=True)
    }


@pytest.mark.parametrize(
    "document",
    [
        exec_event(parent=PARENT, pod={"namespace": "a", "pod_labels": {"someLabel": "x", "a_b": "y"}}),
        exit_event(status=1),
    ],
)
def test_the_other_spelling_of_field_names_means_the_same(document: dict[str, Any]) -> None:
    event, other = decode(document), decode(camel_case(document))
    assert isinstance(event, Exec | Exit)
    assert isinstance(other, Exec | Exit)
    assert other.raw == camel_case(document)
    assert {name: getattr(other, name) for name in other.__struct_fields__ if name != "raw"} == {
        name: getattr(event, name) for name in event.__struct_fields__ if name != "raw"
    }


# Which image ran before, and who the parent is.

BASH = {**PARENT, "exec_id": exec_id(400, ns=5), "pid": 400}


@pytest.mark.parametrize(
    ("fields", "parent", "previous", "parent_pid"),
    [
        ({}, PARENT, None, 300),
        ({}, None, None, 300),
        # exec without fork: the process is its own parent, and its previous image knows whose child it is
        ({"flags": "execve", "parent_exec_id": exec_id(400, ns=5)}, BASH, exec_id(400, ns=5), 200),
        ({"flags": "execve", "parent_exec_id": exec_id(400, ns=5)}, None, exec_id(400, ns=5), None),
        # A second image of its own: who started the process is further away
        (
            {"flags": "execve", "parent_exec_id": exec_id(400, ns=5)},
            {**BASH, "parent_exec_id": exec_id(400, ns=3)},
            exec_id(400, ns=5),
            None,
        ),
        # A pid that was used again is another process
        ({"flags": "execve clone", "parent_exec_id": exec_id(400, ns=5)}, BASH, None, 400),
        # <kernel> is its own parent
        ({"exec_id": exec_id(0), "pid": 0, "flags": "procFS", "parent_exec_id": exec_id(0)}, None, None, None),
    ],
)
def test_previous_image_and_parent(
    fields: dict[str, Any], parent: Any, previous: str | None, parent_pid: int | None
) -> None:
    event = decode_exec(exec_event(parent=parent, **fields))
    assert (event.previous_exec_id, event.process.parent_pid) == (previous, parent_pid)
    assert event.previous_is_fork is (None if previous is None else False)


def test_an_image_that_replaced_another_is_nobodys_child_by_its_exit() -> None:
    event = decode_exit(
        exit_event(process={**PROCESS, "flags": "execve", "parent_exec_id": BASH["exec_id"]}, parent=BASH)
    )
    assert event.process is not None
    assert (event.parent_exec_id, event.parent_pid, event.process.parent_pid) == (BASH["exec_id"], None, None)


@pytest.mark.parametrize("missing", ["exec_id", "start_time"])
def test_a_parent_that_is_half_described_is_known_by_its_id_alone(missing: str) -> None:
    event = decode_exec(exec_event(parent={name: value for name, value in PARENT.items() if name != missing}))
    assert (event.parent, event.parent_exec_id, event.process.parent_pid) == (None, exec_id(300), 300)


# Real events, and anything else.


@pytest.mark.parametrize(
    ("name", "execs", "exits"),
    [("seed-events.json", 1, 1), ("tetragon-2022-10.jsonl", None, None), ("tetragon-docs-events.jsonl", None, None)],
)
def test_real_events_lose_no_field(name: str, execs: int | None, exits: int | None) -> None:
    ledger = Ledger()
    events = events_in(real_data(name), ledger)
    assert not [outcome for _, outcome in ledger.counts() if not outcome.startswith("passed by: ")]
    if execs is not None:
        assert [type(event) for event in events] == [Exec] * execs + [Exit] * (exits or 0)
    for event in events:
        assert isinstance(event, Exec | Exit)
        assert event.process is not None
        assert event.process.binary
        assert event.raw is not None


def test_invalid_utf_8_is_repaired_and_counted() -> None:
    ledger = Ledger()
    event = decode_exec(json.dumps(exec_event(arguments="A")).encode().replace(b'"A"', b'"\xff\xfe"'), ledger)
    assert event.process.arguments == "\ufffd\ufffd"
    assert ledger.counts() == {("decode.tetragon", "repaired: invalid UTF-8"): 1}


def test_what_is_no_json_even_if_it_is_repaired() -> None:
    ledger = Ledger()
    with pytest.raises(DecodeError, match=r"events\.json:7: not valid JSON"):
        decode_exec(b'{"process_exec": {"process": {"arguments": "\xff"', ledger)
    assert not ledger.counts()


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(data)


OWN_LINES = OWN_EVENTS.read_bytes().splitlines()


@given(st.sampled_from(OWN_LINES), st.data())
def test_damaged_events(line: bytes, data: st.DataObject) -> None:
    """A piece of an event is replaced by something else, as a disk or a writer that died would."""
    begin = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(begin, min(len(line), begin + 20)))
    damaged = line[:begin] + data.draw(st.binary(max_size=4)) + line[end:]
    with contextlib.suppress(DecodeError):
        decode(damaged)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.sampled_from(["", "0", "7", "2024-03-01T08:10:01Z", "execve", "procFS", exec_id(1), "<enomem>", "lost"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where something stands in nested objects."""
    inner = (
        [found for name, child in value.items() for found in paths(child, (*path, name))]
        if isinstance(value, dict)
        else []
    )
    return [path, *inner] if path else inner


@given(st.sampled_from(list(map(json.loads, OWN_LINES))), st.data())
def test_any_value_in_the_place_of_any_field(document: dict[str, Any], data: st.DataObject) -> None:
    """Whatever the types are: an error, or an event whose fields have the types that they promise."""
    document = copy.deepcopy(document)
    for path in data.draw(st.lists(st.sampled_from(paths(document)), min_size=1, max_size=3)):
        place: Any = document
        for name in path[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = data.draw(VALUES)
    try:
        event = decode(document)
    except DecodeError:
        return
    if event is None:
        return
    assert isinstance(event, Exec | Exit)
    assert 0 <= event.time_unix_ns < 2**63
    process = event.process
    if process is not None:
        for name in ("pid", "parent_pid", "vpid", "uid", "gid", "euid", "egid", "auid"):
            number = getattr(process, name)
            assert number is None or (type(number) is int and 0 <= number < 2**32), name
        for name in ("exec_id", "binary", "arguments", "cwd", "container_id", "pod_uid", "node"):
            text = getattr(process, name)
            assert text is None or type(text) is str, name
        assert all(type(flag) is str for flag in process.flags)


@pytest.mark.parametrize("told", [True, False, None])
def test_cluster_and_init_tree(told: bool | None) -> None:
    process = {"exec_id": "x", "pid": 1, "start_time": "2024-03-01T08:10:01Z", "in_init_tree": told}
    document = {"process_exec": {"process": process, "parent": process}, "node_name": "n", "cluster_name": "prod"}
    ledger = Ledger()
    event = decode_tetragon(JsonText(json.dumps(document).encode(), "f:1"), 1, ledger)
    assert isinstance(event, Exec)
    assert event.parent is not None
    for decoded in (event.process, event.parent):
        assert (decoded.node, decoded.cluster_name, decoded.in_init_tree) == ("n", "prod", told)
    assert ledger.counts() == {}


def test_an_init_tree_that_is_no_truth_is_counted() -> None:
    process = {"exec_id": "x", "pid": 1, "start_time": "2024-03-01T08:10:01Z", "in_init_tree": "yes"}
    ledger = Ledger()
    event = decode_tetragon(JsonText(json.dumps({"process_exec": {"process": process}}).encode(), "f:1"), 1, ledger)
    assert isinstance(event, Exec)
    assert event.process.in_init_tree is None
    assert list(ledger.counts().values()) == [1]
