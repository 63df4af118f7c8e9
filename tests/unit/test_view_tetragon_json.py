"""What goes out as Tetragon's JSON: Tetragon's own events as they came, ours in the same shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.events import Container, Exec, Exit, Pod
from otel_procmon.ledger import Ledger
from otel_procmon.source.json_stream import JsonSplitter, JsonText
from otel_procmon.view.tetragon_json import tetragon_json
from tests.unit.happenings import END, START, discovered, ended_without_event, exited, image, opened, started
from tests.unit.tetragon_data import OWN_EVENTS, events_in, happening_of, real_data

if TYPE_CHECKING:
    from pathlib import Path

    from otel_procmon.lineage.image import Happening

ID = "1fb931d2f6e5e4cfdbaf30fdb8e2fdd81320bdb3047ded50120a4f82838209ce"
EXECS_AND_EXITS = {"process_exec", "process_exit"}


def document(happening: Happening, **settings: Any) -> dict[str, Any]:
    encoded = tetragon_json(happening, **settings)
    assert encoded is not None
    assert b"\n" not in encoded
    value: dict[str, Any] = json.loads(encoded)
    return value


def own_or_real(name: str) -> Path:
    return OWN_EVENTS if name == OWN_EVENTS.name else real_data(name)


@pytest.mark.parametrize(
    "name", [OWN_EVENTS.name, "seed-events.json", "tetragon-2022-10.jsonl", "tetragon-docs-events.jsonl"]
)
def test_tetragons_events_go_out_as_they_came_field_for_field(name: str) -> None:
    path = own_or_real(name)
    splitter = JsonSplitter(name)
    documents = [json.loads(text.text) for text in splitter.feed(path.read_bytes()) + splitter.end()]
    documents = [document for document in documents if EXECS_AND_EXITS & set(document)]
    events = events_in(path)
    assert len(events) == len(documents) > 1
    written = [tetragon_json(happening_of(event)) for event in events]
    # As text, so that the order of the fields counts too.
    assert [json.dumps(json.loads(line or b"")) for line in written] == list(map(json.dumps, documents))


PLAIN = {
    "exec_id": "aGVyZTo2OjQwMA==",
    "pid": 400,
    "binary": "/bin/ls",
    "start_time": "2024-03-01T08:10:01.500Z",
    "auid": 4294967295,
    "tid": 400,
}
FULL: dict[str, Any] = {
    "node": "worker",
    "uid": 1000,
    "euid": 0,
    "gid": 7,
    "auid": 0,
    "cwd": "/root",
    "argv": ("ls", "-l", "a b"),
    "flags": ("execve", "clone"),
    "vpid": 50,
    "container_id": ID,
    "container": Container(
        id=ID,
        runtime="containerd",
        name="spaceship",
        image_id="sha256:1",
        image_name="ship:1",
        start_time="2024-03-01T00:00:00Z",
    ),
    "pod": Pod(
        namespace="default",
        name="xwing",
        uid="6f2c1a52-3c5d-4a34-9f1e-0e5f0a9b7c11",
        labels={"org": "alliance", "class": "xwing"},
        annotations={"b": "2", "a": "1"},
        workload="xwing",
        workload_kind="Deployment",
    ),
}


def test_an_exec_of_our_own() -> None:
    ours = image(**FULL)
    ours.parent = image(exec_id="cGFyZW50", pid=300, binary="/bin/bash", cwd="/")
    ours.parent_exec_id = "cGFyZW50"
    expected = {
        "process_exec": {
            "process": {
                "exec_id": "aGVyZTo2OjQwMA==",
                "pid": 400,
                "uid": 0,
                "cwd": "/root",
                "binary": "/bin/ls",
                "arguments": '-l "a b"',
                "flags": "execve clone",
                "start_time": "2024-03-01T08:10:01.500Z",
                "auid": 0,
                "pod": {
                    "namespace": "default",
                    "name": "xwing",
                    "uid": "6f2c1a52-3c5d-4a34-9f1e-0e5f0a9b7c11",
                    "container": {
                        "id": f"containerd://{ID}",
                        "name": "spaceship",
                        "image": {"id": "sha256:1", "name": "ship:1"},
                        "start_time": "2024-03-01T00:00:00Z",
                        "pid": 50,
                    },
                    "pod_labels": {"class": "xwing", "org": "alliance"},
                    "workload": "xwing",
                    "workload_kind": "Deployment",
                },
                "docker": "1fb931d2f6e5e4cfdbaf30fdb8e2fdd",
                "parent_exec_id": "cGFyZW50",
                "tid": 400,
                "in_init_tree": False,
            },
            "parent": {
                "exec_id": "cGFyZW50",
                "pid": 300,
                "cwd": "/",
                "binary": "/bin/bash",
                "start_time": "2024-03-01T08:10:01.500Z",
                "auid": 4294967295,
                "tid": 300,
            },
        },
        "node_name": "worker",
        "time": "2024-03-01T08:10:01.500Z",
    }
    # As text, because protojson's fields have an order.
    assert json.dumps(document(started(ours))) == json.dumps(expected)


def test_annotations_if_asked_for() -> None:
    told = document(started(image(**FULL)), tells_annotation=lambda key: key != "a")
    assert list(told["process_exec"]["process"]["pod"].items())[-1] == ("pod_annotations", {"b": "2"})


def test_the_cluster() -> None:
    assert "cluster_name" not in document(started(image(**FULL)))
    configured = document(exited(image(**FULL)), cluster_name="prod")
    assert list(configured.items())[1:] == [
        ("node_name", "worker"),
        ("time", "2024-03-01T08:10:01.700Z"),
        ("cluster_name", "prod"),
    ]
    told = document(started(image(cluster_name="there")), cluster_name="prod")
    assert told["cluster_name"] == "there"


def test_an_exec_probe() -> None:
    container = Container(id=ID, runtime="cri-o", maybe_exec_probe=True)
    told = document(started(image(**{**FULL, "container": container})))
    assert told["process_exec"]["process"]["pod"]["container"] == {
        "id": f"cri-o://{ID}",
        "pid": 50,
        "maybe_exec_probe": True,
    }


def test_what_is_not_known_is_absent() -> None:
    assert document(started(image())) == {"process_exec": {"process": PLAIN}, "time": "2024-03-01T08:10:01.500Z"}
    assert "binary" not in document(started(image(binary="")))["process_exec"]["process"]


def test_init_tree_is_told_where_the_pid_namespace_is_known() -> None:
    inside = image(vpid=1)
    inside.in_init_tree = True
    inside.parent = image(vpid=9)
    event = document(started(inside))["process_exec"]
    assert (event["process"]["in_init_tree"], event["parent"]["in_init_tree"]) == (True, False)
    assert (event["process"]["flags"], event["parent"].get("flags")) == ("inInitTree", None)


def test_flags_are_in_tetragons_order() -> None:
    ours = image(flags=("execve", "clone", "truncFilename", "rootcwd", "truncArgs"), vpid=1)
    ours.in_init_tree = True
    flags = document(started(ours))["process_exec"]["process"]["flags"]
    assert flags == "execve truncArgs rootcwd clone inInitTree truncFilename"


def test_root_is_a_wrapped_zero_and_stays() -> None:
    process = document(started(image(uid=0, auid=0)))["process_exec"]["process"]
    assert (process["uid"], process["auid"]) == (0, 0)


@pytest.mark.parametrize(
    ("code", "signal", "expected"),
    [
        (0, None, {}),
        (1, None, {"status": 1}),
        (255, None, {"status": 255}),
        (None, "SIGKILL", {"signal": "SIGKILL"}),
        (None, None, {"signal": "lost"}),
    ],
)
def test_an_exit_of_our_own(code: int | None, signal: str | None, expected: dict[str, Any]) -> None:
    time = "2024-03-01T08:10:01.700Z"
    assert document(exited(image(node="n"), code, signal)) == {
        "process_exit": {"process": PLAIN, **expected, "time": time},
        "node_name": "n",
        "time": time,
    }


def test_an_exit_that_nobody_saw() -> None:
    lost = document(ended_without_event(image(), "lost"))
    assert (lost["process_exit"]["signal"], lost["time"]) == ("lost", "2024-03-01T08:10:01.700Z")


@pytest.mark.parametrize(
    ("flags", "written"), [((), "procFS"), (("execve", "clone"), "procFS clone"), (("procFS", "auid"), "procFS auid")]
)
def test_what_was_running_is_an_exec_with_a_flag(flags: tuple[str, ...], written: str) -> None:
    told = document(discovered(image(flags=flags)))
    assert told["process_exec"]["process"]["flags"] == written
    assert told["process_exec"]["process"]["start_time"] == "2024-03-01T08:10:01.500Z"
    assert told["time"] == "2024-03-01T08:10:01.700Z"


def test_a_parent_that_has_gone_is_what_its_child_remembers() -> None:
    child = image()
    child.parent_exec_id, child.parent_binary = "cGFyZW50", "/bin/bash"
    assert document(started(child))["process_exec"]["parent"] == {"exec_id": "cGFyZW50", "binary": "/bin/bash"}


@pytest.mark.parametrize("happening", [ended_without_event(image(), "exec"), opened(image())], ids=["exec", "opened"])
def test_what_tetragon_has_no_event_for(happening: Happening) -> None:
    assert tetragon_json(happening) is None


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    process = document(started(image(binary="/tmp/\udcff\udcfe", argv=("x", "\udc80y"))))["process_exec"]["process"]
    assert (process["binary"], process["arguments"]) == ("/tmp/\ufffd", "\ufffdy")


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
WORDS = st.from_regex("[a-zA-Z]{1,8}", fullmatch=True)


@given(
    argv=st.lists(ANY_TEXT, max_size=4).map(tuple),
    binary=ANY_TEXT,
    node=st.one_of(st.none(), ANY_TEXT),
    flags=st.lists(WORDS, max_size=3).map(tuple),
    uid=st.one_of(st.none(), st.integers(0, 2**32 - 2)),
    labels=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2),
    code=st.one_of(st.none(), st.integers(0, 255)),
    start=st.integers(0, 2**63 - 1),
)
def test_our_own_events_are_read_again(
    argv: tuple[str, ...],
    binary: str,
    node: str | None,
    flags: tuple[str, ...],
    uid: int | None,
    labels: dict[str, str],
    code: int | None,
    start: int,
) -> None:
    """Whatever a process is called: what we write is Tetragon's JSON for us too, and says the same."""
    ours = image(
        argv=argv, binary=binary, node=node, flags=flags, uid=uid, start_unix_ns=start, pod=Pod(labels=labels, name="p")
    )

    def read(happening: Happening) -> Exec | Exit:
        ledger = Ledger()
        event = decode_tetragon(JsonText(tetragon_json(happening) or b"", "f:1"), 1, ledger)
        assert isinstance(event, Exec | Exit)
        assert ledger.counts() == {}
        return event

    def clean(text: str) -> str:
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\ufffd", "")

    begin = read(started(ours))
    assert isinstance(begin, Exec)
    assert begin.time_unix_ns == START
    process = begin.process
    assert (process.exec_id, process.pid, process.start_unix_ns) == (ours.exec_id, 400, start)
    assert (process.flags, process.euid, process.auid) == (flags, uid, None)
    if "<" not in binary:
        assert clean(process.binary) == clean(binary)
    assert clean(process.node or "") == clean(node or "")

    end = read(exited(ours, code))
    assert isinstance(end, Exit)
    assert (end.time_unix_ns, end.code, end.signal) == (END, code, None)
    assert end.process == process


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.sampled_from(["process_exec", "process_exit"]))
def test_fields_that_nobody_knows_go_through(unknown: dict[str, Any], kind: str) -> None:
    event = {
        kind: {
            "process": {"exec_id": "x", "pid": 1, "start_time": "2024-03-01T08:10:01Z", "unknown": unknown},
            "unknown": unknown,
        },
        "time": "2024-03-01T08:10:02Z",
    }
    decoded = decode_tetragon(JsonText(json.dumps(event).encode(), "f:1"), 1, Ledger())
    assert decoded is not None
    assert document(happening_of(decoded)) == event
