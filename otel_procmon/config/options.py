"""Everything that can be configured, with its default. `otel_procmon.config.table` says what each option means."""

from __future__ import annotations

from dataclasses import dataclass, field

from otel_procmon.config.units import HOUR, KIB, MIB, MINUTE, MS, S


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """What is to leave this host; `otel_procmon.filters` gives the meaning."""

    namespaces: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    uids: tuple[int, ...] = ()
    containers: tuple[str, ...] = ()
    container_ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """How events are taken from the kernel."""

    poll_interval_ns: int = 100 * MS
    ring_bytes: int = 16 * MIB
    wake_fraction: float = 0.25
    arguments_max_bytes: int = 64 * KIB
    snapshot: bool = True


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Where a new trace begins, and when an image that goes on announces itself."""

    service_age_ns: int = 5 * MINUTE
    max_age_ns: int = HOUR
    max_spans: int = 4000
    open_after_ns: int = 10 * S


@dataclass(frozen=True, slots=True)
class LineageOptions:
    """How much of the past is remembered."""

    max_images: int = 131_072
    grace_ns: int = 10 * S
    sweep_interval_ns: int = 30 * S


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """Who is asked for containers and pods, and how long what happens in them waits for the answer."""

    ask_runtime: bool = True
    runtime_endpoint: str | None = None
    ask_kubernetes: bool = True
    kubeconfig: str | None = None
    node_name: str | None = None
    hold_ns: int = 10 * S
    max_held: int = 16_384


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What log records and spans say."""

    failed_exit_is_error: bool = True
    well_known_labels: bool = False
    pod_labels: tuple[str, ...] = ("*",)
    pod_annotations: tuple[str, ...] = ()
    systemd_services: bool = True
    cluster_name: str | None = None
    cluster_uid: str | None = None


@dataclass(frozen=True, slots=True)
class RedactionOptions:
    """What is taken out of command lines; `otel_procmon.redact` gives the meaning."""

    enabled: bool = True
    rules: tuple[str, ...] = ()
    file: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """What cannot be sent at once waits: in memory, then on disk."""

    queue_bytes: int = 32 * MIB
    in_flight: int = 2
    spool_directory: str | None = "/var/lib/otel-procmon/spool"
    spool_max_bytes: int = 512 * MIB


@dataclass(frozen=True, slots=True)
class PrivilegeOptions:
    """What is left of the rights that the agent was started with, once it captures."""

    user: str | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. ``Config()`` is what an empty file says."""

    source: str = "auto"
    outputs: tuple[str, ...] = ("otlp",)
    filters: FilterOptions = field(default_factory=FilterOptions)
    capture: Capture = field(default_factory=Capture)
    trace: TraceOptions = field(default_factory=TraceOptions)
    lineage: LineageOptions = field(default_factory=LineageOptions)
    containers: ContainerOptions = field(default_factory=ContainerOptions)
    redaction: RedactionOptions = field(default_factory=RedactionOptions)
    records: RecordOptions = field(default_factory=RecordOptions)
    delivery: DeliveryOptions = field(default_factory=DeliveryOptions)
    privileges: PrivilegeOptions = field(default_factory=PrivilegeOptions)
