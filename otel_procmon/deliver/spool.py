"""The spool: batches that cannot be sent wait on disk, bounded in bytes, and outlive the agent.

One directory belongs to one agent, and each batch is one file in it: ``0000000000000042.logs.512`` is the 42nd batch,
with 512 log records. Thousands of small files are nothing to today's file systems, `done` is the removal of one, and
nothing that goes wrong with one batch can reach another. A file is written under another name and then renamed, so an
agent that is killed leaves a batch whole or not at all; and the number in the name gives the order, whatever clocks do.

Measured with what a recording of an exec load becomes, 512 records and 700 kB a batch, on ext4:

- Files are compressed. zlib's level 1 costs 4 µs of CPU a record and makes them 11 times smaller, so the same space
  holds an outage 11 times as long, and the disk is left to those whom the host is for.
- Nothing is synced. What was written when an agent is killed is the kernel's, and safe; only a crash of the kernel or
  a power failure loses the last seconds, as it does of any log file. ``fdatasync`` would make 70 µs a batch 4 ms.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import struct
import threading
import time
import zlib
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.deliver.batch import Batch
from otel_procmon.deliver.delivery import NOT_IN_TIME, DeliveryError
from otel_procmon.teller import Teller

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_procmon.deliver.settings import Signal
    from otel_procmon.ledger import Ledger

FOUND: Final = "found: in the spool"
"""Not an outcome: records that an earlier agent left, and that this one's kernel counters know nothing of."""
SPOOL_FULL: Final = "lost: spool full"
UNREADABLE: Final = "lost: spool file unreadable"
NOT_WRITTEN: Final = "lost: spool cannot be written"
TOO_LARGE: Final = "lost: too large for the spool"

_MOST_FILES: Final = 1 << 18
"""Bounds the index, which takes 50 bytes a file: 13 MB."""
_MOST_BODY_BYTES: Final = 64 << 20
"""Far above what any receiver takes: bounds what a file can make of memory."""
_MOST_FILE_BYTES: Final = _MOST_BODY_BYTES + (1 << 20)
_BLOCK_BYTES: Final = 4096
"""What file systems give space in. Small files are counted with what they take, not with what is in them."""

_LEVEL: Final = 1
_MAGIC: Final = b"procmon\n"
_VERSION: Final = 1
_SIGNALS: Final[dict[Signal, int]] = {"traces": 1, "logs": 2}

_START: Final = struct.Struct("<8s B B H I I I")
"""How a file begins: magic, version, signal, 0, records, bytes that follow the header, bytes of the body in them."""
_CRC: Final = struct.Struct("<I")
"""Then the CRC-32 of the start and what follows the header, and the body, compressed by zlib."""
_HEADER_BYTES: Final = _START.size + _CRC.size

# No leading zeros in the number of records, so that the name can be made again of what is in the index.
_NAME: Final = re.compile(r"([0-8][0-9]{15})\.(traces|logs)\.(0|[1-9][0-9]{0,8})(\.unreadable)?")
_UNFINISHED: Final = "unfinished"
_UNREADABLE_END: Final = ".unreadable"
_MOST_RECORDS: Final = 10**9 - 1

_PASSING: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
"""Errors of reading that are not the file's."""

_log = logging.getLogger(__name__)


class SpoolError(DeliveryError):
    """The directory cannot be used.

    The message is one sentence for people: what is wrong and what to do about it.
    """


class _File(NamedTuple):
    """A batch on disk."""

    sequence: int
    signal: Signal
    records: int
    size: int
    """On disk, in bytes."""

    @property
    def name(self) -> str:
        return f"{self.sequence:016d}.{self.signal}.{self.records}"

    @property
    def packed(self) -> int:
        """All but the signal in one number, which sorts like them: an index of tuples would be four times as large."""
        return self.sequence << 64 | self.records << 32 | self.size // _BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch that was taken, until it is done or put back."""

    batch: Batch
    file: _File


