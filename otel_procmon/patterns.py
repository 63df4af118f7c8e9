r"""Regular expressions in RE2's syntax, as Tetragon's filters use them, for Python's `re`.

What is common to both is taken as it is. Translated: ``\z``, ``$`` (RE2's does not match before a final line break),
``[[:alpha:]]``, ``\Q…\E``, ``\x{…}``, a literal ``{,``; and ``\d \w \s \b`` mean ASCII only. Refused, because RE2
refuses it: look-around, back-references, atomic groups, possessive repeats, Python flags. Refused, as Python cannot:
``\pL``, ``\C``, ``(?U)``, flags in the middle. One difference remains: RE2's time is linear, Python's is not, so a
pattern like ``(a+)+$`` can take very long on arguments that somebody made for it.
"""

from __future__ import annotations

import re

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": r"0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_NAMED_CLASS = re.compile(r"\[:(\^?)(\w+):\]")
_HEXADECIMAL = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ONLY_PYTHON = re.compile(r"\(\?(?:[=!>(#]|<[=!]|P[=>]|[a-zA-Z-]*[aLux])")
_MULTILINE = re.compile(r"\(\?[a-zA-Z]*m")
_POSSESSIVE = re.compile(r"[*+?}]\+")


def compile_re2(pattern: str) -> re.Pattern[str]:
    """`pattern` compiled; its ``search`` is what Go's ``MatchString`` is. Raises ValueError with the reason."""
    try:
        return re.compile(_translated(pattern), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _translated(pattern: str) -> str:
    """`pattern` in Python's syntax. Raises ValueError for what only one of the two knows."""
    end_of_text = "$" if _MULTILINE.search(pattern) else r"\Z"
    out: list[str] = []
    in_class = False
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            text, position = _escape(pattern, position, in_class=in_class)
            out.append(text)
            continue
        if in_class:
            if named := _NAMED_CLASS.match(pattern, position):
                out.append(_named_class(named))
                position = named.end()
                continue
            in_class = character != "]"
            # Python reserves some of these inside a class for later use and warns.
            out.append("\\" + character if character in "[&|~" else character)
        elif character == "[":
            begin = position
            position += 2 if pattern.startswith("[^", position) else 1
            out.append(pattern[begin:position])
            if pattern.startswith("]", position):
                out.append(r"\]")
                position += 1
            in_class = True
            continue
        elif character == "$":
            out.append(end_of_text)
        else:
            if _ONLY_PYTHON.match(pattern, position):
                raise ValueError(f"RE2 does not know {pattern[position : position + 4]}")
            if _POSSESSIVE.match(pattern, position):
                raise ValueError("RE2 has no possessive repeats")
            out.append(r"\{" if pattern.startswith("{,", position) else character)
        position += 1
    return "".join(out)


def _escape(pattern: str, position: int, *, in_class: bool) -> tuple[str, int]:
    r"""The escape at `position`, translated, and the index behind it."""
    sign = pattern[position + 1 : position + 2]
    if sign == "Q":
        literal, _, _ = pattern[position + 2 :].partition(r"\E")
        end = position + 2 + len(literal)
        return re.escape(literal), end + 2 if pattern.startswith(r"\E", end) else end
    if sign == "x" and (code := _HEXADECIMAL.match(pattern, position)):
        if int(code[1], 16) > 0x10FFFF:
            raise ValueError(f"{code[0]} is no character")
        return re.escape(chr(int(code[1], 16))), code.end()
    if sign == "z" and not in_class:
        return r"\Z", position + 2
    if sign in {"p", "P", "C"}:
        raise ValueError(rf"\{sign} is not supported here: name the characters in brackets instead")
    if sign in {"Z", "u", "U", "N", "G", "K", "k"} or (sign.isdigit() and sign != "0"):
        raise ValueError(rf"\{sign} is not known in RE2")
    return pattern[position : position + 2], position + 2


def _named_class(named: re.Match[str]) -> str:
    if named[1] or named[2] not in _CLASSES:
        raise ValueError(f"{named[0]} is not supported here: name the characters in brackets instead")
    return _CLASSES[named[2]]
