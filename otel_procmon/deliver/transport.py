"""Chooses how a signal is sent. What is not chosen is not imported: gRPC costs 17 MB of memory, urllib3 10 MB."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

from otel_procmon import __version__

if TYPE_CHECKING:
    from otel_procmon.deliver.batch import Transport
    from otel_procmon.deliver.settings import Otlp, Signal

USER_AGENT: Final = f"otel-procmon/{__version__} Python/{platform.python_version()}"
"""The specification wants the exporter, its version and its language ("User Agent" in protocol/exporter.md)."""


def transport(otlp: Otlp, signal: Signal) -> Transport:
    """The transport that `otlp` asks for. Raises DeliveryError if it cannot work as asked."""
    if otlp.protocol == "grpc":
        from otel_procmon.deliver.grpc import GrpcTransport  # noqa: PLC0415 - see above

        return GrpcTransport(otlp, signal)
    from otel_procmon.deliver.http import HttpTransport  # noqa: PLC0415 - see above

    return HttpTransport(otlp)
