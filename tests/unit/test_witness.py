"""The truth test's own tools, on traces written by hand: strace's parser and the comparison of trees.

A comparison that finds nothing proves something only if it finds what is wrong, so each kind of lie is told here once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from tests.kernel.truth.compare import (
    Account,
    Difference,
    agent_tree,
    below,
    compare,
    contradictions,
    fnv1a,
    read_account,
)
from tests.kernel.truth.otlp import Log, Span, any_value, read_logs, read_spans
from tests.kernel.truth.tree import Exit, Image, Process, signal_name, signal_number
from tests.kernel.truth.witness import TraceError, parse, script_argv

FORK = "flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f02ac690a10"
THREAD = "{flags=CLONE_VM|CLONE_FS|CLONE_THREAD|CLONE_SETTLS, exit_signal=0, stack=0x7f64}"


def x(text: str | bytes) -> str:
    """As strace -xx prints a string."""
    raw = text.encode() if isinstance(text, str) else text
    return '"' + "".join(f"\\x{byte:02x}" for byte in raw) + '"'


def execve(path: str, *argv: str | bytes) -> str:
    return f"execve({x(path)}, [{', '.join(map(x, argv))}], 0x7ffe82b44498 /* 39 vars */"


def processes(*lines: str, heads: dict[str, bytes] | None = None, links: dict[str, str] | None = None) -> list[Process]:
    return parse(
        [f"{line}\n" for line in lines],
        "/home",
        head=lambda path: (heads or {}).get(path, b""),
        resolve=lambda path: (links or {}).get(path, path),
    )


def tree(told: list[Process]) -> dict[str | None, str | None]:
    """A shape that is easy to write down: image → parent, and pid → exit."""
    return {
        **{name(image): name(image.parent) for process in told for image in process.images},
        **{str(process.pid): str(process.exit) for process in told},
    }


def name(image: Image | None) -> str | None:
    if image is None:
        return None
    return f"{image.process.pid}:{'fork of ' if image.forked_only else ''}{' '.join(image.argv)}"


ROOT = f"10 {execve('/bin/root', 'root', 'MARKER')}) = 0"
END = "10 +++ exited with 0 +++"

USUAL = (
    ROOT,
    f"10    clone(child_stack=NULL, {FORK}) = 11",
    f"11 {execve('/nonexistent', 'a')}) = -1 ENOENT (No such file or directory)",
    f"11 {execve('tool', 'a', 'b c')}) = 0",
    "10 wait4(-1,  <unfinished ...>",
    "11 exit_group(3)   = ?",
    "11 +++ exited with 3 +++",
    "10 <... wait4 resumed>[{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 11",
    "10 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=11, si_uid=0, si_status=3, si_utime=0} ---",
    f"10 clone(child_stack=NULL, {FORK}) = 12",
    f"12 {execve('/bin/again', 'one')}) = 0",
    f"12 {execve('/bin/again', 'two')}) = 0",
    "12 +++ killed by SIGSEGV (core dumped) +++",
    f"10 clone(child_stack=NULL, {FORK}) = 13",
    f"13 clone(child_stack=NULL, {FORK}) = 14",
    f"14 {execve('/bin/leaf', 'leaf')}) = 0",
    "14 +++ exited with 0 +++",
    "13 +++ exited with 4 +++",
    f"10 clone(child_stack=NULL, {FORK}) = 11",
    "11 +++ killed by SIGRT_5 +++",
    END,
)
"""Fork and exec, exec twice, fork without exec as a parent, a pid that comes again."""


def test_usual() -> None:
    told = processes(*USUAL)
    assert [process.pid for process in told] == [10, 11, 12, 13, 14, 11]
    assert tree(told[:5]) == {
        "10:root MARKER": None,
        "11:fork of root MARKER": "10:root MARKER",
        "11:a b c": "10:root MARKER",
        "12:fork of root MARKER": "10:root MARKER",
        "12:one": "10:root MARKER",
        "12:two": "12:one",
        "13:fork of root MARKER": "10:root MARKER",
        "14:fork of root MARKER": "13:fork of root MARKER",
        "14:leaf": "13:fork of root MARKER",
        "10": "exit 0",
        "11": "exit 3",
        "12": "SIGSEGV (core dumped)",
        "13": "exit 4",
        "14": "exit 0",
    }
    assert told[1].images[1].path == "/home/tool"
    assert told[1].images[1].raw_argv == b"a\0b c\0"
    assert told[5].exit == Exit(None, 37)
    assert len(told[5].images) == 1


def test_childs_lines_before_the_forks_return() -> None:
    told = processes(
        ROOT,
        "10 vfork( <unfinished ...>",
        f"11 {execve('/bin/a', 'a')} <unfinished ...>",
        "11 <... execve resumed>) = 0",
        "11 +++ exited with 7 +++",
        "10 <... vfork resumed>) = 11",
        f"10 clone(child_stack=NULL, {FORK} <unfinished ...>",
        f"12 clone(child_stack=NULL, {FORK}) = 13",
        "10 <... clone resumed>) = 12",
        "13 +++ exited with 1 +++",
        "12 +++ exited with 2 +++",
        END,
    )
    assert tree(told) == {
        "10:root MARKER": None,
        "11:fork of root MARKER": "10:root MARKER",
        "11:a": "10:root MARKER",
        "12:fork of root MARKER": "10:root MARKER",
        "13:fork of root MARKER": "12:fork of root MARKER",
        "10": "exit 0",
        "11": "exit 7",
        "12": "exit 2",
        "13": "exit 1",
    }


def test_threads_are_their_process() -> None:
    told = processes(
        ROOT,
        f"10 clone3({THREAD}, 88 <unfinished ...>",
        f"11 clone(child_stack=NULL, {FORK}) = 12",
        "10 <... clone3 resumed> => {parent_tid=[11]}, 88) = 11",
        f"12 {execve('/bin/a', 'a')}) = 0",
        "10 exit(5)         = ?",
        "12 +++ exited with 0 +++",
        "11 +++ exited with 9 +++",
        "10 +++ exited with 7 +++",
    )
    assert [process.pid for process in told] == [10, 12]
    assert tree(told)["12:a"] == "10:root MARKER"
    assert told[0].exit == Exit(7)


@pytest.mark.parametrize("result", ["= 0", "= 231", "= -1 (errno 18446744073709551385)"])
@pytest.mark.parametrize("interrupted", ["<unfinished ...>", "<pid changed to 10 ...>"])
def test_exec_in_a_thread_becomes_the_leader(interrupted: str, result: str) -> None:
    told = processes(
        ROOT,
        f"10 clone3({THREAD} => {{parent_tid=[11]}}, 88) = 11",
        f"10 clone3({THREAD} => {{parent_tid=[12]}}, 88) = 12",
        "10 wait4(-1,  <unfinished ...>",
        f"11 {execve('/bin/a', 'a')} {interrupted}",
        "12 +++ exited with 0 +++",
        "10 +++ superseded by execve in pid 11 +++",
        f"10 <... execve resumed>)             {result}",
        f"10 clone(child_stack=NULL, {FORK}) = 11",
        "11 +++ exited with 1 +++",
        "10 +++ exited with 12 +++",
    )
    assert tree(told) == {
        "10:root MARKER": None,
        "10:a": "10:root MARKER",
        "11:fork of a": "10:a",
        "10": "exit 12",
        "11": "exit 1",
    }


def test_parent_is_the_image_at_the_fork() -> None:
    told = processes(
        ROOT,
        f"10 clone(child_stack=NULL, {FORK}) = 11",
        f"10 {execve('/bin/next', 'next')}) = 0",
        f"11 {execve('/bin/a', 'a')}) = 0",
        END,
        "11 +++ exited with 0 +++",
    )
    assert tree(told)["11:a"] == "10:root MARKER"
    assert tree(told)["10:next"] == "10:root MARKER"


def test_clone_parent_makes_a_sibling() -> None:
    told = processes(
        ROOT,
        f"10 clone(child_stack=NULL, {FORK}) = 11",
        f"11 {execve('/bin/maker', 'maker')}) = 0",
        "11 clone(child_stack=NULL, flags=CLONE_PARENT|SIGCHLD) = 12",
        f"12 {execve('/bin/a', 'a')}) = 0",
        "11 +++ exited with 0 +++",
        "12 +++ exited with 0 +++",
        END,
    )
    assert tree(told)["12:a"] == "10:root MARKER"
    assert tree(told)["12:fork of maker"] == "10:root MARKER"
    assert told[2].parent_pid == 10


def test_pid_namespace() -> None:
    told = processes(
        ROOT,
        "10 clone(child_stack=NULL, flags=CLONE_NEWPID|SIGCHLD) = 11",
        "11 vfork( <unfinished ...>",
        f"12 {execve('/bin/a', 'a')}) = 0",
        "11 <... vfork resumed>) = 2 /* 12 in strace's PID NS */",
        "12 +++ exited with 0 +++",
        "11 +++ exited with 0 +++",
        END,
    )
    assert tree(told)["12:a"] == "11:fork of root MARKER"


def test_working_directory_and_descriptors() -> None:
    memfd = x("/memfd:a b").strip('"')
    there = x("/there").strip('"')
    told = processes(
        ROOT,
        f"10 chdir({x('link/../sub')}) = 0",
        f"10 chdir({x('/missing')}) = -1 ENOENT (No such file or directory)",
        f"10 {execve('./a', 'a')}) = 0",
        f"10 fchdir(3<{there}>) = 0",
        f"10 {execve('../b', 'b')}) = 0",
        f'10 execveat(3<{memfd}>(deleted), "", [{x("c")}, {x("d")}], NULL, AT_EMPTY_PATH) = 0',
        f"10 execveat(4<{there}>, {x('e')}, [{x('e')}], NULL, 0) = 0",
        f"10 execveat(AT_FDCWD, {x('f')}, [{x('f')}], NULL, 0) = 0",
        END,
        links={"/home/sub": "/real"},
    )
    paths = [image.path for image in told[0].images[1:]]
    assert paths == ["/real/a", "/b", "/memfd:a b", "/there/e", "/there/f"]
    assert told[0].images[3].argv == ("c", "d")


@pytest.mark.parametrize("argv", ["NULL", "[]"])
def test_without_arguments_there_is_an_empty_one(argv: str) -> None:
    told = processes(ROOT, f"10 execve({x('/bin/a')}, {argv}, NULL) = 0", END)
    assert told[0].images[1].raw_argv == b"\0"


def test_before_linux_5_18_there_was_none() -> None:
    lines = [ROOT, f"10 execve({x('/bin/a')}, NULL, NULL) = 0", END]
    told = parse(lines, "/home", head=lambda _: b"", resolve=str, no_arguments=())
    assert told[0].images[1].argv == ()


def test_any_bytes_in_arguments() -> None:
    odd = '") = 0 <unfinished ...>\n+++ exited with 1 +++\\'
    told = processes(ROOT, f"10 {execve('/bin/a', odd, b'bad ' + bytes([255, 195]), '')}) = 0", END)
    assert told[0].images[1].argv == (odd, "bad ��", "")
    assert told[0].images[1].raw_argv == odd.encode() + b"\0bad \xff\xc3\0\0"


@pytest.mark.parametrize(
    ("head", "argv"),
    [
        (b"\x7fELF", [b"name", b"x"]),
        (b"#!/bin/sh\n", [b"/bin/sh", b"./s", b"x"]),
        (b"#! \t/bin/sh \n", [b"/bin/sh", b"./s", b"x"]),
        (b"#!/bin/sh -e  -x \nexit", [b"/bin/sh", b"-e  -x", b"./s", b"x"]),
        (b"#!/bin/sh\t-e", [b"/bin/sh", b"-e", b"./s", b"x"]),
        (b"#!/two\n", [b"/bin/sh", b"-2", b"/two", b"./s", b"x"]),
        # A name of an interpreter is looked up from the working directory, wherever the script lies.
        (b"#!./two\n", [b"/bin/sh", b"-3", b"./two", b"./s", b"x"]),
    ],
)
def test_script(head: bytes, argv: list[bytes]) -> None:
    heads = {"/home/s": head, "/two": b"#!/bin/sh -2\n", "/here/two": b"#!/bin/sh -3\n"}
    assert script_argv(b"./s", [b"name", b"x"], lambda path: heads.get(path, b""), "/home/s", "/here") == argv


def test_script_keeps_its_own_path() -> None:
    told = processes(ROOT, f"10 {execve('./s', 'name', 'x')}) = 0", END, heads={"/home/s": b"#!/bin/sh\n"})
    assert (told[0].images[1].path, told[0].images[1].argv) == ("/home/s", ("/bin/sh", "./s", "x"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('11 execve("\\x61", ["\\x61"...], NULL) = 0', "line 2: strace cut a string"),
        ("11 exit_group(0) = ?", "line 2: pid 11 was not seen to be made"),
        ("10 something else", "line 2: not understood"),
        ("strace: error", "line 2: no pid"),
        ("10 <... execve resumed>) = 0", "line 2: execve returns, but was not seen to begin"),
    ],
)
def test_nothing_is_guessed(line: str, message: str) -> None:
    if "cut" in message:
        line = line.replace("11 ", "10 ")
    with pytest.raises(TraceError, match=message):
        processes(ROOT, line)


@pytest.mark.parametrize(
    ("number", "text"), [(9, "SIGKILL"), (34, "SIGRTMIN"), (37, "SIGRTMIN+3"), (64, "SIGRTMIN+30")]
)
def test_signals(number: int, text: str) -> None:
    assert signal_name(number) == text
    assert signal_number(text) == number


# The comparison. `tell` is an agent that tells the truth; each test changes one thing.


def tell(told: list[Process]) -> tuple[list[Log], list[Span]]:
    """The records of a correct agent, by the rules of the design: times are line numbers, ids are counted."""
    forkers = {process.images[0].parent for process in told}
    images = [image for process in told for image in process.images]
    ids = {image: f"{number:016x}" for number, image in enumerate(images, 1)}
    logs, spans = [], []
    for process in told:
        last = process.images[-1]
        for number, image in enumerate(process.images):
            if image.forked_only and image is not last and image not in forkers:
                continue
            attributes: dict[str, Any] = {
                "procmon.exec_id": ids[image],
                "procmon.parent_exec_id": ids[image.parent] if image.parent else "before",
                "process.pid": process.pid,
                "process.executable.path": image.path,
                "process.command_args": list(image.argv),
                "process.args_count": len(image.argv),
                "procmon.flags": ["clone"] if image.forked_only else ["execve"],
            }
            if process.parent_pid is not None:
                attributes["process.parent_pid"] = process.parent_pid
            begin, end = 1000 * int(ids[image], 16), 1000 * int(ids[image], 16) + 100
            log = Log("process.exec", begin, begin, 9, "", "ab", ids[image], attributes, {})
            if not image.forked_only:
                logs.append(log)
            ending: dict[str, Any] = {"procmon.exit.reason": "exec"}
            failed = False
            if image is last:
                assert process.exit is not None
                ending = {}
                failed = process.exit != Exit(0)
                if process.exit.code is not None:
                    ending["process.exit.code"] = process.exit.code
                if process.exit.signal is not None:
                    ending["procmon.exit.signal"] = signal_name(process.exit.signal)
                    ending["procmon.exit.core_dumped"] = process.exit.core_dumped
                logs.append(replace(log, event_name="process.exit", time_unix_ns=end, attributes=attributes | ending))
            parent_span, links = "", ()
            if image.parent is not None:
                parent_span = ids[image.parent]
            assert number < len(process.images)
            spans.append(
                Span(
                    image.path,
                    "ab",
                    ids[image],
                    parent_span,
                    1,
                    begin,
                    end,
                    2 if failed else 0,
                    links,
                    attributes | ending,
                    {},
                )
            )
    return logs, spans


def differences(logs: list[Log], spans: list[Span], witnessed: list[Process]) -> list[str]:
    return [
        str(difference) for difference in compare(witnessed, agent_tree(logs, spans, 10, witnessed[0].images[0].argv))
    ]


def test_truth_has_no_differences() -> None:
    witnessed = processes(*USUAL)
    assert differences(*tell(witnessed), witnessed) == []


def test_fork_that_had_children_and_then_execs() -> None:
    witnessed = processes(
        ROOT,
        f"10 clone(child_stack=NULL, {FORK}) = 11",
        f"11 clone(child_stack=NULL, {FORK}) = 12",
        f"12 {execve('/bin/a', 'a')}) = 0",
        "12 +++ exited with 0 +++",
        f"11 {execve('/bin/b', 'b')}) = 0",
        "11 +++ exited with 2 +++",
        END,
    )
    logs, spans = tell(witnessed)
    assert differences(logs, spans, witnessed) == []
    tree = agent_tree(logs, spans, 10, ("root", "MARKER"))
    assert [[name(image) for image in process.images] for process in tree.processes] == [
        ["10:root MARKER"],
        ["11:fork of root MARKER", "11:b"],
        ["12:a"],
    ]


def test_others_are_left_out() -> None:
    """Another program of the same kind at the same time, below another parent."""
    witnessed = processes(*USUAL)
    logs, spans = tell(witnessed)
    other = dict(logs[0].attributes) | {"procmon.exec_id": "other", "process.pid": 77, "process.command_args": ["x"]}
    assert differences([*logs, replace(logs[0], attributes=other)], spans, witnessed) == []


def test_root_of_a_trace_is_linked() -> None:
    witnessed = processes(*USUAL)
    logs, spans = tell(witnessed)
    entry = {"procmon.entry.reason": "service"}

    def as_entry(span: Span, link: str) -> Span:
        if span.attributes["process.command_args"] != ["leaf"]:
            return span
        attributes = span.attributes | entry
        return replace(span, trace_id="cd", parent_span_id="", links=(("ab", link),), attributes=attributes)

    in_trace = [
        replace(log, trace_id="cd") if log.attributes["process.command_args"] == ["leaf"] else log for log in logs
    ]
    (parent,) = [span.parent_span_id for span in spans if span.attributes["process.command_args"] == ["leaf"]]
    assert differences(in_trace, [as_entry(span, parent) for span in spans], witnessed) == []
    (found,) = differences(in_trace, [as_entry(span, "ff") for span in spans], witnessed)
    assert "the root of a trace" in found


def test_opening_span() -> None:
    witnessed = processes(*USUAL)
    logs, spans = tell(witnessed)
    root = spans[0]
    opening = replace(root, end_unix_ns=root.start_unix_ns + 1, attributes=root.attributes | {"procmon.span": "open"})
    life = replace(
        root, span_id="11fe", parent_span_id=root.span_id, attributes=root.attributes | {"procmon.span": "life"}
    )
    assert differences(logs, [opening, life, *spans[1:]], witnessed) == []
    assert differences(logs, [opening, replace(life, parent_span_id="ff"), *spans[1:]], witnessed) != []
    assert differences(logs, [opening, *spans[1:]], witnessed) != []


Record = Log | Span
Lie = Callable[[Record], Record | None]


def changed(logs: list[Log], spans: list[Span], change: Lie) -> tuple[list[Log], list[Span]]:
    told: list[Record] = [*logs, *spans]
    records = [record for record in map(change, told) if record]
    return [r for r in records if isinstance(r, Log)], [r for r in records if isinstance(r, Span)]


def edit(pid: int, **changes: Any) -> Lie:
    """Changes attributes (double underscore for the dot) of all records of a pid's programs; None removes them."""
    names = {key.replace("__", "."): value for key, value in changes.items()}

    def change(record: Record) -> Record:
        if record.attributes["process.pid"] != pid:
            return record
        return replace(record, attributes=record.attributes | names)

    return change


