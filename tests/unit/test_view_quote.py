"""Text that is safe for a terminal."""

from __future__ import annotations

import ast
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.view.quote import quote, quote_unless_plain, quote_unless_printable, valid_unicode

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
"""Lone surrogates too: they stand for bytes that are not UTF-8."""


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        # What Go's strconv.Quote gives
        ("", '""'),
        ("a b", '"a b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        ("\0\x1b[31m\x7f", r'"\x00\x1b[31m\x7f"'),
        ("\x80\x9b", r'"\u0080\u009b"'),
        ("é😀", '"é😀"'),
        ("\u00a0\u00ad", r'"\u00a0\u00ad"'),
        ("\u200b\u2028\u202e\ufeff", r'"\u200b\u2028\u202e\ufeff"'),
        ("\U000e0001\U0010ffff", r'"\U000e0001\U0010ffff"'),
        ("\ufffd", '"\ufffd"'),
        # Bytes that are not UTF-8, as Python hands them on, and numbers that are no characters
        (b"\xff\x80".decode("utf-8", "surrogateescape"), r'"\xff\x80"'),
        ("\ud800\udfff", r'"\ufffd\ufffd"'),
    ],
)
def test_quote(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    ("text", "word", "line"),
    [
        ("/usr/bin/whoami", "/usr/bin/whoami", "/usr/bin/whoami"),
        ("a b", '"a b"', "a b"),
        ("", '""', ""),
        ("\t", r'"\t"', r'"\t"'),
        ('"', '"', '"'),
        ("\u3000", r'"\u3000"', r'"\u3000"'),
    ],
)
def test_only_what_has_to_be_is_quoted(text: str, word: str, line: str) -> None:
    assert (quote_unless_plain(text), quote_unless_printable(text)) == (word, line)


@given(TEXTS)
def test_nothing_that_drives_a_terminal_gets_through(text: str) -> None:
    for shown in (quote(text), quote_unless_plain(text), quote_unless_printable(text)):
        assert not [
            character for character in shown if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        ]
    assert len(quote_unless_plain(text).split()) == 1 or quote_unless_plain(text).startswith('"')


@given(st.text(max_size=20))
def test_a_quoted_text_says_what_it_was(text: str) -> None:
    assert ast.literal_eval(quote(text)) == text


@given(TEXTS)
def test_valid_unicode(text: str) -> None:
    valid = valid_unicode(text)
    valid.encode()
    assert valid_unicode(valid) == valid
    if valid == text:
        text.encode()


def test_a_run_of_invalid_bytes_is_one_replacement() -> None:
    assert valid_unicode("a\udcff\udcfeb\udc80") == "a\ufffdb\ufffd"
