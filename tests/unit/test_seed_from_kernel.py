"""The seed's demonstration from the kernel's records: what Tetragon wrote of it then, we write now.

The records are made by hand, with the seed's pids, times and arguments; the pod is the API's, as kind has it. All the
rest is the real thing: decoder, lineage, hold, filters, views.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_procmon.config import LineageOptions, TraceOptions
from otel_procmon.containers.hold import Hold
from otel_procmon.containers.metadata import Found
from otel_procmon.containers.pods import Pods, decode_pod
from otel_procmon.convert.host import host_resource
from otel_procmon.convert.resource import Resources
from otel_procmon.decode.kernel import KernelDecoder
from otel_procmon.filters import Filter
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.ids import SpanIds
from otel_procmon.lineage.image import Opened
from otel_procmon.lineage.table import ProcessTable
from otel_procmon.rfc3339 import parse_rfc3339
from otel_procmon.view.compact import compact_line
from otel_procmon.view.tetragon_json import tetragon_json
from tests.unit.wire_records import exec_record, exit_record, fork_record, strings

if TYPE_CHECKING:
    from otel_procmon.lineage.image import Happening

SEED = Path(__file__).parent / "data" / "seed-events.json"
NODE = "kind-control-plane"
ID = "1fb931d2f6e5e4cfdbaf30fdb8e2fdd81320bdb3047ded50120a4f82838209ce"
UID = "eb052b63-ea96-4728-ab4a-64ab3babccd7"
IMAGE = "docker.io/tgraf/netperf@sha256:8e86f744bfea165fd4ce68caa05abc96500f40130b857773186401926af7e9e6"
CGROUP = f"/kubelet/kubepods/besteffort/pod{UID}/{ID}"

XWING = {
    "metadata": {
        "name": "xwing",
        "namespace": "default",
        "uid": UID,
        "resourceVersion": "1",
        "labels": {"app.kubernetes.io/name": "xwing", "class": "xwing", "org": "alliance"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "secret"},
    },
    "spec": {"containers": [{"name": "spaceship", "image": "docker.io/tgraf/netperf"}], "nodeName": NODE},
    "status": {
        "podIP": "10.244.0.7",
        "startTime": "2022-05-11T10:07:29Z",
        "containerStatuses": [
            {
                "name": "spaceship",
                "containerID": f"containerd://{ID}",
                "image": "docker.io/tgraf/netperf:latest",
                "imageID": IMAGE,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2022-05-11T10:07:33Z"}},
            }
        ],
    },
}
TODAY = {"tid", "in_init_tree", "uid", "pod_labels", "workload", "workload_kind"}
"""What Tetragon has had since, and the seed has not. (The uid is the pod's; the process's own is there.)"""
ITS_OWN = {"refcnt"}
"""How often Tetragon's cache refers to a process."""

BOOT_UNIX_NS = 1_652_270_000_000_000_000


class Directory:
    """The API's pods, which are all there is here: no runtime is asked."""

    def __init__(self) -> None:
        self.pods = Pods()
        self.pods.put(decode_pod(json.dumps(XWING).encode()))

    def find(self, container_id: str | None, pod_uid: str | None) -> Found:
        return Found(*self.pods.find(container_id, pod_uid), pending=False)

    def seek(self, container_id: str) -> None:
        raise AssertionError(container_id)

    def settle(self, timeout_s: float) -> None:
        raise AssertionError(timeout_s)


def boot_ns(time: str) -> int:
    return parse_rfc3339(time) - BOOT_UNIX_NS


def in_pod(binary: str, *argv: str) -> Any:
    walked = "/".join(reversed(CGROUP.split("/")[1:])) + "/"
    args = b"".join(argument.encode() + b"\0" for argument in argv)
    return strings(filename=binary.encode(), args=args, cwd=b"", cgroup=walked.encode())


def happenings() -> list[Happening]:
    """runc, already there, starts a shell in the pod, and that starts whoami."""
    root: dict[str, Any] = {"uid": 0, "euid": 0, "gid": 0, "egid": 0, "auid": 2**32 - 1}
    # An image's number in its exec_id is the process's start and its generation: here 1 for runc, 2, and 3.
    runc: dict[str, Any] = {
        "pid": 43861,
        "start_ns": 9079185953399 - 1,
        "parent_pid": 1,
        "parent_start_ns": 0,
        "vpid": 43861,
        **root,
    }
    bash: dict[str, Any] = {
        "pid": 43872,
        "start_ns": 9079225623269 - 2,
        "parent_pid": 43861,
        "parent_start_ns": runc["start_ns"],
        "parent_generation": 1,
        "vpid": 43,
        **root,
    }
    whoami: dict[str, Any] = {
        "pid": 51583,
        "start_ns": 11428615636901 - 3,
        "parent_pid": 43872,
        "parent_start_ns": bash["start_ns"],
        "parent_generation": 2,
        "vpid": 50,
        **root,
    }
    began, ran = boot_ns("2022-05-11T12:15:36.225Z"), boot_ns("2022-05-11T12:54:45.615Z")
    records = [
        exec_record(
            strings(filename=b"/usr/bin/runc", args=b"runc\0exec\0", cgroup=b"containerd.service/system.slice/"),
            generation=1,
            parent_generation=0,
            time_ns=began - 2000,
            **runc,
        ),
        fork_record(generation=1, time_ns=began - 1000, **bash),
        exec_record(in_pod("/bin/bash", "/bin/bash"), args_count=1, generation=2, time_ns=began, **bash),
        fork_record(generation=2, time_ns=ran - 1000, **whoami),
        exec_record(in_pod("/usr/bin/whoami", "whoami", "--version"), generation=3, time_ns=ran, **whoami),
        exit_record(0, generation=3, time_ns=boot_ns("2022-05-11T12:54:45.616Z"), **whoami),
    ]
    decoder = KernelDecoder(
        NODE, unix_ns=lambda ns: BOOT_UNIX_NS + ns, observed_unix_ns=lambda: BOOT_UNIX_NS, page_bytes=4096
    )
    ledger = Ledger()
    table = ProcessTable(SpanIds("boot"), TraceOptions(), LineageOptions(), ledger)
    hold = Hold(Directory(), ledger, hold_ns=10**10, max_held=100, clock_ns=lambda: 0)
    told: list[Happening] = []
    for record in records:
        told += hold.pass_on(table.apply(decoder.decode(record)))
    chosen = Filter.of(namespaces=["default"], pods=["xwing"])
    # The shell's opening span, which whoami's makes necessary, is no event of Tetragon's.
    return [one for one in told if chosen.accepts(one) and not isinstance(one, Opened)]