class _Queue:
    """What the spool has of one signal."""

    def __init__(self, signal: Signal) -> None:
        self.signal: Signal = signal
        self.waiting: deque[int] = deque()
        """Packed, oldest first."""
        self.taken: set[_File] = set()
        self.records = 0
        """Of both."""
        self.size = 0

    def add(self, file: _File) -> None:
        """`file` is new, and the newest."""
        self.waiting.append(file.packed)
        self.records += file.records
        self.size += file.size

    def take(self) -> _File:
        """The oldest that waits."""
        packed = self.waiting.popleft()
        blocks = packed & 0xFFFF_FFFF
        file = _File(packed >> 64, self.signal, packed >> 32 & 0xFFFF_FFFF, blocks * _BLOCK_BYTES)
        self.taken.add(file)
        return file

    def put_back(self, file: _File) -> None:
        """To its place, which is near the front: only what was put back just before can be older."""
        self.taken.remove(file)
        index = 0
        while index < len(self.waiting) and self.waiting[index] < file.packed:
            index += 1
        self.waiting.insert(index, file.packed)

    def remove(self, file: _File) -> None:
        """One that was taken."""
        self.taken.remove(file)
        self.records -= file.records
        self.size -= file.size


class _UnreadableError(Exception):
    """Completes "the spool file …"."""


