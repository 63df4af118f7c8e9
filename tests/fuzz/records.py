"""Targets: the kernel's records, alone and through all that stands behind them, and recordings of them."""

from __future__ import annotations

import contextlib
import os
import struct
from functools import lru_cache

from otel_procmon.capture import RecordingCapture, _Records
from otel_procmon.clock import BootClock
from otel_procmon.config import Config, LineageOptions
from otel_procmon.decode.errors import DecodeError
from otel_procmon.decode.kernel import KernelDecoder
from otel_procmon.events import Discovered, Exec, Exit, Fork
from otel_procmon.ledger import Ledger
from otel_procmon.source.errors import SourceError
from otel_procmon.source.recording import Batch, Host, RecordingSource
from otel_procmon.wire import EXEC_STRUCT, EXIT_STRUCT, TASK, TASK_STRUCT, WIRE_VERSION, Head, Kind, split_tasks
from tests.fuzz.behind import Behind
from tests.fuzz.choices import TEXTS, Choices

HOST = Host(node="here", boot_id="11111111-2222-3333-4444-555555555555", page_bytes=4096)
S = 1_000_000_000
BOOT_UNIX_NS = 1_700_000_000 * S
DECODER = KernelDecoder(
    "here", unix_ns=lambda ns: ns + BOOT_UNIX_NS, observed_unix_ns=lambda: BOOT_UNIX_NS, page_bytes=4096
)

PATHS = (*TEXTS, b"/bin/sh", b"./a", b"/dev/fd/3", b"/usr/bin/python3", b"memfd:x")
WALKED = (*TEXTS, b"user/home/", b"///", b"x.service/system.slice/", b"a" * 64 + b"/docker/", b"b" * 64 + b"/x/lxc/")
ARGUMENTS = (*TEXTS, b"sh\0-c\0echo x\0", b"\0\0\0", b"curl\0-u\0a:b\0", b"mysql\0-pA1\0", b"--token\0s3cret\0")
SIZES = {"Q": 8, "I": 4}


def any_bytes(data: bytes) -> None:
    """A record of any bytes is an event or a `DecodeError`."""
    with contextlib.suppress(DecodeError):
        is_event(DECODER.decode(data))


def any_stream(data: bytes) -> None:
    """The task iterator's stream of any bytes is cut into records within it."""
    records = split_tasks(data)
    assert b"".join(records) == data[: sum(map(len, records))]
    for record in records:
        any_bytes(record)


def any_fields(data: bytes) -> None:
    """A record that is right but for some of its fields."""
    choices = Choices(data)
    with contextlib.suppress(DecodeError):
        is_event(DECODER.decode(record(choices, fields(choices))))


def sequence(data: bytes) -> None:
    """Records of a few processes, in any order, through everything: nothing raises, and no record is unaccounted for."""
    choices = Choices(data)
    ledger = Ledger()
    config = Config(lineage=LineageOptions(max_images=choices.of((131_072, 3, 1)), grace_ns=choices.of((10 * S, 0))))
    clock = BootClock(lambda: S, lambda: BOOT_UNIX_NS + S)
    records = _Records(HOST, clock, lambda: BOOT_UNIX_NS, config, ledger, redact=None)
    behind = Behind(records.ids)
    now_ns, made = S, 0
    for _ in range(1 + choices.below(6)):
        batch = []
        for _ in range(1 + choices.below(4)):
            now_ns += choices.of((1, 1_000_000, 11 * S, 400 * S, 4_000 * S))
            batch.append(record(choices, likely(choices, now_ns)))
        if choices.chance(5):
            snapshot = [one for one in batch if one[:4] == TASK_BYTES]
            pending = [one for one in batch if one[:4] != TASK_BYTES]
            made += len(pending)
            happenings = records.reconcile(
                Batch(now_ns, BOOT_UNIX_NS + now_ns, snapshot, is_snapshot=True),
                Batch(now_ns, BOOT_UNIX_NS + now_ns, pending),
            )
        else:
            made += len(batch)
            happenings = records.apply(Batch(now_ns, BOOT_UNIX_NS + now_ns, batch))
        assert len(records.table) <= config.lineage.max_images
        behind.take(happenings)
    behind.take(records.table.finish())
    counts = ledger.counts()
    assert counts.get(("source", "read"), 0) == made


TASK_BYTES = struct.pack("<I", Kind.TASK)


def recording(data: bytes) -> None:
    """A recording of any bytes is read until it breaks off, or is a `SourceError`, and so is what is in it."""
    source = RecordingSource(in_memory(data))
    try:
        host = source.open()
        capture = RecordingCapture(source, host, Config(), Ledger())
        behind = Behind(capture.ids)
        while (happenings := capture.step()) is not None:
            behind.take(happenings)
        behind.take(capture.stop())
    except SourceError as error:
        assert str(error)  # noqa: PT017 - a target is no test
    finally:
        source.close()


