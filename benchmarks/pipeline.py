"""The whole pipeline: a recording of the kernel's records into an OTLP receiver in another process; ours and the SDK's.

    python benchmarks/pipeline.py FILE [--rounds N]

Ours is ``otel-procmon replay FILE -o otlp``. The SDK's path has the same decoding, lineage and conversion; then the
SDK's objects are made and given to its OTLP exporters, 512 at a time, with no processor between. What is measured runs
on one core, the receiver on the other; the ways take turns. What the start of Python costs (a recording without
records) is taken off. Besides CPU time for each record (log record or span) that arrived: what of it comes before
delivery (decoding and lineage; then conversion), and records of the kernel (fork, exec, exit) in a second of wall time.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from parts import AGENT_CORE, arguments, receiver, save, shown, spread
from stages import converter, happenings, lineage

from otel_procmon.convert.records import Span
from otel_procmon.source.recording import RecordingSource, RecordingWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from parts import Protocol, Receiver

    from otel_procmon.convert.records import Record
    from otel_procmon.lineage.image import Happening

BATCH_SIZE = 512

WAYS: tuple[tuple[Protocol, str], ...] = (("grpc", "none"), ("grpc", "gzip"), ("http", "none"), ("http", "gzip"))


def convert(path: str) -> None:
    one = converter()
    happenings(path, lambda step: [one.convert(happening) for happening in step])


def sdk(path: str) -> None:
    """The SDK's path, to where its variables say."""
    # Not above: what does not use it does not pay for it.
    from otel_procmon.deliver.sdk import SdkRecords  # noqa: PLC0415

    if os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    else:
        from opentelemetry.exporter.otlp.proto.http._log_exporter import (  # type: ignore[assignment] # noqa: PLC0415
            OTLPLogExporter,
        )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment] # noqa: PLC0415
            OTLPSpanExporter,
        )
    objects, one = SdkRecords(), converter()
    spans: list[Any] = []
    logs: list[Any] = []
    exporters: tuple[tuple[list[Any], Any], ...] = ((spans, OTLPSpanExporter()), (logs, OTLPLogExporter()))

    def take(step: list[Happening]) -> None:
        for happening in step:
            for record in one.convert(happening):
                put(record)
        for batch, exporter in exporters:
            while len(batch) >= BATCH_SIZE:
                exporter.export(batch[:BATCH_SIZE])
                del batch[:BATCH_SIZE]

    def put(record: Record) -> None:
        if isinstance(record, Span):
            spans.append(objects.span(record))
        else:
            logs.append(objects.log(record))

    happenings(path, take)
    for batch, exporter in exporters:
        exporter.export(batch)
        exporter.shutdown()


CHILDREN: dict[str, Callable[[str], None]] = {"lineage": lineage, "convert": convert, "sdk": sdk}


class Run(NamedTuple):
    """One process."""

    wall_s: float
    cpu_s: float


def run(way: str, recording: Path, environment: dict[str, str]) -> Run:
    """Run one way on its core, from its start to its end."""
    command = (
        ["-m", "otel_procmon", "replay", str(recording), "-o", "otlp"]
        if way == "ours"
        else [__file__, str(recording), "--child", way]
    )
    begin = time.monotonic()
    process = subprocess.Popen(
        ["taskset", "-c", str(AGENT_CORE), sys.executable, *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{way}: exit code {process.returncode}\n{said.decode()}")
    return Run(time.monotonic() - begin, usage.ru_utime + usage.ru_stime)


def records_in(path: Path) -> int:
    """How many records of the kernel there are."""
    source = RecordingSource(str(path))
    source.open()
    count = 0
    while (batch := source.read()) is not None:
        count += len(batch.records)
    source.close()
    return count


def write_empty(path: Path, like: Path) -> None:
    source = RecordingSource(str(like))
    RecordingWriter(str(path), source.open()).close()
    source.close()


def measure(recording: Path, empty: Path, rounds: int, to: Receiver, compression: str) -> dict[str, Any]:
    """Ours and the SDK's in turn."""
    events = records_in(recording)
    environment = to.environment(compression=compression)
    results: dict[str, list[float]] = {}
    arrived: set[tuple[int, int]] = set()

    def note(name: str, value: float) -> None:
        results.setdefault(name, []).append(value)

    for _ in range(rounds):
        runs, cpu = {}, {}
        for way in ("ours", "sdk", "lineage", "convert"):
            start = run(way, empty, environment)
            to.report()
            whole = run(way, recording, environment)
            runs[way] = Run(whole.wall_s - start.wall_s, whole.cpu_s - start.cpu_s)
            if way in ("ours", "sdk"):
                got = to.report()
                arrived.add((got["logs"], got["spans"]))
        if len(arrived) != 1:
            raise SystemExit(f"not the same has arrived each time (logs, spans): {arrived}")
        ((logs, spans),) = arrived
        cpu = {way: one.cpu_s / (logs + spans) * 1e6 for way, one in runs.items()}
        for way in ("ours", "sdk"):
            note(f"{way}_us_per_record", cpu[way])
            note(f"{way}_events_per_s", events / runs[way].wall_s)
        note("lineage_us_per_record", cpu["lineage"])
        note("convert_us_per_record", cpu["convert"] - cpu["lineage"])
        note("ratio_whole", cpu["ours"] / cpu["sdk"])
        note("ratio_decoded_to_acknowledged", (cpu["ours"] - cpu["lineage"]) / (cpu["sdk"] - cpu["lineage"]))
        note("ratio_converted_to_acknowledged", (cpu["ours"] - cpu["convert"]) / (cpu["sdk"] - cpu["convert"]))
    return {"events": events, "records": logs + spans, **{name: spread(values) for name, values in results.items()}}


def table(result: dict[str, dict[str, Any]]) -> str:
    lines = [
        "µs of CPU for each record; ratios ours / SDK; median (least to most)",
        f"{'':10} {'ours':22} {'SDK':25} {'whole':20} {'decoded to ack':20} {'converted to ack':20} ours, events/s",
    ]
    for name, one in result.items():
        ratios = (
            f"{shown(one[f'ratio_{part}'], 2):20}"
            for part in ("whole", "decoded_to_acknowledged", "converted_to_acknowledged")
        )
        lines.append(
            f"{name:10} {shown(one['ours_us_per_record']):22} {shown(one['sdk_us_per_record']):25} {' '.join(ratios)} "
            f"{shown(one['ours_events_per_s'], 0)}"
        )
    one = next(iter(result.values()))
    before = shown(one["lineage_us_per_record"]), shown(one["convert_us_per_record"])
    lines.append(f"of both: decoding and lineage {before[0]}, conversion {before[1]}")
    lines.append(f"{one['events']} records of the kernel, {one['records']} log records and spans")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        # As the agent has it.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        CHILDREN[options.child](str(options.recording))
        return
    result = {}
    with tempfile.TemporaryDirectory() as directory:
        empty = Path(directory) / "empty"
        write_empty(empty, options.recording)
        for protocol, compression in WAYS:
            with receiver(protocol, keep=True) as to:
                name = protocol if compression == "none" else f"{protocol}+{compression}"
                result[name] = measure(options.recording, empty, options.rounds, to, compression)
    save(options.json, "pipeline", {"ways": result})
    print(table(result))


if __name__ == "__main__":
    main()
