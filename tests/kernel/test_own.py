"""What the agent tells of itself, and that telling makes nothing that would have to be told."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.truth.family import with_word
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT
from tests.unit.kube_server import TOKEN, KubeServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.truth.otlp import Log
    from tests.kernel.truth.running import Agent, RunningAgent

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("require_kernel")]

OTHERS = 50


def kubeconfig_with_a_program(directory: Path, server: str, word: str) -> Path:
    """A kubeconfig whose token a program gives, as those of cloud providers do: what the agent starts while it runs."""
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": TOKEN},
    }
    program = directory / "give-token"
    program.write_text(f"#!/bin/sh\n/bin/true {word}\necho '{json.dumps(credential)}'\n")
    program.chmod(0o755)
    execute = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(program),
        "args": [word],
        "interactiveMode": "Never",
    }
    path = directory / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"exec": execute}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


def own(agent: Agent, event_name: str) -> list[Log]:
    return [log for log in agent.logs() if log.event_name == event_name and log.attributes.get("procmon.self") is True]


def test_what_is_its_own_is_marked_and_does_not_multiply(running_agent: RunningAgent, tmp_path: Path) -> None:
    word, others = marker(), marker()
    server = KubeServer()
    try:
        env = {"KUBECONFIG": str(kubeconfig_with_a_program(tmp_path, server.address, word)), "NODE_NAME": "n1"}
        config = tmp_path / "procmon.yaml"
        config.write_text("containers: {ask_runtime: false}\nlineage: {sweep_interval: 1s}\n")
        with running_agent(tmp_path, "--config", str(config), env=env) as agent:
            agent.wait_until(lambda: bool(server.queries), "the API was asked")
            agent.wait_until(lambda: len(with_word(agent.logs(), word)) >= 4, "what asked for the token was told")
            agent.wait_until(lambda: bool(own(agent, "process.discovered")), "it has found itself")
            started = own(agent, "process.exec")
            for _ in range(OTHERS):
                subprocess.run(["/bin/true", others], env=ENVIRONMENT, check=True)
            agent.wait_until(lambda: len(with_word(agent.logs(), others)) == 2 * OTHERS, "the others were told")
    finally:
        server.close()
    (itself,) = own(agent, "process.discovered")
    assert itself.attributes["process.pid"] == agent.process.pid
    # The script and what that runs; the file that is written all the time is written by itself.
    told = with_word(agent.logs(), word)
    assert {log.attributes["process.executable.name"] for log in told} == {"give-token", "true"}
    assert {log.attributes["procmon.self"] for log in told} == {True}
    assert {span.attributes["procmon.self"] for span in with_word(agent.spans(), word)} == {True}
    assert not any("procmon.self" in log.attributes for log in with_word(agent.logs(), others))
    assert not any("procmon.self" in span.attributes for span in with_word(agent.spans(), others))
    assert len(own(agent, "process.exec")) == len(started) == 2
