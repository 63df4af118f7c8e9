"""Holds what the agent told against what a witness saw, tree against tree.

`agent_tree` builds the tree that the agent's records describe, below one root and by the agent's own edges alone.
`compare` lists every difference: what is missing, what is invented, a wrong edge, path, argument or exit, something cut
that is not marked, spans that say other than the logs. `contradictions` does the same for the account that the
torture program writes of itself, so that the first witness is checked too.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.kernel.truth.tree import Exit, Image, Process, signal_number
from tests.kernel.truth.witness import absolute_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.kernel.truth.otlp import Log, Span

ARGUMENTS_KEPT_BYTES = 32 * 1024
"""At least as much is promised to be kept whole."""

STATUS_ERROR = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that one side tells otherwise than the other."""

    image: Image | None
    """Where in the tree: the witness's image, else the agent's; None: not in the tree."""
    what: str

    def __str__(self) -> str:
        return f"{self.image}: {self.what}" if self.image else self.what


@dataclass(slots=True, eq=False)
class Told:
    """All that the agent wrote of one image."""

    exec_id: str
    execs: list[Log] = field(default_factory=list)
    """``process.exec`` and ``process.discovered``."""
    exits: list[Log] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def records(self) -> Iterator[Log | Span]:
        """All of them, logs first."""
        yield from self.execs
        yield from self.exits
        yield from self.spans

    def values(self, name: str) -> list[Any]:
        """The different values that its records give to an attribute, without those that do not have it."""
        found: list[Any] = []
        for record in self.records():
            value = record.attributes.get(name)
            if value is not None and value not in found:
                found.append(value)
        return found

    def value(self, name: str) -> Any:
        """The first of `values`; None: no record has the attribute."""
        found = self.values(name)
        return found[0] if found else None

    def start_unix_ns(self) -> int:
        """When the image began, by its earliest record; an exit log alone is the latest possible."""
        times = [log.time_unix_ns for log in (*self.execs, *self.exits)]
        return min(times + [span.start_unix_ns for span in self.spans])


@dataclass(slots=True)
class AgentTree:
    """The processes below one root as the agent tells them, the root first, and what is wrong with them by itself."""

    processes: list[Process]
    told: dict[Image, Told]
    differences: list[Difference]
    elsewhere: dict[int, list[str]]
    """By pid: records that are not in the tree, for messages."""


def agent_tree(logs: Iterable[Log], spans: Iterable[Span], pid: int, argv: tuple[str, ...]) -> AgentTree:
    """The tree below the image that `pid` ran with the arguments `argv`, which must be unique."""
    everything: dict[str, Told] = {}
    differences = []

    def told_of(record: Log | Span) -> Told:
        exec_id = record.attributes.get("procmon.exec_id")
        if exec_id is None:
            differences.append(Difference(None, f"a record without procmon.exec_id: {record}"))
            return Told("")
        return everything.setdefault(exec_id, Told(exec_id))

    for log in logs:
        if log.event_name in {"process.exec", "process.discovered"}:
            told_of(log).execs.append(log)
        elif log.event_name == "process.exit":
            told_of(log).exits.append(log)
        else:
            differences.append(Difference(None, f"a log record of unknown kind: {log}"))
    for span in spans:
        told_of(span).spans.append(span)

    by_parent: dict[str, list[Told]] = {}
    for told in everything.values():
        by_parent.setdefault(told.value("procmon.parent_exec_id") or "", []).append(told)
    roots = [
        told
        for told in everything.values()
        if told.value("process.pid") == pid and tuple(told.value("process.command_args") or ()) == argv and told.execs
    ]
    tree = AgentTree([], {}, differences, {})
    if len(roots) != 1:
        differences.append(Difference(None, f"{len(roots)} images of pid {pid} with the root's arguments, not one"))
        return tree
    grown = _grow(tree, roots[0], by_parent)
    for told in everything.values():
        if told.exec_id not in grown:
            tree.elsewhere.setdefault(told.value("process.pid"), []).append(_describe(told, everything))
    for image, told in tree.told.items():
        differences += (Difference(image, what) for what in _own_differences(image, told, tree))
    return tree


