"""Resources: the host, the container, the pod."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.resource import (
    ImageReference,
    Resources,
    environment_attributes,
    host_resource,
    image_reference,
)
from otel_procmon.events import Container, Pod, Process

MACHINE_ID = "fdbf79e8af94cb7f9e8df36789187052"
CONTAINER_ID = "1fb931d2f6e5e4cfdbaf30fdb8e2fdd81320bdb3047ded50120a4f82838209ce"
DIGEST = "sha256:8e86f744bfea165fd4ce68caa05abc96500f40130b857773186401926af7e9e6"


@pytest.fixture
def root(tmp_path: Any) -> Any:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(MACHINE_ID + "\n")
    (tmp_path / "etc/os-release").write_text(
        '# a comment\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nbroken\n'
    )
    return tmp_path


def host(root: Any, environ: Any = None, *, local: Any = True) -> Any:
    return host_resource(environ or {}, root, host_name="worker", machine="x86_64", local=local)


def process(**fields: Any) -> Any:
    return Process(**{"exec_id": "e", "pid": 1, "binary": "/bin/sh", "start_unix_ns": 1, **fields})


def pod_process(*, pod: Any = None, container: Any = None, **fields: Any) -> Any:
    return process(
        container_id=CONTAINER_ID,
        node="kind-control-plane",
        pod=Pod(**{"namespace": "default", "name": "xwing", **(pod or {})}),
        container=Container(
            **{
                "id": CONTAINER_ID,
                "runtime": "containerd",
                "name": "spaceship",
                "image_id": f"docker.io/tgraf/netperf@{DIGEST}",
                "image_name": "docker.io/tgraf/netperf:latest",
                **(container or {}),
            }
        ),
        **fields,
    )


def test_host(root: Any) -> None:
    resource = host(root)
    assert resource.schema_url == SCHEMA_URL
    assert resource.attributes == {
        "os.type": "linux",
        "os.name": "Debian GNU/Linux",
        "os.version": "12",
        "os.description": "Debian GNU/Linux 12 (bookworm)",
        "host.name": "worker",
        "host.id": MACHINE_ID,
        "host.arch": "amd64",
        "service.name": "otel-procmon",
    }


def test_host_of_this_machine(tmp_path: Any) -> None:
    attributes = host_resource({}, tmp_path).attributes
    assert attributes["host.name"] == attributes["host.id"]
    assert attributes["host.arch"]
    assert "os.name" not in attributes


@pytest.mark.parametrize("content", ["", "uninitialized\n", "../../etc/shadow", "FDBF79E8AF94CB7F9E8DF36789187052x"])
def test_machine_id_that_is_none_gives_the_fallback_file(root: Any, content: Any) -> None:
    (root / "etc/machine-id").write_text(content)
    assert host(root).attributes["host.id"] == "worker"
    (root / "var/lib/dbus").mkdir(parents=True)
    (root / "var/lib/dbus/machine-id").write_text("0" * 31 + "1")
    assert host(root).attributes["host.id"] == "0" * 31 + "1"


def test_environment_wins_over_what_is_found(root: Any) -> None:
    attributes = host(
        root,
        {
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=a, host.id = i-1 ,deployment.environment.name=a%2Cb%20%C3%A4,"
            "process.pid=3,telemetry.sdk.name=x,empty=",
            "OTEL_SERVICE_NAME": "fleet",
        },
    ).attributes
    assert attributes["service.name"] == "fleet"
    assert attributes["host.id"] == "i-1"
    assert attributes["deployment.environment.name"] == "a,b ä"
    assert not {"process.pid", "telemetry.sdk.name", "empty"} & attributes.keys()


@pytest.mark.parametrize("value", ["a=b,nonsense", "=x", "a=%FF"])
def test_bad_resource_attributes_are_void_as_a_whole(value: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        found = environment_attributes({"OTEL_RESOURCE_ATTRIBUTES": value, "OTEL_SERVICE_NAME": "s"})
    assert found == {"service.name": "s"}
    assert "OTEL_RESOURCE_ATTRIBUTES" in caplog.text


def test_host_process_has_the_hosts_resource(root: Any) -> None:
    resource = host(root)
    assert Resources(resource).of(process(node="worker", cgroup="/system.slice/cron.service")) is resource


def test_pod(root: Any) -> None:
    attributes = Resources(host(root)).of(pod_process()).attributes
    assert attributes == {
        "os.type": "linux",
        "os.name": "Debian GNU/Linux",
        "os.version": "12",
        "os.description": "Debian GNU/Linux 12 (bookworm)",
        "host.name": "worker",
        "host.id": MACHINE_ID,
        "host.arch": "amd64",
        "container.id": CONTAINER_ID,
        "container.runtime.name": "containerd",
        "container.image.name": "docker.io/tgraf/netperf",
        "container.image.tags": ("latest",),
        "container.image.id": f"docker.io/tgraf/netperf@{DIGEST}",
        "container.image.repo_digests": (f"docker.io/tgraf/netperf@{DIGEST}",),
        "k8s.namespace.name": "default",
        "k8s.pod.name": "xwing",
        "k8s.container.name": "spaceship",
        "k8s.node.name": "kind-control-plane",
        "service.name": "xwing",
        "service.namespace": "default",
        "service.version": f"latest@{DIGEST}",
        "service.instance.id": "default.xwing.spaceship",
    }


@pytest.mark.parametrize(
    ("pod", "labels", "name"),
    [
        ({}, False, "xwing"),
        ({"workload": "w", "workload_kind": "Deployment"}, False, "w"),
        ({"workload": "w", "workload_kind": "CronJob"}, False, "w"),
        ({"workload": "w", "workload_kind": "Rollout"}, False, "xwing"),
        ({"labels": {"app.kubernetes.io/name": "n"}}, False, "xwing"),
        ({"labels": {"app.kubernetes.io/name": "n"}, "workload": "w", "workload_kind": "Job"}, True, "n"),
        ({"labels": {"app.kubernetes.io/name": "n", "app.kubernetes.io/instance": "i"}}, True, "i"),
        (
            {
                "labels": {"app.kubernetes.io/instance": "i"},
                "annotations": {"resource.opentelemetry.io/service.name": "a"},
            },
            True,
            "a",
        ),
        ({"name": None}, False, "spaceship"),
    ],
)
def test_service_name_order_of_kubernetes(root: Any, pod: Any, labels: Any, name: Any) -> None:
    resources = Resources(host(root, {"OTEL_SERVICE_NAME": "agent"}), well_known_labels=labels)
    assert resources.of(pod_process(pod=pod)).attributes["service.name"] == name


def test_workload_labels_and_annotations(root: Any) -> None:
    attributes = (
        Resources(host(root))
        .of(
            pod_process(
                pod={
                    "uid": "u-1",
                    "labels": {"app": "x", "empty": ""},
                    "annotations": {
                        "resource.opentelemetry.io/service.namespace": "team",
                        "resource.opentelemetry.io/service.instance.id": "one",
                        "resource.opentelemetry.io/service.version": "7",
                        "resource.opentelemetry.io/deployment.environment.name": "prod",
                        "resource.opentelemetry.io/": "nameless",
                        "other/annotation": "x",
                    },
                    "workload": "web",
                    "workload_kind": "StatefulSet",
                }
            )
        )
        .attributes
    )
    assert attributes["k8s.pod.uid"] == "u-1"
    assert attributes["k8s.pod.label.app"] == "x"
    assert attributes["k8s.pod.label.empty"] == ""
    assert attributes["k8s.statefulset.name"] == "web"
    assert attributes["service.namespace"] == "team"
    assert attributes["service.instance.id"] == "one"
    assert attributes["service.version"] == "7"
    assert attributes["deployment.environment.name"] == "prod"
    assert "" not in attributes
    assert "other/annotation" not in attributes


@pytest.mark.parametrize("name", ["host.id", "k8s.pod.name", "k8s.pod.uid", "container.id", "os.name", "process.pid"])
def test_a_pod_cannot_claim_to_run_elsewhere(root: Any, name: Any) -> None:
    resources = Resources(host(root))
    plain = resources.of(pod_process()).attributes
    claiming = resources.of(
        pod_process(pod={"annotations": {f"resource.opentelemetry.io/{name}": "forged"}})
    ).attributes
    assert claiming == plain


def test_the_agents_own_pod_does_not_leak_into_containers(root: Any) -> None:
    environ = {
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=agent,k8s.cluster.name=prod,container.name=me,service.version=1,team=a,"
        "service.instance.id=z"
    }
    resources = Resources(host(root, environ))
    container = resources.of(process(container_id=CONTAINER_ID)).attributes
    assert container["k8s.cluster.name"] == "prod"
    assert container["team"] == "a"
    assert not {"k8s.pod.name", "container.name", "service.version", "service.instance.id"} & container.keys()


def test_container_without_kubernetes(root: Any) -> None:
    attributes = Resources(host(root)).of(process(container=Container(id=CONTAINER_ID, name="db"))).attributes
    assert attributes["container.name"] == attributes["service.name"] == "db"
    assert not [name for name in attributes if name.startswith("k8s.")]


def test_what_the_cgroup_path_tells_is_there_without_metadata(root: Any) -> None:
    attributes = Resources(host(root)).of(process(container_id=CONTAINER_ID, pod_uid="u-2", node="n")).attributes
    assert attributes["container.id"] == CONTAINER_ID
    assert attributes["k8s.pod.uid"] == "u-2"
    assert attributes["k8s.node.name"] == "n"
    assert attributes["service.name"] == "otel-procmon"


def test_other_nodes_are_not_this_host(root: Any) -> None:
    resources = Resources(host(root, {"OTEL_RESOURCE_ATTRIBUTES": "k8s.cluster.name=prod"}, local=False), local=False)
    a, b = resources.of(process(node="a")), resources.of(process(node="b"))
    assert a is resources.of(process(node="a", pid=2))
    assert a.attributes == {
        "os.type": "linux",
        "host.name": "a",
        "host.id": "a",
        "k8s.cluster.name": "prod",
        "service.name": "otel-procmon",
    }
    assert b.attributes["host.id"] == "b"
    pod = resources.of(pod_process()).attributes
    assert pod["host.id"] == pod["host.name"] == pod["k8s.node.name"] == "kind-control-plane"
    unknown = resources.of(process()).attributes
    assert not [name for name in unknown if name.startswith("host.")]


def test_one_object_for_each_container(root: Any) -> None:
    resources = Resources(host(root))
    first = resources.of(pod_process())
    assert resources.of(pod_process(pid=7)) is first
    assert resources.of(pod_process(container={"id": "f" * 64})) is not first
    late = resources.of(pod_process(pod={"labels": {"app": "x"}}))
    assert late is not first
    assert late.attributes["k8s.pod.label.app"] == "x"


def test_the_least_recently_used_is_forgotten(root: Any) -> None:
    resources = Resources(host(root), remembered=2)
    one, two = (resources.of(process(container_id=c)) for c in "ab")
    assert resources.of(process(container_id="a")) is one
    resources.of(process(container_id="c"))
    assert resources.of(process(container_id="a")) is one
    assert resources.of(process(container_id="b")) is not two


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, None, None)),
        ("nginx", ("nginx", None, None)),
        ("nginx:1.25", ("nginx", "1.25", None)),
        ("localhost:5000/a/b", ("localhost:5000/a/b", None, None)),
        ("localhost:5000/a/b:t", ("localhost:5000/a/b", "t", None)),
        (f"r.io/a/b:t@{DIGEST}", ("r.io/a/b", "t", DIGEST)),
        (f"docker-pullable://r.io/a@{DIGEST}", ("r.io/a", None, DIGEST)),
        (DIGEST, (None, None, DIGEST)),
    ],
)
def test_image_reference(text: Any, expected: Any) -> None:
    assert image_reference(text) == ImageReference(*expected)


def test_image_known_by_id_only(root: Any) -> None:
    attributes = (
        Resources(host(root))
        .of(pod_process(container={"image_name": DIGEST, "image_id": DIGEST, "name": None}))
        .attributes
    )
    assert not {"container.image.name", "container.image.tags", "container.image.repo_digests"} & attributes.keys()
    assert attributes["service.version"] == DIGEST
    assert "service.instance.id" not in attributes


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3), st.text())
def test_hostile_metadata_is_encodable(tmp_path_factory: Any, name: Any, node: Any, labels: Any, image: Any) -> None:
    resources = Resources(host(tmp_path_factory.getbasetemp()))
    surrogate = "\ud800"
    annotations = {f"resource.opentelemetry.io/{key}{surrogate}": value + surrogate for key, value in labels.items()}
    resource = resources.of(
        pod_process(
            pod={
                "name": name + surrogate,
                "labels": {k + surrogate: v for k, v in labels.items()},
                "annotations": annotations,
            },
            container={"image_name": image, "image_id": image + surrogate, "name": surrogate},
        )
    )
    for key, value in resource.attributes.items():
        key.encode()
        "".join(value if isinstance(value, tuple) else [str(value)]).encode()
