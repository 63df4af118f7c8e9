"""Giving up rights: once the programs are loaded and the files open, the agent needs hardly any of root's.

Everything here is about one thread: capabilities and ``no_new_privs`` belong to a thread, and a new one inherits its
maker's. So rights are dropped before the first thread is started, and `drop` refuses when there is more than one.

Sources: capabilities(7), prctl(2), credentials(7); the numbers are those of ``linux/capability.h`` and
``linux/prctl.h``.
"""

from __future__ import annotations

import ctypes
import fcntl
import grp
import logging
import os
import pwd
import stat
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.source.command_lines import THREAD_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

CAPABILITIES: Final[dict[str, int]] = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "LINUX_IMMUTABLE": 9,
    "NET_BIND_SERVICE": 10,
    "NET_BROADCAST": 11,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "IPC_LOCK": 14,
    "IPC_OWNER": 15,
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_PACCT": 20,
    "SYS_ADMIN": 21,
    "SYS_BOOT": 22,
    "SYS_NICE": 23,
    "SYS_RESOURCE": 24,
    "SYS_TIME": 25,
    "SYS_TTY_CONFIG": 26,
    "MKNOD": 27,
    "LEASE": 28,
    "AUDIT_WRITE": 29,
    "AUDIT_CONTROL": 30,
    "SETFCAP": 31,
    "MAC_OVERRIDE": 32,
    "MAC_ADMIN": 33,
    "SYSLOG": 34,
    "WAKE_ALARM": 35,
    "BLOCK_SUSPEND": 36,
    "AUDIT_READ": 37,
    "PERFMON": 38,
    "BPF": 39,
    "CHECKPOINT_RESTORE": 40,
}
"""By their names without ``CAP_``."""

ALL: Final = "all"
"""In place of names: nothing is given up."""

CANDIDATES: Final[tuple[frozenset[str], ...]] = (
    frozenset(),
    frozenset({"BPF"}),
    frozenset({"BPF", "PERFMON"}),
)
"""What reading maps and listing tasks may take, the least first.

Since Linux 5.19 (commit c8644cd0efe7) it takes nothing, whatever ``kernel.unprivileged_bpf_disabled`` says; before
that all of bpf(2) may take a capability. It is tried, not known by version.
"""

READERS: Final[tuple[frozenset[str], ...]] = (frozenset(), frozenset({"DAC_READ_SEARCH"}))
"""What reading files may take that are not this user's, the least first."""

_VERSION_3: Final = 0x20080522
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_TASKS: Final = Path("/proc/self/task")

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """Rights cannot be given up as asked for. The message is one sentence: what is wrong and what to do about it."""


class Identity(NamedTuple):
    """Whom to become."""

    name: str
    """As it was given."""
    uid: int
    gid: int
    groups: tuple[int, ...]
    """Supplementary ones."""


