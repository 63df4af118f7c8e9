"""Batches on disk: what `append` has kept is there afterwards, whole and in order, or counted."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import shutil
import signal as signals
import stat
import subprocess
import sys
import tempfile
import threading
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from otel_procmon.deliver import spool as module
from otel_procmon.deliver.batch import Batch
from otel_procmon.deliver.delivery import NOT_IN_TIME
from otel_procmon.deliver.spool import (
    FOUND,
    NOT_WRITTEN,
    SPOOL_FULL,
    TOO_LARGE,
    UNREADABLE,
    Entry,
    Spool,
    SpoolError,
)
from otel_procmon.ledger import Ledger
from tests.kernel.truth.running import cannot_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_procmon.deliver.settings import Signal

    Open = Callable[..., Spool]
    AfterDamage = Callable[[bytes], tuple[list[bytes], Ledger, list[str]]]

BLOCK = 4096
HEADER_BYTES = 28
BOUND_S = 60.0
NOBODY = 65534
SIGNALS: tuple[Signal, ...] = ("traces", "logs")


def logs(number: int, records: int = 3, size: int = 20) -> Batch:
    """A batch that does not shrink, and is different from others."""
    return Batch("logs", records, random.Random(number).randbytes(size))


def bodies(spool: Spool, signal: Signal = "logs") -> list[bytes]:
    """All that waits, in order. It is done afterwards."""
    found = []
    while entry := spool.take(signal):
        found.append(entry.batch.body)
        spool.done(entry)
    return found


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def open_spool(directory: Path, ledger: Ledger) -> Iterator[Open]:
    opened: list[Spool] = []

    def open_one(path: Path = directory, max_bytes: int = 1 << 30, **options: Any) -> Spool:
        opened.append(Spool(path, max_bytes, ledger, **options))
        return opened[-1]

    yield open_one
    for spool in opened:
        spool.close()


# What is kept, and in which order


def test_oldest_first_and_each_signal_by_itself(open_spool: Open) -> None:
    spool = open_spool()
    assert spool.take("logs") is None
    for number in range(3):
        assert spool.append(logs(number, records=number))
        assert spool.append(Batch("traces", 1, b"span %d" % number))
    assert spool.waiting("logs") == (3, 0 + 1 + 2, 3 * BLOCK)
    entries = [spool.take("logs") for _ in range(3)]
    assert [entry and entry.batch for entry in entries] == [logs(number, records=number) for number in range(3)]
    assert spool.take("logs") is None
    assert spool.waiting("logs") == (3, 3, 3 * BLOCK), "what is being sent is still there"
    for entry in entries:
        assert entry is not None
        spool.done(entry)
    assert spool.waiting("logs") == (0, 0, 0)
    assert bodies(spool, "traces") == [b"span 0", b"span 1", b"span 2"]


def test_what_is_put_back_has_its_place_again(open_spool: Open) -> None:
    spool = open_spool()
    for number in range(6):
        spool.append(logs(number))
    taken = [spool.take("logs") for _ in range(5)]
    for index in (3, 1, 4, 0):
        entry = taken[index]
        assert entry is not None
        spool.put_back(entry)
    assert bodies(spool) == [logs(number).body for number in (0, 1, 3, 4, 5)]


def test_done_and_put_back_count_once(open_spool: Open) -> None:
    spool = open_spool()
    spool.append(logs(1))
    entry = spool.take("logs")
    assert entry is not None
    spool.put_back(entry)
    spool.put_back(entry)
    spool.done(entry)
    assert spool.waiting("logs") == (1, 3, BLOCK)
    assert spool.take("logs") == entry
    spool.done(entry)
    spool.done(entry)
    spool.put_back(entry)
    assert spool.waiting("logs") == (0, 0, 0)


def test_the_next_agent_finds_what_was_left_and_numbers_go_on(
    open_spool: Open, directory: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spool = open_spool()
    for number in range(3):
        spool.append(logs(number))
    entry = spool.take("logs")
    assert entry is not None
    spool.done(entry)
    assert spool.take("logs") is not None, "it is not done when the agent ends"
    spool.close()
    spool = open_spool()
    assert f"6 records in 2 batches of an earlier agent wait in {directory}" in caplog.text
    assert ledger.counts() == {("delivery.logs", FOUND): 6}
    spool.append(logs(3))
    assert files(directory) == [f"000000000000000{number}.logs.3" for number in (2, 3, 4)]
    assert bodies(spool) == [logs(number).body for number in (1, 2, 3)]


def test_nobody_else_can_read_it(open_spool: Open, directory: Path) -> None:
    umask = os.umask(0)
    try:
        open_spool().append(logs(1))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()] == [0o600]


def test_files_are_compressed(open_spool: Open) -> None:
    spool = open_spool()
    spool.append(Batch("logs", 512, b"the same again. " * 40_000))
    assert spool.waiting("logs") == (1, 512, BLOCK)
    assert bodies(spool) == [b"the same again. " * 40_000]


def test_after_the_end(open_spool: Open, ledger: Ledger) -> None:
    spool = open_spool()
    spool.append(logs(1))
    entry = spool.take("logs")
    assert entry is not None
    spool.close()
    spool.close()
    assert not spool.append(logs(2))
    assert spool.take("logs") is None
    spool.done(entry)
    assert ledger.counts() == {("delivery.logs", NOT_IN_TIME): 3}
    assert bodies(open_spool()) == [logs(1).body], "it may be another agent's by then"


# Too much of it


def test_the_oldest_goes_first_but_not_what_is_being_sent(
    open_spool: Open, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool(max_bytes=4 * BLOCK)
    spool.append(logs(0))
    spool.append(Batch("traces", 5, b"span"))
    spool.append(logs(1))
    taken = spool.take("logs")
    assert taken is not None
    for number in (2, 3, 4):
        assert spool.append(logs(number))
    assert ledger.counts() == {("delivery.logs", SPOOL_FULL): 3, ("delivery.traces", SPOOL_FULL): 5}
    assert "is full, and the oldest batches are removed; 5 records were lost" in caplog.text
    assert len(caplog.records) == 1, "once a minute"
    spool.put_back(taken)
    assert bodies(spool) == [logs(number).body for number in (0, 2, 3, 4)]


def test_when_all_is_being_sent_there_is_no_room(open_spool: Open, ledger: Ledger) -> None:
    spool = open_spool(max_bytes=2 * BLOCK)
    for number in (0, 1):
        spool.append(logs(number))
        assert spool.take("logs")
    assert not spool.append(logs(2))
    assert ledger.counts() == {("delivery.logs", SPOOL_FULL): 3}
    assert spool.waiting("logs") == (2, 6, 2 * BLOCK)


def test_one_that_is_too_large_drives_nothing_out(
    open_spool: Open, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(max_bytes=2 * BLOCK)
    spool.append(logs(0))
    assert not spool.append(logs(1, records=7, size=3 * BLOCK))
    monkeypatch.setattr(module, "_MOST_BODY_BYTES", 1000)
    assert not spool.append(Batch("logs", 8, bytes(1001)))
    assert ledger.counts() == {("delivery.logs", TOO_LARGE): 15}
    assert bodies(spool) == [logs(0).body]


def test_a_smaller_bound_holds_at_the_next_start(open_spool: Open, ledger: Ledger, directory: Path) -> None:
    spool = open_spool()
    for number in range(5):
        spool.append(logs(number))
    spool.close()
    spool = open_spool(max_bytes=2 * BLOCK)
    assert ledger.counts() == {("delivery.logs", FOUND): 15, ("delivery.logs", SPOOL_FULL): 9}
    assert len(files(directory)) == 2
    assert bodies(spool) == [logs(3).body, logs(4).body]


def test_the_number_of_files_is_bounded(open_spool: Open, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FILES", 3)
    spool = open_spool()
    for number in range(5):
        spool.append(logs(number))
    assert ledger.counts() == {("delivery.logs", SPOOL_FULL): 6}
    assert bodies(spool) == [logs(number).body for number in (2, 3, 4)]


def test_thousands_of_files(open_spool: Open, directory: Path, ledger: Ledger) -> None:
    directory.mkdir(mode=0o700)
    numbers = list(range(1, 3_001))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        (directory / f"{number:016d}.{SIGNALS[number % 2]}.512").write_bytes(module._packed(logs(number, 512)) or b"")
    spool = open_spool()
    assert spool.waiting("logs") == (1500, 1500 * 512, 1500 * BLOCK)
    assert ledger.get("delivery.traces", FOUND) == 1500 * 512
    for number in range(1, 3_001, 2):
        entry = spool.take("logs")
        assert entry is not None
        assert entry.batch.body == logs(number).body
        spool.done(entry)


# Files that are broken


@pytest.fixture
def after_damage(directory: Path) -> AfterDamage:
    """What a spool of one file with this content and a good one gives: bodies, ledger, names of files."""
    good = module._packed(logs(2))
    assert good is not None

    def read(content: bytes) -> tuple[list[bytes], Ledger, list[str]]:
        directory.mkdir(mode=0o700)
        (directory / "0000000000000001.logs.3").write_bytes(content)
        (directory / "0000000000000002.logs.3").write_bytes(good)
        ledger = Ledger()
        spool = Spool(directory, 1 << 30, ledger)
        found = bodies(spool)
        assert spool.waiting("logs") == (0, 0, 0)
        spool.close()
        names = files(directory)
        again = Spool(directory, 1 << 30, Ledger())
        assert again.take("logs") is None, "it does not come again"
        again.close()
        shutil.rmtree(directory)
        return found, ledger, names

    return read


GOOD = module._packed(logs(1)) or b""
LOST = {("delivery.logs", FOUND): 6, ("delivery.logs", UNREADABLE): 3}
ASIDE = ["0000000000000001.logs.3.unreadable"]


def test_cut_at_every_byte(after_damage: AfterDamage) -> None:
    assert after_damage(GOOD)[0] == [logs(1).body, logs(2).body]
    for length in range(len(GOOD)):
        found, ledger, names = after_damage(GOOD[:length])
        assert (found, ledger.counts(), names) == ([logs(2).body], LOST, ASIDE), length


def test_every_byte_changed(after_damage: AfterDamage) -> None:
    assert len(GOOD) > HEADER_BYTES + 20
    for index in range(len(GOOD)):
        for change in (1, 0x80, 0xFF):
            content = bytearray(GOOD)
            content[index] ^= change
            found, ledger, names = after_damage(bytes(content))
            assert (found, ledger.counts(), names) == ([logs(2).body], LOST, ASIDE), index


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has 0 bytes, which cannot be"),
        (GOOD[:28], "has 28 bytes, which cannot be"),
        (GOOD[:30], "has 2 bytes of 29"),
        (GOOD + b"x", "has 30 bytes of 29"),
        (bytes(1000), "is something else"),
        (GOOD[:8] + b"\x02" + GOOD[9:], "was written by another version of otel-procmon (its format is 2)"),
        (GOOD[:-1] + b"x", "is damaged: its checksum is wrong"),
        (module._packed(logs(1, records=4)), "has another batch's name"),
        (module._packed(Batch("traces", 3, b"span")), "has another batch's name"),
    ],
)
def test_it_is_said_what_is_wrong(
    after_damage: AfterDamage,
    caplog: pytest.LogCaptureFixture,
    directory: Path,
    content: bytes,
    why: str,
) -> None:
    assert after_damage(content)[1].counts() == LOST
    file = f"{directory}/0000000000000001.logs.3"
    assert caplog.messages == [f"delivery.spool: the spool file {file} {why}, and is passed over; 3 records were lost"]


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"not compressed", 20),
        (zlib.compress(bytes(10_000_000)), 20),
        (zlib.compress(bytes(10)), 20),
        (zlib.compress(bytes(20))[:-1], 20),
    ],
)
def test_a_good_checksum_of_bad_content(after_damage: AfterDamage, content: bytes, length: int) -> None:
    start = module._START.pack(b"procmon\n", 1, 2, 0, 3, len(content), length)
    whole = start + module._CRC.pack(zlib.crc32(content, zlib.crc32(start))) + content
    found, ledger, _ = after_damage(whole)
    assert (found, ledger.counts()) == ([logs(2).body], LOST)


def test_an_absurd_size_drives_nothing_out(after_damage: AfterDamage, open_spool: Open, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with (directory / "0000000000000002.logs.3").open("wb") as file:
        file.truncate(1 << 40)
    (directory / "0000000000000001.logs.3").write_bytes(GOOD)
    spool = open_spool(max_bytes=4 * BLOCK)
    assert files(directory) == ["0000000000000001.logs.3"], "and goes when its space is needed"
    assert bodies(spool) == [logs(1).body]


def test_what_is_unreadable_stays_while_there_is_room(open_spool: Open, directory: Path, ledger: Ledger) -> None:
    spool = open_spool(max_bytes=3 * BLOCK)
    spool.append(logs(0))
    (directory / "0000000000000001.logs.3").write_bytes(b"x" * 100)
    assert spool.take("logs") is None
    spool.close()
    spool = open_spool(max_bytes=3 * BLOCK)
    for number in (1, 2):
        spool.append(logs(number))
        assert "0000000000000001.logs.3.unreadable" in files(directory)
    spool.append(logs(3))
    assert files(directory) == [f"000000000000000{number}.logs.3" for number in (2, 3, 4)]
    assert ledger.get("delivery.logs", SPOOL_FULL) == 0


def test_what_is_not_the_spools_is_left_alone(
    open_spool: Open, directory: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir(mode=0o700)
    (directory / "notes\n").write_text("mine")
    (directory / "lost+found").mkdir()
    (directory / "0000000000000007.logs.3").mkdir()
    os.mkfifo(directory / "0000000000000008.logs.3")
    (directory / "0000000000000009.logs.3").symlink_to("/etc/passwd")
    for name in ("9999999999999999.logs.3", "0000000000000001.logs.03", "0000000000000001.logs.-3", "1.logs.3"):
        (directory / name).touch()
    before = files(directory)
    spool = open_spool(max_bytes=BLOCK)
    assert spool.take("logs") is None
    spool.append(logs(1))
    assert ledger.counts() == {}
    # Beyond what has such a name, whatever it is.
    assert files(directory) == sorted([*before, "0000000000000010.logs.3"])
    assert caplog.messages == [
        f"8 files in {directory} are not the spool's, such as '0000000000000001.logs.-3', and are left alone"
    ]


def test_a_directory_where_the_next_batch_would_be(open_spool: Open, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / f"{1:016d}.logs.3").mkdir()
    spool = open_spool()
    assert spool.append(logs(1))
    assert spool.take("logs") is not None


def test_a_file_that_says_it_has_more_in_it_than_there_may_be() -> None:
    """Its checksum is right, and four gigabytes of zeros are small when compressed."""
    content = zlib.compress(bytes(1 << 20))
    start = module._START.pack(b"procmon\n", 1, module._SIGNALS["logs"], 0, 3, len(content), 2**32 - 1)
    whole = start + module._CRC.pack(zlib.crc32(content, zlib.crc32(start))) + content
    with pytest.raises(module._UnreadableError, match="says that 4294967295 bytes are in it, which cannot be"):
        module._unpacked(module._File(1, "logs", 3, BLOCK), whole)


def test_an_unfinished_file_goes(open_spool: Open, directory: Path, ledger: Ledger) -> None:
    directory.mkdir(mode=0o700)
    (directory / "unfinished").write_bytes(GOOD[:40])
    assert open_spool().take("logs") is None
    assert files(directory) == []
    assert ledger.counts() == {}


def test_a_link_or_a_pipe_in_place_of_a_batch(open_spool: Open, directory: Path, ledger: Ledger) -> None:
    spool = open_spool()
    for number in range(3):
        spool.append(logs(number))
    first, second, _ = sorted(directory.iterdir())
    first.unlink()
    first.symlink_to("/etc/passwd")
    second.unlink()
    os.mkfifo(second)
    assert bodies(spool) == [logs(2).body]
    assert ledger.counts() == {("delivery.logs", UNREADABLE): 6}


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        cannot_run("kernel", "a file system cannot be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk(open_spool: Open, small_disk: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    spool = open_spool(small_disk / "spool")
    kept = [number for number in range(20) if spool.append(logs(number, records=1, size=20_000))]
    assert kept == list(range(12)), "five blocks each, and 64 there are"
    assert ledger.counts() == {("delivery.logs", NOT_WRITTEN): 8}
    assert (
        "spool cannot be written (no space left on device), so what the receiver does not take is lost; 1 rec"
        in (caplog.messages[0])
    )
    assert "unfinished" not in files(small_disk / "spool")
    entry = spool.take("logs")
    assert entry is not None
    spool.done(entry)
    assert spool.append(logs(20, records=1, size=20_000))
    assert caplog.messages[1:] == ["delivery.spool: writing works again; 7 more records were lost"]
    assert bodies(spool) == [logs(number, size=20_000).body for number in [*kept[1:], 20]]


def test_a_start_on_a_full_disk(open_spool: Open, small_disk: Path) -> None:
    spool = open_spool(small_disk / "spool")
    spool.append(logs(1))
    spool.close()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "other").write_bytes(bytes(1 << 20))
    spool = open_spool(small_disk / "spool")
    assert not spool.append(logs(2))
    assert bodies(spool) == [logs(1).body]
    assert spool.append(logs(3))


def test_a_file_system_that_becomes_read_only(
    open_spool: Open, small_disk: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool(small_disk / "spool", max_bytes=2 * BLOCK)
    for number in (0, 1):
        spool.append(logs(number))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert not spool.append(logs(2))
    assert ledger.counts() == {("delivery.logs", NOT_WRITTEN): 3}, "what cannot be removed is not lost"
    assert spool.waiting("logs") == (2, 6, 2 * BLOCK)
    entry = spool.take("logs")
    assert entry is not None
    spool.done(entry)
    assert "cannot be written (read-only file system)" in caplog.text
    spool.close()
    spool = open_spool(small_disk / "spool", max_bytes=BLOCK)
    assert bodies(spool) == [logs(0).body, logs(1).body], "one of them again"
    spool.close()
    with pytest.raises(SpoolError, match=r"other cannot be used \(read-only file system\); set delivery"):
        open_spool(small_disk / "other")


def test_a_file_that_may_not_grow(open_spool: Open, ledger: Ledger) -> None:
    """What needs no mount: the limit of a process."""
    spool = open_spool()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        kept = [number for number in range(4) if spool.append(logs(number, size=20_000 if number % 2 else 100))]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept == [0, 2]
    assert ledger.counts() == {("delivery.logs", NOT_WRITTEN): 6}
    assert bodies(spool) == [logs(number, size=100).body for number in kept]


@pytest.fixture
def ordinary_home() -> Iterator[Path]:
    """A directory of an ordinary user, which this process is meanwhile: root may write anywhere."""
    with tempfile.TemporaryDirectory() as home:
        if os.geteuid() != 0:
            yield Path(home)
            return
        os.chown(home, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(home)
        finally:
            os.seteuid(0)


def test_a_directory_that_may_not_be_written(ordinary_home: Path, ledger: Ledger) -> None:
    directory = ordinary_home / "spool"
    spool = Spool(directory, 1 << 20, ledger)
    spool.append(logs(1))
    directory.chmod(0o500)
    try:
        assert not spool.append(logs(2))
        spool.close()
        spool = Spool(directory, 1 << 20, ledger)
        assert bodies(spool) == [logs(1).body]
        spool.close()
    finally:
        directory.chmod(0o700)


@pytest.mark.parametrize("call", ["open", "write", "rename"])
def test_any_error_of_writing(
    open_spool: Open, directory: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    spool = open_spool()

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert not spool.append(logs(1))
    assert ledger.counts() == {("delivery.logs", NOT_WRITTEN): 3}
    assert files(directory) == []
    assert spool.append(logs(2))
    assert bodies(spool) == [logs(2).body]


def test_what_an_error_has_left_behind_does_not_get_into_the_next_one(
    open_spool: Open, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        patch.setattr(os, "unlink", fail)
        assert not spool.append(logs(1, size=5000))
    assert files(directory) == ["unfinished"]
    assert spool.append(logs(2))
    assert bodies(spool) == [logs(2).body]


def test_written_in_pieces(open_spool: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, content: write(file, content[:7]))
        assert spool.append(logs(1))
    assert bodies(spool) == [logs(1).body]


def test_an_error_of_reading_costs_that_batch(
    open_spool: Open, directory: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool()
    for number in (1, 2):
        spool.append(logs(number))
    read = os.read
    broken = (directory / "0000000000000001.logs.3").stat().st_ino

    def fail(file: int, length: int) -> bytes:
        if os.fstat(file).st_ino == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file, length)

    monkeypatch.setattr(os, "read", fail)
    assert bodies(spool) == [logs(2).body]
    assert ledger.counts() == {("delivery.logs", UNREADABLE): 3}
    assert "0000000000000001.logs.3 has an error: input/output error, and is passed over; 3 records" in caplog.text


def test_an_error_that_passes_costs_nothing(
    open_spool: Open, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool()
    spool.append(logs(1))

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert spool.take("logs") is None
    assert "the spool cannot be read now (too many open files); nothing is lost yet" in caplog.text
    assert bodies(spool) == [logs(1).body]
    assert ledger.counts() == {}


def test_what_cannot_be_removed_comes_again_and_it_is_said(
    open_spool: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool()
    spool.append(logs(1))

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        assert bodies(spool) == [logs(1).body]
    assert "cannot be removed from the spool" in caplog.text
    assert spool.waiting("logs") == (0, 0, 0)
    spool.close()
    assert bodies(open_spool()) == [logs(1).body]


def test_the_directory_is_removed(
    open_spool: Open, directory: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool()
    for number in range(3):
        spool.append(logs(number))
    first, second = spool.take("logs"), spool.take("logs")
    assert first is not None
    assert second is not None
    shutil.rmtree(directory)
    assert spool.append(logs(3)), "in a new one"
    assert "was removed, and is made anew; 3 records were lost" in caplog.text
    assert ledger.counts() == {("delivery.logs", UNREADABLE): 3}
    spool.done(first)
    spool.put_back(second)
    assert bodies(spool) == [logs(3).body]
    assert ledger.counts() == {("delivery.logs", UNREADABLE): 6}
    with pytest.raises(SpoolError, match="in use"):
        open_spool()


def test_the_directory_is_removed_and_another_agent_has_a_new_one(
    open_spool: Open, directory: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool()
    spool.append(logs(0))
    shutil.rmtree(directory)
    other = open_spool()
    assert not spool.append(logs(1))
    assert "is in use by another otel-procmon" in caplog.text
    assert other.append(logs(2))
    other.close()
    assert spool.append(logs(3))
    assert bodies(spool) == [logs(2).body, logs(3).body]
    assert ledger.counts() == {
        ("delivery.logs", NOT_WRITTEN): 3,
        ("delivery.logs", UNREADABLE): 3,
        ("delivery.logs", FOUND): 3,
    }


# Whose directory it is


def test_two_agents(open_spool: Open, directory: Path) -> None:
    spool = open_spool()
    with pytest.raises(
        SpoolError,
        match=f"^the spool {directory} is in use by another otel-procmon; stop that one, or set delivery.spool_directory "
        "to another directory$",
    ):
        open_spool()
    script = (
        "import pathlib, sys; from otel_procmon.deliver.spool import *; from otel_procmon.ledger import Ledger\n"
        "try: Spool(pathlib.Path(sys.argv[1]), 1 << 20, Ledger())\n"
        "except SpoolError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(directory)]
    assert "in use" in subprocess.run(command, capture_output=True, check=True, text=True).stdout
    spool.close()
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == ""


def test_directories_that_will_not_do(open_spool: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "file").touch()
    (tmp_path / "open").chmod(0o1777)
    for path, message in (
        (tmp_path / "file", r"file cannot be used \(not a directory\); set delivery.spool_directory to"),
        (tmp_path / "file" / "below", r"below cannot be used \(not a directory\)"),
        (tmp_path / "a\0b", r"cannot be used \(.*null"),
        (tmp_path / "link", "link is a link; set delivery.spool_directory to what it points to"),
        (tmp_path / "open", r"open can be written by others; take that away \(chmod 700 "),
    ):
        with pytest.raises(SpoolError, match=message):
            open_spool(path)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o1777


def test_an_empty_directory_is_made_private(open_spool: Open, directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    open_spool()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_readable_directory_may_stay_so(open_spool: Open, directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    open_spool()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_directory_of_another_user(open_spool: Open, directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    with pytest.raises(SpoolError, match=r"belongs to user 12345, .*\(chown\)"):
        open_spool()


def test_no_descriptor_is_left_open(open_spool: Open, directory: Path, tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    spool = open_spool()
    spool.append(logs(1))
    bodies(spool)
    shutil.rmtree(directory)
    spool.append(logs(2))
    with pytest.raises(SpoolError):
        open_spool()
    with pytest.raises(SpoolError):
        open_spool(tmp_path / "x\0")
    spool.close()
    assert count() == before


# Threads, and sudden ends


def test_many_threads(open_spool: Open, ledger: Ledger) -> None:
    spool = open_spool()
    number = 300
    ended = threading.Event()
    done: list[bytes] = []

    def append(start: int) -> None:
        for index in range(start, number, 2):
            assert spool.append(logs(index))

    def send(seed: int) -> None:
        chance = random.Random(seed)
        while True:
            last = ended.is_set()
            entry = spool.take("logs")
            if entry is None:
                if last:
                    return
                continue
            if chance.random() < 0.3:
                spool.put_back(entry)
            else:
                done.append(entry.batch.body)
                spool.done(entry)

    senders = [threading.Thread(target=send, args=(seed,)) for seed in range(3)]
    appenders = [threading.Thread(target=append, args=(start,)) for start in range(2)]
    for thread in senders + appenders:
        thread.start()
    for thread in appenders:
        thread.join(BOUND_S)
    ended.set()
    for thread in senders:
        thread.join(BOUND_S)
    assert sorted(done + bodies(spool)) == sorted(logs(index).body for index in range(number))
    assert spool.waiting("logs") == (0, 0, 0)
    assert ledger.counts() == {}


APPEND_FOR_EVER = """
import os, pathlib, random, sys
from otel_procmon.deliver.batch import Batch
from otel_procmon.deliver.delivery import NOT_IN_TIME
from otel_procmon.deliver.spool import Spool
from otel_procmon.ledger import Ledger
spool = Spool(pathlib.Path(sys.argv[1]), 1 << 40, Ledger())
number = int(sys.argv[2])
while True:
    size = number % 7 * 30_000 + 10
    assert spool.append(Batch("logs", number % 1000, random.Random(number).randbytes(size)))
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def test_kill_9_in_the_middle_of_appends(open_spool: Open, directory: Path, ledger: Ledger) -> None:
    chance = random.Random(9)
    start = 0
    kept = 0
    for _ in range(15):
        with subprocess.Popen(
            [sys.executable, "-c", APPEND_FOR_EVER, str(directory), str(start)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline(), "it has begun"
            threading.Event().wait(chance.random() * 0.05)
            child.send_signal(signals.SIGKILL)
            told = child.stdout.read().split()
        # The last one may have been kept without having been told.
        after = start + len(told) + 1
        spool = open_spool()
        found = spool.waiting("logs")[0]
        assert found - kept in (after - start, after - start + 1)
        start += found - kept
        kept = found
        spool.close()
    spool = open_spool()
    for number in range(start):
        entry = spool.take("logs")
        assert entry is not None
        size = number % 7 * 30_000 + 10
        assert entry.batch == Batch("logs", number % 1000, random.Random(number).randbytes(size))
        spool.done(entry)
    assert spool.take("logs") is None
    assert ledger.lost() == 0


@dataclass
class Kept:
    """A batch that the model knows."""

    sequence: int
    batch: Batch
    size: int
    entry: Entry | None = None
    damaged: bool = False

    @property
    def name(self) -> str:
        return f"{self.sequence:016d}.{self.batch.signal}.{self.batch.records}"


class Model(RuleBasedStateMachine):
    """A spool with room for eight blocks, against lists."""

    room = 8 * BLOCK

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="spool-"))
        self.ledger = Ledger()
        self.kept: list[Kept] = []
        self.aside: list[tuple[str, int]] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.next = 1

    @initialize()
    def begin(self) -> None:
        self.spool = Spool(self.directory, self.room, self.ledger)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
        shutil.rmtree(self.directory)

    batches = st.builds(
        lambda signal, records, seed, size: Batch(signal, records, random.Random(seed).randbytes(size)),
        st.sampled_from(SIGNALS),
        st.integers(0, 600),
        st.integers(0, 2**32),
        st.sampled_from([0, 1, 50, 4000, 5000, 12_000, 40_000]),
    )

    def expect(self, batch: Batch) -> bool:
        """What the model says of an append."""
        place = f"delivery.{batch.signal}"
        size = -(-(HEADER_BYTES + len(zlib.compress(batch.body, 1))) // BLOCK) * BLOCK
        if size > self.room:
            self.counts[place, TOO_LARGE] += batch.records
            return False
        if sum(one.size for one in self.kept if one.entry) + size > self.room:
            self.counts[place, SPOOL_FULL] += batch.records
            return False
        while sum(one.size for one in self.kept) + sum(size for _, size in self.aside) + size > self.room:
            if self.aside:
                self.aside.pop(0)
                continue
            oldest = next(one for one in self.kept if not one.entry)
            self.kept.remove(oldest)
            self.counts[f"delivery.{oldest.batch.signal}", SPOOL_FULL] += oldest.batch.records
        self.kept.append(Kept(self.next, batch, size))
        self.next += 1
        return True

    def expect_opening(self) -> None:
        self.aside.sort()
        for one in self.kept:
            one.entry = None
            self.counts[f"delivery.{one.batch.signal}", FOUND] += one.batch.records
        self.next = 1 + max(
            [one.sequence for one in self.kept] + [int(name.split(".")[0]) for name, _ in self.aside], default=0
        )

    def expect_to_take(self, signal: Signal) -> Kept | None:
        while True:
            oldest = next((one for one in self.kept if not one.entry and one.batch.signal == signal), None)
            if oldest is None or not oldest.damaged:
                return oldest
            self.kept.remove(oldest)
            self.aside.append((f"{oldest.name}.unreadable", oldest.size))
            self.counts[f"delivery.{signal}", UNREADABLE] += oldest.batch.records

    @rule(batch=batches)
    def append(self, batch: Batch) -> None:
        assert self.spool.append(batch) == self.expect(batch)

    @rule(signal=st.sampled_from(SIGNALS))
    def take(self, signal: Signal) -> None:
        entry = self.spool.take(signal)
        oldest = self.expect_to_take(signal)
        if oldest is None:
            assert entry is None
            return
        assert entry is not None
        assert entry.batch == oldest.batch
        oldest.entry = entry

    @precondition(lambda self: any(one.entry for one in self.kept))
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.kept if one.entry]))
        assert one.entry is not None
        self.spool.done(one.entry)
        self.kept.remove(one)

    @precondition(lambda self: any(one.entry for one in self.kept))
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.kept if one.entry]))
        assert one.entry is not None
        self.spool.put_back(one.entry)
        one.entry = None

    @precondition(lambda self: any(not one.entry for one in self.kept))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.kept if not one.entry]))
        if not one.damaged:
            path = self.directory / one.name
            content = bytearray(path.read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
            one.damaged = True

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = Spool(self.directory, self.room, self.ledger)
        self.expect_opening()

    @rule(some=st.lists(batches, max_size=4))
    def another_agent_is_killed(self, some: list[Batch]) -> None:
        self.spool.close()
        child = os.fork()
        if not child:
            status = 1
            try:
                logging.disable()
                spool = Spool(self.directory, self.room, Ledger())
                answers = [spool.append(batch) for batch in some]
                spool.take("logs")
                status = 2 + sum(answers)
            finally:
                os._exit(status)
        counts = self.counts.copy()
        self.expect_opening()
        expected = [self.expect(batch) for batch in some]
        self.expect_to_take("logs")
        self.counts = counts
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 2 + sum(expected)
        self.spool = Spool(self.directory, self.room, self.ledger)
        self.expect_opening()

    @invariant()
    def nothing_is_amiss(self) -> None:
        if not hasattr(self, "spool"):
            return
        for signal in SIGNALS:
            mine = [one for one in self.kept if one.batch.signal == signal]
            sums = (len(mine), sum(one.batch.records for one in mine), sum(one.size for one in mine))
            assert self.spool.waiting(signal) == sums
        assert self.ledger.counts() == {key: number for key, number in sorted(self.counts.items()) if number}
        assert files(self.directory) == sorted([one.name for one in self.kept] + [name for name, _ in self.aside])


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=30)
