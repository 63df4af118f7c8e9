"""Names of the host's users, from its passwd file.

The file is read, and not the C library asked: that may ask a directory server and wait for it, and a look-up must never
hold up the pipeline. Users that only such a server knows have no name here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOK_EVERY_S: Final = 0.1
_MOST_BYTES: Final = 8 * 1024 * 1024


class UserNames:
    """User names by user id; the file is read again when it has changed, within a tenth of a second.

    Call it with a user id of the initial user namespace, and only for processes that see the host's passwd file.
    """

    def __init__(self, passwd: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Take names from the file `passwd`, of which at most 8 MiB are read. It need not exist.

        `clock` gives seconds.
        """
        self._passwd = passwd
        self._version: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}
        self._clock = clock
        self._look_at = 0.0

    def __call__(self, uid: int) -> str | None:
        """The name of user `uid`; None if the file has none."""
        now = self._clock()
        if now < self._look_at:
            return self._names.get(uid)
        # To look each time would be a twentieth of all that a process costs.
        self._look_at = now + _LOOK_EVERY_S
        try:
            status = self._passwd.stat()
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            if version != self._version:
                with self._passwd.open("rb") as file:
                    self._names = _names(file.read(_MOST_BYTES))
                self._version = version
        except OSError:
            self._version, self._names = None, {}
        return self._names.get(uid)


def _names(passwd: bytes) -> dict[int, str]:
    """Names by user id from the text of a passwd file; of two names for one id the first counts, as for getpwuid(3)."""
    names: dict[int, str] = {}
    for line in passwd.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] and fields[2].isascii() and fields[2].isdigit():
            names.setdefault(int(fields[2]), fields[0])
    return names