def _grow(tree: AgentTree, root: Told, by_parent: dict[str, list[Told]]) -> set[str]:
    """Fills `tree` from `root` on; returns the exec_ids of its images."""
    grown = {root.exec_id}
    forks: dict[tuple[int, Image], Process] = {}
    waiting: deque[tuple[Told, Image | None]] = deque([(root, None)])
    while waiting:
        told, parent = waiting.popleft()
        pid = told.value("process.pid")
        forked_only = not told.execs
        process = None
        if parent is not None and parent.process.pid == pid:
            process = parent.process
        elif parent is not None and not forked_only:
            # What the fork ran was told as an image of its own, because it had children.
            process = forks.pop((pid, parent), None)
        if process is None:
            process = Process(pid, told.value("process.parent_pid"))
            tree.processes.append(process)
        image = Image(
            process,
            _path(told.value("process.executable.path")),
            tuple(told.value("process.command_args") or ()),
            parent,
            forked_only=forked_only,
        )
        process.images.append(image)
        tree.told[image] = told
        if forked_only and parent is not None and told.value("procmon.exit.reason") == "exec":
            forks[pid, parent] = process
        for log in told.exits:
            process.exit = _exit(log)
        for child in sorted(
            by_parent.get(told.exec_id, ()), key=lambda child: (child.start_unix_ns(), bool(child.execs))
        ):
            if child.exec_id not in grown:
                grown.add(child.exec_id)
                waiting.append((child, image))
    tree.processes.sort(key=lambda process: tree.told[process.images[0]].start_unix_ns())
    return grown


def _path(path: str | None) -> str:
    """Normalised as the witness's. What is not absolute stays as it is, to be found; but a memfd is in no directory."""
    path = (path or "").removesuffix(" (deleted)")
    if path.startswith("memfd:"):
        path = f"/{path}"
    return absolute_path("/", path) if path.startswith("/") else path


def _exit(log: Log) -> Exit:
    name = log.attributes.get("procmon.exit.signal")
    return Exit(
        log.attributes.get("process.exit.code"),
        None if name is None else signal_number(name),
        log.attributes.get("procmon.exit.core_dumped", False),
    )


def _describe(told: Told, everything: dict[str, Told]) -> str:
    kinds = [log.event_name for log in (*told.execs, *told.exits)] + [f"span {span.name}" for span in told.spans]
    parent_id = told.value("procmon.parent_exec_id")
    parent = everything.get(parent_id) if parent_id else None
    whose = f"pid {parent.value('process.pid')} {parent.value('process.executable.path')}" if parent else "nothing told"
    return f"{', '.join(kinds)} of {told.value('process.executable.path')} below {parent_id} ({whose})"


def _own_differences(image: Image, told: Told, tree: AgentTree) -> Iterator[str]:
    """What is wrong with the records of one image whatever the truth is."""
    for name in ("process.pid", "procmon.parent_exec_id", "process.executable.path", "process.command_args"):
        values = told.values(name)
        if len(values) > 1:
            yield f"its records give different values of {name}: {values}"
    if len(told.execs) > 1 or len(told.exits) > 1:
        yield f"told {len(told.execs)} times as exec and {len(told.exits)} times as exit"
    last = image is image.process.images[-1]
    if told.exits and not last:
        yield "an exit, but its process runs another image after it"
    if image.forked_only and told.exits and "clone" not in (told.value("procmon.flags") or ()):
        yield f"a fork without exec, but the flags are {told.value('procmon.flags')}"

    span_ids = {(log.trace_id, log.span_id) for log in (*told.execs, *told.exits)}
    if len(span_ids) > 1:
        yield f"its log records name different spans: {span_ids}"
    opening = [span for span in told.spans if span.attributes.get("procmon.span") == "open"]
    lives = [span for span in told.spans if span.attributes.get("procmon.span") != "open"]
    if len(lives) != 1 or len(opening) > 1:
        yield f"{len(lives)} spans of its life and {len(opening)} opening ones"
        return
    (life,) = lives
    first = opening[0] if opening else life
    if span_ids and (first.trace_id, first.span_id) not in span_ids:
        yield f"its span is {first.trace_id}/{first.span_id}, its log records name {span_ids}"
    if opening and (life.trace_id, life.parent_span_id) != (first.trace_id, first.span_id):
        yield "the span of its life is not below its opening span"
    if life.end_unix_ns < life.start_unix_ns:
        yield "its span ends before it begins"
    if not last and life.attributes.get("procmon.exit.reason") != "exec":
        yield f"its span ends with {life.attributes.get('procmon.exit.reason')}, not with the next exec"
    if last and told.exits:
        status = _exit(told.exits[0])
        if (life.status == STATUS_ERROR) != (status != Exit(0)):
            yield f"its span has status {life.status}, its exit is {status}"
        if life.end_unix_ns != told.exits[0].time_unix_ns:
            yield "its span does not end when its exit says"
    if image.parent is None:
        return
    parent_told = tree.told[image.parent]
    parent_spans = {(log.trace_id, log.span_id) for log in (*parent_told.execs, *parent_told.exits)}
    if not parent_spans:
        parent_spans = {(span.trace_id, span.span_id) for span in parent_told.spans}
    if first.attributes.get("procmon.entry.reason") is not None:
        if first.parent_span_id or not parent_spans & set(first.links):
            yield f"the root of a trace, but its parent is {first.parent_span_id!r} and its links are {first.links}"
    elif (first.trace_id, first.parent_span_id) not in parent_spans:
        yield f"its span is below {first.trace_id}/{first.parent_span_id}, its parent's span is {parent_spans}"


