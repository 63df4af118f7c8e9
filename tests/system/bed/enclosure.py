"""A place of its own for a node: a network and a mount namespace, and afterwards everything as it was.

What containerd, CNI and the kubelet write at their usual paths (``/run/containerd``, ``/var/lib/kubelet``, ``/run/netns``,
``/var/log/pods``, …) goes to directories of the enclosure, mounted there in its mount namespace only: manifests find
everything where a real node has it, and this machine does not see it. Mounts end with the namespace.

Cgroups and sysctls have no namespace that would do, so they are remembered and put back.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOUND_SECONDS = 120
"""More than anything here takes on a slow machine, unless it is broken."""
PRIVATE = (
    "/etc/cni/net.d",
    "/run/containerd",
    "/run/netns",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/lib/otel-procmon",
    "/var/log/containers",
    "/var/log/pods",
)
"""What is the enclosure's own at these paths; its directory for each is named like the path, ``_`` for ``/``."""
BEFORE = Path("/run/otel-procmon-bed.json")
"""What the last enclosure to leave puts back: sysctls as they were, and which directories (`PRIVATE`, and their parents)
were not there before the first one came.

None does it before: with a directory the kernel would take away what other namespaces have mounted on it. Locked while it
is read and written.
"""
IN_USE = Path("/run/otel-procmon-bed.lock")
"""Locked (shared) while there is an enclosure."""
KUBELET_SYSCTLS = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
"""What the kubelet sets when it starts (its container manager's ``setupKernelTunables``)."""
CLONE_NEWNET = 0x40000000
_CGROUPS = Path("/sys/fs/cgroup")


class BedError(Exception):
    """A part of the bed does not do what it should. The message ends with the end of its log."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = BOUND_SECONDS) -> None:
    """Wait for `condition`; BedError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BedError(f"not so after {seconds:.0f} s: {what}")
        time.sleep(0.05)