def seed() -> list[dict[str, Any]]:
    decoder, text, position, documents = json.JSONDecoder(), SEED.read_text(), 0, []
    while position < len(text.rstrip()):
        document, position = decoder.raw_decode(text, position)
        documents.append(document)
        position += len(text[position:]) - len(text[position:].lstrip())
    return documents


def without(value: Any, names: set[str], *, process: bool = False) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in names or (process and key == "uid")}
    return {key: without(item, names, process=key in ("process", "parent")) for key, item in kept.items()}


def test_the_three_lines() -> None:
    assert [compact_line(happening, colour=False) for happening in happenings()] == [
        "🚀 process default/xwing /bin/bash",
        "🚀 process default/xwing /usr/bin/whoami --version",
        "💥 exit    default/xwing /usr/bin/whoami --version 0",
    ]


def test_tetragons_json_field_for_field() -> None:
    written = [json.loads(tetragon_json(happening) or b"") for happening in happenings()]
    expected = seed()
    assert [list(document) for document in expected] == [
        ["process_exec", "node_name", "time"],
        ["process_exit", "node_name", "time"],
    ]
    # Tetragon then had no time in an exit of its own.
    assert written[2]["process_exit"].pop("time") == written[2]["time"]
    # As text, because protojson's fields have an order.
    assert [json.dumps(without(document, TODAY)) for document in written[1:]] == [
        json.dumps(without(document, ITS_OWN)) for document in expected
    ]


def test_what_tetragon_writes_today() -> None:
    process = json.loads(tetragon_json(happenings()[1]) or b"")["process_exec"]["process"]
    assert (process["tid"], process["in_init_tree"]) == (51583, False)
    pod = process["pod"]
    assert list(pod) == ["namespace", "name", "uid", "container", "pod_labels", "workload", "workload_kind"]
    assert (pod["uid"], pod["workload"], pod["workload_kind"]) == (UID, "xwing", "Pod")
    assert pod["pod_labels"] == XWING["metadata"]["labels"]  # type: ignore[index]


def test_the_resource() -> None:
    host = host_resource({}, Path("/nowhere"), host_name=NODE, machine="x86_64", node_name=NODE)
    resources = Resources(host)
    bash, whoami, gone = (resources.of(happening.image.process) for happening in happenings())
    assert bash is not host
    assert bash.attributes == {
        "os.type": "linux",
        "host.name": NODE,
        "host.id": NODE,
        "host.arch": "amd64",
        "k8s.node.name": NODE,
        "k8s.namespace.name": "default",
        "k8s.pod.name": "xwing",
        "k8s.pod.uid": UID,
        "k8s.pod.ip": "10.244.0.7",
        "k8s.pod.start_time": "2022-05-11T10:07:29Z",
        "k8s.pod.label.app.kubernetes.io/name": "xwing",
        "k8s.pod.label.class": "xwing",
        "k8s.pod.label.org": "alliance",
        "k8s.container.name": "spaceship",
        "k8s.container.restart_count": 0,
        "container.id": ID,
        "container.runtime.name": "containerd",
        "container.image.name": "docker.io/tgraf/netperf",
        "container.image.tags": ("latest",),
        "container.image.id": IMAGE,
        "container.image.repo_digests": (IMAGE,),
        "service.name": "xwing",
        "service.namespace": "default",
        "service.instance.id": "default.xwing.spaceship",
        "service.version": f"latest@{IMAGE.partition('@')[2]}",
    }
    assert whoami is bash
    assert gone is bash


def test_every_filter_by_pod_and_container_finds_the_kernels_events() -> None:
    for fields, holds in (
        ({"namespace": ["default"]}, True),
        ({"namespace": [""]}, False),
        ({"namespace_regex": ["^def"]}, True),
        ({"pod_regex": ["^xwing$"]}, True),
        ({"pod_regex": ["tie"]}, False),
        ({"labels": ["org=alliance,class in (xwing)"]}, True),
        ({"labels": ["org=empire"]}, False),
        ({"container_name_regex": ["^space"]}, True),
        ({"container_id": [f"^{ID[:12]}"]}, True),
        ({"container_id": ["^0"]}, False),
        ({"in_init_tree": False}, True),
        ({"in_init_tree": True}, False),
        ({"health_check": True}, False),
    ):
        chosen = Filter.of(allow=[fields])
        assert [chosen.accepts(happening) for happening in happenings()] == [holds] * 3, fields