def by_pid(processes: Iterable[Process]) -> dict[int, list[Process]]:
    """Processes of each pid in their order."""
    found: dict[int, list[Process]] = {}
    for process in processes:
        found.setdefault(process.pid, []).append(process)
    return found


def compare(witnessed: Sequence[Process], tree: AgentTree) -> list[Difference]:
    """Every difference between the two, in the witness's order; none: the agent told the truth.

    A process that exec'd is told by its execs. What its fork ran until then is an image of its own only if it never
    exec'd, or forked before it did.
    """
    differences = list(tree.differences)
    told_by_pid = by_pid(tree.processes)
    forkers = {process.images[0].parent for process in witnessed if process.images}
    mates: dict[Image, Image] = {}
    pairs: list[tuple[Process, Process]] = []

    for pid, processes in by_pid(witnessed).items():
        candidates = told_by_pid.pop(pid, [])
        elsewhere = "".join(f"\n    but it tells of this pid: {text}" for text in tree.elsewhere.get(pid, ()))
        for process in processes:
            if not candidates:
                differences += (Difference(image, f"missing{elsewhere}") for image in _to_be_told(process, forkers))
                continue
            other = candidates.pop(0)
            pairs.append((process, other))
            for forked_only in (True, False):
                wanted = [image for image in _to_be_told(process, forkers) if image.forked_only is forked_only]
                found = [image for image in other.images if image.forked_only is forked_only]
                mates.update(zip(wanted, found, strict=False))
                differences += (Difference(image, f"missing{elsewhere}") for image in wanted[len(found) :])
                differences += (Difference(image, "invented") for image in found[len(wanted) :])
        differences += (Difference(image, "invented") for other in candidates for image in other.images)
    differences += (
        Difference(image, "invented") for others in told_by_pid.values() for other in others for image in other.images
    )

    for image, mate in mates.items():
        differences += (Difference(image, what) for what in _image_differences(image, mate, tree.told[mate]))
        if image.parent is not None and mates.get(image.parent) is not mate.parent:
            differences.append(Difference(image, f"parent is {image.parent}\n    not {mate.parent}"))
    for process, other in pairs:
        if process.exit != other.exit:
            where = process.images[-1] if process.images else None
            differences.append(Difference(where, f"ended with {process.exit}, not {other.exit}"))
    return differences


def _to_be_told(process: Process, forkers: set[Image | None]) -> list[Image]:
    last = process.images[-1] if process.images else None
    return [image for image in process.images if not image.forked_only or image is last or image in forkers]


