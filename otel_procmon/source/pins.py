"""Pins: programs, their links and the ring stay in the kernel when the agent ends, and the next agent finds them.

They are files in bpffs, in a folder that is named after the compiled object and its configuration. So an agent of
another version, or with a ring of another size, does not take over what it cannot read: it removes that and begins
anew.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from otel_procmon.source.errors import SourceError

BPFFS: Final = Path("/sys/fs/bpf")
FOLDER: Final = "otel-procmon"
_BPF_FS: Final = "bpf"


class Pins:
    """The pins of one host. One agent at a time: `open` takes a lock."""

    def __init__(self, bpffs: Path = BPFFS) -> None:
        self._bpffs = bpffs
        self._root = bpffs / FOLDER
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folder, and lock it. Raises `SourceError`."""
        if not _is_bpffs(self._bpffs):
            raise SourceError(
                f"{self._bpffs} is no BPF file system, so nothing can be pinned: mount -t bpf bpf {self._bpffs}, or "
                "run without --pin."
            )
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise SourceError("Another agent uses the pinned programs: end it, or run without --pin.") from None
        except OSError as error:
            self.close()
            raise SourceError(f"{self._root} cannot be used ({error.strerror}): run as root.") from error

    def folder(self, *parts: bytes) -> Path:
        """The folder for programs made of these bytes."""
        return self._root / blake2b(b"".join(parts), digest_size=8).hexdigest()

    def others(self, folder: Path) -> list[Path]:
        """Folders of other versions."""
        return [other for other in self._root.iterdir() if other != folder and other.is_dir()]

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove all pins of one version. Programs whose links go end with them."""
        with suppress(FileNotFoundError):
            # Links first, so that nothing is made any more when the ring goes.
            for path in sorted(folder.iterdir(), key=lambda path: not path.name.startswith("link")):
                path.unlink()
            folder.rmdir()

    def remove_all(self) -> int:
        """Remove the pins of every version, and the folder. Returns how many versions there were."""
        folders = [path for path in self._root.iterdir() if path.is_dir()]
        for folder in folders:
            self.remove(folder)
        self._root.rmdir()
        return len(folders)

    def close(self) -> None:
        """Give the lock back; the pins stay."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _is_bpffs(path: Path) -> bool:
    """Whether a BPF file system is mounted at `path`, by ``/proc/self/mounts``."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    kinds = [fields[2] for fields in (line.split(" ") for line in mounts.splitlines()) if fields[1] == str(path)]
    # Of those that are mounted over each other, the last one is seen.
    return kinds[-1:] == [_BPF_FS]
