"""What people see: real activities through agent and Collector, as Jaeger, Loki and Tempo tell of them when asked.

What went out is known from the agent's own OTLP JSON, which the kernel tier holds against strace; here it is what the
backends' query APIs are held against.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from examples.compose.grafana import dashboard
from tests.kernel.truth.running import cannot_run, run_command
from tests.kernel.truth.workloads import write_c_project
from tests.system.bed import backends as bed
from tests.system.bed.activities import Programs as Scripts
from tests.system.bed.activities import fed, small_cgroup, uses_memory, write_programs
from tests.system.bed.enclosure import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.truth.otlp import Log, Span
    from tests.kernel.truth.running import Agent
    from tests.system.bed.backends import Jaeger, JaegerTrace, Loki, Programs, Stores, Tempo

pytestmark = pytest.mark.system

SERVICE = "activities"
SERVICE_AGE_SECONDS = 2
CONFIGURATION = f"""\
trace: {{service_age: {SERVICE_AGE_SECONDS}s, open_after: 1s}}
records: {{systemd_services: false}}
containers: {{ask_kubernetes: false, ask_runtime: false}}
"""
SOURCES = 4
CRON_JOB = "sleep 0.01; nosuchcommand-nightly-backup; exit 3"
SHELL_FROM_NGINX = "id; curl -s file:///etc/hostname | cat"
CRASH = "ulimit -c 0; kill -SEGV $$"


class Told(NamedTuple):
    """What the agent told, and who was told."""

    jaeger: Jaeger
    loki: Loki
    tempo: Tempo | None
    spans: list[Span]
    logs: list[Log]
    ledger: dict[str, dict[str, int]]
    live_session: JaegerTrace
    """The trace of a session that had not ended when Jaeger was asked."""
    oom: bool
    """Whether there was a cgroup to run out of memory in."""

    def one(self, name: str) -> Span:
        """The one span of that name that is no announcement."""
        (found,) = self.all(name)
        return found

    def all(self, name: str) -> list[Span]:
        """All of them."""
        return [span for span in self.spans if span.name == name if span.attributes.get("procmon.span") != "open"]

    def jaeger_trace(self, trace_id: str) -> JaegerTrace:
        """The trace, which Jaeger has."""
        trace = self.jaeger.trace(trace_id)
        assert trace is not None
        return trace

    def entries(self) -> list[Span]:
        """Spans at which the traces of activities begin; the launchers' belong to whoever runs the test."""
        return [
            span
            for span in self.spans
            if "procmon.entry.reason" in span.attributes
            if span.name != "launcher"
            if span.attributes.get("procmon.span") != "life"
        ]

    def trace_ids(self) -> set[str]:
        """Those of the activities' traces."""
        return {span.trace_id for span in self.entries()}


