"""A load of real processes of which everything is known: which there were, and who started whom.

A unit is a shell that runs ``true`` as its child, waits for it, and exits with 3. Both are copies of the system's
programs, so that a filter on ``--binary`` has these and nothing else of the host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.kernel.truth.family import exec_id, with_word
from tests.kernel.truth.shell import marker
from tests.kernel.truth.workloads import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.kernel.truth.otlp import Log, Span

LOGS, SPANS, PROCESSES = 4, 2, 2
"""Of one unit. What happens is told by one log record each."""
FAILS = 3
"""The shell's exit code."""
SCRIPT = f'"$0" "$1" "$2"; exit {FAILS}'
IDLE_SECONDS = 30

STORM = """\
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int count = atoi(argv[1]);

	for (int i = 0; i < count; i++) {
		char number[16];
		snprintf(number, sizeof(number), "%d", i);
		char *arguments[] = {argv[2], "0", argv[3], number, NULL}, *environment[] = {NULL};
		pid_t pid = vfork();
		if (pid == 0) {
			execve(argv[2], arguments, environment);
			_exit(127);
		}
		int status;
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
			return 1;
	}
	return 0;
}
"""


class Load:
    """Runs units, one after another, `rate` of them a second if the machine can."""

    def __init__(self, directory: Path, rate: float) -> None:
        directory.mkdir()
        self.word = marker()
        self.pids: list[int] = []
        """Of the shells, by the unit's number."""
        self.filter = ("--binary", f"^{directory}/")
        """Lets only these processes pass."""
        self._shell, self._true = (
            shutil.copy(os.path.realpath(f"/bin/{name}"), str(directory / name)) for name in ("sh", "true")
        )
        self._rate = rate
        self._running = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Run units until `pause`."""
        self._idle.clear()
        self._running.set()

    def pause(self) -> int:
        """Run no more of them, and wait for the last one to end. How many there were."""
        self._running.clear()
        assert self._idle.wait(IDLE_SECONDS)
        if self._failure is not None:
            raise self._failure
        return len(self.pids)

    def run(self, units: int) -> None:
        """Run so many units now."""
        for _ in range(units):
            self._unit()

    def end(self) -> None:
        self._ended = True
        self._running.set()
        self._thread.join(IDLE_SECONDS)

    def _work(self) -> None:
        while True:
            self._running.wait()
            if self._ended:
                return
            began, done = time.monotonic(), 0
            while self._running.is_set() and not self._ended:
                try:
                    self._unit()
                except BaseException as failure:  # noqa: BLE001 - the test's own thread raises it
                    self._failure = failure
                    break
                done += 1
                time.sleep(max(0.0, began + done / self._rate - time.monotonic()))
            self._running.clear()
            self._idle.set()

    def _unit(self) -> None:
        arguments = [self._shell, "-c", SCRIPT, self._true, self.word, str(len(self.pids))]
        pid = os.posix_spawn(self._shell, arguments, ENVIRONMENT)
        self.pids.append(pid)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == FAILS

    def assert_told(self, logs: Sequence[Log], spans: Sequence[Span], *, seen: bool = True) -> None:
        """Every unit is told, once or more, and nothing that was not.

        `seen`: an agent saw each of them from its beginning to its end. Otherwise one may have told of the beginning
        and another one of the end, and children may have been found before they ran what they were made for.
        """
        units = range(len(self.pids))
        began: dict[tuple[str, int], Log] = {}
        for log in with_word(logs, self.word):
            arguments = log.attributes["process.command_args"]
            name = log.attributes["process.executable.name"]
            number = int(arguments[-1])
            if log.event_name == "process.exit":
                continue
            own = [self._true, self.word] if name == "true" else [self._shell, "-c", SCRIPT, self._true, self.word]
            assert arguments == [*own, str(number)]
            assert number in units
            if name == "sh" and log.attributes["process.pid"] != self.pids[number]:
                assert not seen
                assert log.event_name == "process.discovered"
                name = "fork"
            assert log.event_name == "process.exec" or not seen
            known = began.setdefault((name, number), log)
            for attribute in ("procmon.exec_id", "procmon.parent_exec_id", "process.pid", "process.parent_pid"):
                assert log.attributes[attribute] == known.attributes[attribute]
            assert log.span_id == known.span_id
        missing = [(name, number) for number in units for name in ("sh", "true") if (name, number) not in began]
        assert not missing, f"{len(missing)} were not told to begin: {missing[:10]}"
        images = {exec_id(log): key for key, log in began.items()}
        assert len(images) == len(began)
        assert len({began["sh", number].attributes["procmon.parent_exec_id"] for number in units}) == 1
        for (name, number), log in began.items():
            if name != "sh":
                shell = began["sh", number]
                assert log.attributes["procmon.parent_exec_id"] == exec_id(shell), "the lineage is broken"
                assert log.attributes["process.parent_pid"] == shell.attributes["process.pid"]
        assert {began["sh", number].attributes["process.pid"] for number in units} == set(self.pids)

        ended: set[str] = set()
        for log in logs:
            image = exec_id(log)
            if log.event_name != "process.exit" or image not in images:
                # One that ended before it ran anything may be told under the shell's name, and is a child of it.
                continue
            name, number = images[image]
            assert log.attributes.get("process.exit.code") == (0 if name == "true" else FAILS), log
            assert log.attributes["process.pid"] == began[name, number].attributes["process.pid"]
            assert log.attributes["procmon.parent_exec_id"] == began[name, number].attributes["procmon.parent_exec_id"]
            assert log.span_id == began[name, number].span_id
            ended.add(image)
        lacking = [key for image, key in images.items() if image not in ended and key[0] != "fork"]
        assert not lacking, f"{len(lacking)} were not told to end: {lacking[:10]}"
        of_span = {span.attributes["procmon.exec_id"]: span for span in spans}
        lacking = [key for image, key in images.items() if image not in of_span]
        assert not lacking, f"{len(lacking)} have no span: {lacking[:10]}"
        for image, key in images.items():
            assert of_span[image].span_id == began[key].span_id


@contextmanager
def load(directory: Path, rate: float = 150) -> Iterator[Load]:
    """A load that does not run yet, with its programs in `directory`."""
    made = Load(directory, rate)
    try:
        yield made
    finally:
        made.end()


def storm(directory: Path, count: int, program: Path, word: str) -> list[str]:
    """The command that runs `program` with 0, `word` and a number `count` times, as fast as one CPU can."""
    source = directory / "storm.c"
    source.write_text(STORM)
    subprocess.run(["gcc", "-O2", "-o", directory / "storm", source], check=True)
    return [str(directory / "storm"), str(count), str(program), word]