LIES: dict[str, tuple[Lie, str]] = {
    "an exec is missing": (
        lambda r: None if r.attributes["process.command_args"] == ["leaf"] else r,
        "pid 14 /bin/leaf [leaf]: missing",
    ),
    "a fork is missing": (
        lambda r: None if r.attributes["procmon.flags"] == ["clone"] and r.attributes["process.pid"] == 13 else r,
        "pid 13 fork of /bin/root [root MARKER]: missing",
    ),
    "the first of two programs is missing": (
        lambda r: None if r.attributes["process.command_args"] == ["one"] else r,
        "missing",
    ),
    "parent is another process": (edit(14, procmon__parent_exec_id="0000000000000001"), "parent is pid 13 fork of"),
    "parent is unknown": (edit(14, procmon__parent_exec_id="nobody"), "pid 14 /bin/leaf [leaf]: missing"),
    "parent pid": (edit(14, process__parent_pid=1), "parent_pid is 13, not 1"),
    "path": (edit(14, **{"process.executable.path": "/bin/other"}), "path is '/bin/leaf', not '/bin/other'"),
    "relative path": (edit(14, **{"process.executable.path": "leaf"}), "path is '/bin/leaf', not 'leaf'"),
    "argument": (edit(14, process__command_args=["leaf", "x"]), "not marked as cut"),
    "number of arguments": (edit(14, process__args_count=2), "args_count is 1, not 2"),
    "marked as cut": (edit(14, procmon__truncated=["args"]), "marked as cut, but has only 5 bytes"),
    "exit code": (edit(13, process__exit__code=0), "ended with exit 4, not exit 0"),
    "signal": (edit(12, procmon__exit__signal="SIGABRT"), "ended with SIGSEGV (core dumped), not SIGABRT"),
    "no core": (edit(12, procmon__exit__core_dumped=False), "ended with SIGSEGV (core dumped), not SIGSEGV"),
    "exit missing": (
        lambda r: None if isinstance(r, Log) and r.event_name == "process.exit" and r.span_id.endswith("9") else r,
        "ended with exit 0, not None",
    ),
    "span missing": (
        lambda r: None if isinstance(r, Span) and r.attributes["process.command_args"] == ["leaf"] else r,
        "0 spans of its life",
    ),
    "span below another": (
        lambda r: replace(r, parent_span_id="ff") if isinstance(r, Span) and r.attributes["process.pid"] == 14 else r,
        "its parent's span is",
    ),
    "span of another id": (
        lambda r: replace(r, span_id="ff") if isinstance(r, Span) and r.attributes["process.pid"] == 14 else r,
        "its log records name",
    ),
    "status": (
        lambda r: replace(r, status=0) if isinstance(r, Span) else r,
        "its span has status 0, its exit is",
    ),
    "not flagged as clone": (edit(13, procmon__flags=["execve"]), "but the flags are"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found(lie: str) -> None:
    change, message = LIES[lie]
    witnessed = processes(*USUAL)
    logs, spans = tell(witnessed)
    assert changed(logs, spans, change) != (logs, spans), "the lie is not one"
    found = differences(*changed(logs, spans, change), witnessed)
    assert any(message in difference for difference in found), found


@pytest.mark.parametrize("event", ["process.exec", "process.exit"])
def test_told_twice(event: str) -> None:
    witnessed = processes(*USUAL)
    logs, spans = tell(witnessed)
    again = [log for log in logs if log.event_name == event][1]
    (found,) = differences([*logs, again], spans, witnessed)
    assert ": told " in found


@pytest.mark.parametrize("pid", [14, 99])
@pytest.mark.parametrize("parent", ["0000000000000001", "0000000000000009"])
def test_invented(pid: int, parent: str) -> None:
    witnessed = processes(*USUAL)
    logs, spans = tell(witnessed)
    changes = {"procmon.exec_id": "new", "procmon.parent_exec_id": parent, "process.pid": pid}
    invented = replace(logs[-2], span_id="new", event_name="process.exec", time_unix_ns=99_000)
    found = differences([*logs, replace(invented, attributes=invented.attributes | changes)], spans, witnessed)
    assert any("invented" in difference for difference in found), found


def test_rows_get_their_own_differences() -> None:
    witnessed = processes(*USUAL)
    inner = witnessed[3].images[0]
    assert below(witnessed[4].images[-1], inner)
    assert not below(witnessed[1].images[-1], inner)
    assert not below(None, inner)
    assert str(Difference(None, "what")) == "what"


LONG = ["long", *["y" * 1000] * 100]


@pytest.mark.parametrize(
    ("kept", "truncated", "found"),
    [
        (LONG[:50], ["process.command_args"], None),
        ([*LONG[:49], "yyy"], ["process.command_args"], None),
        (LONG[:50], [], "not marked as cut"),
        (LONG[:20], ["process.command_args"], "only 19023 bytes of 100105 are kept"),
        ([*LONG[:49], "yxy"], ["process.command_args"], "is not the beginning"),
        (LONG, ["process.command_args"], "marked as cut, but nothing is"),
        (LONG, ["process.working_directory"], None),
    ],
)
def test_what_is_cut_must_be_marked(kept: list[str], truncated: list[str], found: str | None) -> None:
    witnessed = processes(ROOT, f"10 {execve('/bin/a', *LONG)}) = 0", END)
    logs, spans = tell(witnessed)
    changes = {"process.command_args": kept, "procmon.truncated": truncated}

    def cut(record: Record) -> Record:
        if record.attributes["process.args_count"] != len(LONG):
            return record
        return replace(record, attributes=record.attributes | changes)

    result = differences(*changed(logs, spans, cut), witnessed)
    assert result == [] if found is None else any(found in difference for difference in result), result


def test_account() -> None:
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"foobar") == 0x85944171F73967E8
    account = read_account(
        [
            '{"forked": 11, "by": 10}',
            '{"reaped": 12, "status": 139}',
            f'{{"ran": 10, "arguments": 2, "bytes": 12, "fnv1a": "{fnv1a(bytes([*b"root", 0, *b"MARKER", 0])):016x}"}}',
        ]
    )
    witnessed = processes(*USUAL[:-3], END)
    assert contradictions(account, witnessed) == []
    wrong = Account([(12, 11)], [(12, 11), (13, 0), (99, 0)], [(10, 2, 12, 1), (11, 1, 2, 3)])
    assert [text.partition(";")[0] for text in contradictions(wrong, witnessed)] == [
        "pid 12 forked 11",
        "pid 12 was reaped with SIGSEGV",
        "pid 13 was reaped with exit 0",
        "pid 99 was reaped with exit 0",
        "pid 10 ran with 2 arguments of 12 bytes",
        "pid 11 ran with 1 arguments of 2 bytes",
    ]


def test_otlp_json(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    value = '{"arrayValue":{"values":[{"stringValue":"a"},{"intValue":"7"}]}}'
    file.write_text(
        '{"resourceLogs":[{"resource":{"attributes":[{"key":"host.id","value":{"stringValue":"h"}}]},"scopeLogs":[{'
        '"logRecords":[{"eventName":"process.exec","timeUnixNano":"5","traceId":"ab","spanId":"cd",'
        f'"attributes":[{{"key":"k","value":{value}}}]}}]}}]}}]}}\n'
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"n","traceId":"ab","spanId":"cd","status":{"code":2},'
        '"links":[{"traceId":"ef","spanId":"01"}]}]}]}]}\n{"resourceSpans":[{"half'
    )
    (log,) = read_logs(file)
    assert (log.event_name, log.time_unix_ns, log.attributes, log.resource) == (
        "process.exec",
        5,
        {"k": ["a", 7]},
        {"host.id": "h"},
    )
    (span,) = read_spans(file)
    assert (span.name, span.parent_span_id, span.status, span.links) == ("n", "", 2, (("ef", "01"),))


def test_otlp_json_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    assert read_logs(file) == []
    file.write_text('{"resourceMetrics":[]}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:1: neither"):
        read_logs(file)
    with pytest.raises(ValueError, match="unknown kind"):
        any_value({"intvalue": "1"})
