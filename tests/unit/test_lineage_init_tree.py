"""What descends from a container's first process, and what came in from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from otel_procmon.config import LineageOptions, TraceOptions
from otel_procmon.events import Discovered, Exec, Exit, Fork, Process
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.ids import SpanIds, make_exec_id
from otel_procmon.lineage.image import Ended, Started
from otel_procmon.lineage.table import ProcessTable

if TYPE_CHECKING:
    from otel_procmon.events import Event
    from otel_procmon.lineage.image import Image

WEB, NODE, INNER = "1" * 64, "2" * 64, "3" * 64
S = 1_000_000_000


class Host:
    """A kernel as far as this takes one: pid 1, and what forks, execs and ends below it."""

    def __init__(self) -> None:
        self.table = ProcessTable(SpanIds("boot"), TraceOptions(), LineageOptions(), Ledger())
        self.now = S
        self.generations: dict[int, int] = {}
        self.processes: dict[int, Process] = {}
        self.images: dict[int, Image] = {}
        self.discover(1, 0, "/sbin/init", vpid=1)

    def tell(self, event: Event) -> None:
        for happening in self.table.apply(event):
            if isinstance(happening, Started):
                self.images[happening.image.process.pid] = happening.image

    def exec_id(self, pid: int) -> str:
        return make_exec_id("n", pid * S, self.generations[pid], pid)

    def process(self, pid: int, parent_pid: int, binary: str, **fields: Any) -> Process:
        return Process(
            exec_id=self.exec_id(pid),
            pid=pid,
            parent_pid=parent_pid,
            binary=binary,
            start_unix_ns=self.now,
            creation_unix_ns=pid * S,
            boot_start_ns=pid * S,
            node="n",
            cgroup="/",
            **fields,
        )

    def discover(self, pid: int, parent_pid: int, binary: str, **fields: Any) -> None:
        self.generations[pid] = 1
        self.tell(
            Discovered(
                time_unix_ns=self.now,
                observed_unix_ns=self.now,
                process=self.process(pid, parent_pid, binary, **fields),
                parent_exec_id=self.exec_id(parent_pid) if parent_pid else None,
            )
        )

    def fork(self, pid: int, parent_pid: int, *, vpid: int) -> None:
        self.now += 1000
        self.generations[pid] = 0
        self.tell(
            Fork(
                time_unix_ns=self.now,
                exec_id=self.exec_id(pid),
                parent_exec_id=self.exec_id(parent_pid),
                pid=pid,
                parent_pid=parent_pid,
                vpid=vpid,
                node="n",
                boot_start_ns=pid * S,
                creation_unix_ns=pid * S,
            )
        )

    def exec(self, pid: int, parent_pid: int, binary: str, **fields: Any) -> bool:
        """Returns what is told of the new image."""
        self.now += 1000
        previous = self.exec_id(pid)
        self.generations[pid] += 1
        self.tell(
            Exec(
                time_unix_ns=self.now,
                observed_unix_ns=self.now,
                process=self.process(pid, parent_pid, binary, **fields),
                parent_exec_id=self.exec_id(parent_pid),
                previous_exec_id=previous,
                previous_is_fork=self.generations[pid] == 1,
            )
        )
        return self.images[pid].in_init_tree

    def run(self, pid: int, parent_pid: int, binary: str, *, vpid: int, **fields: Any) -> bool:
        self.fork(pid, parent_pid, vpid=vpid)
        return self.exec(pid, parent_pid, binary, vpid=vpid, **fields)

    def exit_of_fork(self, pid: int) -> bool:
        self.now += 1000
        (ended,) = self.table.apply(
            Exit(time_unix_ns=self.now, observed_unix_ns=self.now, exec_id=self.exec_id(pid), pid=pid, code=0)
        )
        assert isinstance(ended, Ended)
        return ended.image.in_init_tree


def container(host: Host, container_id: str, *, first: int, shim: int = 100, inside: str | None = None) -> None:
    """A shim, a runc that has gone in a moment, and the container's first process."""
    host.run(first - 2, shim, "/usr/bin/runc", vpid=first - 2, container_id=inside)
    host.fork(first, first - 2, vpid=1)
    assert host.exec(first, first - 2, "/docker-entrypoint.sh", vpid=1, container_id=container_id)


