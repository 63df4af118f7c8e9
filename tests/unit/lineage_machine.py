"""A modelled kernel, with an account of what the process table makes of its events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.kernel_model import Kernel, Task
from tests.unit.lineage_account import Account, told

if TYPE_CHECKING:
    from otel_procmon.events import Event
    from otel_procmon.lineage.image import Image


S = 1_000_000_000


class Machine:
    """A kernel with an account of it, which began with a snapshot: init, kthreadd, and a shell in a terminal."""

    def __init__(self, **options: Any) -> None:
        self.kernel = Kernel()
        self.account = Account(**options)
        self.shell, _ = self.kernel.fork(self.kernel.init)
        self.kernel.exec(self.shell, "/bin/bash")
        self.shell.session, self.shell.tty = self.shell.pid, True
        self.sweep()

    def sweep(self, *pending: Event, without: tuple[Task, ...] = ()) -> list[tuple[str, ...]]:
        began = self.kernel.unix_ns()
        self.kernel.sleep(0.001)
        snapshot = [event for event in self.kernel.snapshot() if event.process.pid not in {t.pid for t in without}]
        return told(
            self.account.reconcile(snapshot, pending, began_unix_ns=began, now_unix_ns=self.kernel.unix_ns() + 1)
        )

    def see(self, *events: Event) -> list[tuple[str, ...]]:
        return told(self.account.apply(*events))

    def fork(self, parent: Task | None = None, **how: Any) -> Task:
        child, event = self.kernel.fork(parent or self.shell, **how)
        assert self.see(event) == []
        return child

    def run(self, binary: str = "/bin/ls", *argv: str, parent: Task | None = None) -> Task:
        """Fork and exec, both seen."""
        child = self.fork(parent)
        assert self.see(self.kernel.exec(child, binary, *argv)) == [("exec", child.exec_id)]
        return child

    def image(self, task: Task) -> Image:
        return self.account.image(task.exec_id)


def trace_of(image: Image) -> bytes:
    return image.span.trace_id
