r"""Regular expressions in RE2's syntax, as Tetragon's filters use them, for Python's `re`.

A pattern means here what it means to Go's ``regexp``: ``\d \w \s \b`` are ASCII's and ``$`` is the very end, flags in
the middle hold until their group ends, ``{,3}`` is text. What RE2 does not know is refused (look-around,
back-references, possessive repeats), and so is what Python does not: ``\pL``, ``\C``, ``(?U)``, a repeated ``^``. One
difference remains: RE2's time is linear, Python's is not, so a pattern like ``(a+)+$`` can take very long on arguments
that somebody made for it.
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
_PERL_CLASSES = {"d": "0-9", "s": r"\t\n\f\r ", "w": "0-9A-Za-z_"}
_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ASSERTIONS = {"A": r"\A", "z": r"\Z", "b": r"(?a:\b)", "B": r"(?!(?a:\b))"}
_ANYTHING = r"[\s\S]"

_NAMED_CLASS = re.compile(r"\[:(\^?)(\w+):\]")
_HEXADECIMAL = re.compile(r"\\x(?:\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{2}))")
_OCTAL = re.compile(r"\\(0[0-7]{0,2}|[1-7][0-7]{1,2})")
_FLAGS = re.compile(r"\(\?([imsU]*(?:-[imsU]+)?)([:)])")
_NAMED_GROUP = re.compile(r"\(\?P?<\w+>")
_COUNT = re.compile(r"\{([0-9]+)(?:,([0-9]*))?\}")
_LARGEST_COUNT = 1000


def compile_re2(pattern: str) -> re.Pattern[str]:
    """`pattern` compiled; its ``search`` is what Go's ``MatchString`` is. Raises ValueError with the reason."""
    try:
        return re.compile(_Translation(pattern).text())
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


class _Group:
    """A group that is open: which flags were set inside it, each a group of its own in Python, and if ``m`` is on."""

    def __init__(self, *, multiline: bool) -> None:
        self.multiline = multiline
        self.flags: list[str] = []

    def set(self, flags: str) -> None:
        on, _, off = flags.partition("-")
        if "U" in flags:
            raise ValueError("(?U) is not supported here: write *? for *")
        self.multiline = (self.multiline or "m" in on) and "m" not in off