def test_the_host_has_no_init_tree() -> None:
    host = Host()
    assert not host.images[1].in_init_tree
    assert not host.run(20, 1, "/usr/sbin/sshd", vpid=20)
    assert not host.run(21, 20, "/bin/bash", vpid=21)


def test_the_first_process_and_what_it_starts() -> None:
    host = Host()
    host.run(100, 1, "/usr/bin/containerd-shim-runc-v2", vpid=100)
    container(host, WEB, first=110)
    # It runs another program, as entry points do
    assert host.exec(110, 108, "/usr/sbin/nginx", vpid=1, container_id=WEB)
    assert host.run(111, 110, "/bin/sh", vpid=2, container_id=WEB)
    assert host.run(112, 111, "/bin/ls", vpid=3, container_id=WEB)
    # A prefork worker
    host.fork(113, 110, vpid=4)
    assert host.exit_of_fork(113)
    assert not host.images[100].in_init_tree
    assert not host.images[108].in_init_tree


def test_a_kubectl_exec_comes_from_outside() -> None:
    host = Host()
    host.run(100, 1, "/usr/bin/containerd-shim-runc-v2", vpid=100)
    container(host, WEB, first=110)
    assert not host.run(120, 100, "/usr/bin/runc", vpid=120)
    assert not host.run(122, 120, "/bin/bash", vpid=50, container_id=WEB)
    assert not host.run(123, 122, "/usr/bin/whoami", vpid=51, container_id=WEB)
    host.fork(124, 122, vpid=52)
    assert not host.exit_of_fork(124)


def test_what_ran_already() -> None:
    host = Host()
    host.discover(100, 1, "/usr/bin/containerd-shim-runc-v2", vpid=100)
    host.discover(110, 100, "/usr/sbin/nginx", vpid=1, container_id=WEB)
    host.discover(111, 110, "/bin/sh", vpid=7, container_id=WEB)
    host.discover(122, 100, "/bin/bash", vpid=50, container_id=WEB)
    assert [host.images[pid].in_init_tree for pid in (100, 110, 111, 122)] == [False, True, True, False]
    assert host.run(130, 111, "/bin/ls", vpid=8, container_id=WEB)


def test_the_tree_ends_where_a_nested_container_begins() -> None:
    """On a node that is a container, its runtime is in the node's init tree, and an exec is not in the container's."""
    host = Host()
    host.run(100, 1, "/usr/bin/containerd-shim-runc-v2", vpid=100)
    container(host, NODE, first=110)
    assert host.run(200, 110, "/usr/bin/containerd-shim-runc-v2", vpid=90, container_id=NODE)
    container(host, INNER, first=210, shim=200, inside=NODE)
    assert host.run(211, 210, "/bin/sh", vpid=2, container_id=INNER)
    assert host.run(220, 200, "/usr/bin/runc", vpid=95, container_id=NODE)
    assert not host.run(222, 220, "/bin/bash", vpid=50, container_id=INNER)
    assert not host.run(223, 222, "/usr/bin/whoami", vpid=51, container_id=INNER)


@pytest.mark.parametrize("told", [True, False])
def test_what_the_source_tells_goes_first(told: bool) -> None:
    host = Host()
    assert host.run(300, 1, "/bin/sh", vpid=1 if not told else 300, in_init_tree=told) is told


@pytest.mark.parametrize("told", [True, False, None])
def test_an_image_that_tells_of_itself_after_its_child_did(told: bool | None) -> None:
    """Tetragon's events bring their parent along, as far as Tetragon knew it then."""
    table = ProcessTable(SpanIds(""), TraceOptions(), LineageOptions(), Ledger())
    shell = Process(exec_id="cA==", pid=20, binary="/bin/sh", start_unix_ns=S, node="n", container_id=WEB)
    child = Process(
        exec_id="Yw==", pid=21, parent_pid=20, binary="/bin/ls", start_unix_ns=2 * S, node="n", container_id=WEB
    )
    (ls,) = table.apply(
        Exec(time_unix_ns=2 * S, observed_unix_ns=S, process=child, parent_exec_id="cA==", parent=shell)
    )
    assert not ls.image.in_init_tree
    itself = replace(shell, in_init_tree=told)
    (sh,) = table.apply(Exec(time_unix_ns=S, observed_unix_ns=S, process=itself, parent_exec_id=None))
    assert sh.image is ls.image.parent
    assert sh.image.in_init_tree is bool(told)
