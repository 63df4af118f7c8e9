"""What redaction costs for each exec: over the corpus of the tests, and over the command lines of a real run.

    python benchmarks/redact.py [FILE] [--rounds N]

FILE is a recording (`record.py`, or ``otel-procmon run --record FILE`` while something is built). From the decoded
process on, without rules of one's own; the median round of several.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from parts import ROOT

sys.path.append(str(ROOT))

from otel_procmon.decode.kernel import KernelDecoder
from otel_procmon.events import Exec, Process
from otel_procmon.ledger import Ledger
from otel_procmon.redact.find import Finder
from otel_procmon.redact.stage import Redaction
from otel_procmon.source.recording import RecordingSource
from tests.unit.redaction_corpus import read_corpus

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTILE_BYTES = 64 * 1024
"""The longest arguments that the kernel's side hands over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    corpus = read_corpus()
    show("corpus, with secrets", [process(line.argv) for line in corpus if line.secrets], options.rounds)
    show("corpus, look-alikes", [process(line.argv) for line in corpus if not line.secrets], options.rounds)
    if options.file is not None:
        show("recording", recorded(options.file), options.rounds)
    for name, unit in (
        ("words", "-p "),
        ("quotes", '"a\'b" '),
        ("names", "token="),
        ("URLs", "://a:b@c "),
        ("shapes", "eyJ.eyJ."),
        ("echo", "echo a|"),
        ("programs", "curl -u a:b mysql -pa "),
        ("backslashes", 'token="\\\\'),
    ):
        text = (unit * (HOSTILE_BYTES // len(unit) + 1))[:HOSTILE_BYTES]
        show(f"hostile, 64 KiB of {name}", [process(("sh", "-c", text)), process(tuple(text.split(" ")))], 3)


def show(name: str, processes: Sequence[Process], rounds: int) -> None:
    longer_by_one = [[f"{argument}." for argument in one.argv or ()] for one in processes]
    means, medians = [], []
    for _ in range(rounds):
        # The strings are new each time, as they are in earnest: no hash of them is known. And nothing is remembered.
        fresh, again = (
            [process(tuple([argument[:-1] for argument in longer])) for longer in longer_by_one] for _ in range(2)
        )
        redaction = Redaction(Ledger())
        began = time.thread_time_ns()
        for one in fresh:
            redaction.process(one)
        means.append((time.thread_time_ns() - began) / len(fresh) / 1000)
        redaction = Redaction(Ledger())
        times = []
        for one in again:
            began = time.perf_counter_ns()
            redaction.process(one)
            times.append((time.perf_counter_ns() - began) / 1000)
        medians.append(statistics.median(times))
    finder = Finder()
    suspect = sum(finder.is_suspect(one.argv or ()) for one in processes)
    mean, median = statistics.median(means), statistics.median(medians)
    print(f"{name:36} mean {mean:10.2f} µs, median {median:10.2f} µs; {suspect} of {len(processes)} looked at closely")


def process(argv: tuple[str, ...]) -> Process:
    return Process(exec_id="x", pid=1, binary=argv[0] if argv else "", start_unix_ns=0, argv=argv, cwd="/srv/work")


def recorded(path: Path) -> list[Process]:
    source = RecordingSource(str(path))
    host = source.open()
    decoder = KernelDecoder(host.node, unix_ns=lambda ns: ns, observed_unix_ns=time.time_ns, page_bytes=host.page_bytes)
    processes = []
    while (batch := source.read()) is not None:
        for record in batch.records:
            event = decoder.decode(record)
            if isinstance(event, Exec) and event.process.argv:
                processes.append(process(event.process.argv))
    source.close()
    return processes


if __name__ == "__main__":
    main()
