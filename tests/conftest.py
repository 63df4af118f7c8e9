"""Shared by all tests: they import each other as ``tests.…``."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, settings

# Tests fork, and look at threads there: after a fork gRPC would start some of its own, if it was used before.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# Last, so that an installed otel_procmon (a wheel under test) goes before the one of the source tree.
sys.path.append(str(Path(__file__).parents[1]))

# Machines are shared: how long an example takes says nothing about the code. And what a change is judged by should be the
# same for all: new examples are for those who work on it, and for `make fuzz`.
settings.register_profile(
    "procmon", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("procmon")


def _give_up_terminal() -> None:
    """What tests start has a controlling terminal only where a test gives it one.

    Where a trace begins depends on whether the parent of a session's leader has a terminal: the tests are to see the
    same traces whether a person or a machine runs them. Standard input and output stay what they are, and so does Ctrl-C.
    """
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        # The kernel hangs up on those in the foreground where it is the session's leader who leaves (tty_ioctl(4)).
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            signal.signal(signal.SIGHUP, before)
            os.close(terminal)


_give_up_terminal()