class Daemon:
    """A program that runs until it is stopped, and its log."""

    def __init__(self, name: str, command: list[str], log: Path, cwd: Path | None = None) -> None:
        self.name = name
        self.command = command
        self.log = log
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; again, after `stop`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self._cwd
            )

    def stop(self) -> None:
        """End it, and wait for that. Does nothing if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(BOUND_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = BOUND_SECONDS) -> None:
        """As the function; BedError also when the program ends before."""

        def met() -> bool:
            if condition():
                return True
            if self._process is None or self._process.poll() is not None:
                raise BedError(f"{self.name} ended before this was so: {what}")
            return False

        try:
            wait_until(met, what, seconds)
        except BedError as error:
            raise BedError(f"{error}; the end of {self.log}:\n{self.last_words()}") from None

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class Enclosure:
    """The namespaces, held by a process that only waits, and the directory for everything in them."""

    def __init__(self, directory: Path, holder: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self._holder = holder
        self.mount_namespace = _mount_namespace(holder.pid)

    @property
    def network(self) -> tuple[str, ...]:
        """A command that runs what follows it in the network namespace, with this machine's mounts."""
        return ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net")

    @property
    def inside(self) -> tuple[str, ...]:
        """A command that runs what follows it in both namespaces."""
        return ("nsenter", "-t", str(self._holder.pid), "--net", "--mount", "--wdns=/")

    def own(self, path: str) -> Path:
        """Where this machine sees what is at the `PRIVATE` path inside."""
        assert path in PRIVATE
        return self.directory / path[1:].replace("/", "_")

    def run(self, *command: str) -> str:
        """Run a command inside. Returns its output; BedError with what it said if it fails."""
        done = subprocess.run([*self.inside, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BedError(f"{' '.join(command)}: {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    @contextmanager
    def network_of_this_thread(self) -> Iterator[None]:
        """Sockets that are opened in this block, by this thread, are in the network namespace."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(path: str) -> None:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if libc.setns(descriptor, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {path}")
            finally:
                os.close(descriptor)

        own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            enter(f"/proc/{self._holder.pid}/ns/net")
            try:
                yield
            finally:
                enter(f"/proc/self/fd/{own}")
        finally:
            os.close(own)

    def processes(self) -> list[int]:
        """What runs in the mount namespace, but for the holder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._holder.pid:
                with suppress(OSError):
                    if _mount_namespace(int(entry.name)) == self.mount_namespace:
                        found.append(int(entry.name))
        return found


@contextmanager
def enclosure(directory: Path) -> Iterator[Enclosure]:
    """Namespaces with loopback up and everything `PRIVATE` mounted. After the block nothing of them is left."""
    with ExitStack() as undo:
        for path in PRIVATE:
            (directory / path[1:].replace("/", "_")).mkdir()
        undo.enter_context(_this_machine())
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        undo.callback(_end, holder)
        ours = _mount_namespace(os.getpid())
        wait_until(
            # unshare has become sleep: the namespaces are there, and their mounts are private.
            lambda: _mount_namespace(holder.pid) != ours and _comm(holder.pid) == "sleep",
            "there are namespaces",
        )
        made = Enclosure(directory, holder)
        undo.callback(_end_processes, made)
        made.run("ip", "link", "set", "lo", "up")
        # As on any node, so that what a pod mounts in /sys/fs/bpf, or a volume, can be passed on.
        made.run("mount", "--make-rshared", "/")
        for path in PRIVATE:
            made.run("mount", "--bind", str(made.own(path)), path)
            made.run("mount", "--make-shared", path)
        yield made


def cgroup_roots() -> list[Path]:
    """The mounted hierarchies: one on a host with cgroup v2 alone, many on others."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [path for path in sorted(_CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]


def end_cgroups(name: str) -> None:
    """End every process in the cgroup `name` of each hierarchy, at any depth, and remove it."""
    for top in [root / name for root in cgroup_roots()]:
        if not top.exists():
            continue

        def below(top: Path = top) -> list[Path]:
            return sorted((Path(path) for path, _, _ in os.walk(top)), reverse=True)

        def emptied(below: Callable[[], list[Path]] = below) -> bool:
            for cgroup in below():
                with suppress(OSError):
                    for pid in (cgroup / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                with suppress(OSError):
                    cgroup.rmdir()
            return not below()

        wait_until(emptied, f"nothing is left of the cgroup {top}")


def _sysctls() -> dict[str, str]:
    paths = [Path("/proc/sys", name) for name in KUBELET_SYSCTLS]
    return {str(path): path.read_text() for path in paths if path.exists()}


@contextmanager
def _this_machine() -> Iterator[None]:
    """The directories `PRIVATE` exist; afterwards, if nobody else needs it so, the machine is as it was."""
    with IN_USE.open("w") as in_use:
        with _before() as before:
            fcntl.flock(in_use, fcntl.LOCK_SH)
            for name, value in _sysctls().items():
                before["sysctls"].setdefault(name, value)
            for path in map(Path, PRIVATE):
                before["made"] += [str(each) for each in (path, *path.parents) if not each.exists()]
                path.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            with _before() as before, suppress(BlockingIOError):
                fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for name, value in before.pop("sysctls").items():
                    if Path(name).read_text() != value:
                        Path(name).write_text(value)
                for each in sorted(before.pop("made"), key=len, reverse=True):
                    # Somebody else may have put something there meanwhile.
                    with suppress(OSError):
                        Path(each).rmdir()


@contextmanager
def _before() -> Iterator[dict[str, Any]]:
    """What is in `BEFORE`, to be changed."""
    with BEFORE.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = {"made": [], "sysctls": {}, **json.loads(file.read() or "{}")}
        yield before
        file.truncate(0)
        json.dump(before, file)


def _mount_namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/mnt").readlink())


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _end_processes(enclosed: Enclosure) -> None:
    """End what is left inside: shims, if containers had to be left."""

    def ended() -> bool:
        left = enclosed.processes()
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(ended, "nothing runs inside")