class Spool:
    """Batches on disk, oldest first. Thread-safe.

    An entry that was taken and neither done nor put back when the agent ends is there again for the next one; so is one
    that was sent, if the agent is killed before `done`. No batch is forgotten for it, and a few may be sent twice.
    """

    def __init__(
        self, directory: Path, max_bytes: int, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take possession of `directory`, which is made if need be, and find what an earlier agent left in it.

        Args:
            directory: Whose files are readable by this user only, and which no other agent may use meanwhile.
            max_bytes: Most space that files may take. Beyond it the oldest go first.
            ledger: Counts under ``delivery.<signal>``.
            clock: Seconds, for deciding when trouble is told again.

        Raises:
            SpoolError: It cannot be had.
        """
        self._path = directory
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._lock = threading.Lock()
        self._queues: dict[Signal, _Queue] = {signal: _Queue(signal) for signal in _SIGNALS}
        self._aside: deque[tuple[str, int]] = deque()
        """Names and sizes of unreadable files. They take space too, until it is needed."""
        self._aside_size = 0
        self._next = 1
        self._closed = False
        self._full, self._unreadable, self._unremovable = (Teller("delivery.spool", clock) for _ in range(3))
        self._unwritable = Teller("delivery.spool", clock, over="writing works again")
        self._directory = _claim(directory)
        try:
            self._find()
        except OSError as error:
            os.close(self._directory)
            raise _cannot_use(directory, error) from error

    def append(self, batch: Batch) -> bool:
        """Keep `batch`. If this returns True, it survives whatever becomes of this process.

        False: it is not kept, and counted as lost. Never raises for what disks do.
        """
        content = _packed(batch)
        with self._lock:
            lost_because = self._append(batch, content)
        if lost_because is not None:
            self._ledger.count(f"delivery.{batch.signal}", lost_because, batch.records)
        return lost_because is None

    def take(self, signal: Signal) -> Entry | None:
        """The oldest batch of `signal` that nobody has taken; None if there is none, or none can be read now.

        It stays on disk, and nobody else gets it, until it is given to `done` or `put_back`.
        """
        queue = self._queues[signal]
        while True:
            with self._lock:
                if self._closed or not queue.waiting:
                    return None
                file = queue.take()
                try:
                    content = self._read(file.name)
                except OSError as error:
                    if error.errno in _PASSING:
                        queue.put_back(file)
                        self._unreadable.trouble(f"the spool cannot be read now ({_why(error)})", 0)
                        return None
                    queue.remove(file)
                    self._set_aside(file, "is gone" if error.errno == errno.ENOENT else f"has an error: {_why(error)}")
                    continue
            try:
                return Entry(_unpacked(file, content), file)
            except _UnreadableError as error:
                with self._lock:
                    # Once closed, it is for the next agent to find out.
                    if not self._closed:
                        queue.remove(file)
                        self._set_aside(file, str(error))

    def done(self, entry: Entry) -> None:
        """It was sent, or nobody wants it: remove it."""
        queue = self._queues[entry.batch.signal]
        with self._lock:
            # Once closed, the directory may be another agent's, and the batch too.
            if self._closed or entry.file not in queue.taken:
                return
            queue.remove(entry.file)
            try:
                self._unlink(entry.file.name)
            except OSError as error:
                self._unremovable.trouble(
                    f"{entry.file.name} cannot be removed from the spool {self._path} ({_why(error)}), so the next "
                    "agent sends it again",
                    0,
                )

    def put_back(self, entry: Entry) -> None:
        """It was not sent: make it available again, in its place."""
        queue = self._queues[entry.batch.signal]
        with self._lock:
            if entry.file in queue.taken:
                queue.put_back(entry.file)

    def waiting(self, signal: Signal) -> tuple[int, int, int]:
        """How many batches of `signal` there are, how many records and how many bytes on disk. Taken ones are there."""
        queue = self._queues[signal]
        with self._lock:
            return len(queue.waiting) + len(queue.taken), queue.records, queue.size

    def close(self) -> None:
        """Leave the directory to the next agent, with what is in it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._directory)

    # All below is called with the lock held.

    def _find(self) -> None:
        """Index what is there. Raises OSError.

        Names say all that is needed. What is in a file is seen when it is taken: reading thousands of them would be a
        late start for the agent.
        """
        found: list[_File] = []
        foreign: list[str] = []
        with os.scandir(self._directory) as items:
            for item in items:
                if item.name == _UNFINISHED:
                    # An agent was killed in the middle of it: nobody was told that it is kept.
                    with suppress(OSError):
                        self._unlink(_UNFINISHED)
                elif not self._find_one(item, found):
                    foreign.append(item.name)
        for file in sorted(found):
            self._queues[file.signal].add(file)
        self._aside = deque(sorted(self._aside))
        if found:
            records = sum(file.records for file in found)
            _log.info("%d records in %d batches of an earlier agent wait in %s", records, len(found), self._path)
        if foreign := sorted(set(foreign) - {"lost+found"}):
            message = "%d files in %s are not the spool's, such as %r, and are left alone"
            _log.warning(message, len(foreign), self._path, foreign[0])
        # What cannot be removed will hinder, and be told of, when something is to be written.
        with suppress(OSError):
            self._make_room(0)

    def _find_one(self, item: os.DirEntry[str], found: list[_File]) -> bool:
        """Whether it is the spool's."""
        match = _NAME.fullmatch(item.name)
        if match is None:
            return False
        # Also where it is no file: a new one could not take the place of, say, a directory.
        self._next = max(self._next, int(match[1]) + 1)
        try:
            if not item.is_file(follow_symlinks=False):
                return False
            length = item.stat(follow_symlinks=False).st_size
        except OSError:
            return False
        signal: Signal = "logs" if match[2] == "logs" else "traces"
        file = _File(int(match[1]), signal, int(match[3]), _on_disk(length))
        if match[4]:
            self._aside.append((item.name, file.size))
            self._aside_size += file.size
            return True
        self._ledger.count(f"delivery.{signal}", FOUND, file.records)
        if _HEADER_BYTES < length <= _MOST_FILE_BYTES:
            found.append(file)
        else:
            # Already now, for one of an absurd size must not drive out what is good.
            self._set_aside(file, f"has {length} bytes, which cannot be")
        return True

    def _append(self, batch: Batch, content: bytes | None) -> str | None:
        """None, or why it is lost."""
        if self._closed:
            return NOT_IN_TIME
        size = 0 if content is None else _on_disk(len(content))
        if content is None or size > self._max_bytes:
            self._full.trouble(f"a batch of {len(batch.body)} bytes is too large for the spool", batch.records)
            return TOO_LARGE
        try:
            if not self._make_room(size):
                self._full.trouble("the spool is full of batches that are being sent", batch.records)
                return SPOOL_FULL
            self._write(batch, content)
        except (OSError, SpoolError) as error:
            why = _why(error) if isinstance(error, OSError) else str(error)
            self._unwritable.trouble(
                f"the spool {self._path} cannot be written ({why}), so what the receiver does not take is lost",
                batch.records,
            )
            return NOT_WRITTEN
        self._unwritable.works()
        return None

    def _write(self, batch: Batch, content: bytes) -> None:
        """Raises OSError, or SpoolError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(_UNFINISHED, flags, 0o600, dir_fd=self._directory)
        except FileNotFoundError:
            # In a directory that was removed nothing can be made.
            self._start_again()
            descriptor = os.open(_UNFINISHED, flags, 0o600, dir_fd=self._directory)
        file = _File(self._next, batch.signal, batch.records, _on_disk(len(content)))
        try:
            try:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, content[written:] if written else content)
            finally:
                os.close(descriptor)
            os.rename(_UNFINISHED, file.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            # What is there of it takes the space that may be missing.
            with suppress(OSError):
                self._unlink(_UNFINISHED)
            raise
        self._next += 1
        self._queues[batch.signal].add(file)

    def _start_again(self) -> None:
        """In a new directory. Raises OSError, or SpoolError."""
        directory = _claim(self._path)
        try:
            os.dup2(directory, self._directory, inheritable=False)
        finally:
            os.close(directory)
        lost = 0
        for queue in self._queues.values():
            # What is being sent may still arrive.
            while queue.waiting:
                file = queue.take()
                queue.remove(file)
                self._ledger.count(f"delivery.{file.signal}", UNREADABLE, file.records)
                lost += file.records
        self._aside.clear()
        self._aside_size = 0
        self._unreadable.trouble(f"the spool {self._path} was removed, and is made anew", lost)
        self._find()

    def _make_room(self, size: int) -> bool:
        """Remove the oldest until there is room for `size` bytes. False if all that is left is being sent.

        Raises OSError if one cannot be removed, which then stays.
        """
        queues = self._queues.values()
        taken = sum(file.size for queue in queues for file in queue.taken)
        if taken + size > self._max_bytes:
            return False
        lost = 0
        try:
            while (
                sum(queue.size for queue in queues) + self._aside_size + size > self._max_bytes
                or sum(len(queue.waiting) for queue in queues) + len(self._aside) >= _MOST_FILES
            ):
                if self._aside:
                    self._unlink(self._aside[0][0])
                    self._aside_size -= self._aside.popleft()[1]
                else:
                    lost += self._remove(min((queue for queue in queues if queue.waiting), key=lambda q: q.waiting[0]))
        finally:
            if lost:
                self._full.trouble(f"the spool {self._path} is full, and the oldest batches are removed", lost)
        return True

    def _remove(self, queue: _Queue) -> int:
        """The oldest that waits: how many records were in it. Raises OSError."""
        file = queue.take()
        try:
            self._unlink(file.name)
        except OSError:
            queue.put_back(file)
            raise
        queue.remove(file)
        self._ledger.count(f"delivery.{file.signal}", SPOOL_FULL, file.records)
        return file.records

    def _read(self, name: str) -> bytes:
        """The whole file; or of one that grew absurdly, more than there may be. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=self._directory)
        try:
            parts = []
            left = min(os.fstat(descriptor).st_size, _MOST_FILE_BYTES) + 1
            while left and (part := os.read(descriptor, left)):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def _set_aside(self, file: _File, why: str) -> None:
        """`file` is unreadable: count it, say so, and give it a name by which it does not come again.

        It is kept for whoever wants to know what happened to it, as long as there is room.
        """
        self._ledger.count(f"delivery.{file.signal}", UNREADABLE, file.records)
        aside = file.name + _UNREADABLE_END
        with suppress(OSError):
            os.rename(file.name, aside, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._aside.append((aside, file.size))
            self._aside_size += file.size
        self._unreadable.trouble(f"the spool file {self._path / file.name} {why}, and is passed over", file.records)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)


