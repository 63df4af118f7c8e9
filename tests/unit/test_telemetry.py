"""The agent's own metrics, at real receivers on localhost."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from otel_procmon import __version__
from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import Resource
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.ledger import Ledger
from otel_procmon.telemetry import Gauge, Telemetry
from tests.unit.otlp_receiver import answer, grpc_receiver, http_receiver, raw_receiver, refusing_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.otlp_receiver import Received

BOUND_S = 30.0
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "metrics.md"
HOST = Resource(
    {"os.type": "linux", "host.name": "node-1", "host.id": "f" * 32, "service.name": "otel-procmon"}, SCHEMA_URL
)
GAUGES = (
    Gauge("procmon.delivery.waiting", "{record}", "Records that wait in memory.", lambda: 7),
    Gauge("procmon.ring.utilization", "1", "Which part of the ring buffer is taken.", lambda: 0.25),
)


class Point(NamedTuple):
    metric: str
    value: float
    attributes: dict[str, str]


class Export(NamedTuple):
    """One request."""

    resource: dict[str, str]
    metrics: dict[str, Any]
    points: list[Point]

    def of(self, metric: str) -> list[tuple[float, dict[str, str]]]:
        return [(point.value, point.attributes) for point in self.points if point.metric == metric]


def exports(received: Received) -> list[Export]:
    return [_export(ExportMetricsServiceRequest.FromString(request.body)) for request in received.requests]


def _export(request: ExportMetricsServiceRequest) -> Export:
    (group,) = request.resource_metrics
    (scope,) = group.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("otel_procmon", __version__)
    assert group.schema_url == SCHEMA_URL
    points = []
    for metric in scope.metrics:
        data = metric.sum if metric.HasField("sum") else metric.gauge
        for point in data.data_points:
            value = point.as_double if point.HasField("as_double") else point.as_int
            points.append(Point(metric.name, value, {a.key: a.value.string_value for a in point.attributes}))
    resource = {a.key: a.value.string_value for a in group.resource.attributes}
    return Export(resource, {metric.name: metric for metric in scope.metrics}, points)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The SDK looks at the process's own."""
    for name in [*os.environ]:
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(params=["http/protobuf", "grpc"])
def received(request: pytest.FixtureRequest, environment: pytest.MonkeyPatch) -> Iterator[Received]:
    environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    with grpc_receiver() if request.param == "grpc" else http_receiver() as found:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{found.port}")
        yield found


def telemetry(ledger: Ledger, *gauges: Gauge, resource: Resource = HOST) -> Telemetry:
    return Telemetry(os.environ, resource, ledger, lambda: ledger.put("kernel", "made: exec", 40), *gauges)


def test_the_ledger_arrives(received: Received) -> None:
    ledger = Ledger()
    own = telemetry(ledger)
    ledger.count("source", "read", 39)
    ledger.count("filter", "filtered on purpose", 2)
    own.shutdown(BOUND_S)
    (export,) = exports(received)
    told = {(a["procmon.place"], a["procmon.outcome"]): value for value, a in export.of("procmon.ledger")}
    assert (
        told
        == ledger.counts()
        == {
            ("kernel", "made: exec"): 40,
            ("source", "read"): 39,
            ("filter", "filtered on purpose"): 2,
        }
    )
    metric = export.metrics["procmon.ledger"]
    assert metric.unit == "{event}"
    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == 2, "cumulative"


