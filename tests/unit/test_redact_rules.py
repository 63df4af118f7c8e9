"""The tables of redaction: what they may say, so that no argument can make them slow."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from otel_procmon.redact import find, rules
from otel_procmon.redact.words import joined_words, quoted_end, script_words
from tests.unit.redaction_corpus import read_corpus

# Python's own parser of patterns is private, and has moved.
c: Any = importlib.import_module("re._constants" if sys.version_info >= (3, 11) else "sre_constants")
parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

PATTERNS = {
    **{f"{shape.name}: {shape.pattern}": shape.compiled() for shape in rules.SHAPES},
    **{f"{text.name}: {text.pattern}": re.compile(text.pattern) for text in rules.TEXTS},
    **{
        name: value for module in (rules, find) for name, value in vars(module).items() if isinstance(value, re.Pattern)
    },
}
MOST_WAYS = 20_000
"""Most ways in which one pattern can go on from one place, before it must know whether it matches."""

ASCII = frozenset(range(128))
CATEGORIES = {
    c.CATEGORY_SPACE: frozenset(b" \t\n\r\f\v"),
    c.CATEGORY_DIGIT: frozenset(b"0123456789"),
    c.CATEGORY_WORD: frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"),
}


def characters(op: Any, argument: Any) -> frozenset[int] | None:
    """Which of ASCII's characters one element stands for; None if it is none of one character."""
    if op is c.LITERAL:
        return frozenset({argument} | ({ord(chr(argument).swapcase())} if chr(argument).isalpha() else set()))
    if op is c.NOT_LITERAL:
        return ASCII - {argument}
    if op is c.ANY:
        return ASCII
    if op is not c.IN:
        return None
    found: set[int] = set()
    for kind, value in argument:
        if kind is c.LITERAL:
            found.add(value)
        elif kind is c.RANGE:
            found.update(range(value[0], value[1] + 1))
        elif kind is c.CATEGORY:
            found |= CATEGORIES[value]
    return ASCII - found if argument[0][0] is c.NEGATE else frozenset(found)


def firsts(items: Any) -> frozenset[int]:
    """The characters that a match of `items` can begin with; all of them if it can be empty."""
    found: frozenset[int] = frozenset()
    for op, argument in items:
        if op in (c.ASSERT, c.ASSERT_NOT, c.AT):
            continue
        if op in (c.MAX_REPEAT, c.MIN_REPEAT):
            found |= firsts(argument[2])
            if argument[0]:
                return found
        elif op is c.BRANCH:
            return found | frozenset().union(
                *(firsts([*branch, *rest_of(items, op, argument)]) for branch in argument[1])
            )
        elif op is c.SUBPATTERN:
            return found | firsts([*argument[-1], *rest_of(items, op, argument)])
        else:
            one = characters(op, argument)
            return ASCII if one is None else found | one
    return ASCII


def rest_of(items: Any, op: Any, argument: Any) -> list[Any]:
    items = list(items)
    following: list[Any] = items[items.index((op, argument)) + 1 :]
    return following


def ways(items: Any, following: Any = ()) -> int:
    """In how many ways a match can go on from one place; an AssertionError if there is no bound.

    A repeat without a bound must be of one set of characters, and what follows it either nothing, or a set that has
    none of them in common, so that there is one place where it can end. A bounded one has as many ways as its bound,
    unless it can end at one place only as well.
    """
    product = 1
    items = list(items)
    for index, (op, argument) in enumerate(items):
        after = [*items[index + 1 :], *following]
        if op in (c.MAX_REPEAT, c.MIN_REPEAT):
            least, most, inner = argument
            sole = list(inner)
            one = characters(*sole[0]) if len(sole) == 1 else None
            disjoint = one is not None and bool(after) and one.isdisjoint(firsts(after))
            if most is c.MAXREPEAT:
                assert op is c.MAX_REPEAT, "a lazy repeat without a bound"
                assert one is not None, "a repeat without a bound of more than one set of characters"
                assert not after, "something follows a repeat without a bound"
            elif not disjoint and after:
                product *= (most - least + 1) * ways(sole, after) ** min(most, 2)
        elif op is c.BRANCH:
            product *= sum(ways(branch, after) for branch in argument[1])
        elif op is c.SUBPATTERN:
            product *= ways(argument[-1], after)
        elif op in (c.ASSERT, c.ASSERT_NOT):
            product *= ways(argument[1])
    return product


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_can_take_long(name: str) -> None:
    assert ways(parser.parse(PATTERNS[name].pattern)) <= MOST_WAYS


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"a*b", r"(?:x|a+)b", r"(ab)*", r".*?x"])
def test_the_check_finds_what_can(pattern: str) -> None:
    with pytest.raises(AssertionError):
        ways(parser.parse(pattern))