def _claim(path: Path) -> int:
    """A descriptor of the directory `path`, locked. Raises SpoolError.

    The lock is the directory's own, so that a disk without room for a file more is no obstacle.
    """
    try:
        # What is there and is no directory is told of by what follows.
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o755, parents=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        # Not through a link, which whoever made it could turn elsewhere.
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and path.is_symlink():
            raise SpoolError(
                f"the spool {path} is a link; set delivery.spool_directory to what it points to"
            ) from error
        # Root that has given up its rights may not look into it, but it may see whose it is.
        with suppress(OSError, ValueError):
            _belongs_to_this_user(path, path.stat())
        raise _cannot_use(path, error) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _make_private(path, directory)
    except BlockingIOError:
        os.close(directory)
        raise SpoolError(
            f"the spool {path} is in use by another otel-procmon; stop that one, or set delivery.spool_directory to "
            "another directory"
        ) from None
    except OSError as error:
        os.close(directory)
        raise _cannot_use(path, error) from error
    except SpoolError:
        os.close(directory)
        raise
    return directory


def _make_private(path: Path, directory: int) -> None:
    """See to it that nobody else can put files there. Raises SpoolError, or OSError."""
    status = os.fstat(directory)
    _belongs_to_this_user(path, status)
    if not status.st_mode & 0o022:
        return
    # Kubernetes makes an emptyDir with mode 0777. A directory with something in it may be there for others.
    if os.listdir(directory):
        raise SpoolError(
            f"the spool {path} can be written by others; take that away (chmod 700 {path}), or set "
            "delivery.spool_directory to another directory"
        )
    os.fchmod(directory, 0o700)


