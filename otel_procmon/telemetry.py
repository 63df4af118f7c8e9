"""The agent's own metrics: the ledger and what waits, through the SDK's MeterProvider.

What is exported and what is lost at an exporter has the names of the conventions for the SDK's own telemetry
(``otel.sdk.exporter.*``); what they have no name for is ``procmon.*``. ``docs/metrics.md`` lists
them. The exporters are those that OTEL_METRICS_EXPORTER names, ``otlp`` by default, found by the SDK's entry points and
configured by their own variables. This has a Resource of its own, for it is the agent that is told of, not what it
watches.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from otel_procmon import __version__
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.settings import read_settings
from otel_procmon.encode.otlp_json import SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from otel_procmon.convert.records import Resource
    from otel_procmon.deliver.settings import Signal
    from otel_procmon.ledger import Ledger

_log = logging.getLogger(__name__)

_GROUP: Final = "opentelemetry_metrics_exporter"
_EXPORTED: Final = "exported"
_LOST: Final = "lost: "
_INSTRUMENTS: Final[tuple[tuple[Signal, str, str], ...]] = (
    ("traces", "span", "{span}"),
    ("logs", "log", "{log_record}"),
)
"""Signal, what the conventions call its records in names, and their unit."""
_SDK_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.sdk.metrics",
)
_TIMEOUT_S: Final = 10.0


class Gauge:
    """Something whose value is asked for when metrics are exported."""

    def __init__(self, name: str, unit: str, description: str, read: Callable[[], float]) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.read = read


class Telemetry:
    """Exports the agent's metrics until it is shut down."""

    def __init__(
        self, environ: Mapping[str, str], resource: Resource, ledger: Ledger, count: Callable[[], None], *gauges: Gauge
    ) -> None:
        """Set the exporters up. Raises DeliveryError.

        Args:
            environ: Where the OTEL_ variables are.
            resource: The host's; the agent's own is made from it.
            ledger: What is told.
            count: Brings the ledger up to date with what is counted elsewhere.
            gauges: What else is told.
        """
        self._provider: Any = None
        names = exporter_names(environ)
        if not names:
            return
        # Half a second and 15 MB, so only when asked for.
        from opentelemetry.metrics import Observation  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource as SdkResource  # noqa: PLC0415

        # What they would say of a receiver that is away, delivery says already, in words.
        for name in _SDK_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        exporters = [_exporter(environ, name) for name in names]
        try:
            readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
        except ValueError as error:
            raise DeliveryError(
                f"OTEL_METRIC_EXPORT_INTERVAL is {environ.get('OTEL_METRIC_EXPORT_INTERVAL')!r}; write a number of "
                "milliseconds above 0"
            ) from error
        own = SdkResource.create({**resource.attributes, "service.version": __version__}, resource.schema_url)
        self._provider = MeterProvider(readers, own, shutdown_on_exit=False)
        meter = self._provider.get_meter(SCOPE_NAME, __version__)

        def exported(signal: Signal, kind: str) -> Callable[[Any], Iterable[Observation]]:
            def observe(_: Any) -> Iterable[Observation]:
                for (place, outcome), number in ledger.counts().items():
                    if place != f"delivery.{signal}" and not place.startswith(f"delivery.{signal}."):
                        continue
                    attributes = _component(environ, signal, kind, place.removeprefix(f"delivery.{signal}").lstrip("."))
                    if outcome == _EXPORTED:
                        yield Observation(number, attributes)
                    elif outcome.startswith(_LOST):
                        yield Observation(number, {**attributes, "error.type": outcome.removeprefix(_LOST)})

            return observe

        for signal, kind, unit in _INSTRUMENTS:
            meter.create_observable_counter(
                f"otel.sdk.exporter.{kind}.exported",
                [exported(signal, kind)],
                unit,
                "Records for which the export has finished, either successful or failed (then with error.type).",
            )

        def events(_: Any) -> Iterable[Observation]:
            count()
            for (place, outcome), number in ledger.counts().items():
                yield Observation(number, {"procmon.place": place, "procmon.outcome": outcome})

        meter.create_observable_counter(
            "procmon.ledger", [events], "{event}", "What became of every event and record, by place and outcome."
        )
        for gauge in gauges:
            meter.create_observable_gauge(
                gauge.name,
                [lambda _, read=gauge.read: [Observation(read())]],
                gauge.unit,
                gauge.description,
            )

    def shutdown(self, timeout_s: float) -> None:
        """Export for the last time, and end."""
        if self._provider is not None:
            try:
                self._provider.shutdown(timeout_millis=timeout_s * 1000)
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the agent ends in order
                _log.warning("the last metrics were not exported: %s", error)


def exporter_names(environ: Mapping[str, str]) -> list[str]:
    """The exporters that OTEL_METRICS_EXPORTER asks for. Raises DeliveryError if there is no such exporter."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    value = environ.get("OTEL_METRICS_EXPORTER", "").strip() or "otlp"
    chosen = dict.fromkeys(part.strip() for part in value.split(","))
    known = {entry.name for entry in entry_points(group=_GROUP)}
    names = []
    for name in chosen:
        if name == "none":
            continue
        if name == "otlp":
            name = "otlp_proto_grpc" if _protocol(environ) == "grpc" else "otlp_proto_http"  # noqa: PLW2901
        if name not in known:
            raise DeliveryError(
                f"OTEL_METRICS_EXPORTER has {name!r}, and no installed package has an exporter of that name; use otlp, "
                "console or none"
            )
        names.append(name)
    return names


def _protocol(environ: Mapping[str, str]) -> str:
    for name in ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if value := environ.get(name, "").strip().lower():
            return value
    return "http/protobuf"


def _component(environ: Mapping[str, str], signal: Signal, kind: str, exporter: str) -> dict[str, str]:
    """What the conventions call the exporter; `exporter` is empty for OTLP."""
    name = exporter
    if not exporter:
        otlp = read_settings(environ, signal).otlp
        name = "otlp_grpc" if otlp is not None and otlp.protocol == "grpc" else "otlp_http"
    component = f"{name}_{kind}_exporter"
    return {"otel.component.type": component, "otel.component.name": f"{component}/0"}


def _exporter(environ: Mapping[str, str], name: str) -> Any:
    (entry,) = entry_points(group=_GROUP, name=name)
    # Milliseconds in the specification, as for the other signals; left to itself, the SDK would take them for seconds.
    options = {"timeout": _timeout_s(environ)} if name.startswith("otlp_proto_") else {}
    try:
        return entry.load()(**options)
    except Exception as error:
        raise DeliveryError(
            f"the metrics exporter {name} cannot be set up ({error}); see the OTEL_EXPORTER_OTLP_ variables, or set "
            "OTEL_METRICS_EXPORTER=none"
        ) from error


def _timeout_s(environ: Mapping[str, str]) -> float:
    for variable in ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"):
        if value := environ.get(variable, "").strip():
            if not (value.isascii() and value.isdigit()) or int(value) < 1:
                raise DeliveryError(f"{variable} is {value!r}; write a whole number, 1 or more")
            return int(value) / 1000
    return _TIMEOUT_S
