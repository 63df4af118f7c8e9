"""Cgroups for tests to put processes into."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.kernel.truth.running import cannot_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def cgroup(root: Path, *names: str) -> Iterator[Path]:
    """The file that takes pids of a new cgroup below `root`, where a hierarchy is mounted."""
    with ExitStack() as stack:
        path = root
        for name in names:
            path /= name
            if not path.exists():
                try:
                    path.mkdir()
                except OSError as error:
                    cannot_run("kernel", f"no cgroup can be made ({error})")
                stack.callback(path.rmdir)
        yield path / "cgroup.procs"
