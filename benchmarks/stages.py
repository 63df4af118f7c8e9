"""What each stage costs: a recording of the kernel's records through the stages, CPU time for each process that ended.

    otel-procmon run -o otlp-json:/dev/null --record FILE     (meanwhile, a workload)
    python benchmarks/stages.py FILE [--rounds N]

Each line adds one stage to those before it; medians.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

from parts import arguments, save, shown, spread

from otel_procmon.capture import RecordingCapture
from otel_procmon.config import Config
from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.host import host_resource
from otel_procmon.convert.resource import Resources
from otel_procmon.convert.users import UserNames
from otel_procmon.decode.kernel import KernelDecoder
from otel_procmon.encode.otlp import OtlpEncoder
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import Ended
from otel_procmon.source.recording import RecordingSource
from otel_procmon.view.compact import compact_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.lineage.image import Happening


def read(path: str) -> None:
    source = RecordingSource(path)
    source.open()
    while source.read() is not None:
        pass


def decode(path: str) -> None:
    source = RecordingSource(path)
    host = source.open()
    decoder = KernelDecoder(host.node, unix_ns=lambda ns: ns, observed_unix_ns=time.time_ns, page_bytes=host.page_bytes)
    while (batch := source.read()) is not None:
        for record in batch.records:
            decoder.decode(record)


def happenings(path: str, take: Callable[[list[Happening]], object]) -> None:
    source = RecordingSource(path)
    capture = RecordingCapture(source, source.open(), Config(), Ledger())
    while (step := capture.step()) is not None:
        take(step)
    take(capture.stop())


def lineage(path: str) -> None:
    happenings(path, lambda _: None)


def converter() -> Converter:
    return Converter(
        Resources(host_resource({}, Path("/"))),
        body=lambda happening: compact_line(happening, colour=False),
        life_span_id=lambda _: bytes(8),
        user_name=UserNames(Path("/etc/passwd")),
    )


def convert(path: str) -> None:
    one = converter()
    happenings(path, lambda step: [one.convert(happening) for happening in step])


def encode(path: str) -> None:
    one, encoder = converter(), OtlpEncoder(Ledger())

    def take(step: list[Happening]) -> None:
        for happening in step:
            for record in one.convert(happening):
                encoder.encode(record)

    happenings(path, take)


def ended(path: str) -> int:
    count = 0

    def take(step: list[Happening]) -> None:
        nonlocal count
        count += sum(isinstance(happening, Ended) for happening in step)

    happenings(path, take)
    return count


STAGES: dict[str, Callable[[str], None]] = {
    "read": read,
    "decode": decode,
    "lineage": lineage,
    "convert": convert,
    "encode": encode,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("recording")
    options = parser.parse_args()
    processes = ended(options.recording)
    gc.set_threshold(50_000, 20, 100)
    times: dict[str, list[float]] = {name: [] for name in STAGES}
    for _ in range(options.rounds):
        for name, stage in STAGES.items():
            begin = time.process_time()
            stage(options.recording)
            times[name].append((time.process_time() - begin) / processes * 1e6)
    save(options.json, "stages", {name: spread(values) for name, values in times.items()})
    print(f"{processes} processes, µs of CPU for each")
    for name, values in times.items():
        print(f"  {name:<8} {shown(spread(values))}")


if __name__ == "__main__":
    main()
