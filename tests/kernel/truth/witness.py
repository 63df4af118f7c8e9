"""The independent witness: what strace saw, as a process tree.

`COMMAND` is how strace must be run for `parse`: every string in hexadecimal, so that nothing that a program calls itself
can look like strace's own syntax; long enough that no argument is cut; paths behind descriptors; pids as strace's own
pid namespace has them; and the lines ``+++ exited with …`` that tell each thread's end.

Two rules of the kernel matter here. A process's exit status is what strace's wait4(2) got for the thread group's
leader, which the kernel reports only when the last thread is gone, with the group's code. And an exec from another
thread than the leader gives that thread the leader's pid.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.truth.tree import Exit, Image, Process, signal_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LONGEST_STRING = 200_000
"""MAX_ARG_STRLEN is 131,072."""

COMMAND = (
    *("strace", "-f", "-q", "-y", "-xx", "-s", str(LONGEST_STRING), "--seccomp-bpf", "--pidns-translation"),
    *("-e", "trace=process,chdir,fchdir", "-o"),
)
"""To be followed by the trace's file and the command."""

INTERPRETERS_MAX = 5
"""fs/exec.c, exec_binprm(): scripts whose interpreter is a script."""

SCRIPT_HEAD_BYTES = 256
"""BINPRM_BUF_SIZE"""

CALL = re.compile(r"(?P<name>[\w?]+)\((?P<arguments>.*)\) += (?P<result>-?\d+|0x[0-9a-f]+|\?)(?P<note>.*)", re.DOTALL)
UNFINISHED = re.compile(r"(?P<begun>[\w?]+\(.*?)(?: <unfinished \.\.\.>| <pid changed to \d+ \.\.\.>)", re.DOTALL)
RESUMED = re.compile(r"<\.\.\. (?P<name>[\w?]+) resumed>(?P<rest>.*)", re.DOTALL)
EXITED = re.compile(r"\+\+\+ exited with (\d+) \+\+\+")
KILLED = re.compile(r"\+\+\+ killed by (\w+)( \(core dumped\))? \+\+\+")
SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+")
TRANSLATED = re.compile(r"/\* (\d+) in strace's PID NS \*/")
FLAGS = re.compile(r"flags=([A-Z0-9_|x]+)")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
DESCRIPTOR = re.compile(r"(?:AT_FDCWD|-?\d+)(?:<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?)?")

FORKS = frozenset({"fork", "vfork", "clone", "clone3"})


class TraceError(ValueError):
    """The trace says something that this parser cannot vouch for. The message has the line's number."""


@dataclass(slots=True, eq=False)
class Task:
    """One thread, from the first line that names it until it ended. Pids are reused; tasks are not."""

    pid: int
    begin: int
    """Number of the first line."""
    end: int | None = None
    maker: Task | None = None
    thread: bool = False
    sibling: bool = False
    """CLONE_PARENT."""

    def leader(self) -> Task:
        """The first thread of its process."""
        task = self
        while task.thread:
            assert task.maker is not None
            task = task.maker
        return task


class Call(NamedTuple):
    """A system call that returned."""

    begin: int
    """Number of the line on which it began, and of that on which it returned."""
    end: int
    task: Task
    name: str
    arguments: str
    result: int | None
    """None: ``?``."""
    note: str


class End(NamedTuple):
    """A thread's end, as wait4 told strace."""

    at: int
    task: Task
    exit: Exit


@dataclass(slots=True)
class Transcript:
    """A trace's lines, put together to calls and tasks."""

    calls: list[Call] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)


def decode_string(hexadecimal: str) -> bytes:
    r"""``\x61\x62`` as b"ab"."""
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


def strings(text: str, line: int) -> list[bytes]:
    """All the quoted strings in `text`. TraceError if strace cut one."""
    found = []
    for match in STRING.finditer(text):
        if match[2]:
            raise TraceError(f"line {line}: strace cut a string; raise its -s")
        found.append(decode_string(match[1]))
    return found