class Dropped(NamedTuple):
    """What is left after `drop`."""

    uid: int
    capabilities: frozenset[str]
    missing: frozenset[str]
    """Capabilities that were to be kept, and that this process did not have."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def find_user(text: str) -> Identity:
    """Whom ``NAME[:GROUP]`` means; both may be numbers. Raises PrivilegeError.

    Without a group it is the user's own, with those that the user is a member of.
    """
    name, colon, group = text.partition(":")
    if not name or (colon and not group):
        raise PrivilegeError(f"{text!r} is no user; write NAME, NAME:GROUP or UID:GID")
    entry = None
    with suppress(KeyError):
        entry = pwd.getpwuid(int(name)) if _is_number(name) else pwd.getpwnam(name)
    if entry is None and not _is_number(name):
        raise PrivilegeError(f"there is no user {name!r} on this host; make one (useradd --system), or write UID:GID")
    uid = int(name) if entry is None else entry.pw_uid
    if group:
        return Identity(text, uid, _group(group), ())
    if entry is None:
        raise PrivilegeError(f"user {name} is not in this host's list of users, so its group has to be given: UID:GID")
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Identity(text, uid, entry.pw_gid, tuple(gid for gid in groups if gid != entry.pw_gid))


def _group(text: str) -> int:
    if _is_number(text):
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise PrivilegeError(f"there is no group {text!r} on this host; make one (groupadd --system)") from None


def _is_number(text: str) -> bool:
    # The largest number means "leave it as it is" to the kernel.
    return text.isascii() and text.isdigit() and int(text) < 2**32 - 1


def with_group_of_socket(identity: Identity, path: Path) -> tuple[Identity, str | None]:
    """`identity` with the group that may connect to the socket `path`, and a sentence if that does not help.

    Whoever may use a container runtime's socket may run anything on the host as root: it is joined because it was
    asked for, and `containers.ask_runtime` is what takes it back.
    """
    try:
        status = path.stat()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return identity, (
            f"the container runtime's socket {path} cannot be looked at now ({why}), so whether "
            f"{identity.name} may use it is not known: if not, give its group, as in --user NAME:GROUP"
        )
    if identity.uid == status.st_uid:
        return identity, None if status.st_mode & stat.S_IWUSR else _closed(identity, path)
    if status.st_gid in (identity.gid, *identity.groups):
        return identity, None if status.st_mode & stat.S_IWGRP else _closed(identity, path)
    if status.st_mode & stat.S_IWOTH:
        return identity, None
    if status.st_mode & stat.S_IWGRP:
        return identity._replace(groups=(*identity.groups, status.st_gid)), None
    return identity, _closed(identity, path)


def _closed(identity: Identity, path: Path) -> str:
    return (
        f"the container runtime's socket {path} is not open to {identity.name} nor to any group, so the runtime cannot "
        "be asked: chmod g+w it, or set containers.ask_runtime to false"
    )


def make_way(directory: Path) -> None:
    """Make what is above `directory` such that every user may enter it: later, files are made for their owner only."""
    # Whoever needs it says so.
    with suppress(OSError, ValueError):
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)


def give_spool(directory: Path, identity: Identity) -> None:
    """Make `directory` for `identity` alone, or give it one that is root's, with what is in it. Raises PrivilegeError.

    A directory that is someone else's is left as it is: whoever opens it says so. In one that has been the user's
    already nothing is changed, since a link that the user puts there would have us give away what it leads to.
    """
    descriptor = None
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        # Root in a container may not look into what is another user's.
        if directory.lstat().st_uid != os.geteuid():
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if status.st_uid == identity.uid or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return
        # Another agent, of before, may still be using it.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(descriptor):  # noqa: PTH208 - a Path has no descriptor
            _give_file(descriptor, name, identity)
        os.fchown(descriptor, identity.uid, identity.gid)
    except BlockingIOError:
        raise PrivilegeError(
            f"the spool {directory} is in use by another otel-procmon; stop that one, or set delivery.spool_directory "
            "to another directory"
        ) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PrivilegeError(
            f"the spool {directory} cannot be given to {identity.name} ({why}); chown it, or set "
            "delivery.spool_directory to a directory of that user's"
        ) from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _give_file(directory: int, name: str, identity: Identity) -> None:
    """Give a file away, if it is a file with one name, and ours. Raises OSError."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        # A link, a socket: not the spool's.
        return
    try:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid():
            os.fchown(file, identity.uid, identity.gid)
    finally:
        os.close(file)


def held() -> frozenset[str]:
    """The capabilities that this thread may use. Raises OSError."""
    return _names(_get()[0])


def least(candidates: Sequence[frozenset[str]], works: Callable[[], bool]) -> frozenset[str]:
    """The first of `candidates` with which, and no other capabilities, `works` is true; else the last.

    Raises PrivilegeError.
    """
    try:
        for candidate in candidates:
            with only(candidate):
                if works():
                    return candidate
    except OSError as error:
        raise _forbidden(error) from error
    return candidates[-1]


