"""A process tree as both sides tell it: the witness (`witness`, from strace) and the agent (`compare.agent_tree`)."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field

SIGRTMIN = int(signal.SIGRTMIN)
SIGRTMAX = int(signal.SIGRTMAX)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, as ``waitpid`` tells: a status or a signal's number, never both."""

    code: int | None
    signal: int | None = None
    core_dumped: bool = False

    @classmethod
    def from_wait_status(cls, status: int) -> Exit:
        """The 16 bits that wait(2) fills in."""
        number = status & 0x7F
        if number:
            return cls(code=None, signal=number, core_dumped=bool(status & 0x80))
        return cls(code=status >> 8 & 0xFF)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit {self.code}"
        return f"{signal_name(self.signal)}{' (core dumped)' if self.core_dumped else ''}"


@dataclass(slots=True, eq=False)
class Image:
    """One program in the life of a process, in its place in the tree. Compared by identity."""

    process: Process = field(repr=False)
    path: str
    """Absolute, normalised; what a script is for a script; behind a descriptor, the file's own."""
    argv: tuple[str, ...]
    """Invalid UTF-8 as U+FFFD. What the fork left of it for a fork."""
    parent: Image | None = field(repr=False)
    """None at the tree's root."""
    forked_only: bool = False
    """What runs between a fork and the exec or exit after it."""
    raw_argv: bytes = b""
    """The witness's: the arguments as the kernel stores them, each with its NUL."""

    def __str__(self) -> str:
        shown = " ".join(ascii(argument)[1:-1] for argument in self.argv)
        if len(shown) > 120:
            shown = f"{shown[:100]}… ({len(self.argv)} arguments)"
        return f"pid {self.process.pid} {'fork of ' if self.forked_only else ''}{self.path} [{shown}]"


@dataclass(slots=True, eq=False)
class Process:
    """One process from its fork to its exit."""

    pid: int
    parent_pid: int | None = None
    """At the fork."""
    images: list[Image] = field(default_factory=list)
    """In order. The first is the fork's (`Image.forked_only`) where the process was seen to begin with one."""
    exit: Exit | None = None


def signal_name(number: int) -> str:
    """SIGKILL, SIGRTMIN+3: as bash and the agent name it."""
    if SIGRTMIN <= number <= SIGRTMAX:
        return "SIGRTMIN" + (f"+{number - SIGRTMIN}" if number > SIGRTMIN else "")
    return signal.Signals(number).name


def signal_number(name: str) -> int:
    """What `signal_name` makes a name of; and strace's ``SIGRT_5``, which counts from the kernel's first, 32."""
    if match := re.fullmatch(r"SIGRTMIN(?:\+(\d+))?", name):
        return SIGRTMIN + int(match[1] or 0)
    if match := re.fullmatch(r"SIGRT_(\d+)", name):
        return 32 + int(match[1])
    return int(signal.Signals[name])
