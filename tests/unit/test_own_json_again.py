"""Our own JSON, read again and written again: the same lines, whatever the kernel did and whatever was lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.config import LineageOptions
from otel_procmon.decode.order import DEFAULT_WINDOW_NS, ReorderWindow
from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.ledger import Ledger
from otel_procmon.source.json_stream import JsonText
from otel_procmon.view.tetragon_json import tetragon_json
from tests.unit.kernel_model import Kernel
from tests.unit.lineage_account import Account, told
from tests.unit.test_lineage_model import EXAMPLES, Step, disturbed, feed, run, start, steps, traces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_procmon.config import TraceOptions
    from otel_procmon.lineage.image import Happening


def written(happenings: Iterable[Happening]) -> list[bytes]:
    return [line for happening in happenings if (line := tetragon_json(happening)) is not None]


def read_again(lines: list[bytes]) -> Account:
    """As `capture.TetragonCapture` reads a file."""
    # What is forgotten and heard of again is a new image.
    account, ledger = Account(options=LineageOptions(grace_ns=10**18)), Ledger()
    window = ReorderWindow(DEFAULT_WINDOW_NS, None, lambda: 0.0)
    for number, line in enumerate(lines):
        event = decode_tetragon(JsonText(line, f"f:{number}"), 1, ledger)
        assert event is not None
        account.apply(*window.push(event))
    account.apply(*window.flush())
    assert ledger.counts() == {}
    return account


def test_fork_that_was_found_and_then_ran_a_program() -> None:
    """It is one process, though what it runs is called its first program."""
    kernel, account = Kernel(), Account()
    fork, _ = kernel.fork(kernel.init)
    account.reconcile(kernel.snapshot(), began_unix_ns=kernel.unix_ns() + 1, now_unix_ns=kernel.unix_ns() + 2)
    found = fork.exec_id
    account.apply(kernel.exec(fork, "/bin/ls"), kernel.exit(fork))
    lines = written(account.happenings)
    again = read_again(lines)
    assert written(again.happenings) == lines
    assert again.count("gap: exit lost") == 0
    assert ("end", found, "exec") in told(again.happenings)


@EXAMPLES
@given(steps, steps, traces, st.data())
def test_the_same_lines(before: list[Step], after: list[Step], trace: TraceOptions, data: st.DataObject) -> None:
    story = run(before, after)
    account = Account(trace)
    start(account, story)
    feed(account, disturbed(data, story.events))
    lines = written(account.happenings)
    assert Counter(written(read_again(lines).happenings)) == Counter(lines)
