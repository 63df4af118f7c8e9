r"""RE2's expressions in Python: every answer and every refusal in these tables is Go's own (``regexp``), but for what Python cannot do."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.patterns import compile_re2


def matches(pattern: str, text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compile_re2(pattern).search(text) is not None


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("", ["", "a"], []),
        ("whoami", ["/usr/bin/whoami", "whoami2"], ["Whoami", "who ami"]),
        ("^/usr/bin/.*sh$", ["/usr/bin/bash", "/usr/bin/sh"], ["/bin/bash", "/usr/bin/bash2"]),
        # `$` is the very end, not before a last line break
        ("a$", ["a", "ba"], ["a\n", "a\nb"]),
        (r"a\z", ["a"], ["a\n"]),
        (r"\Aa", ["ab"], ["ba", "b\na"]),
        ("^a", ["a"], ["b\na"]),
        ("(?m)^a$", ["a\n", "b\na", "b\na\n"], ["ab"]),
        ("(?m:a$)|b$", ["a\nx", "b"], ["b\n"]),
        ("(?m)(?:a|(?-m:b$))", ["b", "a\n"], ["b\n"]),
        (".", ["a", "é", "\udc80"], ["\n", ""]),
        ("(?s).", ["\n"], [""]),
        # Perl's classes are ASCII's, and \s does not know \v
        (r"\d", ["7"], ["٣", "²"]),
        (r"\D", ["٣", "a"], ["7"]),
        (r"\w", ["_", "z", "0"], ["é", "\u017f", "-"]),
        (r"\W", ["é", " "], ["a", "_"]),
        (r"\s", [" ", "\t", "\n", "\f", "\r"], ["\v", "\u00a0", "\u2028"]),
        (r"\S", ["\v", "\u00a0"], [" ", "\n"]),
        (r"\bls\b", ["ls", "-ls-", "élsé"], ["als", "ls2"]),
        (r"\B", ["", "ab"], ["a"]),
        ("[[:alpha:]]", ["x"], ["é", "1"]),
        ("[[:^alpha:]]", ["é", "1"], ["x"]),
        ("[^[:^digit:]]", ["1"], ["x"]),
        ("[[:punct:]x]", ["x", "]", "~"], ["y"]),
        # Case: all of Unicode's, where Python's ASCII mode would know 26 letters
        ("(?i)É", ["é", "É"], ["e"]),
        ("(?i)[a-k]", ["K", "k", "\u212a"], ["l"]),
        ("(?i:a)b", ["Ab"], ["AB"]),
        # Flags in the middle hold to the end of their group, in all its alternatives
        ("a(?i)b", ["ab", "aB"], ["Ab"]),
        ("a(?i)b|c", ["aB", "C"], ["AB"]),
        ("(a(?i)b|c)d", ["aBd", "Cd"], ["CD"]),
        ("(?i)(?-i)a", ["a"], ["A"]),
        ("(?i)a(?m)b$", ["AB\n"], ["AC"]),
        # Text that only looks special
        ("a{,2}", ["a{,2}"], ["aa", "a"]),
        ("{x}+", ["{x}}"], ["x"]),
        ("a{", ["a{"], ["a"]),
        ("}", ["}"], ["{"]),
        (r"\Qa.b*\E$", ["a.b*"], ["axb*"]),
        (r"\Qab\E+$", ["abbb"], ["abab."]),
        (r"\Qa(", ["a("], ["a"]),
        (r"\_\-\/", ["_-/"], []),
        (r"\x41\x{e9}\101\0", ["AéA\0"], []),
        (r"\x{2e}", ["."], ["a"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[^]a]", ["b"], ["]", "a"]),
        ("[a-]", ["-", "a"], ["b"]),
        ("[-a]", ["-"], ["b"]),
        ("[a-c-e]", ["b", "-", "e"], ["d"]),
        ("[[a]", ["[", "a"], ["]"]),
        ("[&&||~~]", ["&", "|", "~"], ["a"]),
        ("[!--]", ["#", "-"], ["."]),
        (r"[\]\\]", ["]", "\\"], ["a"]),
        (r"[\x41-\x{43}]", ["B"], ["D"]),
        (r"[\d-z]", ["5", "-", "z"], ["a"]),
        (r"[a\W]", ["a", " ", "é"], ["b"]),
        (r"[^a\W]", ["b", "_"], ["a", " "]),
        (r"[^\W\D]", ["1"], ["a", " "]),
        (r"(?i)[\W]", [" ", "é"], ["k", "K"]),
        ("(?P<name>a)(?<other>b)", ["ab"], ["a"]),
        ("a{2}b{1,}c{0,1}$", ["aabb", "aabc"], ["abc"]),
        ("a*?b+?c??d{1,2}?", ["bd"], ["ad"]),
    ],
)
def test_meaning(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [text for text in matching if not matches(pattern, text)] == []
    assert [text for text in others if matches(pattern, text)] == []


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        # RE2 does not know them
        ("a(?=b)", r"RE2 does not know \(\?="),
        ("a(?!b)", r"RE2 does not know \(\?!"),
        ("(?<=a)b", r"RE2 does not know \(\?<="),
        ("(?<!a)b", r"RE2 does not know \(\?<!"),
        ("(?>a)", r"RE2 does not know \(\?>"),
        ("(?#a)", r"RE2 does not know \(\?#"),
        ("(?x)a b", r"RE2 does not know \(\?x"),
        ("(?a)a", r"RE2 does not know \(\?a"),
        ("(?P=n)", r"RE2 does not know \(\?P="),
        ("(a)(?(1)b)", r"RE2 does not know \(\?\("),
        (r"(a)\1", r"RE2 does not know \\1"),
        (r"a\Z", r"RE2 does not know \\Z"),
        (r"\u0041", r"RE2 does not know \\u"),
        (r"\é", r"RE2 does not know \\é"),
        (r"[\b]", r"RE2 does not know \\b"),
        (r"[\Qa\E]", r"RE2 does not know \\Q"),
        ("a*+", r"RE2 does not know \*\+"),
        ("a{2}+", r"RE2 does not know \{2\}\+"),
        ("a**", r"RE2 does not know \*\*"),
        ("a+?{2}", r"RE2 does not know"),
        ("[[:nope:]]", r"RE2 does not know \[:nope:\]"),
        ("a{1001}", "1000 times at most"),
        ("a{99999999999999999999}", "1000 times at most"),
        # Neither does
        ("(", "missing"),
        (")", "parenthesis is missing"),
        ("a)b", "parenthesis is missing"),
        ("[a", "closing ] is missing"),
        ("[", "closing ] is missing"),
        ("[a-", "closing ] is missing"),
        ("[z-a]", "z-a is no range"),
        ("*a", "nothing to repeat"),
        ("a\\", "RE2 does not know"),
        (r"\x{110000}", "is no character"),
        (r"\xg1", r"RE2 does not know \\x"),
        # Python does not
        (r"\pL", r"\\p is not supported here"),
        (r"[\P{Greek}]", r"\\P is not supported here"),
        ("(?U)a*", r"\(\?U\) is not supported here"),
    ],
)
def test_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compile_re2(pattern)


PIECES = st.sampled_from(
    [
        *"ab()[]{}*+?|^$.-\\\n",
        "(?i)",
        "(?m:",
        "(?P<n>",
        "[^",
        "[[:alpha:]",
        r"\d",
        r"\W",
        r"\b",
        r"\Q",
        r"\E",
        "{2,3}",
        "é",
    ]
)


@given(st.lists(st.one_of(PIECES, st.characters()), max_size=12).map("".join), st.text(max_size=5))
def test_every_text_is_a_pattern_or_a_value_error(pattern: str, text: str) -> None:
    with contextlib.suppress(ValueError):
        matches(pattern, text)


@given(st.text(), st.text(max_size=3), st.text(max_size=3))
def test_what_is_quoted_is_text(text: str, before: str, behind: str) -> None:
    if r"\E" not in text and not text.endswith("\\"):
        assert matches(rf"\Q{text}\E", before + text + behind)
        assert matches(rf"^\Q{text}\E$", text)
        assert not matches(rf"^\Q{text}\E$", text + "x")