class _Translation:
    """One pattern on its way to Python's syntax. Raises ValueError for what only one of the two knows."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._out: list[str] = []
        self._groups = [_Group(multiline=False)]

    def text(self) -> str:
        """The pattern in Python's syntax."""
        while self._position < len(self._pattern):
            character = self._pattern[self._position]
            if character == "\\":
                self._escape()
            elif character == "[":
                self._class()
            elif character == "(":
                self._open()
            elif character in ")|":
                self._close_or_alternate(character)
            elif character in "*+?" or self._match(_COUNT):
                self._repeat()
            else:
                if character == "$" and not self._groups[-1].multiline:
                    character = r"\Z"
                elif character in "{}":
                    character = "\\" + character
                self._out.append(character)
                self._position += 1
        self._out += ")" * len(self._groups[-1].flags)
        return "".join(self._out)

    def _match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        return expression.match(self._pattern, self._position)

    def _open(self) -> None:
        group = self._groups[-1]
        if flags := self._match(_FLAGS):
            self._out.append(f"(?{flags[1]}:")
            if flags[2] == ")":
                group.set(flags[1])
                group.flags.append(flags[1])
            else:
                self._groups.append(_Group(multiline=group.multiline))
                self._groups[-1].set(flags[1])
            self._position = flags.end()
            return
        if named := self._match(_NAMED_GROUP):
            self._position = named.end()
        elif self._pattern.startswith("(?", self._position):
            raise ValueError(f"RE2 does not know {self._pattern[self._position : self._position + 4]}")
        else:
            self._position += 1
        self._out.append("(")
        self._groups.append(_Group(multiline=group.multiline))

    def _close_or_alternate(self, character: str) -> None:
        """Flags hold until their group ends, in all of its alternatives."""
        flags = self._groups[-1].flags
        self._out += [")" * len(flags), character]
        if character == "|":
            self._out += [f"(?{flag}:" for flag in flags]
        elif len(self._groups) == 1:
            raise ValueError("an opening parenthesis is missing")
        else:
            self._groups.pop()
        self._position += 1

    def _repeat(self) -> None:
        begin = self._position
        if count := self._match(_COUNT):
            if any(len(number) > 4 or int(number) > _LARGEST_COUNT for number in count.groups() if number):
                raise ValueError(f"RE2 repeats {_LARGEST_COUNT} times at most, not {count[0]}")
            self._position = count.end()
        else:
            self._position += 1
        if self._pattern.startswith("?", self._position):
            self._position += 1
        if self._pattern[self._position : self._position + 1] in ("*", "+", "?") or self._match(_COUNT):
            raise ValueError(f"RE2 does not know {self._pattern[begin : self._position + 1]}: a repeat of a repeat")
        self._out.append(self._pattern[begin : self._position])

    def _escape(self) -> None:
        r"""Whatever a backslash begins, outside of brackets."""
        sign = self._pattern[self._position + 1 : self._position + 2]
        if sign == "Q":
            literal, _, _ = self._pattern[self._position + 2 :].partition(r"\E")
            self._out.append(re.escape(literal))
            self._position = min(self._position + 4 + len(literal), len(self._pattern))
        elif sign in _ASSERTIONS:
            self._out.append(_ASSERTIONS[sign])
            self._position += 2
        elif perl := self._perl_class():
            negated, members = perl
            self._out.append(f"[^{members}]" if negated else f"[{members}]")
        else:
            self._out.append(re.escape(self._character()))

    def _class(self) -> None:
        """``[…]``. Python knows no negated class inside one; such parts become alternatives beside the brackets."""
        pattern = self._pattern
        excluding = pattern.startswith("[^", self._position)
        self._position += 2 if excluding else 1
        begin = self._position
        members: list[str] = []
        complements: list[str] = []
        while not pattern.startswith("]", self._position) or self._position == begin:
            if self._position >= len(pattern):
                raise ValueError("a closing ] is missing")
            if named := self._match(_NAMED_CLASS):
                if named[2] not in _CLASSES:
                    raise ValueError(f"RE2 does not know {named[0]}")
                (complements if named[1] else members).append(_CLASSES[named[2]])
                self._position = named.end()
            elif perl := self._perl_class():
                (complements if perl[0] else members).append(perl[1])
            else:
                first = last = self._character()
                if pattern.startswith("-", self._position) and not pattern.startswith("-]", self._position):
                    self._position += 1
                    last = self._character()
                    if last < first:
                        raise ValueError(f"{first}-{last} is no range of characters")
                members.append(re.escape(first) + "-" + re.escape(last) if first != last else re.escape(first))
        self._position += 1
        inside = "".join(members)
        if not complements:
            self._out.append(f"[{'^' if excluding else ''}{inside}]")
        elif excluding:
            ahead = "".join(f"(?![^{complement}])" for complement in complements)
            self._out.append(f"(?:{ahead}{f'[^{inside}]' if inside else _ANYTHING})")
        else:
            alternatives = [f"[{inside}]"] if inside else []
            alternatives += [f"[^{complement}]" for complement in complements]
            self._out.append(f"(?:{'|'.join(alternatives)})")

    def _perl_class(self) -> tuple[bool, str] | None:
        r"""``\d`` and its like: if negated, and the members for use between brackets."""
        sign = self._pattern[self._position + 1 : self._position + 2]
        if self._pattern[self._position] != "\\" or sign.lower() not in _PERL_CLASSES:
            return None
        self._position += 2
        return sign.isupper(), _PERL_CLASSES[sign.lower()]

    def _character(self) -> str:
        """The one character that stands here, perhaps as an escape."""
        if self._position >= len(self._pattern):
            raise ValueError("a closing ] is missing")
        if self._pattern[self._position] != "\\":
            self._position += 1
            return self._pattern[self._position - 1]
        if code := self._match(_HEXADECIMAL):
            self._position = code.end()
            number = int(code[1] or code[2], 16)
            if number > 0x10FFFF:
                raise ValueError(f"{code[0]} is no character")
            return chr(number)
        if code := self._match(_OCTAL):
            self._position = code.end()
            return chr(int(code[1], 8))
        sign = self._pattern[self._position + 1 : self._position + 2]
        if sign in ("p", "P", "C"):
            raise ValueError(rf"\{sign} is not supported here: name the characters in brackets instead")
        if not sign.isascii() or (sign.isalnum() and sign not in _CONTROLS) or not sign:
            raise ValueError(rf"RE2 does not know \{sign}")
        self._position += 2
        return _CONTROLS.get(sign, sign)