def transcribe(lines: Iterable[str]) -> Transcript:
    """Puts ``<unfinished ...>`` and ``resumed`` together, and finds out which lines of one pid are of one task."""
    transcript = Transcript()
    live: dict[int, Task] = {}
    unclaimed: dict[int, list[Task]] = {}
    begun: dict[Task, tuple[int, str]] = {}
    superseded: set[Task] = set()
    for number, line in enumerate(lines, 1):
        pid_text, _, text = line.rstrip("\n").partition(" ")
        text = text.lstrip(" ")
        if not pid_text.isdigit():
            raise TraceError(f"line {number}: no pid in {line[:80]!r}")
        pid = int(pid_text)
        task = live.get(pid)
        if task is None:
            task = live[pid] = Task(pid, number)
            transcript.tasks.append(task)
            if number > 1:
                unclaimed.setdefault(pid, []).append(task)

        if match := EXITED.fullmatch(text):
            transcript.ends.append(End(number, task, Exit(int(match[1]))))
        elif match := KILLED.fullmatch(text):
            transcript.ends.append(End(number, task, Exit(None, signal_number(match[1]), bool(match[2]))))
        elif match := SUPERSEDED.fullmatch(text):
            thread = live.pop(int(match[1]))
            thread.end = number
            begun[task] = begun.pop(thread)
            superseded.add(task)
            continue
        elif match := UNFINISHED.fullmatch(text):
            begun[task] = (number, match["begun"])
            continue
        elif text.startswith("--- "):
            continue
        else:
            begin = number
            if resumed := RESUMED.fullmatch(text):
                if task not in begun:
                    raise TraceError(f"line {number}: {resumed['name']} returns, but was not seen to begin")
                begin, head = begun.pop(task)
                text = head + resumed["rest"]
            match = CALL.fullmatch(text)
            if match is None:
                raise TraceError(f"line {number}: not understood: {text[:200]!r}")
            result = None if match["result"] == "?" else int(match["result"], 0)
            if task in superseded:
                # That line comes from PTRACE_EVENT_EXEC, so the exec succeeded. What strace prints as its result is
                # left over from what the leader did: "= 231", "= -1 (errno 18446744073709551385)".
                superseded.remove(task)
                result = 0
            call = Call(begin, number, task, match["name"], match["arguments"], result, match["note"])
            transcript.calls.append(call)
            if call.name in FORKS and result is not None and result > 0:
                _adopt(call, transcript, live, unclaimed)
            continue
        task.end = number
        begun.pop(task, None)
        superseded.discard(task)
        del live[pid]
    for task in transcript.tasks[1:]:
        if task.maker is None:
            raise TraceError(f"line {task.begin}: pid {task.pid} was not seen to be made")
    return transcript


def made_pid(call: Call) -> int:
    """The pid that a fork returned, as strace's own pid namespace has it."""
    translated = TRANSLATED.search(call.note)
    assert call.result is not None
    return int(translated[1]) if translated else call.result


def _adopt(call: Call, transcript: Transcript, live: dict[int, Task], unclaimed: dict[int, list[Task]]) -> None:
    """Finds the task that `call` made. It may have had lines, and its end, before its maker's call returned."""
    pid = made_pid(call)
    made = unclaimed.pop(pid, [])
    if len(made) > 1:
        raise TraceError(f"line {call.end}: two tasks of pid {pid} that this call may have made")
    if made:
        (task,) = made
        if task.end is not None and task.end < call.begin:
            raise TraceError(f"line {task.begin}: pid {pid} was not seen to be made")
    else:
        task = live[pid] = Task(pid, call.end)
        transcript.tasks.append(task)
    flags = FLAGS.search(call.arguments)
    words = flags[1].split("|") if flags else []
    task.maker = call.task
    task.thread = "CLONE_THREAD" in words
    task.sibling = "CLONE_PARENT" in words and not task.thread


