"""Everything that can be configured, and the one YAML file that it is read from."""

from otel_procmon.config.file import FILE_MAX_BYTES, ConfigError, read_config
from otel_procmon.config.options import (
    Capture,
    Config,
    ContainerOptions,
    DeliveryOptions,
    FilterOptions,
    LineageOptions,
    PrivilegeOptions,
    RecordOptions,
    RedactionOptions,
    TraceOptions,
)

__all__ = [
    "FILE_MAX_BYTES",
    "Capture",
    "Config",
    "ConfigError",
    "ContainerOptions",
    "DeliveryOptions",
    "FilterOptions",
    "LineageOptions",
    "PrivilegeOptions",
    "RecordOptions",
    "RedactionOptions",
    "TraceOptions",
    "read_config",
]
