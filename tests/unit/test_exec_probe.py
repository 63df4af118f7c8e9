"""Processes that may be exec probes, and the commands of probes in the API's pods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otel_procmon.containers.exec_probe import maybe_exec_probe
from otel_procmon.containers.pods import decode_pod
from otel_procmon.events import Container, Pod, Process

PROBES: dict[str, tuple[tuple[str, ...], ...]] = {
    "redis": (("/health/ping.sh", "5"), ("sh", "-c", "redis-cli ping")),
    "sidecar": (("grpc_health_probe", "-addr=:5050"),),
}
WITH_SECRETS = Pod(
    name="db-0",
    exec_probes={
        "redis": (
            ("sh", "-c", "mysqladmin -phunter2 ping -u a --token hunter3"),
            ("redis-cli", "-a", "$(PASSWORD)", "ping"),
        )
    },
)


def process(binary: str, *argv: str, container: str | None = "redis", **fields: Any) -> Process:
    return Process(
        exec_id="x",
        pid=1,
        start_unix_ns=1,
        binary=binary,
        **{
            "argv": argv,
            "container": Container(id="c", name=container),
            "pod": Pod(name="cache-0", exec_probes=PROBES),
            **fields,
        },
    )


PROBING = {
    "by its whole path": process("/health/ping.sh", "/health/ping.sh", "5"),
    "by the PATH": process("/usr/bin/sh", "sh", "-c", "redis-cli ping"),
    # What the kernel makes of argv for a script: its first line's interpreter, an argument of that, the script
    "a script": process("/health/ping.sh", "/bin/bash", "/health/ping.sh", "5", interpreter="/bin/bash"),
    "a script, with an option": process(
        "/health/ping.sh", "/bin/bash", "-e", "/health/ping.sh", "5", interpreter="/bin/bash"
    ),
    "with a secret that was redacted": process(
        "/bin/sh", "sh", "-c", "mysqladmin -p***** ping -u a --token *****", pod=WITH_SECRETS
    ),
    "with one that is not in the pod itself": process(
        "/bin/redis-cli", "redis-cli", "-a", "*****", "ping", pod=WITH_SECRETS
    ),
    "another container's": process("/bin/grpc_health_probe", "grpc_health_probe", "-addr=:5050", container="sidecar"),
}
OTHERS = {
    "other arguments, redacted": process(
        "/bin/sh", "sh", "-c", "mysqladmin -p***** status -u a --token *****", pod=WITH_SECRETS
    ),
    "another end, redacted": process(
        "/bin/sh", "sh", "-c", "mysqladmin -p***** ping -u a --token ***** x", pod=WITH_SECRETS
    ),
    "other arguments": process("/usr/bin/sh", "sh", "-c", "redis-cli flushall"),
    "more arguments": process("/usr/bin/sh", "sh", "-c", "redis-cli ping", "x"),
    "fewer arguments": process("/health/ping.sh", "/health/ping.sh"),
    "another path": process("/tmp/ping.sh", "/tmp/ping.sh", "5"),
    "another program": process("/usr/bin/dash", "sh", "-c", "redis-cli ping"),
    "another container": process("/usr/bin/sh", "sh", "-c", "redis-cli ping", container="sidecar"),
    "a container without a name": process("/usr/bin/sh", "sh", "-c", "redis-cli ping", container=None),
    "no probes": process("/usr/bin/sh", "sh", "-c", "redis-cli ping", pod=Pod()),
    "no pod": process("/usr/bin/sh", "sh", "-c", "redis-cli ping", pod=None),
    "no arguments known": process("/usr/bin/sh", argv=None, arguments='-c "redis-cli ping"'),
}


@pytest.mark.parametrize("probe", PROBING.values(), ids=PROBING)
def test_probes(probe: Process) -> None:
    assert maybe_exec_probe(probe)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_no_probe(other: Process) -> None:
    assert not maybe_exec_probe(other)


def test_what_the_source_tells() -> None:
    assert maybe_exec_probe(
        Process(
            exec_id="x",
            pid=1,
            start_unix_ns=1,
            binary="/x",
            container=Container(id="c", maybe_exec_probe=True),
        )
    )


def test_probes_in_the_api() -> None:
    ping = {"exec": {"command": ["/health/ping.sh", "5"]}, "periodSeconds": 5}
    found = {
        "metadata": {"uid": "u", "name": "cache-0"},
        "spec": {
            "containers": [
                {
                    "name": "redis",
                    "livenessProbe": ping,
                    "readinessProbe": {"exec": {"command": ["sh", "-c", "redis-cli ping"]}},
                    "startupProbe": ping,
                },
                {"name": "web", "livenessProbe": {"httpGet": {"path": "/", "port": 80}}},
                {"name": "odd", "livenessProbe": {"exec": {}}},
            ],
            "initContainers": [
                {"name": "sidecar", "startupProbe": {"exec": {"command": ["grpc_health_probe", "-addr=:5050"]}}}
            ],
        },
    }
    assert decode_pod(json.dumps(found).encode()).pod.exec_probes == PROBES