def recording_of_records(data: bytes) -> None:
    """A recording with a right header, and batches whose times, counts and lengths may be wrong."""
    choices = Choices(data)
    parts = [b'otel-procmon recording 1\n{"node":"n","boot_id":"b","page_bytes":4096}\n']
    for _ in range(1 + choices.below(5)):
        records = [record(choices, likely(choices, 10 * S)) for _ in range(choices.below(4))]
        count = choices.number(4) if choices.chance(9) else len(records)
        parts.append(struct.pack("<cQQI", choices.of((b"E", b"S", b"X")), choices.number(), choices.number(), count))
        for one in records:
            parts += (struct.pack("<I", choices.number(4) if choices.chance(19) else len(one)), one)
    recording(b"".join(parts))


@lru_cache(maxsize=1)
def _memory() -> int:
    return os.memfd_create("fuzz")


def in_memory(data: bytes) -> str:
    """The path of a file with `data` in it, until the next one."""
    memory = _memory()
    os.ftruncate(memory, 0)
    os.pwrite(memory, data, 0)
    return f"/proc/self/fd/{memory}"


def fields(choices: Choices) -> dict[str, int | bytes]:
    """Fields of a record's head, some of them wrong."""
    values: dict[str, int | bytes] = dict.fromkeys((name for name, _ in TASK), 1)
    values |= {"kind": choices.of((Kind.EXEC, Kind.FORK, Kind.EXIT, Kind.TASK)), "version": WIRE_VERSION, "comm": b"sh"}
    values |= {"facts": 0, "unread": 0, "cut": 0}
    for _ in range(choices.below(8)):
        name, form = choices.of(TASK)
        values[name] = choices.raw(16) if form == "16s" else choices.number(SIZES[form])
    return values


def likely(choices: Choices, now_ns: int) -> dict[str, int | bytes]:
    """Fields of a head that tells of one of a few processes, so that records have to do with each other."""
    pid, parent = 100 + choices.below(4), 100 + choices.below(5)
    values: dict[str, int | bytes] = {
        "kind": choices.of((Kind.EXEC, Kind.FORK, Kind.EXIT, Kind.TASK)),
        "version": WIRE_VERSION,
        "time_ns": now_ns,
        "start_ns": choices.of((S // 2, S, now_ns, 2**64 - 1)),
        "generation": choices.below(4),
        "parent_start_ns": choices.of((S // 2, S, 0)),
        "parent_generation": choices.below(4),
        "cgroup_id": 1,
        "pid": pid,
        "parent_pid": parent if parent < 104 else 0,
        "vpid": choices.of((pid, 1, 0)),
        "session_id": choices.of((100, pid, 0)),
        "uid": 0,
        "gid": 0,
        "euid": 0,
        "egid": 0,
        "auid": choices.of((2**32 - 1, 0)),
        "facts": choices.byte(),
        "unread": choices.number(4) if choices.chance(8) else 0,
        "cut": choices.number(4) if choices.chance(8) else 0,
        "comm": choices.of(TEXTS)[:16],
    }
    if choices.chance(6):
        name, form = choices.of(TASK)
        values[name] = choices.raw(16) if form == "16s" else choices.number(SIZES[form])
    return values


def record(choices: Choices, values: dict[str, int | bytes]) -> bytes:
    """A record with this head, and a tail that fits its kind, most of the time."""
    head = Head._make(values[name] for name, _ in TASK)
    if head.kind == Kind.EXIT:
        usage = [choices.number() if choices.chance(4) else 5 for _ in range(6)]
        whole = EXIT_STRUCT.pack(*head, choices.of((0, 9, 0x8B, 256, 0xFF00, 0x7F, 2**32 - 1)), 0, *usage)
    elif head.kind in (Kind.EXEC, Kind.TASK):
        strings = [
            choices.text(PATHS),
            choices.text(PATHS) if choices.chance(4) else b"",
            choices.text(WALKED) if choices.chance(4) else b"",
            choices.text(WALKED),
            choices.text(WALKED),
            b"".join(choices.text(ARGUMENTS) + b"\0" for _ in range(choices.below(5))),
        ]
        lengths = list(map(len, strings))
        if choices.chance(9):
            lengths[choices.below(6)] = choices.number(4)
        whole = EXEC_STRUCT.pack(
            *head, choices.number() if choices.chance(9) else lengths[-1], choices.below(9), *lengths, 0
        )
        whole += b"".join(strings)
    else:
        whole = TASK_STRUCT.pack(*head)
    return whole[: choices.below(256)] if choices.chance(19) else whole


def is_event(event: object) -> None:
    """What the types of the events promise of numbers and texts."""
    assert isinstance(event, Fork | Exec | Exit | Discovered)
    assert event.time_unix_ns >= 0
    assert (event.process.exec_id if isinstance(event, Exec | Discovered) else event.exec_id).isascii()
    if isinstance(event, Exec | Discovered):
        for text in (event.process.binary, *(event.process.argv or ())):
            assert "\0" not in text or text == event.process.binary
