"""A shell that runs what a test tells it, when the test says so."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import termios
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER_SECONDS = 60


def marker() -> str:
    """A word that no other process has among its arguments."""
    return uuid.uuid4().hex


def only_marked(directory: Path) -> tuple[str, str]:
    """Arguments for an agent that is to tell only of what has a `marker` among its arguments.

    For tests that wait for some records many times: whatever else happens on the machine does not slow them down.
    """
    path = directory / "only-marked.yaml"
    path.write_text("export-allowlist:\n- arguments_regex: ['[0-9a-f]{32}']\n")
    return "--filter-file", str(path)


class Shell:
    """A bash that takes lines one by one. Its ``$0`` is `marker`."""

    def __init__(self, process: subprocess.Popen[bytes], marker: str, lines: int, answers: int) -> None:
        self.process = process
        self.marker = marker
        self._lines = lines
        self._answers = answers

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def run(self, line: str) -> int:
        """Run `line`, wait for its end, and give ``$?``."""
        os.write(self._lines, line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([self._answers], [], [], ANSWER_SECONDS)
            assert ready, f"the shell does not answer to {line!r}"
            read = os.read(self._answers, 100)
            assert read, f"the shell ended at {line!r}"
            answer += read
        return int(answer)

    def end(self) -> None:
        """Let it exit, with 0. Does nothing if it has ended before."""
        self.hang_up()
        assert self.process.wait(ANSWER_SECONDS) == 0

    def hang_up(self) -> None:
        """Give it no more lines."""
        if self._lines >= 0:
            os.close(self._lines)
            self._lines = -1


@contextmanager
def shell(*through: str, session: bool = False, terminal: bool = False, cwd: Path | None = None) -> Iterator[Shell]:
    """A shell, ended after the block.

    Args:
        through: A command that runs the arguments that follow, by which the shell is run.
        session: It leads a session of its own, without a controlling terminal.
        terminal: It leads a session of its own, with one.
        cwd: Where it begins.
    """
    lines_in, lines_out = os.pipe()
    answers_in, answers_out = os.pipe()
    ours = [answers_in]
    theirs = [lines_in, answers_out]
    stdin = subprocess.DEVNULL
    if terminal:
        ours_too, stdin = os.openpty()
        ours.append(ours_too)
        theirs.append(stdin)

    def take_terminal() -> None:
        fcntl.ioctl(stdin, termios.TIOCSCTTY, 0)

    # $? of the loop is that of its last command; an explicit exit makes the end independent of it.
    script = f'while IFS= read -r line <&{lines_in}; do eval "$line"; echo $? >&{answers_out}; done; exit 0'
    word = marker()
    process = subprocess.Popen(
        [*through, "bash", "-c", script, word],
        stdin=stdin,
        pass_fds=(lines_in, answers_out),
        start_new_session=session or terminal,
        preexec_fn=take_terminal if terminal else None,  # noqa: PLW1509 - nothing else runs in this process
        env=ENVIRONMENT,
        cwd=cwd,
    )
    for descriptor in theirs:
        os.close(descriptor)
    running = Shell(process, word, lines_out, answers_in)
    try:
        yield running
        running.end()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        running.hang_up()
        for descriptor in ours:
            os.close(descriptor)
