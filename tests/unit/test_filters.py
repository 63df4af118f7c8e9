"""What is to leave: options, Tetragon's lists, and files that hold them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.events import Container, Pod, Process
from otel_procmon.filters import Filter, FilterEntry, FilterError, read_filter_file
from tests.unit.happenings import discovered, ended_without_event, exited, image, opened, started

if TYPE_CHECKING:
    from pathlib import Path

    from otel_procmon.lineage.image import Happening, Image

ID = "1fb931d2f6e5e4cfdbaf30fdb8e2fdd81320bdb3047ded50120a4f82838209ce"
XWING: dict[str, Any] = {
    "binary": "/usr/bin/curl",
    "arguments": "-s https://ebpf.io",
    "pid": 51583,
    "parent_pid": 43872,
    "uid": 1000,
    "euid": 0,
    "node": "worker",
    "container_id": ID,
    "container": Container(id=ID, name="spaceship"),
    "pod": Pod(namespace="default", name="xwing", labels={"org": "alliance", "class": "xwing"}),
}
HOST: dict[str, Any] = {"binary": "/sbin/init", "pid": 1, "node": "worker"}


def family(**fields: Any) -> Image:
    """init → sshd → bash → an image with these fields, all in the table."""
    root = image(exec_id="aW5pdA==", pid=1, binary="/sbin/init")
    sshd = image(exec_id="c3NoZA==", pid=20, parent_pid=1, binary="/usr/sbin/sshd", argv=("sshd", "-D"))
    bash = image(exec_id="YmFzaA==", pid=30, parent_pid=20, binary="/bin/bash", argv=("bash", "-c", "curl x"))
    child = image(**fields)
    sshd.parent, bash.parent, child.parent = root, sshd, bash
    child.parent_binary = bash.process.binary
    return child


def allows(entry: dict[str, Any], happening: Happening) -> bool:
    """What one entry says in an allow list; a deny list must say the opposite."""
    accepted = Filter.of(allow=[entry]).accepts(happening)
    assert Filter.of(deny=[entry]).accepts(happening) is not accepted
    return accepted


def test_without_filters_everything_leaves() -> None:
    for happening in (started(image()), exited(image()), discovered(image()), opened(image())):
        assert Filter.of().accepts(happening)


@pytest.mark.parametrize(
    ("entry", "fields", "holds"),
    [
        ({"namespace": ["default"]}, XWING, True),
        ({"namespace": ["other", "default"]}, XWING, True),
        ({"namespace": ["defaul"]}, XWING, False),
        # "" is the host
        ({"namespace": [""]}, HOST, True),
        ({"namespace": [""]}, XWING, False),
        ({"namespace": ["default"]}, HOST, False),
        ({"namespace": [""]}, {"pod_uid": "u-1"}, False),
        ({"namespace_regex": ["^def"]}, XWING, True),
        ({"namespace_regex": [".*"]}, HOST, False),
        ({"pod_regex": ["wing$"]}, XWING, True),
        ({"pod_regex": ["^wing"]}, XWING, False),
        ({"pod_regex": [""]}, HOST, False),
        ({"labels": ["org=alliance"]}, XWING, True),
        ({"labels": ["org=empire", "class in (xwing)"]}, XWING, True),
        ({"labels": ["org=alliance,class=tie"]}, XWING, False),
        ({"labels": ["!org"]}, HOST, False),
        ({"container_name_regex": ["ship"]}, XWING, True),
        ({"container_name_regex": [""]}, HOST, False),
        ({"container_id": ["^1fb9"]}, XWING, True),
        ({"container_id": [f"^{ID}$"]}, XWING, True),
        # Tetragon's `docker` has 31 characters, and patterns are written for those
        ({"container_id": [f"^{ID[:31]}$"]}, XWING, True),
        ({"container_id": [f"^{ID[:31]}$"]}, {"container_id": ID[:31]}, True),
        ({"container_id": ["^$"]}, HOST, True),
        ({"binary_regex": ["curl"]}, XWING, True),
        ({"binary_regex": ["^/bin", "/curl$"]}, XWING, True),
        ({"binary_regex": ["Curl"]}, XWING, False),
        ({"binary_regex": ["(?i)CURL"]}, XWING, True),
        ({"arguments_regex": ["https?://"]}, XWING, True),
        ({"arguments_regex": ['^-c "a b"$']}, {"argv": ("sh", "-c", "a b")}, True),
        ({"arguments_regex": ["curl"]}, XWING, False),
        ({"arguments_regex": ["^$"]}, HOST, True),
        ({"pid": [1, 2]}, HOST, True),
        ({"pid": [51583]}, HOST, False),
        ({"pid_set": [51583]}, XWING, True),
        ({"pid_set": [43872]}, XWING, True),
        ({"pid_set": [1]}, XWING, False),
        # All fields must hold
        ({"binary_regex": ["curl"], "namespace": ["default"]}, XWING, True),
        ({"binary_regex": ["curl"], "namespace": [""]}, XWING, False),
        # An entry without conditions holds for everything, as does an empty or absent field
        ({}, HOST, True),
        ({"pid": []}, HOST, True),
        ({"pid": None, "binary_regex": ["init"]}, HOST, True),
        # protojson reads both spellings
        ({"binaryRegex": ["curl"]}, XWING, True),
        ({"podRegex": ["tie"]}, XWING, False),
    ],
)
def test_entries(entry: dict[str, Any], fields: dict[str, Any], holds: bool) -> None:
    assert allows(entry, started(image(**fields))) is holds
    assert allows(entry, exited(image(**fields))) is holds


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ({"parent_binary_regex": ["bash$"]}, True),
        ({"parent_binary_regex": ["sshd"]}, False),
        ({"parent_arguments_regex": ["curl x"]}, True),
        ({"parent_arguments_regex": ["-D"]}, False),
        # Ancestors are those beyond the parent
        ({"ancestor_binary_regex": ["sshd$"]}, True),
        ({"ancestor_binary_regex": ["init$"]}, True),
        ({"ancestor_binary_regex": ["bash$"]}, False),
        ({"pid_set": [20]}, True),
        ({"pid_set": [1]}, True),
        ({"pid_set": [21]}, False),
    ],
)
def test_lineage_in_the_table(entry: dict[str, Any], holds: bool) -> None:
    assert allows(entry, started(family(parent_pid=30))) is holds


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ({"parent_binary_regex": ["bash$"]}, True),
        ({"parent_arguments_regex": ["-l"]}, True),
        ({"parent_arguments_regex": ["-D"]}, False),
        ({"ancestor_binary_regex": ["sshd$"]}, True),
        ({"ancestor_binary_regex": ["bash$"]}, False),
    ],
)
@pytest.mark.parametrize("end", [False, True])
def test_lineage_as_tetragons_event_tells_it(entry: dict[str, Any], holds: bool, end: bool) -> None:
    parent = Process(exec_id="YmFzaA==", pid=30, binary="/bin/bash", arguments="-l", start_unix_ns=1)
    kind = "process_exit" if end else "process_exec"
    raw = {kind: {"ancestors": [{"binary": "/usr/sbin/sshd"}, {"binary": 7}, "x"]}}
    happening: Happening = exited(image(), parent=parent, raw=raw) if end else started(image(), parent=parent, raw=raw)
    assert allows(entry, happening) is holds


def test_a_parent_that_has_gone_is_known_by_its_binary() -> None:
    child = image()
    child.parent_binary = "/bin/bash"
    assert allows({"parent_binary_regex": ["bash"]}, opened(child))
    assert not allows({"parent_arguments_regex": [""]}, opened(child))
    assert not allows({"parent_binary_regex": [""]}, started(image()))


def test_a_circle_of_ancestors_ends() -> None:
    one, other = image(pid=5), image(pid=6)
    one.parent, other.parent = other, one
    assert not allows({"ancestor_binary_regex": ["nothing"]}, started(one))
    assert not allows({"pid_set": [7]}, started(one))


@pytest.mark.parametrize(
    ("kinds", "begins", "ends"),
    [
        (["PROCESS_EXEC"], True, False),
        (["PROCESS_EXIT"], False, True),
        (["PROCESS_EXEC", "PROCESS_EXIT", "PROCESS_KPROBE"], True, True),
        (["PROCESS_KPROBE", "PROCESS_LSM"], False, False),
        ([1], True, False),
        ([5], False, True),
        ([9], False, False),
    ],
)
def test_kinds_of_events(kinds: list[Any], begins: bool, ends: bool) -> None:
    entry = {"event_set": kinds}
    for beginning in (started(image()), discovered(image())):
        assert allows(entry, beginning) is begins
    for end in (
        exited(image()),
        ended_without_event(image(), "exec"),
        ended_without_event(image(), "lost"),
        opened(image()),
    ):
        assert allows(entry, end) is ends


# Options and lists together.


@pytest.mark.parametrize(
    ("options", "fields", "accepted"),
    [
        ({"namespaces": ["default"]}, XWING, True),
        ({"namespaces": [""]}, HOST, True),
        ({"namespaces": ["", "default"]}, XWING, True),
        ({"namespaces": ["default"]}, HOST, False),
        ({"pods": ["wing", "tie"]}, XWING, True),
        ({"pods": ["tie"]}, XWING, False),
        ({"binaries": ["/curl$"]}, XWING, True),
        ({"pids": [1]}, HOST, True),
        ({"pids": [1]}, XWING, False),
        # The effective user, like Tetragon's `uid`
        ({"uids": [0]}, XWING, True),
        ({"uids": [1000]}, XWING, False),
        ({"uids": [1000]}, {"uid": 1000}, True),
        ({"uids": [0]}, HOST, False),
        ({"container_ids": ["1fb931d2f6e5"]}, XWING, True),
        ({"container_ids": [ID]}, XWING, True),
        ({"container_ids": [ID]}, {"container_id": ID[:31]}, True),
        ({"container_ids": ["fb931d2f6e5e"]}, XWING, False),
        ({"container_ids": [ID]}, {"container_id": ID[:12]}, False),
        ({"container_ids": ["1"]}, HOST, False),
        ({"containers": ["^spaceship$", "x"]}, XWING, True),
        ({"containers": ["^ship"]}, XWING, False),
        ({"containers": [""]}, HOST, False),
        ({"labels": ["org=empire", "org=alliance,class in (xwing, ywing)"]}, XWING, True),
        ({"labels": ["org"], "containers": ["pause"]}, XWING, False),
        ({"labels": ["!org"]}, HOST, False),
        # All options must hold, and the lists too
        ({"namespaces": ["default"], "pods": ["tie"]}, XWING, False),
        ({"namespaces": ["default"], "pods": ["wing"], "allow": [{"binary_regex": ["curl"]}]}, XWING, True),
        ({"namespaces": ["default"], "allow": [{"binary_regex": ["bash"]}]}, XWING, False),
        # One entry of an allow list is enough; deny wins
        ({"allow": [{"pid": [7]}, {"namespace": ["default"]}]}, XWING, True),
        ({"allow": [{"pid": [7]}, {"pid": [8]}]}, XWING, False),
        ({"deny": [{"pid": [7]}, {"namespace": ["default"]}]}, XWING, False),
        ({"deny": [{"pid": [7]}]}, XWING, True),
        ({"allow": [{"namespace": ["default"]}], "deny": [{"binary_regex": ["curl"]}]}, XWING, False),
        ({"allow": [{"namespace": ["default"]}], "deny": [{"binary_regex": ["bash"]}]}, XWING, True),
        ({"binaries": ["curl"], "deny": [{}]}, XWING, False),
    ],
)
def test_options_and_lists(options: dict[str, Any], fields: dict[str, Any], accepted: bool) -> None:
    assert Filter.of(**options).accepts(started(image(**fields))) is accepted


@pytest.mark.parametrize(
    ("entry", "probe", "accepted"),
    [
        ({"health_check": True}, True, False),
        ({"health_check": True}, False, True),
        ({"healthCheck": False}, True, True),
        ({"health_check": False}, False, False),
    ],
)
def test_health_checks_that_tetragon_marks(entry: dict[str, Any], probe: bool, accepted: bool) -> None:
    fields = {**XWING, "container": Container(id=ID, maybe_exec_probe=probe)}
    assert Filter.of(deny=[entry]).accepts(started(image(**fields))) is accepted
    assert Filter.of(deny=[{"health_check": True}]).accepts(started(image(**HOST)))


@pytest.mark.parametrize("entry", [{"in_init_tree": True}, {"inInitTree": True}])
def test_init_tree(entry: dict[str, Any]) -> None:
    inside, outside = image(**XWING), image(**XWING)
    inside.in_init_tree = True
    assert allows(entry, started(inside))
    assert not allows(entry, exited(outside))
    assert not allows({"in_init_tree": False}, started(inside))
    assert allows({"in_init_tree": False}, started(image(**HOST)))


def test_what_a_health_check_starts_is_one() -> None:
    probe = image(**{**XWING, "container": Container(id=ID, maybe_exec_probe=True)})
    child, grandchild = image(**XWING), image(**XWING)
    child.parent, grandchild.parent = probe, child
    assert [allows({"health_check": True}, started(each)) for each in (probe, child, grandchild)] == [True, True, False]


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "namespace": st.lists(st.sampled_from(["", "default", "other"]), max_size=2),
        "pid": st.lists(st.sampled_from([1, 51583, 7]), max_size=2),
        "binary_regex": st.lists(st.sampled_from(["curl", "init", "^/usr"]), max_size=2),
        "event_set": st.lists(st.sampled_from(["PROCESS_EXEC", "PROCESS_EXIT"]), max_size=2),
    },
)
LISTS = st.lists(ENTRIES, max_size=3)
HAPPENINGS = st.sampled_from(
    [started(image(**XWING)), exited(image(**XWING)), started(image(**HOST)), exited(image(**HOST))]
)


@given(LISTS, LISTS, HAPPENINGS)
def test_and_within_or_between_deny_wins(
    allow: list[dict[str, Any]], deny: list[dict[str, Any]], happening: Happening
) -> None:
    def entry_holds(entry: dict[str, Any]) -> bool:
        return all(
            any(allows({field: [value]}, happening) for value in values) for field, values in entry.items() if values
        )

    allowed = not allow or any(map(entry_holds, allow))
    assert Filter.of(allow=allow, deny=deny).accepts(happening) is (allowed and not any(map(entry_holds, deny)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pods": ["("]}, "--pod: '(' is not a valid regular expression: "),
        ({"binaries": ["a(?=b)"]}, "--binary: 'a(?=b)' is not a valid regular expression: RE2 does not know (?="),
        ({"pids": [-1]}, "--pid: -1 is not a number from 0 to 4294967295."),
        ({"uids": [2**32]}, "--uid: 4294967296 is not a number from 0 to 4294967295."),
        ({"container_ids": [""]}, "--container-id: an empty container id would select everything."),
        ({"allow": [{}, {"pid": 1}]}, "allow list, entry 2: pid must be a list."),
        ({"deny": [{"pid": ["1"]}]}, "deny list, entry 1: pid: '1' is not a number"),
        (
            {"deny": [FilterEntry({"pid": [True]}, "x.yaml, export-denylist, entry 3")]},
            "x.yaml, export-denylist, entry 3: pid: True is not a number",
        ),
        ({"allow": [{"binary_regex": [7]}]}, "entry 1: binary_regex: 7 is not a string."),
        (
            {"allow": [{"labels": ["a in b"]}]},
            "entry 1: labels: 'a in b' is not a valid label selector: in and notin need",
        ),
        ({"allow": [{"event_set": ["PROCESS_EXECS"]}]}, "entry 1: event_set: 'PROCESS_EXECS' is not a kind of event."),
        ({"allow": [{"event_set": [{}]}]}, "entry 1: event_set: {} is not a kind of event."),
        ({"allow": [{"event_set": [True]}]}, "entry 1: event_set: True is not a kind of event."),
        (
            {"allow": [{"binary_regexp": ["x"]}]},
            "entry 1: binary_regexp is not a filter field; known are ancestor_binary_regex, ",
        ),
        ({"allow": [{7: ["x"]}]}, "entry 1: 7 is not a filter field"),
        # To pass over what cannot be told would let out what somebody wanted to keep in
        ({"deny": [{"health_check": ["x"]}]}, "entry 1: health_check must be true or false."),
        ({"deny": [{"cel_expression": ["x"]}]}, "entry 1: cel_expression cannot be evaluated here: "),
        ({"deny": [{"inInitTree": "yes"}]}, "entry 1: inInitTree must be true or false."),
        ({"labels": ["="]}, "--label: '=' is not a valid label selector: "),
        ({"containers": ["*"]}, "--container: '*' is not a valid regular expression: "),
    ],
)
def test_errors_name_the_place_and_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FilterError) as error:
        Filter.of(**options)
    assert message in str(error.value)


# Files.

ALLOW = [{"namespace": ["default"]}, {"binary_regex": ["curl", "wget"], "event_set": ["PROCESS_EXEC"]}]
DENY = [{"namespace": ["", "kube-system"]}]


def lines(entries: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, entries))


PRETTY = "\n".join(json.dumps(entry, indent=2) for entry in ALLOW)
FILES = {
    "lists of objects": {"export-allowlist": ALLOW, "export-denylist": DENY},
    "JSON lines": {"export-allowlist": lines(ALLOW), "export-denylist": lines(DENY)},
    "JSON lines with white space": {"export-allowlist": f"\n {lines(ALLOW)}\n\n", "export-denylist": lines(DENY)},
    "pretty-printed": {"export-allowlist": PRETTY, "export-denylist": lines(DENY)},
    "side by side": {"export-allowlist": lines(ALLOW).replace("\n", ""), "export-denylist": lines(DENY)},
    "another spelling": {"exportAllowList": lines(ALLOW), "export_denylist": DENY},
    "ConfigMap": {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "tetragon-config", "namespace": "kube-system"},
        "data": {
            "export-filename": "/var/run/cilium/tetragon/tetragon.log",
            "export-allowlist": lines(ALLOW),
            "export-denylist": lines(DENY),
        },
    },
    "Helm values": {
        "export": {"mode": "stdout"},
        "tetragon": {"exportFilename": "tetragon.log", "exportAllowList": lines(ALLOW), "exportDenyList": lines(DENY)},
    },
}


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "filters.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("document", FILES.values(), ids=FILES)
@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_files(tmp_path: Path, document: dict[str, Any], dump: Any) -> None:
    path = write(tmp_path, dump(document))
    allow, deny = read_filter_file(path)
    assert ([entry.fields for entry in allow], [entry.fields for entry in deny]) == (ALLOW, DENY)
    accepts = Filter.of(allow=allow, deny=deny).accepts
    assert accepts(started(image(**XWING)))
    assert not accepts(started(image(**HOST)))


def test_an_entry_from_a_file_is_named_by_file_list_and_number(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump({"data": {"export-denylist": '{}\n{"pod_regex":["a", "*"]}'}}))
    allow, deny = read_filter_file(path)
    assert allow == []
    with pytest.raises(FilterError, match=rf"^{path}, export-denylist, entry 2: pod_regex: '\*' is not a valid"):
        Filter.of(deny=deny)


@pytest.mark.parametrize(
    "text", ["export-allowlist:\n", "export-allowlist: ''\n", "export-allowlist: []\n", "export-allowlist: |\n\n"]
)
def test_an_empty_list_is_none(tmp_path: Path, text: str) -> None:
    assert read_filter_file(write(tmp_path, text)) == ([], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path} must be a mapping with export-allowlist or export-denylist."),
        ('[{"pid": [1]}]', "{path} must be a mapping"),
        ("data: {}", "{path} has neither export-allowlist nor export-denylist."),
        ("tetragon: {exportFilename: x}", "{path} has neither"),
        ("export-allow: ''", "{path} has an unknown key 'export-allow': only"),
        ("export-allowlist: ''\nnamespace: a", "{path} has an unknown key 'namespace'"),
        ("export-allowlist: ''\nexportAllowList: ''", "{path} has 'exportAllowList' twice, in two spellings."),
        ("export-allowlist: 7", "{path}, export-allowlist: neither JSON lines nor a list of objects."),
        ("export-allowlist: [1]", "{path}, export-allowlist, entry 1: not an object."),
        ("export-denylist: '{} 7'", "{path}, export-denylist, entry 2: not an object."),
        ('export-allowlist: |\n  {"pid":[1]}\n  {"pid":[x]}\n', "{path}, export-allowlist, line 2: not valid JSON: "),
        ("export-allowlist: '{}, {}'", "{path}, export-allowlist, line 1: not valid JSON: "),
        ("export-allowlist: '{'", "{path}, export-allowlist, line 1: not valid JSON: "),
        ("export-allowlist: " + "[" * 5000, "{path} is not valid YAML: "),
        ("export-allowlist: '" + "[" * 100_000 + "'", "{path}, export-allowlist, line 1: not valid JSON: "),
        ("a: [", "{path} is not valid YAML: "),
        ("a: b\n---\nc: d", "{path} is not valid YAML: "),
        ("? [a]\n: b", "{path} is not valid YAML: "),
        ("a: !!python/object/apply:os.getcwd []", "{path} is not valid YAML: "),
        ("a: !!timestamp now", "{path} is not valid YAML: "),
        ("a: !!bool perhaps", "{path} is not valid YAML: "),
        ("a: !!int ''", "{path} is not valid YAML: "),
        ("a: 2024-02-31", "{path} is not valid YAML: "),
        (b"a: \xff", "{path} is not valid YAML: "),
        (b"\0", "{path} is not valid YAML: "),
    ],
)
def test_bad_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FilterError) as error:
        read_filter_file(path)
    assert message.format(path=path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FilterError, match=r"/nothing\.yaml cannot be read: No such file or directory"):
        read_filter_file(str(tmp_path / "nothing.yaml"))
    with pytest.raises(FilterError, match="cannot be read: Is a directory"):
        read_filter_file(str(tmp_path))