def test_what_was_exported_and_what_was_lost_has_the_conventions_names(
    received: Received, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc")
    ledger = Ledger()
    own = telemetry(ledger)
    ledger.count("delivery.traces", "exported", 5)
    ledger.count("delivery.logs", "exported", 8)
    ledger.count("delivery.logs", "lost: refused by the receiver", 2)
    ledger.count("delivery.logs", "found: in the spool", 100)
    ledger.count("delivery.traces.console", "exported", 3)
    ledger.count("delivery.traces.console", "lost: queue full", 4)
    own.shutdown(BOUND_S)
    (export,) = exports(received)
    own_protocol = "grpc" if os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc" else "http"

    def component(name: str) -> dict[str, str]:
        return {"otel.component.type": name, "otel.component.name": f"{name}/0"}

    logs, traces, console = (
        component(name)
        for name in ("otlp_grpc_log_exporter", f"otlp_{own_protocol}_span_exporter", "console_span_exporter")
    )
    assert sorted(export.of("otel.sdk.exporter.log.exported"), key=str) == [
        (2, {**logs, "error.type": "refused by the receiver"}),
        (8, logs),
    ]
    assert sorted(export.of("otel.sdk.exporter.span.exported"), key=str) == [
        (3, console),
        (4, {**console, "error.type": "queue full"}),
        (5, traces),
    ]
    assert export.metrics["otel.sdk.exporter.log.exported"].unit == "{log_record}"
    assert export.metrics["otel.sdk.exporter.span.exported"].unit == "{span}"
    assert export.metrics["otel.sdk.exporter.span.exported"].sum.is_monotonic


def test_gauges_are_asked_at_each_export(received: Received) -> None:
    own = telemetry(Ledger(), *GAUGES)
    own.shutdown(BOUND_S)
    (export,) = exports(received)
    assert export.of("procmon.delivery.waiting") == [(7, {})]
    assert export.of("procmon.ring.utilization") == [(0.25, {})]
    assert export.metrics["procmon.ring.utilization"].HasField("gauge")
    assert export.metrics["procmon.ring.utilization"].unit == "1"


def test_a_gauge_that_cannot_be_read_costs_itself(received: Received, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> float:
        raise ValueError("mmap closed or invalid")

    own = telemetry(Ledger(), Gauge("procmon.broken", "1", "", broken), *GAUGES)
    own.shutdown(BOUND_S)
    (export,) = exports(received)
    assert export.of("procmon.broken") == []
    assert export.of("procmon.delivery.waiting") == [(7, {})]
    assert not caplog.records


def test_the_resource_is_the_agents_own(received: Received) -> None:
    telemetry(Ledger(), *GAUGES).shutdown(BOUND_S)
    (export,) = exports(received)
    assert (
        export.resource.items()
        >= {
            "service.name": "otel-procmon",
            "service.version": __version__,
            "host.name": "node-1",
            "host.id": "f" * 32,
            "os.type": "linux",
            "telemetry.sdk.language": "python",
        }.items()
    )


def test_the_agent_has_the_name_that_it_is_given(received: Received) -> None:
    named = Resource({**HOST.attributes, "service.name": "watcher"}, SCHEMA_URL)
    telemetry(Ledger(), *GAUGES, resource=named).shutdown(BOUND_S)
    (export,) = exports(received)
    assert export.resource["service.name"] == "watcher"


def test_metrics_come_again_and_again(received: Received, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    ledger = Ledger()
    own = telemetry(ledger)
    ledger.count("source", "read", 1)
    received.wait_for(2)
    ledger.count("source", "read", 1)
    own.shutdown(BOUND_S)
    values = [
        value
        for export in exports(received)
        for value, attributes in export.of("procmon.ledger")
        if attributes["procmon.place"] == "source"
    ]
    assert values[-1] == 2, "the last word is the whole"
    assert values == sorted(values)


@pytest.mark.parametrize(
    "variables", [{"OTEL_METRICS_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_SDK_DISABLED": " TRUE "}]
)
def test_nothing_when_nothing_is_wanted(
    variables: dict[str, str], received: Received, environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    before = set(threading.enumerate())
    own = telemetry(Ledger(), *GAUGES)
    assert set(threading.enumerate()) == before
    own.shutdown(BOUND_S)
    assert not received.requests


def test_console(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_METRICS_EXPORTER", "console")
    script = (
        "import os; from otel_procmon.convert.records import Resource; from otel_procmon.ledger import Ledger; "
        "from otel_procmon.telemetry import Gauge, Telemetry; ledger = Ledger(); ledger.count('source', 'read'); "
        "gauge = Gauge('procmon.spool.size', 'By', '', lambda: 3); "
        "Telemetry(os.environ, Resource({}, ''), ledger, int, gauge).shutdown(30.0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=BOUND_S)
    found = json.loads(done.stdout)
    names = [metric["name"] for metric in found["resource_metrics"][0]["scope_metrics"][0]["metrics"]]
    assert names == ["procmon.ledger", "procmon.spool.size"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_METRICS_EXPORTER": "pigeon"}, r"OTEL_METRICS_EXPORTER has 'pigeon', and no installed package has .*"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "0"}, r"OTEL_METRIC_EXPORT_INTERVAL is '0'; write a number of .*"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "-5"}, r"OTEL_METRIC_EXPORT_INTERVAL is '-5'; write a number of .*"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, r"OTEL_EXPORTER_OTLP_TIMEOUT is 'soon'; write a whole number.*"),
    ],
)
def test_what_cannot_work_is_a_sentence(variables: dict[str, str], words: str, environment: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(DeliveryError) as told:
        telemetry(Ledger())
    assert re.fullmatch(words, str(told.value))


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_no_receiver_is_no_trouble(
    protocol: str, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Delivery says it, of what matters more."""
    environment.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    with refusing_port() as port:
        environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        asked = threading.Event()

        def read() -> float:
            asked.set()
            return 0

        own = telemetry(Ledger(), Gauge("procmon.asked", "1", "", read))
        assert asked.wait(BOUND_S)
        began = time.monotonic()
        own.shutdown(0.5)
        assert time.monotonic() - began < 10
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Traceback" not in capfd.readouterr().err


def test_a_receiver_without_metrics_is_no_trouble(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with http_receiver() as received:
        received.answer = answer(404, b"404 page not found", content_type="text/plain")
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{received.port}")
        telemetry(Ledger(), *GAUGES).shutdown(BOUND_S)
        assert [request.path for request in received.requests] == ["/v1/metrics"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_shutdown_does_not_wait_for_a_receiver_that_is_silent(protocol: str, environment: pytest.MonkeyPatch) -> None:
    connected = threading.Event()
    over = threading.Event()

    def serve(_: object) -> None:
        connected.set()
        over.wait(BOUND_S)

    with raw_receiver(serve) as port:
        environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        # An hour, as the specification has it; were it seconds, it would be a month and a half.
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")
        own = telemetry(Ledger(), *GAUGES)
        ending = threading.Thread(target=own.shutdown, args=(0.3,), daemon=True)
        ending.start()
        assert connected.wait(BOUND_S)
        ending.join(BOUND_S)
        assert not ending.is_alive()
        over.set()


def test_a_timeout_is_in_milliseconds(environment: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def serve(_: object) -> None:
        over.wait(BOUND_S)

    with raw_receiver(serve) as port:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        environment.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "200")
        own = telemetry(Ledger(), *GAUGES)
        ending = threading.Thread(target=own.shutdown, args=(3600.0,), daemon=True)
        ending.start()
        ending.join(BOUND_S)
        assert not ending.is_alive()
        over.set()


def test_all_are_documented() -> None:
    """Here and in the command line, which makes the gauges."""
    from otel_procmon import cli, telemetry  # noqa: PLC0415

    text = DOCUMENTATION.read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `((?:procmon|otel)\.[a-z_.]+)` \| `", text, re.MULTILINE))
    source = "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (cli, telemetry))
    made = set(re.findall(r'(?:Gauge\(|create_observable_counter\(\s*)"([a-z_.]+)"', source))
    made |= {f"otel.sdk.exporter.{kind}.exported" for kind in ("span", "log")}
    assert documented == made
