"""Targets: redaction, of arguments and of Tetragon's one string; that it is right in form, and that it ends in time."""

from __future__ import annotations

import time
from functools import lru_cache

from otel_procmon.events import Process
from otel_procmon.ledger import Ledger
from otel_procmon.redact import rules
from otel_procmon.redact.rules import MARK
from otel_procmon.redact.stage import Redaction
from tests.fuzz import seeds
from tests.fuzz.choices import TEXTS, Choices

SIGNS = (
    "=",
    ":",
    "://",
    "@",
    '"',
    "'",
    "\\",
    '\\"',
    "|",
    ";",
    "&",
    "(",
    "$(",
    "`",
    "{",
    "}",
    "[",
    "]",
    ",",
    ".",
    "-",
    "--",
    "-p",
    "-u",
    "-H",
    "-c",
    "-e",
    "--password",
    "--token=",
    "Bearer",
    "Authorization:",
    "eyJ",
    "AKIA",
    "ghp_",
    "-----BEGIN",
    "PRIVATE",
    "KEY-----",
    "-----END",
    ":",
    "sudo",
    "echo",
    "curl",
    "mysql",
    "sh",
    "ssh",
    "sshpass",
    "docker",
    "kubectl",
)
HOSTILE_CHARACTERS = 64 * 1024
"""The longest arguments that the kernel's side hands over."""
SLOW_S = 0.5
"""CPU time for those, ten times what the slowest known ones take: a fuzzer's machine is slow, and this code is traced."""


@lru_cache(maxsize=1)
def _pieces() -> tuple[str, ...]:
    words = {word for argv in seeds.command_lines() for argument in argv for word in argument.split(" ")}
    return (
        *SIGNS,
        " ",
        "\n",
        "\t",
        *sorted(rules.PROGRAMS)[:60],
        *sorted(words)[:400],
        *(text.decode("utf-8", "surrogateescape") for text in TEXTS),
    )


def _argument(choices: Choices, most: int) -> str:
    pieces = _pieces()
    parts = []
    for _ in range(1 + choices.below(most)):
        if choices.chance(6):
            parts.append(choices.raw(choices.below(24)).replace(b"\0", b"").decode("utf-8", "surrogateescape"))
        else:
            parts.append(pieces[choices.below(len(pieces))])
    return "".join(parts)


def redacted(data: bytes) -> None:
    """As many arguments come out as went in, and what changed has the mark in it; again, nothing changes its form."""
    choices = Choices(data)
    argv = tuple(_argument(choices, 8) for _ in range(1 + choices.below(6)))
    process = Redaction(Ledger()).process(_process(argv))
    assert process.argv is not None
    assert len(process.argv) == len(argv)
    for before, after in zip(argv, process.argv, strict=True):
        assert after == before or MARK in after
    joined = Redaction(Ledger()).process(
        Process(exec_id="x", pid=1, binary=argv[0], start_unix_ns=0, arguments=" ".join(argv[1:]))
    )
    assert joined.arguments is not None
    assert joined.arguments == " ".join(argv[1:]) or MARK in joined.arguments


def redacted_bytes(data: bytes) -> None:
    """Any bytes as arguments."""
    argv = tuple(data.decode("utf-8", "surrogateescape").split("\0"))
    process = Redaction(Ledger()).process(_process(argv))
    assert process.argv is not None
    assert len(process.argv) == len(argv)


def redacted_in_time(data: bytes) -> None:
    """A few pieces over and over, 64 KiB of them: as one argument, as many, and as Tetragon's one string."""
    choices = Choices(data)
    head, unit, tail = _argument(choices, 3), _argument(choices, 4), _argument(choices, 3)
    text = head + (unit * (HOSTILE_CHARACTERS // max(1, len(unit)) + 1))[:HOSTILE_CHARACTERS] + tail
    ways = (("sh", "-c", text), tuple(text.split(" ")), None)
    way = choices.of(ways)
    began = time.thread_time()
    if way is None:
        Redaction(Ledger()).process(Process(exec_id="x", pid=1, binary="/bin/sh", start_unix_ns=0, arguments=text))
    else:
        Redaction(Ledger()).process(_process(way))
    took = time.thread_time() - began
    assert took < SLOW_S, f"{took:.2f} s for {head!r}, {unit!r} over and over, {tail!r}"


def _process(argv: tuple[str, ...]) -> Process:
    return Process(exec_id="x", pid=1, binary=argv[0], start_unix_ns=0, argv=argv, cwd=argv[-1][:4096])
