"""Keeps what could take a machine away from others within bounds: a cgroup that ends all that is in it, and pid_max."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.truth.cgroups import cgroup
from tests.kernel.truth.running import cannot_run
from tests.kernel.truth.shell import marker

if TYPE_CHECKING:
    from collections.abc import Iterator

END_SECONDS = 60
PID_MAX = Path("/proc/sys/kernel/pid_max")


def pids_hierarchy() -> Path:
    """Where cgroups can limit pids: the v1 hierarchy of that controller, or the unified one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        path = Path(fields[4])
        if kind == "cgroup" and "pids" in options:
            return path
        if kind == "cgroup2" and "pids" in (path / "cgroup.controllers").read_text().split():
            control = path / "cgroup.subtree_control"
            if "pids" not in control.read_text().split():
                control.write_text("+pids")
            return path
    return cannot_run("kernel", "no cgroup hierarchy has the controller pids")


@contextmanager
def limited(pids: int) -> Iterator[Path]:
    """The file that takes pids of a new cgroup, in which there may be `pids` tasks. Ends all that is in it at the end."""
    with cgroup(pids_hierarchy(), f"procmon-hostile-{marker()}") as procs:
        (procs.parent / "pids.max").write_text(str(pids))
        try:
            yield procs
        finally:
            _end_all(procs)


def _end_all(procs: Path) -> None:
    """Nothing can be made any more, and what there is is killed until nothing is left."""
    (procs.parent / "pids.max").write_text("0")
    deadline = time.monotonic() + END_SECONDS
    at_once = procs.parent / "cgroup.kill"
    while pids := re.findall(r"\d+", procs.read_text()):
        if at_once.exists():
            at_once.write_text("1")
        else:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        assert time.monotonic() < deadline, f"{len(pids)} processes do not end"
        time.sleep(0.05)
    # A task that is ending is in no list any more, and still there. Who made the directory removes it.
    while not _is_empty(procs.parent):
        assert time.monotonic() < deadline, "processes do not end"
        time.sleep(0.05)


def _is_empty(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:
        return False
    directory.mkdir()
    return True


def _threads() -> int:
    """About how many run now: they come and go meanwhile."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                count += sum(1 for _ in (entry / "task").iterdir())
    return count


@contextmanager
def room_for(processes: int) -> Iterator[None]:
    """The machine has pids for `processes` more than run now. Where that takes raising its limit, it is put back."""
    before = int(PID_MAX.read_text())
    wanted = processes + _threads() + 8192
    if before >= wanted:
        yield
        return
    # More pids take nothing from anybody.
    PID_MAX.write_text(str(wanted))
    try:
        yield
    finally:
        if int(PID_MAX.read_text()) == wanted:
            PID_MAX.write_text(str(before))


@contextmanager
def few_pids(pid_max: int) -> Iterator[None]:
    """A machine that has no more pids than these, which is nothing to do to one that others use."""
    before = PID_MAX.read_text()
    PID_MAX.write_text(str(pid_max))
    try:
        yield
    finally:
        PID_MAX.write_text(before)
