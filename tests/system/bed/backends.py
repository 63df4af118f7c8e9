"""Real backends on loopback: an OpenTelemetry Collector, Jaeger, Loki and Tempo, and their query APIs.

Programs are those that `build-backends` builds. Each backend gets ports that were free when it was asked for, and a
directory for its files; each is a process in the foreground that the test ends by its pid.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.system.bed.enclosure import BOUND_SECONDS, BedError, Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TOP = Path(__file__).parents[3]
LOKI_CONFIG = TOP / "examples/compose/loki.yaml"
TEMPO_CONFIG = TOP / "examples/compose/tempo.yaml"
"""Those that people are given are those that are tested."""
HOST = "127.0.0.1"
ANSWER_SECONDS = 30
"""For one request: a broken Loki would not answer at all."""

# What the web pages and the reports home would need is left out. Traces stay in memory.
_JAEGER = """\
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines: {{traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}}}
  telemetry: {{metrics: {{level: none}}}}
extensions:
  healthcheckv2: {{use_v2: true, http: {{endpoint: "127.0.0.1:{health}"}}}}
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 100000}}}}}}}}
  jaeger_query:
    storage: {{traces: memory}}
    grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}
    http: {{endpoint: "127.0.0.1:{query}"}}
receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{otlp}"}}}}}}}}
exporters: {{jaeger_storage_exporter: {{trace_storage: memory}}}}
"""


class BackendError(Exception):
    """A backend answered with an error. The message holds the request and what it said."""


class Programs(NamedTuple):
    """Where the backends' programs are."""

    otelcol: Path
    jaeger: Path
    loki: Path
    tempo: Path | None
    """None: no registry has it."""


def find_programs(built: Path) -> Programs | list[str]:
    """Programs on the PATH, in ``$TESTBED/bin`` or in `built`; the names of those that are missing, if any are."""
    testbed = os.environ.get("TESTBED")
    places = [os.environ.get("PATH", ""), *([f"{testbed}/bin"] if testbed else []), str(built)]
    found = {name: shutil.which(name, path=os.pathsep.join(places)) for name in ("otelcol", "jaeger", "loki", "tempo")}
    otelcol, jaeger, loki, tempo = (Path(path) if path else None for path in found.values())
    if otelcol is None or jaeger is None or loki is None:
        return [name for name, path in found.items() if path is None and name != "tempo"]
    return Programs(otelcol, jaeger, loki, tempo)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, each another one."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def ask(url: str, **parameters: str) -> Any:
    """GET `url` with `parameters`, and give what its JSON says, or its text. Raises BackendError."""
    query = f"{url}?{urllib.parse.urlencode(parameters)}" if parameters else url
    request = urllib.request.Request(query, headers={"Accept": "application/json"})
    # Loopback is never asked for through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        raise BackendError(f"{query}: {error.code}: {said}") from error
    except OSError as error:
        raise BackendError(f"{query}: {error}") from error
    try:
        return json.loads(text)
    except ValueError:
        return text


def answers(url: str) -> bool:
    """Whether `url` answers, with a code that is no error's."""
    try:
        ask(url)
    except BackendError:
        return False
    return True


@contextmanager
def running(name: str, command: Sequence[str | Path], directory: Path, ready: str) -> Iterator[Daemon]:
    """The program, from when `ready` (a URL) answers until the end of the block."""
    daemon = Daemon(name, [str(part) for part in command], directory / f"{name}.log", cwd=directory)
    daemon.start()
    try:
        daemon.wait_until(lambda: answers(ready), f"{ready} answers")
        yield daemon
    finally:
        daemon.stop()


