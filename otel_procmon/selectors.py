"""Kubernetes label selectors: ``app=web,tier in (front,back),!canary``.

Syntax and meaning as in the Kubernetes documentation ("Labels and Selectors") and apimachinery's ``labels.Parse``:
all requirements hold at once; ``!=`` and ``notin`` also select what has no such label; ``>`` and ``<`` compare
integers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TOKEN = re.compile(r"\s*(?:([(),])|(==|!=|=|!|>|<)|([^\s(),=!<>]+))")
_DNS_LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_KEY = re.compile(
    rf"(?:(?=[^/]{{1,253}}/){_DNS_LABEL}(?:\.{_DNS_LABEL})*/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SETS = {"in", "notin"}


class Requirement(NamedTuple):
    """One part of a selector."""

    key: str
    operator: str
    """``in``, ``notin``, ``exists``, ``!``, ``>`` or ``<``."""
    values: frozenset[str]

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` meet it."""
        value = labels.get(self.key)
        if self.operator == "in":
            return value in self.values
        if self.operator == "notin":
            return value not in self.values
        if self.operator == "exists":
            return value is not None
        if self.operator == "!":
            return value is None
        if value is None or not re.fullmatch(r"[+-]?[0-9]{1,19}", value):
            return False
        (bound,) = self.values
        return int(value) > int(bound) if self.operator == ">" else int(value) < int(bound)


def parse_selector(text: str) -> Callable[[Mapping[str, str]], bool]:
    """A function that says whether labels are selected. Raises ValueError with the reason."""
    tokens = _tokens(text)
    requirements = []
    while tokens:
        requirements.append(_requirement(tokens))
        if tokens:
            if tokens.pop(0) != ",":
                raise ValueError("a comma is missing between two requirements")
            if not tokens:
                raise ValueError("nothing comes after the last comma")
    return lambda labels: all(requirement.selects(labels) for requirement in requirements)


def _tokens(text: str) -> list[str]:
    tokens = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        assert match is not None  # the three alternatives cover every character that is not white space
        tokens.append(match[1] or match[2] or match[3])
        position = match.end()
    return tokens


def _requirement(tokens: list[str]) -> Requirement:
    if tokens[0] == "!":
        tokens.pop(0)
        return Requirement(_key(tokens), "!", frozenset())
    key = _key(tokens)
    if not tokens or tokens[0] == ",":
        return Requirement(key, "exists", frozenset())
    operator = tokens.pop(0)
    if operator in {"=", "==", "!="}:
        return Requirement(key, "notin" if operator == "!=" else "in", frozenset({_value(tokens)}))
    if operator in {">", "<"}:
        bound = _value(tokens)
        if not re.fullmatch(r"[0-9]{1,19}", bound):
            raise ValueError(f"{key} {operator} needs an integer, not {bound!r}")
        return Requirement(key, operator, frozenset({bound}))
    if operator in _SETS:
        return Requirement(key, operator, _values(tokens))
    raise ValueError(f"{operator!r} is no operator")


def _key(tokens: list[str]) -> str:
    key = tokens.pop(0) if tokens else ""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no label key")
    return key


def _value(tokens: list[str]) -> str:
    """The value after an operator, which may be empty."""
    value = tokens.pop(0) if tokens and tokens[0] != "," else ""
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{value!r} is no label value")
    return value


def _values(tokens: list[str]) -> frozenset[str]:
    """``(a, b)``; an empty value is one too, and ``()`` holds one."""
    if not tokens or tokens.pop(0) != "(":
        raise ValueError("in and notin need values in parentheses")
    values = set()
    while True:
        word = tokens.pop(0) if tokens and tokens[0] not in {",", ")"} else ""
        if not _VALUE.fullmatch(word):
            raise ValueError(f"{word!r} is no label value")
        values.add(word)
        if not tokens:
            raise ValueError("a closing parenthesis is missing")
        sign = tokens.pop(0)
        if sign == ")":
            return frozenset(values)
        if sign != ",":
            raise ValueError(f"a comma is missing before {sign!r}")
