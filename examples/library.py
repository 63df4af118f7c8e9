"""Use otel-procmon from Python: what runs on this host, as the SDK's own objects, for any exporter of the SDK.

    sudo python examples/library.py 10      # ten seconds of it, on the terminal

The stages are those of `otel-procmon run`, put together by hand: kernel → decode → lineage → records. Between them is
room for code of your own, which sees every program that begins and ends with who started it.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from otel_procmon.capture import KernelCapture
from otel_procmon.config import Config
from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.host import host_resource
from otel_procmon.convert.records import Span
from otel_procmon.convert.resource import Resources
from otel_procmon.deliver.sdk import SdkRecords
from otel_procmon.ledger import Ledger
from otel_procmon.source.ebpf import EbpfSource
from otel_procmon.source.recording import Host
from otel_procmon.view.compact import compact_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.lineage.image import Happening


def export_processes(
    exporter: SpanExporter, until: Callable[[], bool], on_happening: Callable[[Happening], None] = lambda _: None
) -> Ledger:
    """Export a span for every program that ends, until `until`, which is asked ten times a second.

    Args:
        exporter: Any of the SDK's or of other packages; it is not shut down.
        until: Whether to stop.
        on_happening: Is given everything that happens, before it is exported.

    Returns:
        What became of every event.

    Raises:
        SourceError: The kernel cannot be watched, and why.
    """
    config, ledger = Config(), Ledger()
    node = socket.gethostname()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    source = EbpfSource(config.capture)
    source.open()
    capture = KernelCapture(source, Host(node=node, boot_id=boot_id, page_bytes=resource.getpagesize()), config, ledger)
    converter = Converter(
        Resources(host_resource(os.environ, Path("/"), host_name=node, local=True), local=True),
        body=lambda happening: compact_line(happening, colour=False),
        life_span_id=capture.ids.life_span_id,
    )
    as_sdk = SdkRecords()

    def tell(happenings: list[Happening]) -> None:
        for happening in happenings:
            on_happening(happening)
        records = [record for happening in happenings for record in converter.convert(happening)]
        if spans := [as_sdk.span(record) for record in records if isinstance(record, Span)]:
            exporter.export(spans)

    try:
        while not until():
            tell(capture.step())
            # What was read from the kernel's ring buffer may be forgotten there.
            capture.release(capture.mark())
        tell(capture.stop())
        capture.count()
    finally:
        capture.close()
    return ledger


def main() -> None:
    """Print what runs, for as many seconds as the command line says."""
    end = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 10)
    ledger = export_processes(ConsoleSpanExporter(), lambda: time.monotonic() > end)
    sys.stderr.write(f"{ledger.line()}\n")


if __name__ == "__main__":
    main()
