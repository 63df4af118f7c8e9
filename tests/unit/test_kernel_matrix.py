"""What becomes of a guest's output: its account, and the table of the page."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.kernel.boot.matrix import BEGINS, Job, parse
from tests.kernel.boot.result import Case, Guest, read_guests, write_guest
from tests.kernel.boot.table import BEGIN, END, main, put_into, table

REPORT = f"""\
6.1.0-50-amd64
..s [100%]
{BEGINS}
<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" tests="4">
<testcase classname="tests.kernel.test_truth" name="test_make" time="3.141" />
<testcase classname="tests.kernel.test_truth" name="test_row[a&lt;b]" time="0.5"><failure message="no">no</failure></testcase>
<testcase classname="tests.kernel.test_usage" name="test_io" time="1"><skipped message="no" /></testcase>
<testcase classname="tests.kernel.test_usage" name="test_cpu" time="1"><error message="no" /></testcase>
</testsuite></testsuites>
"""
JOB = Job("6.1", Path("/kernels/6.1.0-50-amd64"), "bcc", ())


def guest(version: str, loader: str = "ebpf", **more: object) -> Guest:
    fine = [Case("test_truth", "test_make", "passed", 1), Case("test_usage", "test_io", "passed", 1)]
    return msgspec.structs.replace(Guest("x", version, loader, 99, complete=True, tests=fine), **more)


def test_account_of_a_guest() -> None:
    account = parse(REPORT, JOB, 61.7)
    assert account == Guest(
        "6.1",
        "6.1.0-50-amd64",
        "bcc",
        62,
        complete=True,
        tests=[
            Case("test_truth", "test_make", "passed", 3.1),
            Case("test_truth", "test_row[a<b]", "failed", 0.5),
            Case("test_usage", "test_io", "skipped", 1.0),
            Case("test_usage", "test_cpu", "failed", 1.0),
        ],
    )
    assert not account.good
    assert account.summary() == "2 failed, 1 passed, 1 skipped in 62 s"


@pytest.mark.parametrize("output", ["", "init: cannot mount the root directory\n", REPORT.partition("</testsuite>")[0]])
def test_guest_that_did_not_come_to_its_end(output: str) -> None:
    account = parse(output, JOB, 5)
    assert (account.complete, account.tests, account.good) == (False, [], False)
    assert account.summary() == "did not come to its end in 5 s"


def test_good_is_only_what_ran_and_passed() -> None:
    one = Case("test_usage", "test_io", "skipped", 0)
    assert guest("6.1").good
    assert not guest("6.1", tests=[*guest("6.1").tests, one]).good, "a skip hides a gap"
    assert not guest("6.1", tests=[]).good, "nothing was selected"
    assert not guest("6.1", complete=False).good


def test_accounts_are_kept(tmp_path: Path) -> None:
    kept = [guest("5.10.0-32-amd64"), guest("6.1.0-50-amd64", "bcc")]
    for each in kept:
        write_guest(tmp_path / f"{each.version}-{each.loader}.json", each)
    assert read_guests(tmp_path) == kept
    (tmp_path / "z.json").write_text('{"kernel": 5}')
    with pytest.raises(msgspec.DecodeError, match=r"z\.json: "):
        read_guests(tmp_path)


def test_table() -> None:
    failed = [Case("test_truth", "test_make", "failed", 1), Case("test_new", "test_it", "passed", 1)]
    guests = [
        guest("6.12.117+deb13-amd64"),
        guest("6.1.0-50-amd64", "bcc", tests=guest("").tests[:1]),
        guest("6.1.0-50-amd64", tests=[*guest("").tests, *failed]),
        guest("5.10.0-32-amd64", complete=False, tests=[]),
    ]
    assert table(guests).splitlines() == [
        "| kernel | loader | records and lineage | usage, users | other | seconds |",
        "|---|---|---|---|---|---|",
        "| `5.10.0-32-amd64` | ebpf | - | - | - | not over after 99 |",
        "| `6.1.0-50-amd64` | ebpf | **1 of 2** | 1 | 1 | 99 |",
        "| `6.1.0-50-amd64` | bcc | 1 | - | - | 99 |",
        "| `6.12.117+deb13-amd64` | ebpf | 1 | 1 | - | 99 |",
    ]


def test_page_keeps_its_prose(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert main(str(results), str(page)) == f"table: there is nothing in {results}: make test-kernels"
    write_guest(results / "a.json", guest("6.1.0-50-amd64"))
    assert main(str(results), str(page)) is None
    assert page.read_text() == f"before\n\n{BEGIN}\n{table([guest('6.1.0-50-amd64')])}{END}\n\nafter\n"


@pytest.mark.parametrize(
    "page", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"{BEGIN}{END}"]
)
def test_page_without_a_place_for_it(page: str) -> None:
    with pytest.raises(ValueError, match="once, each on a line"):
        put_into(page, "table\n")


def test_page_has_a_place_for_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    assert "\ntable\n" in put_into(page, "table\n")
