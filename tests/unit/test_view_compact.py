"""The compact view's lines, for honest processes and for others."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.events import Pod
from otel_procmon.view.compact import compact_line
from tests.unit.happenings import discovered, ended_without_event, exited, image, opened, started
from tests.unit.tetragon_data import events_in, happening_of, real_data

if TYPE_CHECKING:
    from otel_procmon.lineage.image import Happening

XWING = Pod(namespace="default", name="xwing")


def line(happening: Happening) -> str:
    text = compact_line(happening, colour=False)
    assert text is not None
    return text


def test_the_seed() -> None:
    events = events_in(real_data("seed-events.json"))
    assert [line(happening_of(event)) for event in events] == [
        "🚀 process default/xwing /usr/bin/whoami --version",
        "💥 exit    default/xwing /usr/bin/whoami --version 0",
    ]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, '"" /bin/ls'),
        ({"node": "worker"}, "worker /bin/ls"),
        ({"node": "worker", "pod": XWING}, "default/xwing /bin/ls"),
        ({"node": "worker", "pod": Pod(uid="1")}, "worker /bin/ls"),
        ({"pod": Pod(name="static")}, "/static /bin/ls"),
        ({"node": "n", "argv": ("ls", "-l", "a b")}, 'n /bin/ls -l "a b"'),
        ({"node": "n", "argv": ("ls",)}, "n /bin/ls"),
        ({"node": "n", "arguments": "-c 'x  y'"}, "n /bin/ls -c 'x  y'"),
        ({"node": "n", "argv": ("ls", "é😀")}, "n /bin/ls é😀"),
        # Quoted where it has to be
        ({"node": "n", "argv": ("ls", "a\nb")}, r'n /bin/ls "a\nb"'),
        ({"node": "n", "arguments": "\x1b[2J"}, r'n /bin/ls "\x1b[2J"'),
        ({"node": "n", "binary": "/tmp/a b"}, 'n "/tmp/a b"'),
        ({"node": "n", "binary": ""}, 'n ""'),
        ({"node": "n", "binary": "/tmp/x\udcff"}, r'n "/tmp/x\xff"'),
        ({"node": "my node"}, '"my node" /bin/ls'),
        ({"pod": Pod(namespace="a b", name="\u202e")}, r'"a b/\u202e" /bin/ls'),
    ],
)
def test_process_and_exit(fields: dict[str, Any], shown: str) -> None:
    assert line(started(image(**fields))) == f"🚀 process {shown}"
    assert line(exited(image(**fields))) == f"💥 exit    {shown} 0"


@pytest.mark.parametrize(
    ("code", "signal", "status"),
    [
        (0, None, "0"),
        (255, None, "255"),
        (None, "SIGKILL", "SIGKILL"),
        (None, "SIGRTMIN+1", "SIGRTMIN+1"),
        (None, None, "lost"),
        (None, "0 \n🚀 process", r'"0 \n🚀 process"'),
    ],
)
def test_status(code: int | None, signal: str | None, status: str) -> None:
    assert line(exited(image(node="n"), code, signal)) == f"💥 exit    n /bin/ls {status}"


def test_an_exit_that_nobody_saw() -> None:
    assert line(ended_without_event(image(node="n"), "lost")) == "💥 exit    n /bin/ls lost"


@pytest.mark.parametrize(
    "happening",
    [ended_without_event(image(), "exec"), discovered(image()), opened(image())],
    ids=["exec", "discovered", "opened"],
)
def test_what_was_neither_an_exec_nor_an_exit_has_no_line(happening: Happening) -> None:
    assert compact_line(happening, colour=False) is None


def test_colours() -> None:
    happening = exited(image(node="n", argv=("ls", "-l")), 1)
    assert compact_line(happening, colour=True) == (
        "\x1b[34m💥 exit   \x1b[0m \x1b[32mn\x1b[0m \x1b[35m/bin/ls\x1b[0m \x1b[36m-l\x1b[0m \x1b[31m1\x1b[0m"
    )


HOSTILE = st.text(
    st.one_of(st.characters(exclude_categories=()), st.sampled_from("\n\r\x1b\x9b\u202e\u2028\x85 \"'\\🚀💥")),
    max_size=12,
)
HAPPENINGS = st.builds(
    lambda node, namespace, pod, binary, argv, signal, end: (
        exited(image(node=node, pod=Pod(namespace=namespace, name=pod), binary=binary, argv=argv), None, signal)
        if end
        else started(image(node=node, binary=binary, arguments=" ".join(argv)))
    ),
    HOSTILE,
    HOSTILE,
    HOSTILE,
    HOSTILE,
    st.lists(HOSTILE, max_size=4).map(tuple),
    HOSTILE,
    st.booleans(),
)


@given(HAPPENINGS)
def test_no_name_forges_a_line_or_drives_a_terminal(happening: Happening) -> None:
    plain = line(happening)
    assert len(plain.splitlines()) == 1
    assert not [character for character in plain if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
    assert re.match("🚀 process |💥 exit    ", plain)
    plain.encode()
    coloured = compact_line(happening, colour=True)
    assert coloured is not None
    assert re.sub("\x1b\\[(?:0|3[0-9])m", "", coloured) == plain
