"""The BPF program made by BCC: what has to be there for it, compiling it against this kernel's headers, remembering it.

BCC is the distribution's (Debian's and Ubuntu's ``python3-bpfcc``): the package called ``bcc`` on PyPI is an unrelated
one. It is used by the Python that it was installed for, in a process of its own (`bcc_compiler`), so this one neither
needs to be that Python nor keeps the compiler in its memory.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
import subprocess
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_procmon.source.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PACKAGES: Final = "python3-bpfcc"
"""What it needs of Debian and Ubuntu, besides the headers: libbpfcc and libbpf1 come with it."""
PROGRAMS: Final = ("on_exec", "on_fork", "on_exit", "on_exit_by_threads", "on_task")
VARIANTS: Final = ((), ("-DPROCMON_KERNFS_PARENT=__parent",))
"""Of headers: they are tried in turn (`bpf/bcc.h`)."""
COMPILE_TIMEOUT_S: Final = 600.0
"""It takes 2 s, and 100 s on an emulated machine."""
_TELLING_HEADERS: Final = (
    "generated/autoconf.h",
    *(f"linux/{name}.h" for name in ("sched", "sched/signal", "cgroup-defs", "fs", "kernfs", "mm_types", "pid")),
)
"""Whoever installs other headers, because those were not this kernel's, must not get what was compiled before."""
_CACHE_MODE: Final = 0o700
_KEPT_MAX: Final = 4
"""So many results: of the kernels that a machine is booted with in turn."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the things are that BCC needs."""

    root: Path = Path("/")
    cache: Path | None = Path("/var/cache/otel-procmon")
    """Where what was compiled is kept, for the next start on the same kernel; None: nowhere."""

    @property
    def python(self) -> Path:
        """The distribution's Python."""
        return self.root / "usr/bin/python3"

    @property
    def package(self) -> Path:
        """Where Debian's packages for it put the module ``bcc``."""
        return self.root / "usr/lib/python3/dist-packages/bcc"

    def others(self) -> Iterable[Path]:
        """Where pip puts a package called ``bcc`` for the distribution's Python."""
        return sorted((self.root / "usr/local/lib").glob("python3*/dist-packages/bcc"))

    def headers(self, release: str) -> Path:
        """The headers of a kernel, as its package links them."""
        return self.root / "lib/modules" / release / "build"

    def has_headers(self, release: str) -> bool:
        """Whether there are headers of this kernel: as files, or in the kernel itself (CONFIG_IKHEADERS).

        Raises PermissionError where this user may not look.
        """
        if _is_there(self.headers(release) / "include") or (self.root / "sys/kernel/kheaders.tar.xz").exists():
            return True
        return any((self.root / "lib/modules" / release / "kernel/kernel").glob("kheaders.ko*"))


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_bcc(package: Path) -> bool:
    """Whether this is the BPF Compiler Collection's package: it has its bindings to ``libbcc``."""
    return (package / "libbcc.py").is_file()


def missing(places: Places, release: str) -> str | None:
    """What BCC lacks on this machine, as a sentence with the command that mends it; None if nothing."""
    wanted = []
    what = []
    if not is_bcc(places.package) or not places.python.exists():
        wanted.append(PACKAGES)
        unrelated = [place for place in (places.package, *places.others()) if place.exists() and not is_bcc(place)]
        what.append("BCC is not installed")
        if unrelated:
            what[-1] += f" ({unrelated[0]} is not it, but PyPI's package of the same name, which has to do with no BPF)"
    try:
        if not places.has_headers(release):
            wanted.append(f"linux-headers-{release}")
            what.append(f"the headers of this kernel are not there ({places.headers(release)})")
    except PermissionError as error:
        what.append(f"user {os.geteuid()} may not read the headers of this kernel ({error.filename})")
    if not wanted:
        return what[0] if what else None
    return f"{', and '.join(what)}: on Debian and Ubuntu, apt-get install {' '.join(wanted)}"


def compile_program(
    macros: Mapping[str, int], places: Places, messages: list[str], kernel: os.uname_result
) -> dict[str, bytes]:
    """The programs' instructions, by name, made with these macros for this kernel.

    What the compiler says is added to `messages`. Raises `SourceError`.
    """
    if (problem := missing(places, kernel.release)) is not None:
        raise SourceError(f"The program cannot be compiled: {problem}.")
    with resources.as_file(resources.files("otel_procmon.source").joinpath("bpf")) as folder:
        return _compile(folder, macros, places, messages, kernel)


