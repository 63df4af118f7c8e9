"""``examples/library.py``: otel-procmon used from Python, with an exporter of the SDK."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from examples.library import export_processes
from otel_procmon.lineage.image import Started
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT
from tests.system.bed.backends import TOP
from tests.system.bed.enclosure import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from otel_procmon.lineage.image import Happening

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("require_bpf")]


def test_any_exporter_gets_the_sdks_own_spans() -> None:
    word, exporter, started = marker(), InMemorySpanExporter(), []
    stop = threading.Event()

    def note(happening: Happening) -> None:
        if isinstance(happening, Started) and word in (happening.image.process.argv or ()):
            started.append(happening.image.process.binary)

    def found() -> list[ReadableSpan]:
        return [span for span in exporter.get_finished_spans() if word in str(attributes(span))]

    def attributes(span: ReadableSpan) -> dict[str, Any]:
        return dict(span.attributes or {})

    thread = threading.Thread(target=export_processes, args=(exporter, stop.is_set, note))
    thread.start()
    try:
        # It is not said when capturing has begun: until something is found, more of it is run.
        def told() -> bool:
            subprocess.run(["sh", "-c", "true; exit 3", word], env=ENVIRONMENT, check=False, timeout=60)
            return bool(found())

        wait_until(told, "a span has been exported")
    finally:
        stop.set()
        thread.join(60)
    span = found()[-1]
    assert span.name == "sh"
    assert attributes(span)["process.exit.code"] == 3
    assert attributes(span)["process.parent_pid"] == os.getpid()
    assert not span.status.is_ok
    assert span.resource.attributes["os.type"] == "linux"
    assert "/usr/bin/sh" in started


def test_as_a_program(tmp_path: Path) -> None:
    word, printed = marker(), tmp_path / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen([sys.executable, str(TOP / "examples/library.py"), "600"], stdout=out)
    try:

        def told() -> bool:
            subprocess.run(["true", word], env=ENVIRONMENT, check=True, timeout=60)
            return word in printed.read_text()

        wait_until(told, "a span has been printed")
    finally:
        process.terminate()
        process.wait(60)
    assert '"name": "true"' in printed.read_text()