def read_head(path: str) -> bytes:
    """The bytes by which the kernel tells a script; none if the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(SCRIPT_HEAD_BYTES)
    except OSError:
        return b""


def script_argv(passed: bytes, argv: list[bytes], head: Callable[[str], bytes], absolute: str, cwd: str) -> list[bytes]:
    """What the kernel makes of `argv` if the file is a script: interpreter, its one argument, the path as passed.

    fs/binfmt_script.c. `passed` is the path as passed to exec, `absolute` where its content is. A script names its
    interpreter as seen from `cwd`.
    """
    for _ in range(INTERPRETERS_MAX):
        first = head(absolute).partition(b"\n")[0]
        if not first.startswith(b"#!"):
            return argv
        name, _, argument = first[2:].strip(b" \t").replace(b"\t", b" ", 1).partition(b" ")
        argument = argument.strip(b" \t")
        argv = [name, *([argument] if argument else []), passed, *argv[1:]]
        passed, absolute = name, absolute_path(cwd, os.fsdecode(name))
    return argv


def text(raw: bytes) -> str:
    """As the agent is to tell it: invalid UTF-8 as U+FFFD."""
    return raw.decode("utf-8", "replace")


def absolute_path(directory: str, path: str) -> str:
    """`path` as seen from `directory`, without ``.``, ``..`` and doubled slashes."""
    # normpath keeps two slashes at the beginning, which mean nothing special on Linux.
    return os.path.normpath(path if path.startswith("/") else f"{directory}/{path}").replace("//", "/")


def parse(
    lines: Iterable[str],
    cwd: str,
    head: Callable[[str], bytes] = read_head,
    resolve: Callable[[str], str] = os.path.realpath,
    no_arguments: Sequence[bytes] = (b"",),
) -> list[Process]:
    """The processes of a trace, in the order of their forks; the first one is the root.

    Args:
        lines: Of strace's output file, run by `COMMAND`.
        cwd: Where the root began.
        head: Gives the first bytes of a file, to tell scripts.
        resolve: Follows symbolic links in a new working directory, as the kernel does.
        no_arguments: What a program gets that is run with none: one empty argument since Linux 5.18, dcd46d897adb
            ("exec: Force single empty string when argv is empty"), and where that was taken over; before, nothing.

    Raises:
        TraceError: Where a line cannot be understood, or the tree has a gap.
    """
    transcript = transcribe(lines)
    if not transcript.tasks:
        return []
    by_maker: dict[tuple[Task | None, int], list[Task]] = {}
    for task in transcript.tasks:
        by_maker.setdefault((task.maker, task.pid), []).append(task)

    # A fork counts from the line where the call began: the child's own lines may come before the call returned.
    # The maker cannot have changed its image meanwhile.
    happenings: list[tuple[int, int, Call | End]] = []
    for order, call in enumerate(transcript.calls):
        if call.result is None or call.result < 0:
            continue
        happenings.append((call.begin if call.name in FORKS else call.end, order, call))
    happenings += [(end.at, 0, end) for end in transcript.ends]
    happenings.sort(key=lambda entry: entry[:2])

    root_task = transcript.tasks[0]
    root = Process(root_task.pid)
    processes = {root_task: root}
    directories = {root_task: cwd}
    parents: dict[Process, Process] = {}
    told = [root]

    for _, _, happening in happenings:
        if isinstance(happening, End):
            if happening.task in processes:
                processes[happening.task].exit = happening.exit
            continue
        call = happening
        leader = call.task.leader()
        process = processes[leader]
        if call.name in FORKS:
            pid = made_pid(call)
            made = by_maker[call.task, pid].pop(0)
            if made.thread:
                continue
            parent = parents[process] if made.sibling else process
            child = Process(pid, parent.pid)
            forker, runs = parent.images[-1], process.images[-1]
            child.images.append(Image(child, runs.path, runs.argv, forker, forked_only=True))
            parents[child] = parent
            processes[made] = child
            directories[made] = directories[leader]
            told.append(child)
        elif call.name == "chdir":
            (directory,) = strings(call.arguments, call.begin)
            directories[leader] = resolve(absolute_path(directories[leader], text(directory)))
        elif call.name == "fchdir":
            directories[leader] = _descriptor_path(call) or directories[leader]
        elif call.name in {"execve", "execveat"}:
            path, argv = _exec(call, directories[leader], head, no_arguments)
            if not process.images:
                previous = None
            elif process.images[-1].forked_only:
                previous = process.images[-1].parent
            else:
                previous = process.images[-1]
            raw = b"".join(argument + b"\0" for argument in argv)
            process.images.append(Image(process, path, tuple(map(text, argv)), previous, raw_argv=raw))
    return told


def _descriptor_path(call: Call) -> str | None:
    match = DESCRIPTOR.match(call.arguments)
    return text(decode_string(match[1])) if match and match[1] is not None else None


def _exec(call: Call, cwd: str, head: Callable[[str], bytes], no_arguments: Sequence[bytes]) -> tuple[str, list[bytes]]:
    """Path and arguments of a successful execve or execveat."""
    found = strings(call.arguments, call.begin)
    passed, argv = found[0], found[1:]
    directory = cwd
    if call.name == "execveat":
        directory = _descriptor_path(call) or cwd
    if not argv:
        argv = list(no_arguments)
    path = absolute_path(directory, text(passed)) if passed else directory
    # The environment is printed as an address and a count (no -v), so all other strings are arguments.
    return path, script_argv(passed, argv, head, path, cwd)


def parse_file(trace: Path, cwd: Path, no_arguments: Sequence[bytes] = (b"",)) -> list[Process]:
    """`parse` of strace's output file."""
    with trace.open(encoding="ascii") as lines:
        return parse(lines, os.path.realpath(cwd), no_arguments=no_arguments)