def _belongs_to_this_user(path: Path, status: os.stat_result) -> None:
    """Raises SpoolError if not."""
    if status.st_uid != os.geteuid():
        raise SpoolError(
            f"the spool {path} belongs to user {status.st_uid}, who could change what is in it; give it to user "
            f"{os.geteuid()} (chown), or set delivery.spool_directory to another directory"
        )


def _cannot_use(path: Path, error: OSError | ValueError) -> SpoolError:
    why = _why(error) if isinstance(error, OSError) else str(error)
    return SpoolError(
        f"the spool {path} cannot be used ({why}); set delivery.spool_directory to a directory that can be written, "
        "or to null"
    )


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _on_disk(length: int) -> int:
    return -(-length // _BLOCK_BYTES) * _BLOCK_BYTES


def _packed(batch: Batch) -> bytes | None:
    """What a file holds; None if no file may hold it."""
    if len(batch.body) > _MOST_BODY_BYTES or batch.records > _MOST_RECORDS:
        return None
    content = zlib.compress(batch.body, _LEVEL)
    start = _START.pack(_MAGIC, _VERSION, _SIGNALS[batch.signal], 0, batch.records, len(content), len(batch.body))
    return start + _CRC.pack(zlib.crc32(content, zlib.crc32(start))) + content


def _unpacked(file: _File, whole: bytes) -> Batch:
    """What `_packed` has packed. Raises _UnreadableError."""
    if len(whole) < _HEADER_BYTES:
        raise _UnreadableError(f"is cut off after {len(whole)} bytes")
    start, content = whole[: _START.size], memoryview(whole)[_HEADER_BYTES:]
    magic, version, signal, _, records, length, body_bytes = _START.unpack(start)
    if magic != _MAGIC:
        raise _UnreadableError("is something else")
    if version != _VERSION:
        raise _UnreadableError(f"was written by another version of otel-procmon (its format is {version})")
    if len(content) != length:
        raise _UnreadableError(f"has {len(content)} bytes of {length}")
    (crc,) = _CRC.unpack_from(whole, _START.size)
    if crc != zlib.crc32(content, zlib.crc32(start)):
        raise _UnreadableError("is damaged: its checksum is wrong")
    if (signal, records) != (_SIGNALS[file.signal], file.records):
        raise _UnreadableError("has another batch's name")
    if body_bytes > _MOST_BODY_BYTES:
        raise _UnreadableError(f"says that {body_bytes} bytes are in it, which cannot be")
    unpacking = zlib.decompressobj()
    try:
        body = unpacking.decompress(content, body_bytes + 1)
    except zlib.error as error:
        raise _UnreadableError(f"is damaged: {error}") from error
    if len(body) != body_bytes or not unpacking.eof:
        raise _UnreadableError("is damaged: its length is wrong")
    return Batch(file.signal, records, body)
