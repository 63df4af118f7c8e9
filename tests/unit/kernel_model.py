"""A small kernel: processes fork, exec, exit and are reparented; it says what the BPF program would, and the truth.

It follows ``copy_process()``, ``begin_new_exec()`` and ``forget_original_parent()`` in what they do to parents and
generations, and `otel_procmon.decode.kernel` in how that becomes events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from otel_procmon.events import Discovered, Event, Exec, Exit, Fork, Process
from otel_procmon.lineage.ids import make_exec_id

NODE = "here"
S = 1_000_000_000
EPOCH_NS = 1_700_000_000 * S
"""When the model's machine booted."""
EVENT_NS = 1_000_000
"""Between two events, unless a test lets more time pass."""


@dataclass
class Task:
    """A process as the kernel knows it."""

    pid: int
    start_ns: int
    generation: int
    parent: Task | None
    parent_generation: int
    """``task->parent_exec_id``: the parent's generation at the fork. It stays when the parent changes."""
    binary: str
    argv: tuple[str, ...]
    session: int
    tty: bool
    cgroup: str
    container: str | None
    kernel_thread: bool = False
    alive: bool = True
    children: list[Task] = field(default_factory=list)

    @property
    def exec_id(self) -> str:
        return make_exec_id(NODE, self.start_ns, self.generation, self.pid)

    @property
    def parent_exec_id(self) -> str | None:
        """What the kernel says later: the parent of now with the generation of the fork."""
        if self.parent is None or not self.parent.pid:
            return None
        return make_exec_id(NODE, self.parent.start_ns, self.parent_generation, self.parent.pid)


@dataclass
class TrueImage:
    """What is true of one image, whether anybody sees it or not."""

    exec_id: str
    pid: int
    parent: str | None
    """Exec_id of the image that it was forked from, or that it replaced."""
    forked_only: bool
    end: str | None = None
    """``exit`` or ``exec``."""
    parent_of: int = 0
    """How many images name it as their parent."""


class Kernel:
    """Its methods do what happens, and give the event that tells of it."""

    def __init__(self) -> None:
        self.now_ns = S
        self.tasks: dict[int, Task] = {}
        self.images: dict[str, TrueImage] = {}
        swapper = Task(0, 0, 0, None, 0, "", (), 0, False, "/", None, kernel_thread=True)
        self.init = self._task(1, swapper, generation=2, parent_generation=0, binary="/sbin/init", argv=("init",))
        self._image(self.init, None, forked_only=False)
        self.kthreadd = self._task(2, swapper, generation=0, parent_generation=0, binary="", argv=())
        self.kthreadd.kernel_thread = True
        self._image(self.kthreadd, None, forked_only=False)
        self._next_pid = 100

    # What happens

    def fork(self, parent: Task, *, pid: int | None = None, clone_parent: bool = False) -> tuple[Task, Fork]:
        """`parent` makes a process; with `clone_parent` a sibling (CLONE_PARENT)."""
        self._tick()
        if pid is None:
            pid, self._next_pid = self._next_pid, self._next_pid + 1
        assert pid not in self.tasks
        real_parent = parent
        parent_generation = parent.generation
        if clone_parent and parent.parent is not None and parent is not self.init:
            real_parent, parent_generation = parent.parent, parent.parent_generation
        child = self._task(
            pid,
            real_parent,
            generation=parent.generation,
            parent_generation=parent_generation,
            binary=parent.binary,
            argv=parent.argv,
            session=parent.session,
            tty=parent.tty,
            container=parent.container,
            cgroup=parent.cgroup,
        )
        self._image(child, real_parent.exec_id, forked_only=True)
        event = Fork(
            time_unix_ns=self.unix_ns(),
            exec_id=child.exec_id,
            parent_exec_id=real_parent.exec_id,
            pid=pid,
            parent_pid=real_parent.pid,
            parent_is_kernel_thread=real_parent.kernel_thread,
            name=parent.binary.rpartition("/")[2][:15] or "kworker/0:1",
            **self._told(child),
        )
        return child, event

    def exec(self, task: Task, binary: str, *argv: str) -> Exec:
        """`task` runs another program."""
        self._tick()
        previous = self.images[task.exec_id]
        before = task.exec_id
        previous.end = "exec"
        task.generation += 1
        task.binary, task.argv = binary, (binary, *argv)
        first = task.generation == task.parent_generation + 1
        self._image(task, previous.parent if previous.forked_only else before, forked_only=False)
        return Exec(
            time_unix_ns=self.unix_ns(),
            observed_unix_ns=self.unix_ns(),
            process=self.process(task, ("execve", "clone") if first else ("execve",), start_unix_ns=self.unix_ns()),
            parent_exec_id=task.parent_exec_id,
            previous_exec_id=before,
            previous_is_fork=first,
        )

    def failed_exec(self, task: Task) -> None:
        """Too late to go back: the generation is raised, no exec is told, and `task` is about to be killed."""
        self._tick()
        image = self.images.pop(task.exec_id)
        task.generation += 1
        self.images[task.exec_id] = TrueImage(task.exec_id, task.pid, image.parent, image.forked_only)

    def exit(self, task: Task, code: int | None = 0, signal: str | None = None) -> Exit:
        """`task` ends; its children get init as their parent."""
        self._tick()
        self.images[task.exec_id].end = "exit"
        event = Exit(
            time_unix_ns=self.unix_ns(),
            observed_unix_ns=self.unix_ns(),
            exec_id=task.exec_id,
            pid=task.pid,
            code=code,
            signal=signal,
            parent_exec_id=task.parent_exec_id,
            parent_pid=None if task.parent is None else task.parent.pid or None,
            name=task.binary.rpartition("/")[2][:15],
            **self._told(task),
            forked_only=task.generation == task.parent_generation,
            kernel_thread=task.kernel_thread,
        )
        for child in task.children:
            child.parent = self.init
            self.init.children.append(child)
        if task.parent is not None and task in task.parent.children:
            task.parent.children.remove(task)
        task.children = []
        task.alive = False
        del self.tasks[task.pid]
        return event

    @staticmethod
    def _told(task: Task) -> dict[str, Any]:
        """What forks and exits tell alike."""
        return {
            "node": NODE,
            "boot_start_ns": task.start_ns,
            "creation_unix_ns": EPOCH_NS + task.start_ns,
            "session_id": task.session,
            "tty": task.tty,
            "uid": 0,
            "gid": 0,
            "euid": 0,
            "egid": 0,
        }

    def setsid(self, task: Task) -> None:
        """`task` leads a new session, without a terminal."""
        task.session, task.tty = task.pid, False

    def sleep(self, seconds: float) -> None:
        """Nothing happens meanwhile."""
        self.now_ns += int(seconds * S)

    # What can be seen

    def unix_ns(self) -> int:
        return EPOCH_NS + self.now_ns

    def snapshot(self) -> list[Discovered]:
        """What the task iterator gives now."""
        return [self.discovered(task) for task in self.tasks.values()]

    def discovered(self, task: Task) -> Discovered:
        return Discovered(
            time_unix_ns=self.unix_ns(),
            observed_unix_ns=self.unix_ns(),
            process=self.process(task, ("procFS",)),
            parent_exec_id=task.parent_exec_id,
            forked_only=not task.kernel_thread and task.generation == task.parent_generation,
        )

    def process(self, task: Task, flags: tuple[str, ...], start_unix_ns: int | None = None) -> Process:
        return Process(
            exec_id=task.exec_id,
            pid=task.pid,
            binary=task.binary,
            start_unix_ns=EPOCH_NS + task.start_ns if start_unix_ns is None else start_unix_ns,
            creation_unix_ns=EPOCH_NS + task.start_ns,
            boot_start_ns=task.start_ns,
            flags=flags,
            argv=task.argv,
            args_count=len(task.argv),
            name=None if task.binary else "kthreadd",
            parent_pid=None if task.parent is None else task.parent.pid or None,
            session_id=task.session,
            tty=task.tty,
            uid=0,
            gid=0,
            euid=0,
            egid=0,
            cgroup=task.cgroup,
            container_id=task.container,
            node=NODE,
            kernel_thread=task.kernel_thread,
        )

    # Inside

    def _tick(self) -> None:
        self.now_ns += EVENT_NS

    def _task(self, pid: int, parent: Task, *, generation: int, parent_generation: int, **fields: Any) -> Task:
        known: dict[str, Any] = {"session": 1, "tty": False, "container": None, "cgroup": "/", **fields}
        task = Task(pid, self.now_ns, generation, parent, parent_generation, **known)
        parent.children.append(task)
        self.tasks[pid] = task
        return task

    def _image(self, task: Task, parent: str | None, *, forked_only: bool) -> None:
        self.images[task.exec_id] = TrueImage(task.exec_id, task.pid, parent, forked_only)
        if parent is not None and parent in self.images:
            self.images[parent].parent_of += 1


