"""What the spool costs: µs for each batch, and how long it takes to open one that holds many files.

    python benchmarks/spool.py FILE [--directory DIR] [--batches N] [--files N]

FILE is a recording, as for stages.py; DIR is on the disk to be measured. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stages import converter, happenings

from otel_procmon.convert.records import Span
from otel_procmon.deliver.batch import Batch
from otel_procmon.deliver.spool import Spool
from otel_procmon.encode.otlp import OtlpEncoder, encode_request
from otel_procmon.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_procmon.convert.records import Resource
    from otel_procmon.deliver.settings import Signal
    from otel_procmon.lineage.image import Happening

BATCH_SIZE = 512
Of = TypeVar("Of")
Result = TypeVar("Result")
ROOM = 1 << 40


class Enough(Exception):  # noqa: N818 - it is none
    """There are as many batches as were asked for."""


def batches(path: str, most: int) -> list[Batch]:
    """What the agent makes of a recording."""
    one, encoder = converter(), OtlpEncoder(Ledger())
    made: list[Batch] = []
    pending: dict[Signal, list[tuple[Resource, bytes]]] = {"traces": [], "logs": []}

    def take(step: list[Happening]) -> None:
        for happening in step:
            for record in one.convert(happening):
                signal: Signal = "traces" if isinstance(record, Span) else "logs"
                pending[signal].append((record.resource, encoder.encode(record)))
                if len(pending[signal]) == BATCH_SIZE:
                    made.append(batch(signal))
                    if len(made) == most:
                        raise Enough

    def batch(signal: Signal) -> Batch:
        groups: dict[int, tuple[bytes, str, list[bytes]]] = {}
        for resource, message in pending[signal]:
            group = groups.setdefault(id(resource), (encoder.resource(resource), resource.schema_url, []))
            group[2].append(message)
        pending[signal].clear()
        return Batch(signal, BATCH_SIZE, encode_request(groups.values()))

    with suppress(Enough):
        happenings(path, take)
    return made


class Timed:
    """How long calls take."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu = 0.0

    def __call__(self, do: Callable[[Of], Result], of: Of) -> Result:
        wall, cpu = time.perf_counter(), time.process_time()
        result = do(of)
        self.wall.append(time.perf_counter() - wall)
        self.cpu += time.process_time() - cpu
        return result

    def __str__(self) -> str:
        values = sorted(self.wall)
        p99 = values[len(values) * 99 // 100]
        return f"{statistics.median(values) * 1e6:7.0f} {p99 * 1e6:7.0f} {self.cpu / len(values) * 1e6:7.0f}"


def each(directory: Path, some: list[Batch]) -> None:
    spool = Spool(directory, ROOM, Ledger())
    append, take, done = Timed(), Timed(), Timed()
    for batch in some:
        if not append(spool.append, batch):
            raise SystemExit("it cannot be written there")
    size = spool.waiting("traces")[2] + spool.waiting("logs")[2]
    for batch in some:
        entry = take(spool.take, batch.signal)
        assert entry is not None
        done(spool.done, entry)
    spool.close()
    raw = sum(len(batch.body) for batch in some)
    print(f"{len(some)} batches of {BATCH_SIZE} records, {raw // len(some)} bytes each, {size // len(some)} on disk")
    print("µs a batch   median     p99     CPU")
    for name, timed in (("append", append), ("take", take), ("done", done)):
        print(f"  {name:<8} {timed}")


def opening(directory: Path, files: int) -> None:
    spool = Spool(directory, ROOM, Ledger())
    begin = time.perf_counter()
    for number in range(files):
        spool.append(Batch("logs" if number % 2 else "traces", 3, b"a small batch"))
    spool.close()
    print(f"{files} small files: written in {time.perf_counter() - begin:.2f} s", end="")
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        spool = Spool(directory, ROOM, Ledger())
        times.append(time.perf_counter() - begin)
        spool.close()
    tracemalloc.start()
    spool = Spool(directory, ROOM, Ledger())
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f", opened in {statistics.median(times) * 1e3:.0f} ms; the index takes {now / files:.0f} bytes a file "
        f"({peak / files:.0f} while it is made)"
    )
    spool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--files", type=int, default=13_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as place:
        each(Path(place) / "each", batches(options.recording, options.batches))
        opening(Path(place) / "many", options.files)


if __name__ == "__main__":
    main()
