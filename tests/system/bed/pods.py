"""Kubernetes objects for the tests, and an interactive ``kubectl exec``."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.system.bed.images import BASH, BUSYBOX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.bed.node import Node

ANSWER_SECONDS = 60


def container(name: str, *command: str, image: str = BUSYBOX) -> dict[str, Any]:
    """A container of a pod. Images are never pulled: there is no registry."""
    return {"name": name, "image": image, "imagePullPolicy": "Never", "command": list(command)}


def pod(
    name: str,
    *containers: dict[str, Any],
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod of the default namespace, which is ended within a second."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}, "annotations": annotations or {}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": list(containers), **spec},
    }


def xwing() -> dict[str, Any]:
    """The pod of the seed's demonstration, with the labels that Tetragon's documentation gives it."""
    return pod(
        "xwing",
        container("spaceship", "/bin/sleep", "3600", image=BASH),
        labels={"app.kubernetes.io/name": "xwing", "class": "xwing", "org": "alliance"},
        annotations={"team": "rebels"},
    )


def deployment(name: str, *command: str, replicas: int = 1) -> dict[str, Any]:
    """A Deployment of the default namespace."""
    template = pod(name, container("main", *command), labels={"app": name})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }


def job(name: str, *command: str, at_once: int = 1) -> dict[str, Any]:
    """A Job of the default namespace, of `at_once` pods that run at the same time, once."""
    template = pod(name, container("main", *command), restartPolicy="Never")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "parallelism": at_once,
            "completions": at_once,
            "backoffLimit": 0,
            "template": {"spec": template["spec"]},
        },
    }


def cron_job(name: str, schedule: str, *command: str) -> dict[str, Any]:
    """A CronJob of the default namespace."""
    return {
        "apiVersion": "batch/v1beta1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {"schedule": schedule, "jobTemplate": {"spec": job(name, *command)["spec"]}},
    }


class Terminal:
    """A person at ``kubectl exec -it``."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._seen = b""

    def type(self, line: str, until: str) -> None:
        """Type a line, and wait until the terminal shows `until`, in what comes after it was sent."""
        self._seen = b""
        os.write(self._descriptor, line.encode() + b"\n")
        self.wait_for(until)

    def wait_for(self, text: str) -> None:
        """Wait until the terminal shows `text`."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while text.encode() not in self._seen:
            ready, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"the terminal does not show {text!r} but {self._seen!r}"
            self._seen += os.read(self._descriptor, 4096)

    def leave(self) -> None:
        """Type ``exit``, and wait for the end of the session."""
        os.write(self._descriptor, b"exit\n")
        assert self._process.wait(ANSWER_SECONDS) == 0


@contextmanager
def interactive(node: Node, pod_name: str, *command: str) -> Iterator[Terminal]:
    """``kubectl exec -it POD -- COMMAND`` on a terminal, until `Terminal.leave`."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*node.kubectl_command, "exec", "-it", pod_name, "--", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(ours)
