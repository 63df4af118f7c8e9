"""Resources: the host, the container, the pod."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.host import environment_attributes, host_resource
from otel_procmon.convert.image_reference import ImageReference, image_reference
from otel_procmon.convert.resource import Resources
from otel_procmon.events import Container, Owner, Pod, Process

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


@pytest.mark.parametrize("cgroup", [None, "/", "/init.scope", "/user.slice/user-1000.slice/session-3.scope"])
def test_host_process_has_the_hosts_resource(root: Any, cgroup: Any) -> None:
    resource = host(root)
    assert Resources(resource).of(process(node="worker", cgroup=cgroup)) is resource


def test_systemd_service(root: Any) -> None:
    resource = host(root, {"OTEL_RESOURCE_ATTRIBUTES": "service.version=1,team=a", "OTEL_SERVICE_NAME": "agent"})
    resources = Resources(resource)
    cron = resources.of(process(node="worker", cgroup="/system.slice/cron.service"))
    assert cron.attributes == {
        **{name: value for name, value in resource.attributes.items() if name != "service.version"},
        "service.name": "cron",
        "procmon.systemd.unit": "cron.service",
    }
    assert cron.schema_url == SCHEMA_URL
    assert cron.attributes["team"] == "a"
    # One object for all of its processes, wherever below it they are
    assert resources.of(process(pid=7, node="worker", cgroup="/system.slice/cron.service/job")) is cron
    assert resources.of(process(node="worker", cgroup="/system.slice/ssh.service")).attributes["service.name"] == "ssh"
    assert resources.of(process(node="worker", cgroup="/system.slice/cron.service")) is cron
    assert Resources(resource, systemd_services=False).of(process(cgroup="/system.slice/cron.service")) is resource


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            {"service.name": "postgresql", "procmon.systemd.unit": "postgresql@15-main.service"},
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/syncthing.service",
            {
                "service.name": "syncthing",
                "procmon.systemd.unit": "user@1000.service",
                "procmon.systemd.user_unit": "syncthing.service",
            },
        ),
        # Nobody has named it
        ("/system.slice/run-u42.service", {"service.name": "agent", "procmon.systemd.unit": "run-u42.service"}),
    ],
)
def test_names_of_systemd_services(root: Any, cgroup: Any, expected: Any) -> None:
    attributes = Resources(host(root, {"OTEL_SERVICE_NAME": "agent"})).of(process(cgroup=cgroup)).attributes
    assert {n: v for n, v in attributes.items() if n.startswith(("service.", "procmon."))} == expected


@pytest.mark.parametrize(
    "where",
    [
        {"container_id": CONTAINER_ID},
        {"pod_uid": "6f2c1a52-3c5d-4a34-9f1e-0e5f0a9b7c11"},
        {"container": Container(id=CONTAINER_ID)},
        {"pod": Pod(name="xwing")},
    ],
)
def test_a_unit_inside_of_a_container_does_not_count(root: Any, where: Any) -> None:
    resources = Resources(host(root))
    resource = resources.of(process(cgroup="/system.slice/nginx.service", **where))
    assert resource.attributes["service.name"] != "nginx"
    assert not [name for name in resource.attributes if name.startswith("procmon.systemd")]
    assert resources.of(process(cgroup="/system.slice/php.service", **where)) is resource


def test_services_of_other_hosts(root: Any) -> None:
    resources = Resources(host(root, local=False), local=False)
    a, b = (resources.of(process(node=node, cgroup="/system.slice/cron.service")).attributes for node in "ab")
    assert (a["service.name"], a["host.name"], b["host.name"]) == ("cron", "a", "b")


def test_the_node_and_the_cluster_are_the_hosts(root: Any) -> None:
    resource = host_resource({}, root, node_name="worker-1", cluster_name="prod", cluster_uid="u-0")
    resources = Resources(resource)
    known = {"k8s.node.name": "worker-1", "k8s.cluster.name": "prod", "k8s.cluster.uid": "u-0"}
    for one in (
        process(),
        process(cgroup="/system.slice/kubelet.service"),
        process(container_id=CONTAINER_ID),
        pod_process(),
    ):
        assert resources.of(one).attributes.items() >= known.items()
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "k8s.cluster.name=other"}
    attributes = host_resource(environ, root, local=False, node_name="worker-1", cluster_name="prod").attributes
    assert attributes["k8s.cluster.name"] == "other"
    assert "k8s.node.name" not in attributes


def test_the_cluster_that_the_event_tells(root: Any) -> None:
    resources = Resources(host_resource({}, root, local=False, cluster_name="configured"), local=False)
    told = resources.of(pod_process(cluster_name="told"))
    assert told.attributes["k8s.cluster.name"] == "told"
    assert resources.of(process(node="n", cluster_name="told")).attributes["k8s.cluster.name"] == "told"
    other = resources.of(pod_process())
    assert other.attributes["k8s.cluster.name"] == "configured"
    assert resources.of(pod_process(cluster_name="told")) is told


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


# Pods as Kubernetes 1.20 has them: a Deployment's, a Job's of a CronJob, a static pod.
WORKLOADS = {
    "Deployment": (
        {"owners": (Owner("ReplicaSet", "web-7d9f6bf9c4"), Owner("Deployment", "web"))},
        {"k8s.replicaset.name": "web-7d9f6bf9c4", "k8s.deployment.name": "web"},
        "web",
    ),
    "ReplicaSet, of which the deployment is only in the workload": (
        {
            "owners": (Owner("ReplicaSet", "web-7d9f6bf9c4"),),
            "workload": "web",
            "workload_kind": "Deployment",
        },
        {"k8s.replicaset.name": "web-7d9f6bf9c4", "k8s.deployment.name": "web"},
        "web",
    ),
    "ReplicaSet": ({"owners": (Owner("ReplicaSet", "bare"),)}, {"k8s.replicaset.name": "bare"}, "bare"),
    "StatefulSet": ({"owners": (Owner("StatefulSet", "db"),)}, {"k8s.statefulset.name": "db"}, "db"),
    "DaemonSet": ({"owners": (Owner("DaemonSet", "proxy"),)}, {"k8s.daemonset.name": "proxy"}, "proxy"),
    "CronJob": (
        {"owners": (Owner("Job", "backup-28392010"), Owner("CronJob", "backup"))},
        {"k8s.job.name": "backup-28392010", "k8s.cronjob.name": "backup"},
        "backup",
    ),
    "Job": ({"owners": (Owner("Job", "migrate"),)}, {"k8s.job.name": "migrate"}, "migrate"),
    "Tetragon's workload": ({"workload": "web", "workload_kind": "Deployment"}, {"k8s.deployment.name": "web"}, "web"),
    "Tetragon's pod without a controller": ({"workload": "xwing", "workload_kind": "Pod"}, {}, "xwing"),
    "static pod": ({"owners": (Owner("Node", "worker"),)}, {}, "xwing"),
    "of one's own": ({"owners": (Owner("Rollout", "r"), Owner("Rollout", "s"))}, {}, "xwing"),
    "two of one kind: the nearer one": (
        {"owners": (Owner("ReplicaSet", "near"), Owner("ReplicaSet", "far"))},
        {"k8s.replicaset.name": "near"},
        "near",
    ),
}


@pytest.mark.parametrize(("pod", "expected", "service"), WORKLOADS.values(), ids=WORKLOADS)
def test_workloads(root: Any, pod: Any, expected: Any, service: Any) -> None:
    plain = Resources(host(root)).of(pod_process()).attributes
    attributes = Resources(host(root)).of(pod_process(pod=pod)).attributes
    assert attributes == {**plain, **expected, "service.name": service}


def test_what_the_api_tells_of_a_pod_and_a_container(root: Any) -> None:
    repository = "docker.io/tgraf/netperf"
    attributes = (
        Resources(host(root))
        .of(
            pod_process(
                pod={"ip": "10.244.0.7", "start_time": "2022-05-11T10:07:29Z"},
                container={
                    "image_id": "sha256:" + "a" * 64,
                    "image_repo_digests": (f"{repository}@{DIGEST}", f"mirror.example/netperf@{DIGEST}"),
                    "restart_count": 0,
                },
            )
        )
        .attributes
    )
    assert attributes["k8s.pod.ip"] == "10.244.0.7"
    assert attributes["k8s.pod.start_time"] == "2022-05-11T10:07:29Z"
    assert attributes["k8s.container.restart_count"] == 0
    assert attributes["container.image.id"] == "sha256:" + "a" * 64
    assert attributes["container.image.repo_digests"] == (f"{repository}@{DIGEST}", f"mirror.example/netperf@{DIGEST}")
    assert attributes["service.version"] == f"latest@{DIGEST}"


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["*"], {"app", "app.kubernetes.io/name", "appendix", "example.com/team"}),
        ([], set()),
        (["app"], {"app"}),
        (["app.kubernetes.io/*", "example.com/team"], {"app.kubernetes.io/name", "example.com/team"}),
        # A dot is a dot
        (["app.*"], {"app.kubernetes.io/name"}),
        (["other"], set()),
    ],
)
def test_labels_and_annotations_that_are_selected(root: Any, patterns: Any, told: Any) -> None:
    values = {"app": "x", "app.kubernetes.io/name": "n", "appendix": "", "example.com/team": "t"}
    resources = Resources(host(root), pod_labels=patterns, pod_annotations=[])
    attributes = resources.of(pod_process(pod={"labels": values, "annotations": values})).attributes
    assert {n: v for n, v in attributes.items() if n.startswith("k8s.pod.label.")} == {
        f"k8s.pod.label.{key}": values[key] for key in told
    }
    assert not [name for name in attributes if name.startswith("k8s.pod.annotation.")]
    resources = Resources(host(root), pod_labels=[], pod_annotations=patterns)
    attributes = resources.of(pod_process(pod={"labels": values, "annotations": values})).attributes
    assert {n: v for n, v in attributes.items() if n.startswith("k8s.pod.annotation.")} == {
        f"k8s.pod.annotation.{key}": values[key] for key in told
    }


def test_annotations_are_secret_unless_asked_for(root: Any) -> None:
    pod = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{…}"}, "labels": {"app": "x"}}
    attributes = Resources(host(root)).of(pod_process(pod=pod)).attributes
    assert "{…}" not in attributes.values()
    assert attributes["k8s.pod.label.app"] == "x"


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
    assert not {"k8s.pod.name", "container.name"} & resources.of(process()).attributes.keys()
    assert resources.of(process()).attributes["k8s.cluster.name"] == "prod"
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
    # What a process is taken for is no property of its container.
    assert resources.of(pod_process(container={"maybe_exec_probe": True})) is first
    assert resources.of(pod_process()) is first
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