def _image_differences(image: Image, other: Image, told: Told) -> Iterator[str]:
    if image.path != other.path:
        yield f"path is {image.path!r}, not {other.path!r}"
    first = image.process.images[0]
    is_first_exec = image.forked_only or (first.forked_only and image is image.process.images[1])
    parent_pid = told.value("process.parent_pid")
    if is_first_exec and image.process.parent_pid != parent_pid:
        yield f"parent_pid is {image.process.parent_pid}, not {parent_pid}"
    if not image.forked_only:
        yield from _argument_differences(image, other, told)


def _argument_differences(image: Image, other: Image, told: Told) -> Iterator[str]:
    truncated = told.value("procmon.truncated") or ()
    cut = any("args" in name for name in truncated)
    count = told.value("process.args_count") or 0
    if count != len(image.argv):
        yield f"args_count is {len(image.argv)}, not {count}"
    if not cut:
        if image.argv != other.argv:
            yield f"arguments are {_shown(image.argv)}, not {_shown(other.argv)}, and not marked as cut"
        return
    if len(image.raw_argv) <= ARGUMENTS_KEPT_BYTES:
        yield f"marked as cut, but has only {len(image.raw_argv)} bytes of arguments"
    whole, kept = "\0".join(image.argv), "\0".join(other.argv)
    if not whole.startswith(kept):
        yield f"arguments are {_shown(image.argv)}, of which {_shown(other.argv)} is not the beginning"
    if kept == whole:
        yield "marked as cut, but nothing is"
    if len(kept.encode()) < ARGUMENTS_KEPT_BYTES - 1:
        yield f"only {len(kept.encode())} bytes of {len(image.raw_argv)} are kept"


def _shown(argv: tuple[str, ...]) -> str:
    shown = ascii(argv)
    return shown if len(shown) <= 300 else f"{shown[:200]} … {shown[-50:]} ({len(argv)} arguments)"


def below(image: Image | None, root: Image) -> bool:
    """Whether `image` is `root` or descends from it."""
    while image is not None and image is not root:
        image = image.parent
    return image is not None


@dataclass(frozen=True, slots=True)
class Account:
    """What a program that took part wrote of it: see ``account`` in torture.c."""

    forks: list[tuple[int, int]]
    """(Parent's pid, child's pid)."""
    reaped: list[tuple[int, int]]
    """(Pid, status as wait(2) gave it)."""
    ran: list[tuple[int, int, int, int]]
    """(Pid, number of arguments, their bytes with NULs, FNV-1a of those)."""


def fnv1a(data: bytes) -> int:
    """The 64-bit hash of Fowler, Noll and Vo."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def read_account(lines: Iterable[str]) -> Account:
    """The lines that torture.c wrote."""
    account = Account([], [], [])
    for line in lines:
        entry = json.loads(line)
        if "forked" in entry:
            account.forks.append((entry["by"], entry["forked"]))
        elif "reaped" in entry:
            account.reaped.append((entry["reaped"], entry["status"]))
        else:
            account.ran.append((entry["ran"], entry["arguments"], entry["bytes"], int(entry["fnv1a"], 16)))
    return account


def contradictions(account: Account, processes: Sequence[Process]) -> list[str]:
    """Where the account and a tree, of whichever side, say different things. Pids must be unique in it.

    Arguments are held against `Image.raw_argv`, if the tree has that.
    """
    found = []
    pids = by_pid(processes)
    has_raw = any(image.raw_argv for process in processes for image in process.images)
    for parent, child in account.forks:
        parents = [process.parent_pid for process in pids.get(child, [])]
        if parents != [parent]:
            found.append(f"pid {parent} forked {child}; the tree has it below {parents}")
    for pid, status in account.reaped:
        exits = [process.exit for process in pids.get(pid, [])]
        if exits != [Exit.from_wait_status(status)]:
            told = ", ".join(map(str, exits))
            found.append(f"pid {pid} was reaped with {Exit.from_wait_status(status)}; the tree has {told or 'no exit'}")
    for pid, count, size, value in account.ran if has_raw else ():
        argvs = [image.raw_argv for process in pids.get(pid, []) for image in process.images]
        if not any((argv.count(b"\0"), len(argv), fnv1a(argv)) == (count, size, value) for argv in argvs):
            found.append(f"pid {pid} ran with {count} arguments of {size} bytes; the tree has other ones")
    return found
