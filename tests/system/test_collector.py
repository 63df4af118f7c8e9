"""Every configuration in ``collector-config/``, in a real Collector: valid, and doing what it says with what the agent tells."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.truth.running import run_command
from tests.kernel.truth.shell import marker, shell
from tests.kernel.truth.workloads import ENVIRONMENT, compile_tiny
from tests.system.bed import backends as bed
from tests.system.bed.enclosure import Daemon, wait_until
from tests.system.bed.node import NAME
from tests.system.bed.pods import container, pod

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from tests.kernel.truth.running import Agent
    from tests.system.bed.backends import Collector, Loki, LokiLine, Programs, Stores
    from tests.system.bed.node import Node

pytestmark = pytest.mark.system

CONFIGURATIONS = bed.TOP / "collector-config"
ON_THE_HOST = "containers: {ask_kubernetes: false, ask_runtime: false}\nrecords: {systemd_services: false}\n"
RATE, SECONDS = 1000, 60
NO_LOGS = {"OTEL_LOGS_EXPORTER": "none"}


def configuration(name: str) -> Path:
    """The file of that name."""
    return CONFIGURATIONS / f"{name}.yaml"


def runs(*command: str) -> None:
    """Run a command, whatever comes of it."""
    subprocess.run(command, env=ENVIRONMENT, check=False, timeout=60, stdout=subprocess.DEVNULL)


def agent_for(
    collector: Collector, directory: Path, word: str, *arguments: str, env: Mapping[str, str] | None = None
) -> AbstractContextManager[Agent]:
    """An agent that tells the Collector of what has `word` among its arguments, and does nothing else."""
    settings = directory / "agent.yaml"
    settings.write_text(ON_THE_HOST)
    told = ("--config", str(settings), *only(directory, word), *arguments)
    return run_command(directory, "run", *told, env={**collector.endpoint, **(env or {})})


def only(directory: Path, word: str) -> tuple[str, str]:
    """Arguments for an agent that is to tell only of what has `word` among its arguments."""
    path = directory / "only.yaml"
    path.write_text(f"export-allowlist:\n- arguments_regex: ['{word}']\n")
    return "--filter-file", str(path)


def lines_of(loki: Loki, word: str) -> list[LokiLine]:
    """What Loki has of what had `word` among its arguments."""
    return loki.query(f'{{service_name=~".+"}} |= `{word}`')


def free_address() -> str:
    """An address on loopback where nobody listens."""
    (port,) = bed.free_ports(1)
    return f"{bed.HOST}:{port}"


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_valid_as_it_is(path: Path, backends: Programs) -> None:
    """With no variable set but the one that says which node it is on."""
    bed.validate(backends.otelcol, path, environment={"K8S_NODE_NAME": "node1"} if "kubernetes" in path.stem else {})


def test_compose_adds_jaeger(backends: Programs) -> None:
    bed.validate(
        backends.otelcol, configuration("tempo-loki"), bed.TOP / "examples/compose/collector.yaml", environment={}
    )


def test_every_variable_is_explained() -> None:
    for path in CONFIGURATIONS.glob("*.yaml"):
        text = path.read_text()
        comment = text[: text.index("receivers:")]
        readme = (CONFIGURATIONS / "README.md").read_text()
        for name, default in re.findall(r"\$\{env:(\w+)(?::-([^}]*))?\}", text):
            assert name in comment or name in readme, f"{path.name}: {name}"
            if name in comment and name != "CLUSTER_NAME" and not name.endswith("_LISTEN"):
                assert default in comment, f"{path.name}: {name}={default}"


def test_jaeger(backends: Programs, kept: Stores, tmp_path: Path) -> None:
    word, page = marker(), free_address()
    environment = {**kept.environment, "AGENT_METRICS": page}
    with bed.collector(backends.otelcol, [configuration("jaeger")], tmp_path, environment) as collector:
        with agent_for(collector, tmp_path, word, env={**NO_LOGS, "OTEL_SERVICE_NAME": word}) as agent:
            runs("sh", "-c", "id; true", word)
        # The agent's last words are its metrics.
        metrics = str(bed.ask(f"http://{page}/metrics"))
    assert agent.ledger()["delivery.traces"] == {"exported": 1}
    assert agent.ledger()["delivery.logs"] == {"not sent: OTEL_LOGS_EXPORTER=none": 2}
    ((trace),) = kept.jaeger.search(word, {"process.exit.code": "0"})
    assert trace.tree() == ["sh"]
    assert re.search(
        r'procmon_ledger_total\{[^}]*procmon_outcome="exported",procmon_place="delivery.traces"[^}]*\} 1\n', metrics
    )


def test_a_backend_that_is_away_costs_nothing(backends: Programs, tmp_path: Path) -> None:
    """The Collector keeps nothing, and says so; the agent keeps it."""
    word = marker()
    (port,) = bed.free_ports(1)
    environment = {"JAEGER_ENDPOINT": f"{bed.HOST}:{port}", "AGENT_METRICS": free_address()}
    with (
        bed.collector(backends.otelcol, [configuration("jaeger")], tmp_path, environment) as collector,
        agent_for(collector, tmp_path, word, env={**NO_LOGS, "OTEL_SERVICE_NAME": word}) as agent,
    ):
        runs("true", word)
        agent.wait_until(lambda: "delivery.traces: " in agent.stderr, "it said that it cannot send")
        with bed.jaeger(backends.jaeger, tmp_path, port) as jaeger:
            runs("false", word)
            agent.wait_until(lambda: "delivery.traces: sending works again" in agent.stderr, "it sends again")
            agent.stop()
            found = {
                name
                for trace in (
                    *jaeger.search(word, {"error.type": "1"}),
                    *jaeger.search(word, {"process.exit.code": "0"}),
                )
                for name in trace.tree()
            }
    assert found == {"true", "false"}
    assert agent.ledger()["delivery.traces"] == {"exported": 2}


def test_tempo_and_loki(backends: Programs, kept: Stores, tmp_path: Path) -> None:
    """Over HTTP as well, which the others do not use; with what is no one's business left out of the stream's labels."""
    word = marker()
    environment = {**kept.environment, "AGENT_METRICS": free_address()}
    with bed.collector(backends.otelcol, [configuration("tempo-loki")], tmp_path, environment) as collector:
        over_http = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{bed.HOST}:{collector.http_port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        with agent_for(collector, tmp_path, word, env={**over_http, "OTEL_SERVICE_NAME": word}):
            runs("true", word)
    executed, ended = lines_of(kept.loki, word)
    assert executed.labels["event_name"] == "process.exec"
    assert ended.labels["event_name"] == "process.exit"
    assert ended.labels["process_exit_code"] == "0"
    assert ended.labels["service_name"] == word
    assert ended.labels["detected_level"] == "info"


def kept_by_gateway(stores: Stores) -> dict[str, str]:
    """For a gateway that decides soon, and keeps nothing but what it has a reason to."""
    return {
        **stores.environment,
        "DECISION_WAIT": "1s",
        "KEEP_PERCENT": "0",
        "METRICS_ENDPOINT": f"http://{free_address()}",
    }


def test_gateway_keeps_traces_in_which_something_failed(backends: Programs, kept: Stores, tmp_path: Path) -> None:
    word = marker()
    environment = {**kept_by_gateway(kept), "QUEUE_DIRECTORY": str(tmp_path / "queue"), "CLUSTER_NAME": "test"}
    with bed.collector(backends.otelcol, [configuration("gateway")], tmp_path, environment) as collector:
        with agent_for(collector, tmp_path, word, env={"OTEL_SERVICE_NAME": word}):
            with shell(session=True) as quiet:
                assert quiet.run(f"/bin/true {word}") == 0
            with shell(session=True) as failing:
                assert failing.run(f"/bin/true {word}; sh -c 'exit 7' {word}") == 7
            with shell(terminal=True) as typing:
                assert typing.run(f"/usr/bin/id {word} >/dev/null 2>&1 || true") == 0
        wait_until(lambda: len(lines_of(kept.loki, word)) >= 8, "Loki has all log records")
        wait_until(lambda: bool(kept.jaeger.search(word, {"error.type": "7"})), "the failed trace has been kept")
        (failed,) = kept.jaeger.search(word, {"error.type": "7"})
        assert sorted(span["operationName"] for span in failed.spans.values()) == ["sh", "true"]
        wait_until(lambda: bool(kept.jaeger.search(word, {"process.interactive": "true"})), "so has the person's")
    # It decides on what it has when it ends.
    traces = {trace.data["traceID"] for trace in kept.jaeger.search(word, {})}
    assert len(traces) == 2
    lines = lines_of(kept.loki, word)
    assert {line.labels["trace_id"] for line in lines} > traces
    assert {line.labels["k8s_cluster_name"] for line in lines} == {"test"}


def test_gateway_loses_nothing_when_it_is_killed_while_loki_is_away(
    backends: Programs, kept: Stores, tmp_path: Path
) -> None:
    word = marker()
    environment = {**kept_by_gateway(kept), "QUEUE_DIRECTORY": str(tmp_path / "queue")}
    away = {**environment, "LOKI_ENDPOINT": f"http://{free_address()}/otlp"}
    with bed.collector(backends.otelcol, [configuration("gateway")], tmp_path, away) as collector:
        with agent_for(collector, tmp_path, word, env={"OTEL_SERVICE_NAME": word}) as agent:
            for _ in range(20):
                runs("true", word)
        assert agent.ledger()["delivery.logs"] == {"exported": 40}
        os.kill(collector.daemon.pid, signal.SIGKILL)
    assert lines_of(kept.loki, word) == []
    with bed.collector(backends.otelcol, [configuration("gateway")], tmp_path, environment):
        wait_until(lambda: len(lines_of(kept.loki, word)) == 40, "Loki has what was on disk")


def test_metrics_by_workload_and_executable(backends: Programs, tmp_path: Path) -> None:
    word, page = marker(), free_address()
    environment = {"METRICS_LISTEN": page, "METRICS_FLUSH": "1s"}
    with bed.collector(backends.otelcol, [configuration("metrics")], tmp_path, environment) as collector:
        with agent_for(collector, tmp_path, word, env={**NO_LOGS, "OTEL_SERVICE_NAME": "shop"}):
            for _ in range(3):
                runs("true", word)
            for _ in range(2):
                runs("false", word)
            runs("sh", "-c", "sleep 0.2; :", word)
        samples: dict[tuple[str, str, str], float] = {}

        def read() -> bool:
            for line in str(bed.ask(f"http://{page}/metrics")).splitlines():
                if matched := re.fullmatch(r"(procmon_process_\w+?)\{(.*)\} (\S+)", line):
                    labels = dict(re.findall(r'(\w+)="([^"]*)"', matched[2]))
                    if "le" not in labels and labels["service_name"] == "shop":
                        samples[matched[1], labels["span_name"], labels["status_code"]] = float(matched[3])
            calls = {key[1:]: value for key, value in samples.items() if key[0] == "procmon_process_calls_total"}
            return calls == {
                ("true", "STATUS_CODE_UNSET"): 3,
                ("false", "STATUS_CODE_ERROR"): 2,
                ("sh", "STATUS_CODE_UNSET"): 1,
            }

        # Every series begins with a 0.
        wait_until(read, f"the metrics say what ran: {samples}", 30)
    assert 0.2 <= samples["procmon_process_duration_seconds_sum", "sh", "STATUS_CODE_UNSET"] < 60


def test_tetragon(backends: Programs, kept: Stores, tmp_path: Path) -> None:
    """Its file has execs and exits, and other events that are no processes. Tetragon itself cannot run here: our own
    output in its format stands in for it, with an event of a kprobe added as its documentation shows it.
    """
    word, log = marker(), tmp_path / "tetragon.log"
    first = tmp_path / "first"
    first.mkdir()
    with run_command(first, "run", *only(first, word), "-o", f"json:{log}"):
        runs("sh", "-c", "id; exit 4", word)
    executed = json.loads(log.read_text().splitlines()[0])
    process = executed["process_exec"]["process"]
    kprobe = {
        "process_kprobe": {
            "process": {**process, "pod": {"namespace": "shop", "name": "till-0", "workload": "till"}},
            "function_name": "security_file_permission",
            "args": [{"file_arg": {"path": "/etc/shadow"}}],
            "action": "KPROBE_ACTION_POST",
            "policy_name": "watch-shadow",
        },
        "node_name": executed["node_name"],
        "time": executed["time"],
    }
    with log.open("a") as file:
        file.write(json.dumps(kprobe) + "\n")
    environment = {
        **kept.environment,
        "TETRAGON_LOG": str(log),
        "QUEUE_DIRECTORY": str(tmp_path / "queue"),
        "AGENT_METRICS": free_address(),
    }
    with bed.collector(backends.otelcol, [configuration("tetragon")], tmp_path, environment) as collector:
        variables = {**collector.endpoint, "OTEL_SERVICE_NAME": word}
        run = ("run", "--source", f"tetragon:{log}", "-o", "otlp", "--spool", str(tmp_path / "spool"))
        command = ["env", *(f"{k}={v}" for k, v in variables.items()), sys.executable, "-m", "otel_procmon", *run]
        reader = Daemon("otel-procmon", command, tmp_path / "reader.log")
        reader.start()
        query = f'{{service_name=~".+"}} | procmon_exec_id="{process["exec_id"]}"'
        try:
            reader.wait_until(lambda: len(kept.loki.query(query)) == 3, "Loki has exec, exit and kprobe")
        finally:
            reader.stop()
    by_event = {line.labels["event_name"]: line for line in kept.loki.query(query)}
    assert set(by_event) == {"process.exec", "process.exit", "process.kprobe"}
    touched = by_event["process.kprobe"]
    assert json.loads(touched.text) == kprobe
    assert touched.labels["service_name"] == "till"
    assert touched.labels["k8s_namespace_name"] == "shop"
    assert touched.labels["k8s_pod_name"] == "till-0"
    assert touched.labels["process_executable_path"] == process["binary"]
    assert touched.labels["tetragon_policy_name"] == "watch-shadow"
    assert "event_process_pid" not in touched.labels
    assert abs(touched.time_unix_ns - by_event["process.exec"].time_unix_ns) < 10**6
    trace = kept.jaeger.trace(by_event["process.exit"].labels["trace_id"])
    assert trace is not None
    # Of who started it there is only what Tetragon says beside the event: an announcement.
    assert trace.warnings == []
    assert trace.tree()[-1].rpartition("/")[2] == "sh"


def test_a_thousand_processes_a_second_for_a_minute(backends: Programs, tmp_path: Path) -> None:
    """Through agent and Collector into a Jaeger and a Loki of their own: everything arrives, and is accounted for."""
    source, tiny = bed.TOP / "tests/kernel/truth/torture.c", tmp_path / "tiny"
    compile_tiny(source, tiny)
    with bed.jaeger(backends.jaeger, tmp_path) as jaeger, bed.loki(backends.loki, tmp_path) as loki:
        environment = {
            "TEMPO_ENDPOINT": jaeger.otlp,
            "LOKI_ENDPOINT": f"{loki.url}/otlp",
            "AGENT_METRICS": free_address(),
        }
        with bed.collector(backends.otelcol, [configuration("tempo-loki")], tmp_path, environment) as collector:
            variables = {**collector.endpoint, "OTEL_SERVICE_NAME": "minute"}
            settings = tmp_path / "agent.yaml"
            settings.write_text(ON_THE_HOST)
            only_these = ("--config", str(settings), "--binary", f"^{tiny}$")
            with run_command(tmp_path, "run", *only_these, env=variables) as agent:
                pids = {"agent": agent.process.pid, "Collector": collector.daemon.pid}
                before = {name: cpu_seconds(pid) for name, pid in pids.items()}
                seconds = spawn(tiny, RATE, RATE * SECONDS)
                # Nearly all: what it still has to send then, it sends at its end.
                used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
                agent.stop()
            metrics = collector.own_metrics()
        count = 'sum by (event_name) (count_over_time({service_name="minute"} [1h]))'
        found = {labels["event_name"]: number for labels, number in loki.metric(count)}
    runs_ = RATE * SECONDS
    ledger = agent.ledger()
    # From the kernel on, so that it is told where the first one is missing.
    assert ledger["filter"]["passed"] == 2 * runs_, agent.stderr
    assert ledger["delivery.logs"] == {"exported": 2 * runs_}
    assert ledger["delivery.traces"]["exported"] == sent(metrics, "spans")
    assert sent(metrics, "log_records") == 2 * runs_
    assert found == {"process.exec": runs_, "process.exit": runs_}
    # Measured, and no more than that: machines are shared. (pytest -rP shows it.)
    for name, cpu_s in used.items():
        print(f"{name}: {cpu_s:.1f} s of CPU for {runs_} processes in {seconds:.1f} s")


def spawn(program: Path, rate: int, count: int) -> float:
    """Run `program` so often, one after another, at that rate if the machine can. Returns the seconds that it took."""
    began = time.monotonic()
    for number in range(count):
        os.waitpid(os.posix_spawn(program, [str(program), "0"], {}), 0)
        time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
    return time.monotonic() - began


def sent(metrics: str, what: str) -> int:
    """How many spans or log records a Collector says that it has passed on."""
    return int(
        sum(
            float(n)
            for n in re.findall(rf"^otelcol_exporter_sent_{what}(?:_total)?\{{.*\}} (\S+)$", metrics, re.MULTILINE)
        )
    )


def cpu_seconds(pid: int) -> float:
    """What a process has used of the CPU so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_kubernetes_agent_and_gateway(node: Node, backends: Programs, tmp_path: Path) -> None:
    """As on a cluster: an agent that may ask nobody, a Collector on its node that may, and a gateway."""
    word = marker()
    # Whatever is started by this thread now has the node's network, where the API server is.
    with node.place.network_of_this_thread(), bed.stores(backends, tmp_path) as kept:
        to_backends = {**kept_by_gateway(kept), "KEEP_PERCENT": "100", "QUEUE_DIRECTORY": str(tmp_path / "queue")}
        with bed.collector(backends.otelcol, [configuration("gateway")], tmp_path, to_backends) as gateway:
            to_gateway = {
                "GATEWAY_ENDPOINT": f"{bed.HOST}:{gateway.grpc_port}",
                "K8S_AUTH": "kubeConfig",
                "KUBECONFIG": str(node.admin_kubeconfig),
                "K8S_NODE_NAME": NAME,
            }
            agent_config = [configuration("kubernetes-agent")]
            with (
                bed.collector(backends.otelcol, agent_config, tmp_path, to_gateway) as collector,
                # As the DaemonSet has it from the downward API.
                agent_for(collector, tmp_path, word, env={"NODE_NAME": NAME}),
            ):
                node.apply(pod("till", container("main", "/bin/sleep", "3600")))
                node.wait_for_phase("till")
                query = (
                    f'{{k8s_namespace_name="default"}} | k8s_pod_name="till" | k8s_container_name="main" |= `{word}`'
                )

                def told() -> bool:
                    # The Collector may hear of the container later than we do.
                    node.kubectl("exec", "till", "--", "/bin/sh", "-c", "exit 0", word)
                    return bool(kept.loki.query(query))

                wait_until(told, "Loki has what was run in the pod's container")
            line = kept.loki.query(query)[-1]
            wait_until(lambda: kept.jaeger.trace(line.labels["trace_id"]) is not None, "so has Jaeger")
            trace = kept.jaeger.trace(line.labels["trace_id"])
    metadata: dict[str, Any] = node.get("pod", "till")["metadata"]
    node.kubectl("delete", "pod", "till", "--wait=false")
    assert line.labels["k8s_pod_uid"] == metadata["uid"]
    assert line.labels["k8s_container_name"] == "main"
    assert line.labels["container_image_name"] == "localhost/busybox"
    assert line.labels["k8s_node_name"] == NAME
    assert trace is not None
    (root,) = trace.roots
    assert trace.tags(root)["procmon.entry.reason"] == "container"
    (process,) = {span["processID"] for span in trace.spans.values()}
    resource = {tag["key"]: tag["value"] for tag in trace.data["processes"][process]["tags"]}
    assert resource["k8s.pod.name"] == "till"
    assert resource["k8s.pod.uid"] == metadata["uid"]