def _compile(
    folder: Path, macros: Mapping[str, int], places: Places, messages: list[str], kernel: os.uname_result
) -> dict[str, bytes]:
    # BCC takes the text from memory and knows no folder of its own for its includes.
    flags = ["-DPROCMON_BCC", f"-I{folder}", *(f"-D{name}={value}" for name, value in macros.items())]
    try:
        text = (folder / "procmon.bpf.c").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SourceError(
            "The program cannot be compiled: this installation of otel-procmon has no sources of it "
            f"({error.filename} is missing). Install a wheel, or from a whole checkout."
        ) from error
    kept = None
    if places.cache is not None:
        kept = places.cache / f"bcc-{_digest(folder, flags, places, kernel)}.json"
        if _is_ours(places.cache) and (programs := _read(kept)) is not None:
            return programs
    asked = {
        "package": str(places.package),
        "text": text,
        "flags": [[*flags, *variant] for variant in VARIANTS],
        "programs": PROGRAMS,
    }
    try:
        done = subprocess.run(  # noqa: S603 - the distribution's Python and this package's script
            [str(places.python), "-I", str(folder.parent / "bcc_compiler.py")],
            input=json.dumps(asked).encode(),
            capture_output=True,
            check=False,
            timeout=COMPILE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"BCC did not compile the program within {COMPILE_TIMEOUT_S:.0f} s.") from None
    except OSError as error:
        raise SourceError(f"{places.python} cannot be run ({error.strerror}), and BCC needs it.") from error
    said = done.stderr.decode(errors="replace")
    messages.extend(said.splitlines())
    programs = _decode(done.stdout)
    if done.returncode != 0 or programs is None:
        raise SourceError(
            f"BCC cannot compile the program for Linux {kernel.release} ({_first_error(said)}): see otel-procmon "
            "doctor --verbose; are its headers those of this very kernel?"
        )
    if kept is not None:
        _keep(kept, done.stdout)
    return programs


def _digest(folder: Path, flags: list[str], places: Places, kernel: os.uname_result) -> str:
    """Of all that decides what comes out."""
    digest = blake2b(digest_size=16)
    # `flags` holds the folder, whose place says nothing.
    parts = [kernel.release, kernel.version, kernel.machine, *(flag for flag in flags if not flag.startswith("-I"))]
    digest.update(json.dumps(parts).encode())
    build = places.headers(kernel.release)
    headers = [side / "include" / name for side in (build, build.with_name("source")) for name in _TELLING_HEADERS]
    for path in (*sorted(folder.glob("*.[ch]")), places.package / "version.py", *headers):
        with contextlib.suppress(OSError):
            digest.update(blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_ours(directory: Path) -> bool:
    """Whether nobody else can write there: what is found there runs in the kernel.

    It may be a link, as systemd makes one for a service with a dynamic user.
    """
    try:
        status = directory.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _read(path: Path) -> dict[str, bytes] | None:
    try:
        return _decode(path.read_bytes())
    except OSError:
        return None


def _decode(answer: bytes) -> dict[str, bytes] | None:
    """What `bcc_compiler` wrote; None if it is not whole."""
    try:
        programs = json.loads(answer)["programs"]
        decoded = {name: base64.b64decode(programs[name], validate=True) for name in PROGRAMS}
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None
    return decoded if all(len(code) and len(code) % 8 == 0 for code in decoded.values()) else None


def _keep(path: Path, answer: bytes) -> None:
    """Keep it, in place of the oldest; what cannot be kept is compiled again the next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=_CACHE_MODE, parents=True, exist_ok=True)
        if not _is_ours(path.parent):
            return
        new = path.with_suffix(f".{os.getpid()}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
            file.write(answer)
        new.replace(path)
        kept = sorted(path.parent.glob("bcc-*.json"), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in kept[_KEPT_MAX:]:
            old.unlink()


def _first_error(said: str) -> str:
    for line in said.splitlines():
        _, found, error = line.partition("error: ")
        if found:
            return error
    return (said.strip().splitlines() or ["it said nothing"])[-1]