@pytest.mark.parametrize(
    "unit",
    ["-p ", "token=", "token='", 'token="\\', "://a:b@", "://a:", "eyJ.eyJ.", "eyJa", "echo a|", "curl -u a:b ", "'\"", "\\\\",
     "authorization:", "-----BEGIN PRIVATE KEY-----", "pass:", "bearer ", "/a.", "$(", "a/b", "ghp_", "set password ", "=token",
     "-storepass=`", "password=a(", "password=$("],
)  # fmt: skip
def test_128_kib_of_anything_comes_to_an_end(unit: str) -> None:
    text = (unit * (2**17 // len(unit) + 1))[: 2**17]
    assert find.in_joined("/bin/x", text) is not None
    assert find.in_arguments(("curl", "--token", text)) is not None


def test_every_shape_says_where_it_is_from() -> None:
    for shape in rules.SHAPES:
        assert shape.source.startswith("https://"), shape.name


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("password", True),
        ("DB_PASSWORD", True),
        ("dbPassword2", True),
        ("spring.datasource.password", True),
        ("x-api-key", True),
        ("SSHPASS", True),
        ("NPM_AUTH", True),
        ("password-file", False),
        ("bypass", False),
        ("tokens", False),
        ("max_token", False),
        ("tokenizer", False),
        ("key", False),
        ("image.pullSecret", False),
        ("", False),
    ],
)
def test_names(name: str, secret: bool) -> None:
    assert find.is_secret_name(name) is secret


def test_spans_that_overlap_are_replaced_by_one_mark() -> None:
    assert find.replaced("abcdefgh", [(1, 3), (2, 5), (5, 6), (7, 7)]) == "a*****gh"
    assert find.replaced("abc", [(0, 3)]) == "*****"
    assert find.replaced("abc", []) == "abc"


def test_words_of_a_script() -> None:
    commands = script_words("a 'b c'\\ d;e \"f\\\"g\" $(h)\ni>j 'k")
    assert [[word.text for word in command] for command in commands if command] == [
        ["a", "'b c'\\ d"],
        ["e", '"f\\"g"', "$"],
        ["h"],
        ["i", "j", "'k"],
    ]


def test_words_of_tetragons_arguments() -> None:
    words = joined_words('-c "echo "x" y"  last "cut o')
    assert [word.text for word in words] == ["-c", '"echo "x"', 'y"', "last", '"cut o']
    assert all('-c "echo "x" y"  last "cut o'.startswith(word.text, word.begin) for word in words)


def test_ends_of_quotes() -> None:
    assert quoted_end(r"a\"b\\" + '"c', 0, '"') == 7
    assert quoted_end("abc", 0, '"') == 3


def test_what_is_suspect_and_too_long_is_replaced_as_a_whole() -> None:
    long = "x " * find.LOOKED_AT
    assert find.in_arguments(("sh", "-c", long)) == []
    spans = find.in_arguments(("sh", "-c", f"a --token b {long} --token c"))
    text = find.replaced(f"a --token b {long} --token c", [(span.begin, span.end) for span in spans])
    assert text.startswith("a --token ***** x x")
    assert text.endswith("x*****")
    assert find.LOOKED_AT - 10 < len(text) < find.LOOKED_AT + 10
    assert {span.rule for span in spans} == {"option", find.TOO_LONG}
    # Arguments by themselves are looked at as such at any length.
    many = ("curl", *["https://user@x/?token=abc"] * 1000, "-u", "bob:hunter2", "plain", "--token", "abc", "-x")
    redacted = {span.argument: span.rule for span in find.in_arguments(many)}
    assert redacted[1002] == "program-option"
    assert redacted[1005] == "option"
    assert redacted[999] == find.TOO_LONG
    assert 1003 not in redacted
    assert 1006 not in redacted


def test_behind_very_many_arguments_options_and_their_values_are_replaced() -> None:
    many = ["file"] * find.WORDS_LOOKED_AT
    behind = ("file", "-u", "bob:hunter2", "file", "set", "pw", "https://a:b@c", "file")
    spans = find.in_arguments(("curl", *many, *behind))
    assert {span.argument - len(many) - 1 for span in spans} == {1, 2, 5, 6}
    assert {span.rule for span in spans} == {find.TOO_LONG}
    # No program that takes secrets in a way of its own: nothing needs to be kept short.
    spans = find.in_arguments(("ld", *many, "-lx", "--token", "abc", "file"))
    assert [(span.argument - len(many) - 1, span.rule) for span in spans] == [(2, "option")]


def test_one_string_that_is_too_long_is_cut_likewise() -> None:
    arguments = f"--token abc {'x ' * find.LOOKED_AT}https://bob:hunter2@x/"
    spans = find.in_joined("/bin/x", arguments)
    assert "hunter2" not in find.replaced(arguments, [(span.begin, span.end) for span in spans])


def test_the_documentation_has_every_shape_and_the_corpus_size() -> None:
    text = (Path(__file__).parents[2] / "docs/redaction.md").read_text(encoding="utf-8")
    for shape in rules.SHAPES:
        pattern = shape.pattern.replace("|", r"\|")
        assert f"| `{shape.name}` | `{pattern}` |" in text
        assert f"({shape.source})" in text
    corpus = read_corpus()
    assert f"{len(corpus)} command lines, {sum(not line.secrets for line in corpus)} of them harmless" in text
