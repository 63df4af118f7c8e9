"""What fuzzing begins with: real input, from files that tests have and from those that the environment names.

``PROCMON_TETRAGON_DATA`` is the directory of a real Tetragon's events, as for the tests; ``PROCMON_FUZZ_RECORDING`` a
recording (``benchmarks/record.py FILE``). Both are read where they are. What stands here is enough without them.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from otel_procmon.source.json_stream import JsonSplitter
from otel_procmon.source.recording import RecordingSource
from tests.unit.redaction_corpus import read_corpus
from tests.unit.tetragon_data import OWN_EVENTS
from tests.unit.wire_records import exec_record, exit_record, fork_record, strings

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST = 400
"""Most seeds of one kind: the fuzzer runs all of them first."""


@lru_cache(maxsize=1)
def tetragon_lines() -> tuple[bytes, ...]:
    """Objects of Tetragon's JSON."""
    paths = [OWN_EVENTS]
    directory = os.environ.get("PROCMON_TETRAGON_DATA")
    if directory:
        paths += sorted(path for path in Path(directory).iterdir() if path.suffix in (".json", ".jsonl"))
    lines = []
    for path in paths:
        splitter = JsonSplitter(path.name)
        lines += [piece.text for piece in splitter.feed(path.read_bytes()) + splitter.end() if piece.problem is None]
    return tuple(lines[:MOST])


@lru_cache(maxsize=1)
def kernel_records() -> tuple[bytes, ...]:
    """Records of the kernel."""
    own = (
        fork_record(),
        exec_record(),
        exec_record(strings(interpreter=b"/bin/sh", args=b"\0\xff\0")),
        exit_record(),
        exit_record(wait_status=0x8B),
    )
    return (*own, *recorded())


def recorded() -> Iterator[bytes]:
    """Records of a recording, each as long as none before or of another kind: those that are different."""
    path = os.environ.get("PROCMON_FUZZ_RECORDING")
    if not path:
        return
    source = RecordingSource(path)
    source.open()
    seen: set[tuple[bytes, int]] = set()
    while (batch := source.read()) is not None and len(seen) < MOST:
        for record in batch.records:
            if (kind := (record[:4], len(record) // 16)) not in seen and len(record) <= 4096:
                seen.add(kind)
                yield record
    source.close()


def recording() -> bytes:
    """The beginning of a recording, or a small one."""
    path = os.environ.get("PROCMON_FUZZ_RECORDING")
    if path:
        with Path(path).open("rb") as file:
            return file.read(4000)
    return b'otel-procmon recording 1\n{"node":"n","boot_id":"b","page_bytes":4096}\n'


@lru_cache(maxsize=1)
def command_lines() -> tuple[tuple[str, ...], ...]:
    """The corpus of redaction."""
    return tuple(line.argv for line in read_corpus())


def configurations() -> list[bytes]:
    """Configuration files of the examples."""
    return [path.read_bytes() for path in sorted(EXAMPLES.rglob("*.yaml")) if path.stat().st_size < 16_000]