def as_tetragon(events: list[Event]) -> list[Event]:
    """The same, as Tetragon's JSON tells it: no forks, no sessions, no identity but the exec_id, the parent embedded."""
    known: dict[str, Process] = {}
    parents: dict[str, str | None] = {}
    told: list[Event] = []
    for event in events:
        if isinstance(event, Fork):
            like = known.get(event.parent_exec_id)
            known[event.exec_id] = Process(
                exec_id=event.exec_id,
                pid=event.pid,
                binary="" if like is None else like.binary,
                start_unix_ns=event.time_unix_ns,
                flags=("clone",),
                parent_pid=event.parent_pid,
                node=NODE,
            )
            parents[event.exec_id] = event.parent_exec_id
        elif isinstance(event, Discovered):
            known[event.process.exec_id] = _tetragons(event.process, ("procFS",))
            parents[event.process.exec_id] = event.parent_exec_id
        elif isinstance(event, Exec):
            before = event.previous_exec_id or ""
            rerun = known[before].flags != ("clone",)
            parent = before if rerun else parents[before]
            process = _tetragons(event.process, ("execve",) if rerun else ("execve", "clone"))
            process = replace(process, parent_pid=known[before].parent_pid)
            known[process.exec_id], parents[process.exec_id] = process, parent
            told.append(
                replace(
                    event,
                    process=process,
                    parent_exec_id=parent,
                    previous_exec_id=before if rerun else None,
                    previous_is_fork=False if rerun else None,
                    parent=known.get(parent or ""),
                )
            )
        else:
            parent = parents[event.exec_id]
            told.append(
                replace(
                    event,
                    boot_start_ns=None,
                    process=known[event.exec_id],
                    parent_exec_id=parent,
                    parent=known.get(parent or ""),
                )
            )
    return told


def _tetragons(process: Process, flags: tuple[str, ...]) -> Process:
    return Process(
        exec_id=process.exec_id,
        pid=process.pid,
        binary=process.binary,
        start_unix_ns=process.start_unix_ns,
        flags=flags,
        arguments=" ".join((process.argv or ())[1:]),
        parent_pid=process.parent_pid,
        euid=0,
        node=NODE,
        kernel_thread=process.kernel_thread,
    )