def unreadable(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths`, files or directories, that this thread may not read now. What is not there is none of them."""
    # By trying: access(2) asks what the real user's permitted capabilities would allow.
    found = []
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except PermissionError:  # noqa: PERF203 - there are a handful
            found.append(path)
        except (OSError, ValueError):
            continue
    return found


@contextmanager
def only(names: Iterable[str]) -> Iterator[None]:
    """Of the capabilities of this thread, only those of `names` are in effect meanwhile. Raises OSError."""
    effective, permitted, inheritable = _get()
    _set(permitted & _mask(names), permitted, inheritable)
    try:
        yield
    finally:
        _set(effective, permitted, inheritable)


def drop(identity: Identity | None, keep: Iterable[str]) -> Dropped:
    """Become `identity`, if it is not None, and give up all capabilities but those of `keep`, for ever.

    Programs that are started cannot have more either (``no_new_privs``, no bounding set where that can be emptied), no
    other process of the same user can look into this one's memory, and new files are their owner's only.

    Threads that are stuck in reading another process's command line, and end with that, are left to it, and said.

    Raises PrivilegeError; then what this process may do is undefined, and it should end.
    """
    # Another thread would keep what it has, and could be made to use it.
    stuck = [thread.native_id for thread in threading.enumerate() if thread.name == THREAD_NAME]
    others = {int(task.name) for task in _TASKS.iterdir()} - {threading.get_native_id(), *stuck}
    if others:
        raise PrivilegeError(
            "privileges cannot be dropped any more, since threads run already; set privileges.keep to [all]"
        )
    if stuck and identity is not None:
        # The C library would wait for them to become that user, too.
        raise PrivilegeError(
            f"{len(stuck)} processes hang so that their command lines cannot be read, and the user cannot be changed "
            "meanwhile: see which hang (ps itself would), or set capture.snapshot to false"
        )
    if stuck:
        _log.warning("%d threads that are stuck in reading command lines keep their rights until they end", len(stuck))
    try:
        _drop(identity, keep)
        left = _get()
    except OSError as error:
        raise _forbidden(error) from error
    wanted = _mask(keep)
    if left[1] & ~wanted or (identity is not None and os.getresuid() != (identity.uid,) * 3):
        raise PrivilegeError("privileges were dropped, and yet are there; set privileges.keep to [all], and report it")
    return Dropped(os.geteuid(), _names(left[0]), frozenset(keep) - _names(left[0]))


def _forbidden(error: OSError) -> PrivilegeError:
    why = (error.strerror or str(error)).lower()
    return PrivilegeError(
        f"privileges cannot be dropped ({why}): a seccomp filter has to allow prctl, capget, capset, setgroups, "
        "setresgid and setresuid; or set privileges.keep to [all]"
    )


def _drop(identity: Identity | None, keep: Iterable[str]) -> None:
    _, permitted, _ = _get()
    # Without SETPCAP the bounding set stays; nobody can get anything out of it, because of no_new_privs.
    if permitted & _mask({"SETPCAP"}):
        for number in range(64):
            if _prctl(_PR_CAPBSET_READ, number, ignored=True) < 0:
                break
            _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if identity is not None and os.getresuid() != (identity.uid,) * 3:
        if not permitted & _mask({"SETUID"}) or not permitted & _mask({"SETGID"}):
            raise PrivilegeError(
                f"becoming {identity.name} takes root, or the capabilities SETUID and SETGID: start as root, or as "
                "that user without --user"
            )
        # Else leaving root would take all capabilities, those to be kept as well.
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        _prctl(_PR_SET_KEEPCAPS, 0)
    kept = permitted & _mask(keep)
    _set(kept, kept, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    os.umask(0o077)


def _mask(names: Iterable[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def _names(mask: int) -> frozenset[str]:
    return frozenset(name for name, number in CAPABILITIES.items() if mask >> number & 1)


def _get() -> tuple[int, int, int]:
    """Effective, permitted and inheritable set of this thread. Raises OSError."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(data)))
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _set(effective: int, permitted: int, inheritable: int) -> None:
    """Raises OSError."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    for half, shift in zip(data, (0, 32), strict=True):
        half.effective = effective >> shift & 0xFFFF_FFFF
        half.permitted = permitted >> shift & 0xFFFF_FFFF
        half.inheritable = inheritable >> shift & 0xFFFF_FFFF
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def _prctl(option: int, argument: int, *, ignored: bool = False) -> int:
    """Raises OSError, unless errors are `ignored`."""
    arguments = (ctypes.c_int(option), *map(ctypes.c_ulong, (argument, 0, 0, 0)))
    result: int = _libc.prctl(*arguments)
    if not ignored:
        _check(result)
    return result


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
