"""All targets by name: what is called with the fuzzer's bytes, what it begins with, and how long its inputs may be.

A target returns, or raises what nothing in the product may raise. It holds what its reader promises, in its docstring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.fuzz import arguments, events, files, records, seeds, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Target(NamedTuple):
    """One target."""

    run: Callable[[bytes], None]
    share: int
    """Inputs of each thousand that a whole run gives it. What is quick gets many, what goes through everything few."""
    modules: tuple[str, ...]
    """What it is for, for the report: the coverage of these is told."""
    seeds: Callable[[], Sequence[bytes]] = tuple
    max_bytes: int = 512


def _lines() -> Sequence[bytes]:
    return [b"\0" + line for line in seeds.tetragon_lines()]


def _times() -> Sequence[bytes]:
    return [b"2024-03-01T08:10:01.123456789Z", b"1970-01-01T00:00:00+00:00", b"2262-04-11T23:47:16.854775807-00:00"]


def _arguments() -> Sequence[bytes]:
    return ["\0".join(argv).encode() for argv in seeds.command_lines()]


TARGETS = {
    "record-bytes": Target(records.any_bytes, 160, ("decode/kernel.py", "wire.py"), seeds.kernel_records),
    "record-stream": Target(records.any_stream, 70, ("wire.py",), seeds.kernel_records, 2048),
    "record-fields": Target(records.any_fields, 140, ("decode/kernel.py",)),
    "record-sequence": Target(
        records.sequence, 15, ("lineage/table.py", "convert/happenings.py", "encode/otlp.py", "capture.py")
    ),
    "recording-bytes": Target(records.recording, 40, ("source/recording.py",), lambda: [seeds.recording()], 4096),
    "recording-records": Target(records.recording_of_records, 3, ("source/recording.py", "capture.py")),
    "tetragon-stream": Target(events.stream, 50, ("source/json_stream.py", "decode/tetragon.py"), _lines, 1024),
    "tetragon-event": Target(events.one_event, 40, ("decode/tetragon.py", "decode/fields.py")),
    "tetragon-sequence": Target(
        events.sequence, 3, ("decode/order.py", "lineage/table.py", "convert/resource.py", "view/tetragon_json.py")
    ),
    "cgroup": Target(texts.cgroup, 120, ("containers/cgroup.py", "containers/unit.py")),
    "time": Target(texts.time, 140, ("rfc3339.py",), _times, 64),
    "quote": Target(texts.quoted, 30, ("view/quote.py",), max_bytes=64),
    "answer": Target(texts.answered, 80, ("deliver/answer.py",)),
    "pattern": Target(texts.pattern, 30, ("patterns.py",), max_bytes=128),
    "selector": Target(texts.selector, 70, ("selectors.py",), max_bytes=128),
    "config-bytes": Target(files.config, 3, ("config/file.py",), seeds.configurations, 2048),
    "config-options": Target(files.config_of_options, 3, ("config/file.py", "config/values.py")),
    "filter-file": Target(files.filters, 5, ("filters.py",)),
    "redaction-file": Target(files.redaction_filters, 10, ("redact/filters.py",)),
    "spool-file": Target(files.spool_file, 30, ("deliver/spool.py",)),
    "spool-directory": Target(files.spool_directory, 2, ("deliver/spool.py",)),
    "redact": Target(arguments.redacted, 10, ("redact/find.py", "redact/words.py", "redact/stage.py")),
    "redact-bytes": Target(arguments.redacted_bytes, 20, ("redact/find.py", "redact/words.py"), _arguments),
    "redact-time": Target(arguments.redacted_in_time, 1, ("redact/find.py", "redact/words.py")),
}