@pytest.fixture(scope="module")
def told(backends: Programs, kept: Stores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    directory = tmp_path_factory.mktemp("backends")
    scripts = write_programs(directory)
    configurations = [bed.TOP / "collector-config/tempo-loki.yaml"]
    if kept.tempo is not None:
        configurations.append(bed.TOP / "examples/compose/collector.yaml")
    (port,) = bed.free_ports(1)
    environment = {**kept.environment, "AGENT_METRICS": f"{bed.HOST}:{port}"}
    (directory / "filter.yaml").write_text(scripts.filter())
    (directory / "agent.yaml").write_text(CONFIGURATION)
    records = directory / "told.jsonl"
    arguments = ("--config", str(directory / "agent.yaml"), "--filter-file", str(directory / "filter.yaml"))
    outputs = ("-o", "otlp", "-o", f"otlp-json:{records}")
    with bed.collector(backends.otelcol, configurations, directory, environment) as collector:
        named = {
            **collector.endpoint,
            "OTEL_SERVICE_NAME": SERVICE,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=production",
        }
        with run_command(directory, "run", *arguments, *outputs, env=named, records=records) as agent:
            live_session, oom = act(scripts, agent, kept.jaeger, directory)
            agent.stop()
        yield Told(*kept, agent.spans(), agent.logs(), agent.ledger(), live_session, oom)


def act(scripts: Scripts, agent: Agent, jaeger: Jaeger, directory: Path) -> tuple[JaegerTrace, bool]:
    """All activities. Returns the trace of the session while it went on, and whether memory could run out."""

    def spans(name: str) -> list[Span]:
        return [span for span in agent.spans() if span.name == name]

    with fed(scripts, "nginx") as nginx, fed(scripts, "sshd") as sshd:
        # Somebody logs in, does something, and stays.
        sshd.send("whoami")
        agent.wait_until(lambda: bool(spans("whoami")), "whoami has ended")
        (whoami,) = spans("whoami")

        def announced() -> JaegerTrace | None:
            trace = jaeger.trace(whoami.trace_id)
            return trace if trace is not None and trace.roots != [whoami.span_id] else None

        wait_until(lambda: announced() is not None, "Jaeger has the session's beginning")
        live_session = announced()
        assert live_session is not None
        project = directory / "project"
        project.mkdir()
        write_c_project(project, SOURCES)
        scripts.run("ci-runner", f"cd {project} && make -j4 all")
        scripts.run("cron", CRON_JOB)
        scripts.run("cron", CRASH)
        with small_cgroup(scripts.word) as procs:
            if procs is not None:
                scripts.run("cron", uses_memory(procs))
        sshd.send("curl -s file:///etc/hostname; ls /nowhere")
        sshd.send("exit")
        sshd.end()
        (daemon,) = [log for log in agent.logs() if log.attributes["process.executable.name"] == "nginx"]
        old_unix_ns = daemon.time_unix_ns + SERVICE_AGE_SECONDS * 10**9
        agent.wait_until(lambda: time.time_ns() > old_unix_ns, "the daemon has become old")
        nginx.send(SHELL_FROM_NGINX)
        assert nginx.answer() == "done\n"
        nginx.end()
    return live_session, procs is not None


def end_us(span: dict[str, Any]) -> int:
    end: int = span["startTime"] + span["duration"]
    return end


def test_everything_was_taken(told: Told) -> None:
    assert told.ledger["delivery.traces"] == {"exported": len(told.spans)}
    assert told.ledger["delivery.logs"] == {"exported": len(told.logs)}


def test_jaeger_has_every_trace_as_it_was_told(told: Told) -> None:
    by_trace: dict[str, list[Span]] = {}
    for span in told.spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    assert len(by_trace) >= 8
    for trace_id, spans in by_trace.items():
        trace = told.jaeger_trace(trace_id)
        # The trace of whoever runs the test has spans that the filter left out, if there is one.
        assert set(trace.spans) == {span.span_id for span in spans}
        for span in spans:
            seen, tags = trace.spans[span.span_id], trace.tags(span.span_id)
            assert seen["operationName"] == span.name
            assert seen["startTime"] == span.start_unix_ns // 1000
            # Each is cut to microseconds by itself.
            assert abs(end_us(seen) - span.end_unix_ns // 1000) <= 1
            assert trace.links(span.span_id) == list(span.links)
            for name, value in span.attributes.items():
                assert _as_told(tags[name]) == value, name
            if span.parent_span_id in trace.spans:
                assert trace.parent(span.span_id) == span.parent_span_id


def _as_told(value: Any) -> Any:
    """Jaeger's API gives an array as its JSON."""
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def test_jaeger_shows_every_activity_as_one_tree_without_a_warning(told: Told) -> None:
    entries = {span.trace_id: span for span in told.entries()}
    assert len(entries) == len(told.entries())
    for trace_id, entry in entries.items():
        trace = told.jaeger_trace(trace_id)
        assert trace.roots == [entry.span_id]
        assert trace.warnings == []


def test_make_is_a_tree_of_compilers(told: Told) -> None:
    """Four at once, and yet each child is below the one that started it."""
    make = told.one("make")
    tree = told.jaeger_trace(make.trace_id).tree()
    # dash runs the last command of its line in its own process: make's image is the child of the shell's either way.
    assert "sh/make" in tree
    compiled = [path for path in tree if path.endswith("/cc1")]
    assert compiled == ["sh/make/gcc/cc1"] * (SOURCES + 1)
    assert [path for path in tree if path.endswith("/as")] == ["sh/make/gcc/as"] * (SOURCES + 1)
    assert [path for path in tree if path.endswith("/ld")] == ["sh/make/gcc/collect2/ld"]


def test_a_session_that_goes_on_is_a_tree_already(told: Told) -> None:
    trace = told.live_session
    (root,) = trace.roots
    assert trace.tree() == ["bash", "bash/whoami"]
    assert trace.tags(root)["procmon.span"] == "open"
    assert trace.tags(root)["procmon.entry.reason"] == "session"
    assert trace.spans[root]["duration"] == 1
    assert trace.warnings == []


def test_a_session_that_has_ended_has_its_whole_life_below_its_beginning(told: Told) -> None:
    trace = told.jaeger_trace(told.live_session.data["traceID"])
    (root,) = trace.roots
    assert trace.roots == told.live_session.roots
    (life,) = [span_id for span_id in trace.spans if trace.tags(span_id).get("procmon.span") == "life"]
    assert trace.parent(life) == root
    assert trace.spans[life]["operationName"] == "bash"
    assert trace.spans[life]["startTime"] == trace.spans[root]["startTime"]
    whoami = next(span_id for span_id, span in trace.spans.items() if span["operationName"] == "whoami")
    assert trace.parent(whoami) == root
    assert end_us(trace.spans[life]) >= end_us(trace.spans[whoami])
    assert "bash/curl" in trace.tree()


@pytest.mark.parametrize(
    ("program", "reason", "started_by"),
    [("id", "service", "nginx"), ("whoami", "session", "sshd"), ("make", "session", "ci-runner")],
)
def test_links_lead_to_who_started_an_activity(told: Told, program: str, reason: str, started_by: str) -> None:
    span = told.all(program)[0]
    trace = told.jaeger_trace(span.trace_id)
    (root,) = trace.roots
    assert trace.tags(root)["procmon.entry.reason"] == reason
    ((trace_id, span_id),) = trace.links(root)
    assert trace_id != span.trace_id
    assert told.jaeger_trace(trace_id).spans[span_id]["operationName"] == started_by


def test_what_an_old_daemon_starts_is_one_activity(told: Told) -> None:
    trace = told.jaeger_trace(told.one("id").trace_id)
    assert trace.tree() == ["sh", "sh/cat", "sh/curl", "sh/id"]
    (root,) = trace.roots
    assert _as_told(trace.tags(root)["procmon.ancestors"])[:2] == ["nginx", "launcher"]


def test_jaeger_finds_failures_by_their_kind(told: Told) -> None:
    (job,) = told.jaeger.search(SERVICE, {"error.type": "3"})
    (root,) = job.roots
    assert job.spans[root]["operationName"] == "sh"
    assert job.tags(root)["process.exit.code"] == 3
    assert job.tags(root)["otel.status_code"] == "ERROR"
    assert job.tree() == ["sh", "sh/sleep"]
    (crash,) = told.jaeger.search(SERVICE, {"error.type": "SIGSEGV"})
    (root,) = crash.roots
    assert crash.tags(root)["procmon.exit.signal"] == "SIGSEGV"
    assert crash.tags(root)["procmon.exit.core_dumped"] is False
    assert "process.exit.code" not in crash.tags(root)


def test_jaeger_finds_who_ran_out_of_memory(told: Told) -> None:
    if not told.oom:
        cannot_run("system", "there is no memory controller to make a cgroup in")
    (trace,) = told.jaeger.search(SERVICE, {"procmon.exit.oom_killed": "true"})
    (killed,) = [span_id for span_id in trace.spans if trace.tags(span_id).get("procmon.exit.oom_killed")]
    assert trace.tags(killed)["procmon.exit.signal"] == "SIGKILL"
    assert trace.spans[killed]["operationName"].startswith("python3")


def test_loki_has_every_record(told: Told) -> None:
    lines = told.loki.query(f'{{service_name="{SERVICE}"}}')
    assert Counter((line.time_unix_ns, line.text, line.labels["span_id"]) for line in lines) == Counter(
        (log.time_unix_ns, log.body, log.span_id) for log in told.logs
    )


def test_lokis_labels_are_few_and_bounded(told: Told) -> None:
    # The third one where other tests have told of pods.
    labels = set(told.loki.index_labels()) - {"k8s_namespace_name"}
    assert labels == {"deployment_environment_name", "host_name", "service_name"}


def test_loki_finds_a_command(told: Told) -> None:
    (line,) = told.loki.query(
        f'{{service_name="{SERVICE}"}} | event_name="process.exec" | process_executable_name="whoami"'
    )
    node = line.labels["host_name"]
    assert line.text == f"🚀 process {node} /usr/bin/whoami"
    assert line.labels["procmon_parent_executable_name"] == "bash"
    assert line.labels["process_interactive"] == "true"


def test_a_line_leads_to_its_trace_and_back(told: Told) -> None:
    (line,) = told.loki.query(f'{{service_name="{SERVICE}"}} | event_name="process.exit" | process_exit_code="3"')
    trace = told.jaeger_trace(line.labels["trace_id"])
    span = trace.spans[line.labels["span_id"]]
    assert span["operationName"] == line.labels["process_executable_name"] == "sh"
    back = told.loki.query(f'{{service_name="{SERVICE}"}} | trace_id="{span["traceID"]}"')
    assert line in back
    assert {each.labels["span_id"] for each in back} == set(trace.spans)


def test_lineage_is_found_in_loki_without_any_trace(told: Told) -> None:
    """What did nginx start? Whatever trace it is in."""
    lines = told.loki.query(
        f'{{service_name="{SERVICE}"}} | event_name="process.exec" | procmon_ancestors=~".*\\"nginx\\".*"'
    )
    assert sorted(line.labels["process_executable_name"] for line in lines) == ["cat", "curl", "id", "sh"]


def queries(language: str) -> list[str]:
    """Those of a language in ``examples/queries.md``."""
    text = (bed.TOP / "examples/queries.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def is_of_numbers(logql: str) -> bool:
    """Whether a query gives numbers instead of lines."""
    return re.match(r"\{", logql) is None


def finds(loki: Loki, logql: str) -> bool:
    """Whether a query finds anything, of whatever kind it is."""
    return bool(loki.metric(logql) if is_of_numbers(logql) else loki.query(logql))


@pytest.mark.parametrize("query", queries("logql"))
def test_every_logql_query_of_the_examples_finds_what_was_done(told: Told, query: str) -> None:
    if "oom_killed" in query and not told.oom:
        cannot_run("system", "there is no memory controller to make a cgroup in")
    whoami = told.one("whoami")
    ids = {"$TRACE_ID": whoami.trace_id, "$EXEC_ID": whoami.attributes["procmon.parent_exec_id"]}
    for variable, value in ids.items():
        query = query.replace(variable, value)
    wait_until(lambda: finds(told.loki, query), f"Loki finds {query}", 30)


def dashboard_queries() -> list[tuple[str, str]]:
    """Titles of panels, and their queries for Loki."""
    made = json.loads((bed.TOP / "examples/compose/grafana/dashboards/processes.json").read_text())
    return [
        (panel["title"], target["expr"]) for panel in made["panels"] for target in panel["targets"] if "expr" in target
    ]


@pytest.mark.parametrize(("title", "query"), dashboard_queries(), ids=lambda value: value[:30])
def test_every_panel_of_the_dashboard_shows_what_was_done(told: Told, title: str, query: str) -> None:
    if "oom_killed" in query and not told.oom:
        cannot_run("system", "there is no memory controller to make a cgroup in")
    # As Grafana does, for the last hour and all workloads.
    for variable, value in {"$workload": ".+", "$__auto": "5m", "$__range": "1h"}.items():
        query = query.replace(variable, value)
    assert "$" not in query
    wait_until(lambda: finds(told.loki, query), f"{title}: Loki finds {query}", 30)


def test_the_dashboards_lineage_has_its_columns(told: Told) -> None:
    lines = told.loki.query(f'{{service_name="{SERVICE}"}} | event_name="process.exec" | process_interactive="true"')
    for line in lines:
        assert set(dashboard.LINEAGE_COLUMNS) <= set(line.labels)


def test_dashboard_is_what_its_source_gives() -> None:
    written = (bed.TOP / "examples/compose/grafana/dashboards/processes.json").read_text()
    assert dashboard.document() == written, "run: make docs"


@pytest.mark.parametrize("query", queries("traceql"))
def test_every_traceql_query_of_the_examples_finds_what_was_done(tempo: Tempo, query: str) -> None:
    assert found_by(tempo, query.strip())


@pytest.fixture
def tempo(told: Told) -> Tempo:
    if told.tempo is None:
        # In no registry: nobody can be asked to have it, so this is a skip even where the tier is required.
        pytest.skip("there is no tempo on the PATH or in $TESTBED/bin (docs/backends.md says how to build one)")
    return told.tempo


def found_by(tempo: Tempo, traceql: str) -> list[dict[str, Any]]:
    """What a query finds once it finds anything: Tempo searches what has come some 10 s after it came."""
    wait_until(lambda: bool(tempo.search(traceql)), f"Tempo finds {traceql}")
    return tempo.search(traceql)


def test_tempo_has_every_trace(told: Told, tempo: Tempo) -> None:
    for trace_id in told.trace_ids():
        trace = tempo.trace(trace_id)
        assert trace is not None
        spans = [span for group in trace["resourceSpans"] for scope in group["scopeSpans"] for span in scope["spans"]]
        assert {base64.b64decode(span["spanId"]).hex() for span in spans} == set(told.jaeger_trace(trace_id).spans)


def test_tempo_finds_what_a_shell_started(told: Told, tempo: Tempo) -> None:
    found = found_by(tempo, '{name="bash"} >> {name="curl"}')
    assert {each["traceID"].zfill(32) for each in found} == {told.one("whoami").trace_id}
    assert {each["rootTraceName"] for each in found} == {"bash"}


def test_tempo_finds_lineage_across_traces(told: Told, tempo: Tempo) -> None:
    found = found_by(tempo, '{span.procmon.ancestors="nginx" && name="curl"}')
    assert {each["traceID"].zfill(32) for each in found} == {told.one("id").trace_id}


def test_tempo_finds_failures(told: Told, tempo: Tempo) -> None:
    found = found_by(tempo, '{status=error && span.error.type="SIGSEGV"}')
    assert len(found) == 1
