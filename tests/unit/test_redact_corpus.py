"""Secrets in command lines: a corpus of them and of harmless look-alikes, and what hypothesis makes of it."""

from __future__ import annotations

import shlex
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.events import Process
from otel_procmon.ledger import Ledger
from otel_procmon.redact.rules import MARK
from otel_procmon.redact.stage import Redaction
from otel_procmon.view.arguments import arguments_text
from tests.unit.redaction_corpus import CorpusLine, read_corpus

CORPUS = read_corpus()
SECRETS = [line for line in CORPUS if line.secrets]
HARMLESS = [line for line in CORPUS if not line.secrets]


def number(line: CorpusLine) -> str:
    return f"line {line.number}"


def redacted(argv: tuple[str, ...]) -> tuple[str, ...]:
    process = Redaction(Ledger()).process(process_of(argv=argv))
    assert process.argv is not None
    return process.argv


def process_of(**fields: Any) -> Process:
    argv = fields.get("argv") or ("x",)
    return Process(**{"exec_id": "id", "pid": 1, "binary": argv[0], "start_unix_ns": 0, **fields})


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(CORPUS) >= 300
    assert len(HARMLESS) >= 150
    assert len(SECRETS) >= 150


@pytest.mark.parametrize("line", CORPUS, ids=number)
def test_secrets_are_replaced_and_nothing_else(line: CorpusLine) -> None:
    assert redacted(line.argv) == line.expected


@pytest.mark.parametrize("line", CORPUS, ids=number)
def test_what_is_redacted_stays_so(line: CorpusLine) -> None:
    # The exit of a Tetragon that redacts, or another agent's JSON.
    assert redacted(line.expected) == line.expected


@pytest.mark.parametrize("line", SECRETS, ids=number)
def test_tetragons_one_string_holds_no_secret_either(line: CorpusLine) -> None:
    process = process_of(binary=line.argv[0], arguments=arguments_text(line.argv))
    arguments = Redaction(Ledger()).process(process).arguments
    assert arguments is not None
    assert MARK in arguments
    for secret in line.secrets:
        # A short one, such as a user's name, may stand in another place too.
        assert secret not in arguments or len(secret) < 5


@pytest.mark.parametrize("line", CORPUS, ids=number)
def test_tetragons_one_string_is_not_damaged(line: CorpusLine) -> None:
    # What is harmless, and what was redacted before: our own JSON, read again.
    process = process_of(binary=line.argv[0], arguments=arguments_text(line.expected))
    assert Redaction(Ledger()).process(process) is process


@pytest.mark.parametrize("line", SECRETS, ids=number)
def test_a_script_holds_no_secret_either(line: CorpusLine) -> None:
    for script in (line.line, f"cd /srv && {line.line} | tee log"):
        _, _, text = redacted(("sh", "-c", script))
        for secret in line.secrets:
            written = shlex.quote(secret).strip("'")
            assert written not in text or len(secret) < 5, text


@pytest.mark.parametrize("line", [line for line in HARMLESS if "'" not in line.line], ids=number)
def test_a_script_is_not_damaged(line: CorpusLine) -> None:
    assert redacted(("sh", "-c", line.line)) == ("sh", "-c", line.line)


LETTERS = string.ascii_letters + string.digits
PLAIN = st.text(string.ascii_lowercase + string.digits + "./_", min_size=1, max_size=12)


@given(
    line=st.sampled_from(SECRETS),
    before=st.lists(PLAIN, max_size=4),
    after=st.lists(st.text(max_size=20).filter(lambda text: "\0" not in text), max_size=4),
)
def test_secrets_are_found_whatever_stands_around_them(line: CorpusLine, before: list[str], after: list[str]) -> None:
    # An option's value follows it directly, so what comes in between is put at the ends. (htpasswd takes the last.)
    if line.argv[0] == "htpasswd":
        after = []
    found = redacted((*before, *line.argv, *after)[len(before) and 1 :])
    for secret in line.secrets:
        assert len(secret) < 5 or not any(secret in argument for argument in found[: len(found) - len(after)])


@given(
    option=st.sampled_from(["--password", "--db-token", "--apiKey", "-secret", "--client_secret"]),
    value=st.text(LETTERS + "!%^*+,.?{}[]~#", min_size=8, max_size=60).filter(lambda text: any(map(str.isdigit, text))),
    joined=st.booleans(),
    noise=st.lists(PLAIN, max_size=5),
)
def test_values_of_secret_options_go_whatever_they_are(option: str, value: str, joined: bool, noise: list[str]) -> None:
    own = (f"{option}={value}",) if joined else (option, value)
    argv = ("tool", *noise, *own, *noise)
    expected = (f"{option}={MARK}",) if joined else (option, MARK)
    if not harmless_by_its_looks(value):
        assert redacted(argv) == ("tool", *noise, *expected, *noise)


def harmless_by_its_looks(value: str) -> bool:
    """A reference, a path or a file's name, by the table of the rules."""
    return value.startswith(("./", "../", "~/")) or "." in value


@given(st.lists(st.text(max_size=60).filter(lambda text: "\0" not in text), min_size=1, max_size=12))
def test_nothing_raises_and_the_number_of_arguments_stays(argv: list[str]) -> None:
    assert len(redacted(tuple(argv))) == len(argv)


FRAGMENTS = [
    "--password",
    "=",
    "token",
    ":",
    '"',
    "'",
    "\\",
    "://",
    "@",
    "curl",
    "-u",
    "-p",
    "mysql",
    " ",
    "eyJ",
    ".",
    "|",
]


@given(st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), min_size=1, max_size=6))
def test_nothing_raises_on_what_looks_like_it(argv: list[str]) -> None:
    assert len(redacted(tuple(argv))) == len(argv)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
def test_nothing_raises_on_one_string(arguments: str) -> None:
    Redaction(Ledger()).process(process_of(binary="/usr/bin/curl", arguments=arguments))
