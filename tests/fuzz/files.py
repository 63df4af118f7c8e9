"""Targets: files that are read at the start or after an outage: configuration, filters, the spool."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

from otel_procmon.config import ConfigError, read_config
from otel_procmon.config.table import OPTIONS, SECTIONS
from otel_procmon.deliver.batch import Batch
from otel_procmon.deliver.spool import _CRC, _START, NOT_WRITTEN, Spool, _File, _packed, _unpacked, _UnreadableError
from otel_procmon.events import Exec, Process
from otel_procmon.filters import Filter, FilterError, read_filter_file
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import Image, SpanRef, Started
from otel_procmon.redact.filters import RedactionError, own_filters, read_redaction_filters
from otel_procmon.redact.stage import Redaction
from tests.fuzz.choices import TEXTS, Choices
from tests.fuzz.records import in_memory

SCALARS = (
    *TEXTS,
    b"1h",
    b"0ms",
    b"-1s",
    b"1e400",
    b".inf",
    b"9" * 40,
    b"0x10",
    b"1MiB",
    b"16MiB",
    b"99999999TiB",
    b"on",
    b"null",
    b"~",
    b"[a, [b]]",
    b"{a: b}",
    b"[1, -1, x]",
    b"['(', a+]",
    b"&a [*a]",
    b"!!int x",
    b"!!binary x",
    b"!!python/object/apply:os.getpid []",
    b"|\n    text",
    b"otlp",
    b"compact:/x",
    b"tetragon:-",
    b"\x00",
)

FILTER_PARTS = (
    b'{"binary_regex":["^/bin/"]}',
    b'{"event_set":["PROCESS_EXEC"]}',
    b'{"pid":[1,-1]}',
    b'{"labels":["a in (b)"]}',
    b'{"namespace":[""]}',
    b'{"health_check":true}',
    b'{"in_init_tree":"x"}',
    b'{"pid_set":[4294967296]}',
    b'{"arguments_regex":["(x"]}',
    b'{"ancestor_binary_regex":[1]}',
    b'{"container_id":["a"]} ',
    b"{}",
    b"[]",
    b'"x"',
    b"\n",
    b"null",
    b'{"redact":["--token (\\\\S+)"]}',
    b'{"redact":["("]}',
    b'{"redact":["x"],"binary_regex":["a"]}',
    b'{"match":[{"binary_regex":["a"]}],"redact":["(a*)"]}',
    b'{"match":{"x":1},"redact":[]}',
    b'{"match":{"binary_regex":5},"redact":["(a)"]}',
    b'{"match":{"binary_regex":["a"]},"binary_regex":{"a":1},"redact":["(a)"]}',
    b"[" * 100,
    b'{"a":' * 100,
)


def config(data: bytes) -> None:
    """Any file is a configuration, or a `ConfigError` in one printable line."""
    try:
        read_config(in_memory(data))
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017 - a target is no test


def config_of_options(data: bytes) -> None:
    """A file of options that there are, with values that may be wrong."""
    choices = Choices(data)
    sections: dict[str, list[bytes]] = {}
    for _ in range(1 + choices.below(6)):
        option = choices.of(OPTIONS)
        key = option.key.encode() if not choices.chance(12) else choices.text()
        value = choices.text(SCALARS) if choices.chance(3) else choices.of(SCALARS)
        section = option.section if not choices.chance(12) else choices.of(list(SECTIONS))
        sections.setdefault(section, []).append(key + b": " + value)
    lines = []
    for name, entries in sections.items():
        if name:
            lines.append(name.encode() + b":")
        lines += [(b"  " if name else b"") + entry for entry in entries]
    config(b"\n".join(lines))


def filters(data: bytes) -> None:
    """A file of any lists is a filter that decides, or a `FilterError`."""
    choices = Choices(data)
    form = choices.below(4)
    if form == 0:
        content = choices.rest()
    else:
        entries = b"".join(choices.of(FILTER_PARTS) for _ in range(choices.below(6))) + choices.raw(20)
        key = choices.of((b"export-allowlist", b"export-denylist", b"exportAllowList", b"data", b"x"))
        if form == 1:
            content = key + b": |\n  " + entries.replace(b"\n", b"\n  ")
        elif form == 2:
            content = key + b": [" + entries.replace(b"}{", b"},{") + b"]"
        else:
            content = b"data:\n  " + key + b": |\n    " + entries.replace(b"\n", b"\n    ")
    try:
        allow, deny = read_filter_file(in_memory(content))
        decides = Filter.of(allow=allow, deny=deny)
    except FilterError as error:
        assert str(error)  # noqa: PT017 - as above
        return
    image = Image(Process(exec_id="eA==", pid=1, binary="/bin/sh", start_unix_ns=1, argv=("sh", "-c", "x")), NOWHERE)
    event = Exec(time_unix_ns=1, observed_unix_ns=1, process=image.process, parent_exec_id=None)
    assert decides.accepts(Started(image, event)) in (True, False)


NOWHERE = SpanRef(bytes(16), bytes(8))


def redaction_filters(data: bytes) -> None:
    """A file of any redaction filters redacts, or is a `RedactionError`."""
    choices = Choices(data)
    text = b"".join(choices.of(FILTER_PARTS) for _ in range(choices.below(6))) + choices.raw(40)
    try:
        found = read_redaction_filters(in_memory(text))
        own = choices.of((b"(a)", b"--token (\\S+)", b"(b)|(a)", b"(", b"a", b"")) + choices.raw(choices.below(9))
        found += own_filters([own.decode("utf-8", "surrogateescape")])
    except RedactionError as error:
        assert str(error)  # noqa: PT017 - as above
        return
    argv = ("sh", "--token abc", "aaa")
    process = Redaction(Ledger(), found).process(
        Process(exec_id="x", pid=1, binary="/bin/a", start_unix_ns=0, argv=argv)
    )
    assert process.argv is not None
    assert len(process.argv) == len(argv)


def spool_file(data: bytes) -> None:
    """A file of any bytes is the batch that was put into it, or unreadable; with a right checksum, too."""
    choices = Choices(data)
    file = _File(1, choices.of(("logs", "traces")), choices.below(4), 4096)
    if choices.chance(2):
        _try(file, choices.rest())
        return
    body = choices.raw(200)
    content = zlib.compress(body, 1)
    if choices.chance(3):
        content = choices.of((zlib.compress(bytes(300_000)), content[:-1], content + b"x", b"", content * 2))
    start = bytearray(
        _START.pack(
            b"procmon\n",
            choices.of((1, 0, 2)),
            choices.of((1, 2, 0)),
            0,
            choices.below(4),
            len(content),
            choices.number(4) if choices.chance(3) else len(body),
        )
    )
    if choices.chance(6):
        start[choices.below(len(start))] = choices.byte()
    crc = zlib.crc32(content, zlib.crc32(bytes(start)))
    _try(file, bytes(start) + _CRC.pack(choices.number(4) if choices.chance(9) else crc) + content)


def _try(file: _File, whole: bytes) -> None:
    with contextlib.suppress(_UnreadableError):
        batch = _unpacked(file, whole)
        # Another compression of the same is as good, and has another length.
        assert _unpacked(file, _packed(batch) or b"") == batch


NAMES = (
    "0000000000000001.logs.1",
    "0000000000000002.traces.3",
    "0000000000000002.logs.3",
    "8999999999999999.logs.999999999",
    "9999999999999999.logs.1",
    "0000000000000003.logs.0",
    "0000000000000004.logs.1.unreadable",
    "unfinished",
    "foreign\n\x1b[2J",
    "0000000000000005.logs.01",
    "\u0660000000000000006.logs.1",
)


@lru_cache(maxsize=1)
def _directory() -> Path:
    shared_memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-spool-", dir=shared_memory if shared_memory.is_dir() else None))


def spool_directory(data: bytes) -> None:
    """Whatever files are in it, a spool gives the good ones, counts the others, and takes another batch."""
    choices = Choices(data)
    directory = _directory() / "spool"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    for _ in range(choices.below(6)):
        name = choices.of(NAMES)
        if choices.chance(8):
            name = os.fsdecode(choices.raw(20).replace(b"\0", b"").replace(b"/", b"") or b"x")
        path = directory / name
        kind = choices.below(6)
        if path.exists() or path.is_symlink() or name in (".", ".."):
            continue
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            path.symlink_to(choices.of(("/etc/passwd", "nowhere", ".")))
        elif kind == 2:
            path.write_bytes(choices.raw(60))
        elif kind == 3:
            os.mkfifo(path)
        else:
            batch = Batch(choices.of(("logs", "traces")), choices.below(4), b"body")
            path.write_bytes((_packed(batch) or b"")[: choices.below(256) if choices.chance(4) else None])
    ledger = Ledger()
    spool = Spool(directory, choices.of((1 << 20, 4096, 12_288)), ledger)
    taken = 0
    try:
        for signal in ("logs", "traces"):
            while (entry := spool.take(signal)) is not None:
                taken += entry.batch.records
                spool.done(entry)
        # A directory in the place of the file that is written has to be removed by whoever made it.
        assert spool.append(Batch("logs", 1, b"x")) or (directory / "unfinished").is_dir()
        if (entry := spool.take("logs")) is not None:
            spool.done(entry)
        assert spool.waiting("logs") == (0, 0, 0)
        assert spool.waiting("traces") == (0, 0, 0)
    finally:
        spool.close()
    counts = ledger.counts()
    found = sum(n for (_, what), n in counts.items() if what.startswith("found"))
    lost = sum(n for (_, what), n in counts.items() if what.startswith("lost") and what != NOT_WRITTEN)
    assert found == taken + lost, counts
