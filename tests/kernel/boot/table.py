"""Makes the table of docs/kernels.md from what came of the guests (`matrix.py`).

    python -m tests.kernel.boot.table build/kernels docs/kernels.md

The page's lines between two comments are replaced; the rest is prose.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.boot.result import Guest, read_guests

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN, END = "<!-- begin: results -->", "<!-- end: results -->"
SUBJECTS = {
    "test_truth": "records and lineage",
    "test_usage": "usage, users",
    "test_containers": "containers",
    "test_services": "services",
    "test_gaps": "losses, sweeps",
    "test_left_out": "programs left out",
    "test_restart": "restart",
    "test_delivery": "pins",
    "test_least_privilege": "least privilege",
    "test_bcc": "perf buffers, headers",
    "test_hostile": "few pids",
    "test_command_line": "what is missing",
}
"""What a module's tests are about."""
OTHER = "other"


def table(guests: Sequence[Guest]) -> str:
    """Rows of kernels and loaders, columns of subjects: how many of how many tests passed. Ends with a newline."""
    present = {SUBJECTS.get(test.module, OTHER) for guest in guests for test in guest.tests}
    subjects = [subject for subject in (*SUBJECTS.values(), OTHER) if subject in present]
    lines = [
        f"| kernel | loader | {' | '.join(subjects)} | seconds |",
        f"|---|---|{'---|' * len(subjects)}---|",
    ]
    for guest in sorted(guests, key=_order):
        cells = [_cell(guest, subject) for subject in subjects]
        seconds = str(guest.seconds) if guest.complete else f"not over after {guest.seconds}"
        lines.append(f"| `{guest.version}` | {guest.loader} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines) + "\n"


def _order(guest: Guest) -> tuple[list[int], str]:
    """Older kernels first, and of one the loader that is taken where both can be."""
    return [int(number) for number in re.findall(r"\d+", guest.version)], {"ebpf": "", "bcc": "1"}.get(
        guest.loader, "2"
    )


def _cell(guest: Guest, subject: str) -> str:
    tests = [test for test in guest.tests if SUBJECTS.get(test.module, OTHER) == subject]
    if not tests:
        return "-"
    passed = sum(test.outcome == "passed" for test in tests)
    return str(passed) if passed == len(tests) else f"**{passed} of {len(tests)}**"


def put_into(page: str, made: str) -> str:
    """`page` with `made` between the comments. ValueError where they are not there, once and in this order."""
    before, begin, rest = page.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"the page should have {BEGIN} and {END} once, each on a line of its own")
    return f"{before}{begin}{made}{end}{after}"


def main(results: str, page: str) -> str | None:
    """Rewrite `page`. Returns what was wrong."""
    path = Path(page)
    try:
        guests = read_guests(Path(results))
        if not guests:
            return f"table: there is nothing in {results}: make test-kernels"
        path.write_text(put_into(path.read_text(), table(guests)))
    except (OSError, ValueError) as error:
        return f"table: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