class Jaeger(NamedTuple):
    """A running Jaeger."""

    daemon: Daemon
    url: str
    otlp: str
    """Where it takes OTLP over gRPC: host and port."""

    def trace(self, trace_id: str) -> JaegerTrace | None:
        """The trace, if it has it."""
        try:
            (data,) = ask(f"{self.url}/api/traces/{trace_id}")["data"]
        except BackendError as error:
            if ": 404: " in str(error):
                return None
            raise
        return JaegerTrace(data)

    def search(self, service: str, tags: Mapping[str, str], limit: int = 100) -> list[JaegerTrace]:
        """Traces with a span of `service` that has all `tags`."""
        # From the beginning of time: Jaeger's default is what it thinks is recent.
        parameters = {"service": service, "tags": json.dumps(dict(tags)), "limit": str(limit), "start": "0"}
        parameters["end"] = str(time.time_ns() // 1000)
        found = ask(f"{self.url}/api/traces", **parameters)["data"] or []
        return [JaegerTrace(data) for data in found]


class JaegerTrace:
    """A trace as Jaeger's API gives it: what its page would show."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.spans: dict[str, dict[str, Any]] = {span["spanID"]: span for span in data["spans"]}

    @property
    def warnings(self) -> list[str]:
        """Those on all spans: of missing parents, of spans of no duration, of clocks that differ."""
        return [warning for span in self.data["spans"] for warning in span["warnings"] or []]

    @property
    def roots(self) -> list[str]:
        """Span ids of those without a parent in this trace."""
        return [span_id for span_id in self.spans if self.parent(span_id) is None]

    def parent(self, span_id: str) -> str | None:
        """The span's parent, where the trace has it."""
        for reference in self.spans[span_id]["references"]:
            if reference["refType"] == "CHILD_OF" and reference["traceID"] == self.data["traceID"]:
                return reference["spanID"] if reference["spanID"] in self.spans else None
        return None

    def links(self, span_id: str) -> list[tuple[str, str]]:
        """Trace and span ids that the span links to."""
        references = self.spans[span_id]["references"]
        return [(each["traceID"], each["spanID"]) for each in references if each["refType"] == "FOLLOWS_FROM"]

    def tags(self, span_id: str) -> dict[str, Any]:
        """The span's attributes."""
        return {tag["key"]: tag["value"] for tag in self.spans[span_id]["tags"]}

    def tree(self) -> list[str]:
        """Each span's name below the names above it, ``make/gcc/cc1``, sorted."""

        def path(span_id: str) -> str:
            parent, name = self.parent(span_id), self.spans[span_id]["operationName"]
            return name if parent is None else f"{path(parent)}/{name}"

        return sorted(path(span_id) for span_id in self.spans)


class Loki(NamedTuple):
    """A running Loki."""

    daemon: Daemon
    url: str

    def query(self, logql: str, since: str = "1h", limit: int = 5000) -> list[LokiLine]:
        """What a LogQL query for lines finds, the oldest first."""
        answer = ask(
            f"{self.url}/loki/api/v1/query_range", query=logql, since=since, limit=str(limit), direction="forward"
        )
        assert answer["data"]["resultType"] == "streams", answer
        found = [
            LokiLine(int(value[0]), value[1], stream["stream"])
            for stream in answer["data"]["result"]
            for value in stream["values"]
        ]
        return sorted(found, key=lambda line: line.time_unix_ns)

    def metric(self, logql: str) -> list[tuple[dict[str, str], float]]:
        """What a LogQL query for numbers gives now: labels, and the value."""
        answer = ask(f"{self.url}/loki/api/v1/query", query=logql)
        assert answer["data"]["resultType"] == "vector", answer
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def index_labels(self) -> list[str]:
        """Names of what streams are told apart by."""
        return list(ask(f"{self.url}/loki/api/v1/labels", since="1h").get("data") or [])


class LokiLine(NamedTuple):
    """One line: its time, its text, and all its labels, the stream's and its own (structured metadata)."""

    time_unix_ns: int
    text: str
    labels: dict[str, str]


class Tempo(NamedTuple):
    """A running Tempo."""

    daemon: Daemon
    url: str
    otlp: str

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """The trace in OTLP JSON (ids in base64, as protojson has them), if it has it."""
        try:
            answer = ask(f"{self.url}/api/v2/traces/{trace_id}")
        except BackendError as error:
            if ": 404: " in str(error):
                return None
            raise
        found: dict[str, Any] = answer["trace"]
        return found

    def search(self, traceql: str, limit: int = 100) -> list[dict[str, Any]]:
        """Summaries of the traces that a TraceQL query finds."""
        now = int(time.time())
        answer = ask(f"{self.url}/api/search", q=traceql, limit=str(limit), start=str(now - 3600), end=str(now + 60))
        return list(answer.get("traces") or [])


class Collector(NamedTuple):
    """A running Collector."""

    daemon: Daemon
    environment: dict[str, str]
    """What its configuration was given."""
    grpc_port: int
    http_port: int
    metrics_port: int

    @property
    def endpoint(self) -> dict[str, str]:
        """The environment by which an agent sends to it, and soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{self.grpc_port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
        }

    def own_metrics(self) -> str:
        """What it says of itself, in Prometheus' format."""
        return str(ask(f"http://{HOST}:{self.metrics_port}/metrics"))


class Stores(NamedTuple):
    """What a Collector passes records on to."""

    jaeger: Jaeger
    loki: Loki
    tempo: Tempo | None

    @property
    def environment(self) -> dict[str, str]:
        """By which a configuration finds them.

        Jaeger takes OTLP just as Tempo does: where there is no Tempo it stands in for it.
        """
        return {
            "TEMPO_ENDPOINT": (self.tempo or self.jaeger).otlp,
            "JAEGER_ENDPOINT": self.jaeger.otlp,
            "LOKI_ENDPOINT": f"{self.loki.url}/otlp",
        }


@contextmanager
def stores(programs: Programs, directory: Path) -> Iterator[Stores]:
    """All that there are programs of."""
    with ExitStack() as stack:
        yield Stores(
            stack.enter_context(jaeger(programs.jaeger, directory)),
            stack.enter_context(loki(programs.loki, directory)),
            stack.enter_context(tempo(programs.tempo, directory)) if programs.tempo else None,
        )


@contextmanager
def jaeger(program: Path, directory: Path, otlp: int | None = None) -> Iterator[Jaeger]:
    """A Jaeger that keeps traces in memory; `otlp` is a port for it, where it has to be a certain one."""
    free, query, query_grpc, health = free_ports(4)
    otlp = otlp or free
    configuration = directory / "jaeger.yaml"
    configuration.write_text(_JAEGER.format(otlp=otlp, query=query, query_grpc=query_grpc, health=health))
    url = f"http://{HOST}:{query}"
    with running("jaeger", (program, "--config", configuration), directory, f"{url}/api/services") as daemon:
        yield Jaeger(daemon, url, f"{HOST}:{otlp}")


@contextmanager
def loki(program: Path, directory: Path) -> Iterator[Loki]:
    """A Loki of one process. It says that it is ready after some 15 s."""
    http, grpc = free_ports(2)
    settings = (f"LOKI_HTTP_PORT={http}", f"LOKI_GRPC_PORT={grpc}", f"LOKI_DIRECTORY={directory / 'loki'}")
    command = ("env", f"LISTEN={HOST}", *settings, program, "-config.expand-env=true", f"-config.file={LOKI_CONFIG}")
    url = f"http://{HOST}:{http}"
    with running("loki", command, directory, f"{url}/ready") as daemon:
        yield Loki(daemon, url)


@contextmanager
def tempo(program: Path, directory: Path) -> Iterator[Tempo]:
    """A Tempo of one process. What it was sent can be searched for after some 10 s."""
    http, grpc, otlp = free_ports(3)
    settings = (
        f"TEMPO_HTTP_PORT={http}",
        f"TEMPO_GRPC_PORT={grpc}",
        f"TEMPO_OTLP_PORT={otlp}",
        f"TEMPO_DIRECTORY={directory / 'tempo'}",
    )
    command = ("env", f"LISTEN={HOST}", *settings, program, "-config.expand-env=true", f"-config.file={TEMPO_CONFIG}")
    url = f"http://{HOST}:{http}"
    with running("tempo", command, directory, f"{url}/ready") as daemon:
        yield Tempo(daemon, url, f"{HOST}:{otlp}")


def validate(program: Path, *configurations: Path, environment: Mapping[str, str]) -> None:
    """Let a Collector check configurations, of which the later go over the earlier. BedError with what it says."""
    done = subprocess.run(
        [program, "validate", *(f"--config={configuration}" for configuration in configurations)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BedError(f"{configurations}: {done.stderr}{done.stdout}")


@contextmanager
def collector(
    program: Path,
    configurations: Sequence[Path],
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Collector]:
    """A Collector with one of the configurations in ``collector-config/``, and perhaps another one on top.

    Args:
        program: The Collector.
        configurations: Their files. Ports are given to them by the variables that all of them have.
        directory: For its files.
        environment: The other variables that the files have.
    """
    grpc, http, health, metrics = free_ports(4)
    given = {
        "OTLP_GRPC_LISTEN": f"{HOST}:{grpc}",
        "OTLP_HTTP_LISTEN": f"{HOST}:{http}",
        "HEALTH_LISTEN": f"{HOST}:{health}",
        "OWN_METRICS_PORT": str(metrics),
        **(environment or {}),
    }
    variables = [f"{name}={value}" for name, value in given.items()]
    command = ["env", *variables, str(program), *(f"--config={each}" for each in configurations)]
    name = f"collector-{configurations[0].stem}"
    with running(name, command, directory, f"http://{HOST}:{health}/") as daemon:
        yield Collector(daemon, given, grpc, http, metrics)
