"""Finds secrets in command lines: where they stand, and by which rule (`redact.rules`). Pure functions.

An argument is looked at as what it is (``--token``, then its value), and as a text that may hold a URL, a header, JSON,
or a whole script, whose words are then looked at in the same way. All of this is done only where something in the
command line makes it worth while (`Finder.is_suspect`): hardly any command line holds a secret.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.redact.rules import (
    ENDINGS,
    FILE_NAME,
    FILE_SUFFIXES,
    FORMS,
    HARMLESS_ENDINGS,
    HARMLESS_VALUE,
    KEYWORD,
    LAST_AFTER_B,
    LOGIN,
    LOGIN_FIRST,
    MARK,
    MESSAGES,
    PLACES,
    PROGRAMS,
    READS_PASSWORD,
    SETS,
    SHAPES,
    SHELL_REFERENCE,
    SWITCH_PREFIX,
    TELLS,
    TEXTS,
    TRIGGER,
    USERINFO,
    Form,
    Part,
    Text,
    Until,
)
from otel_procmon.redact.words import joined_words, quoted_end, script_words, unquoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DEPTH: Final = 3
"""A script within a script within a script; further in, only texts are looked at."""
LOOKED_AT: Final = 16 * 1024
"""How many characters of a command line are looked at closely, of those arguments that are suspect. What is suspect
beyond that is replaced as a whole: else arguments that were made for it would cost a tenth of a second each time."""
WORDS_LOOKED_AT: Final = 2048
"""How many arguments are compared with all the ways in which the programs among them take secrets. Behind these, every
option and what follows it is replaced, for the same reason."""
TOO_LONG: Final = "too-long"
_KNOWN_MAX: Final = 16_384
_KNOWN_LENGTH: Final = 128

_OPTION: Final = re.compile(r"-{1,2}([A-Za-z][\w.-]{0,63}?)(?:([:=])|$)", re.ASCII)
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][\w.-]{0,63})\+?=", re.ASCII)
_JAVA_PROPERTY: Final = re.compile(r"-[DPe]([A-Za-z_][\w.-]{0,63})=", re.ASCII)
_ENVIRONMENT: Final = re.compile(r"[A-Z0-9_]{1,64}")
_MORE: Final = re.compile(r"[&,; ][ ]?[\w.-]{1,64}=", re.ASCII)
_AFTER_QUOTE: Final = re.compile(r"[,;)\]}]{0,4}")
_SCRIPT_OPTION: Final = re.compile(r"-[A-Za-z]{0,6}c")
_NAME_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_SEPARATORS: Final = str.maketrans("", "", "-_.:")
_ESCAPED_QUOTE: Final = re.compile(r"\\{1,15}[\"']")
_BARE: Final = re.compile(r"[^\s&;,\"'\\<>)}\]|]*")
_WORD_END: Final = re.compile(r"[^\s\"'&;|<>\\,)}]*")
_LINE_END: Final = re.compile(r"[^\r\n\"']*")
_WHOLE_LINE: Final = re.compile(r"[^\r\n]*")
_AUTHORITY_END: Final = re.compile(r"[^\s\"'<>\\]*")

_SHAPES: Final = tuple((shape.words, shape.name, shape.compiled()) for shape in SHAPES)
_TEXTS: Final = tuple((text.words, text, re.compile(text.pattern)) for text in TEXTS)
_SCRIPT_WORD: Final = re.compile(r"[\w.-]+", re.ASCII)
_IN_SCRIPT: Final = PROGRAMS | READS_PASSWORD | {"sudo"}
_COMMAND: Final = re.compile(r"[^|;&\n]{0,300}")
_SUDO_STDIN: Final = re.compile(r"-[A-Za-z]{0,8}S[A-Za-z]{0,8}")


class Span(NamedTuple):
    """A secret: a part of one argument."""

    argument: int
    begin: int
    end: int
    rule: str


class Finder:
    """Decides which command lines need a closer look, and remembers arguments that do not. Not thread-safe."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        """Arguments in which nothing is suspect. A build uses the same few over and over."""

    def is_suspect(self, arguments: Sequence[str]) -> bool:
        """Whether there may be a secret in `arguments`; if not, no rule finds one."""
        known = self._known
        if known.issuperset(arguments):
            return False
        for argument in arguments:
            if argument in known:
                continue
            if is_suspect(argument):
                return True
            if len(argument) <= _KNOWN_LENGTH:
                if len(known) >= _KNOWN_MAX:
                    # What is in use comes back soon.
                    known.clear()
                known.add(argument)
        return False


def is_suspect(text: str) -> bool:
    """Whether a command line with `text` in it needs a closer look."""
    if TRIGGER.search(text.lower()) is not None or "ASIA" in text or text.rpartition("/")[2] in PROGRAMS:
        return True
    # Perhaps a script.
    return " " in text and not _IN_SCRIPT.isdisjoint(_SCRIPT_WORD.findall(text))


def in_arguments(argv: Sequence[str]) -> list[Span]:
    """Secrets in `argv`, the program's name first."""
    return _in_words(argv, depth=0, script=False)


def in_joined(program: str, arguments: str) -> list[Span]:
    """Secrets in Tetragon's one string, which `program` was given. All of it counts as argument 0."""
    words = [program]
    begins = [0]
    for word, begin in joined_words(arguments):
        inside, offset = unquoted(word) if word[0] == '"' else (word, 0)
        words.append(inside)
        begins.append(begin + offset)
    found = _in_words(words, depth=0, script=False)
    spans = [Span(0, begins[index] + begin, begins[index] + end, rule) for index, begin, end, rule in found if index]
    text = _within(arguments, LOOKED_AT) if is_suspect(arguments) else arguments
    if len(text) < len(arguments):
        spans.append(Span(0, len(text), len(arguments), TOO_LONG))
    return spans + _in_text(text, 0, 0)


def _within(text: str, room: int) -> str:
    """As much of `text` as has room, up to a blank."""
    if len(text) <= room:
        return text
    return text[: max(0, text.rfind(" ", 0, max(0, room)))]


def in_text(text: str) -> list[Span]:
    """Secrets in a text that is no command line: a path, a name."""
    return _in_text(text, 0, 0)


def replaced(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """`text` with `MARK` in the place of each of `spans`, or of what several of them cover together."""
    parts: list[str] = []
    done = 0
    last = -1
    for begin, end in sorted(spans):
        if begin >= end:
            continue
        if begin <= last:
            last = max(last, end)
            done = max(done, last)
            continue
        parts += (text[done:begin], MARK)
        done = last = end
    parts.append(text[done:])
    return "".join(parts)


def is_secret_name(name: str) -> bool:
    """Whether an option, a variable or a key of this name holds a secret: ``db-password``, ``API_KEY``, ``dbPass2``."""
    plain = name.translate(_SEPARATORS).lower().rstrip("0123456789")
    if not plain.endswith(ENDINGS):
        return name.lower().endswith("_auth")
    return not plain.endswith(HARMLESS_ENDINGS)


def is_secret_value_of(name: str, value: str, *, script: bool = False) -> bool:
    """Whether an option or a variable of this `name` holds a secret, and `value` is one."""
    if not is_secret_name(name) or not _is_secret(value, script=script):
        return False
    # The shell's own variable, and where some programs are to run.
    return not (value.startswith("/") and name.lower().endswith("pwd"))


def _is_secret(value: str, *, script: bool) -> bool:
    """Whether `value` can be a secret: not where it is a path, a variable, or the mark of an earlier redaction."""
    bare, _ = unquoted(value)
    if _is_harmless(bare) or not any(map(str.isalnum, bare)):
        return False
    return not (script and SHELL_REFERENCE.fullmatch(value))


def _is_harmless(value: str) -> bool:
    if HARMLESS_VALUE.fullmatch(value) is not None:
        return True
    _, dot, suffix = value.rpartition(".")
    return bool(dot) and suffix.lower() in FILE_SUFFIXES and FILE_NAME.fullmatch(value) is not None


# Words.


def _in_words(words: Sequence[str], *, depth: int, script: bool) -> list[Span]:
    """Secrets in the words of one command, which are a script's, quotes included, or arguments."""
    spans: list[Span] = []
    programs: set[str] = set()
    forms: dict[str, list[Form]] = {}
    seen: set[str] = set()
    previous = ""
    tells = False
    left = LOOKED_AT
    for index, word in enumerate(words):
        if programs and index >= WORDS_LOOKED_AT and not depth:
            spans += _behind(words, index, programs)
            break
        bare, offset = unquoted(word) if script else (word, 0)
        _meet(bare, programs, forms)
        following = words[index + 1] if index + 1 < len(words) else None
        tells = tells or bare in TELLS
        prose = tells and previous in MESSAGES and " " in bare
        if not prose:
            spans += _in_option(index, bare, offset, following=following, previous=previous, script=script)
            for form in forms.get(bare[:2], ()) if bare[:1] != "-" else (*forms.get(bare[:2], ()), *forms.get("-", ())):
                spans += _in_form(form, index, bare, offset, following=following, seen=seen, script=script)
            if programs:
                spans += _in_place(index, bare, words, programs, script=script)
        seen.add(bare)
        previous = bare
        if not is_suspect(bare):
            continue
        text = bare
        if not depth:
            text = _within(bare, left)
            left -= len(text)
            if len(text) < len(bare):
                spans.append(Span(index, len(text), len(bare), TOO_LONG))
        spans += _in_text(text, index, offset)
        if depth < _DEPTH and not prose and any(map(text.__contains__, " \t\n;|&")):
            for command in script_words(text):
                inner = _in_words([part.text for part in command], depth=depth + 1, script=True)
                spans += [
                    Span(index, offset + command[part].begin + begin, offset + command[part].begin + end, rule)
                    for part, begin, end, rule in inner
                ]
    if programs & LAST_AFTER_B and len(words) > 1 and any(re.match(r"-[a-zA-Z]{0,8}b", word) for word in words):
        spans.append(Span(len(words) - 1, 0, len(words[-1]), "program-argument"))
    return spans


def _behind(words: Sequence[str], begin: int, programs: set[str]) -> list[Span]:
    """Of the arguments from `begin` on, whatever may be a secret. Files, of which there may be so many, are none."""
    spans: list[Span] = []
    logs_in = not programs.isdisjoint(LOGIN_FIRST)
    previous = words[begin - 1]
    for index in range(begin, len(words)):
        word = words[index]
        if word[:1] == "-" or previous[:1] == "-" or previous.lower() in SETS or is_suspect(word):
            spans.append(Span(index, 0, len(word), TOO_LONG))
        if logs_in or word.rpartition("/")[2].lower() in _PLACE_WORDS:
            spans += _in_place(index, word, words, programs, script=False)
        previous = word
    return spans


def _meet(word: str, programs: set[str], forms: dict[str, list[Form]]) -> None:
    """If `word` names a program that is not known yet: note it, and how it takes secrets, by an option's beginning."""
    name = word.rpartition("/")[2]
    if name not in PROGRAMS or name in programs:
        return
    programs.add(name)
    for begin, form in _FORMS.get(name, ()):
        known = forms.setdefault(begin, [])
        if form not in known:
            known.append(form)


def _by_beginning(program: str) -> tuple[tuple[str, Form], ...]:
    """The forms of `program`, each by the first two letters of its options, or by ``-`` where others may precede."""
    return tuple(
        (begin, form)
        for form in FORMS
        if program in form.programs
        for begin in (("-",) if form.cluster else dict.fromkeys(option[:2] for option in form.options))
    )


_FORMS: Final = {program: _by_beginning(program) for program in PROGRAMS}
_PLACE_WORDS: Final = frozenset(place.word for place in PLACES)


def _in_option(index: int, bare: str, offset: int, *, following: str | None, previous: str, script: bool) -> list[Span]:
    """A secret that is known by the name of its option or variable."""
    if bare[:1] != "-" and "=" not in bare and previous.lower() not in SETS:
        return []
    match = _OPTION.match(bare)
    if match is not None and not match[2]:
        name = match[1]
        if (
            following is None
            or following.startswith("-")
            or not is_secret_value_of(name, following, script=script)
            or SWITCH_PREFIX.match(name.lower())
        ):
            return []
        return [Span(index + 1, 0, len(following), "option")]
    option = match is not None
    if match is None:
        match = _ASSIGNMENT.match(bare) or _JAVA_PROPERTY.match(bare)
    if match is None:
        if following is None or previous.lower() not in SETS or len(bare) > 256:
            return []
        return (
            [Span(index + 1, 0, len(following), "option")] if is_secret_value_of(bare, following, script=script) else []
        )
    begin, end = match.end(), len(bare)
    value = bare[begin:]
    if not is_secret_value_of(match[1], value, script=script):
        return []
    if not option and _SCRIPT_OPTION.fullmatch(previous) and " " in value:
        # A script, which begins with a variable; its words are looked at one by one.
        return []
    if not _ENVIRONMENT.fullmatch(match[1]) and _MORE.search(value):
        # Others follow, in which nothing may be secret: they are looked at as a text.
        return []
    if script and value[0] in "\"'":
        closing = quoted_end(value, 1, value[0])
        if value[closing - 1] == value[0] and closing > 1 and _AFTER_QUOTE.fullmatch(value, closing):
            begin, end = begin + 1, begin + closing - 1
    return [Span(index, offset + begin, offset + end, "option" if option else "variable")]


def _in_form(
    form: Form, index: int, bare: str, offset: int, *, following: str | None, seen: set[str], script: bool
) -> list[Span]:
    """A secret that is known by the way in which its program takes it."""
    if form.after and seen.isdisjoint(form.after):
        return []
    for option in form.options:
        long = len(option) > 2 and option[0] == "-" and not (len(option) == 3 and form.attached)
        letter = bare.find(option[1], 1) if form.cluster and not long else -1
        clustered = letter > 1 and bare[0] == "-" and all(sign in form.cluster for sign in bare[1:letter])
        if bare == option or (clustered and letter == len(bare) - 1):
            if form.separate and following is not None:
                return _part(form.part, index + 1, following, 0, script=script)
            return []
        begin = 0
        if long:
            begin = len(option) + 1 if bare.startswith(option + "=") else 0
        elif form.attached and bare.startswith(option):
            begin = len(option)
        elif form.attached and clustered:
            begin = letter + 1
        if begin:
            return [
                Span(found.argument, found.begin + offset, found.end + offset, found.rule)
                for found in _part(form.part, index, bare, begin, script=script)
            ]
    return []


_PARTS: Final = {Part.AFTER_COLON: ":", Part.AFTER_PERCENT: "%", Part.AFTER_COMMA: ",", Part.AFTER_EQUALS: "="}


def _part(part: Part, index: int, text: str, begin: int, *, script: bool) -> list[Span]:
    """The secret part of the value that begins at `begin` of the word `text`."""
    end = len(text)
    if part is not Part.WHOLE:
        # A quotation mark that begins the value stays, and so does the one that ends it.
        if script and text[begin : begin + 1] in ("'", '"') and text[-1] == text[begin] and end - begin > 1:
            end -= 1
        found = text.find(_PARTS[part], begin)
        if found < 0:
            return []
        begin = found + 1
    if begin >= end or not _is_secret(text[begin:end], script=script):
        return []
    return [Span(index, begin, end, "program-option")]


def _in_place(index: int, bare: str, words: Sequence[str], programs: set[str], *, script: bool) -> list[Span]:
    """A secret that is known by its place."""
    spans = []
    name = bare.rpartition("/")[2].lower()
    for place in PLACES if name in _PLACE_WORDS else ():
        if programs.isdisjoint(place.programs) or name != place.word:
            continue
        at = index + 1 + place.skip
        if at < len(words) and not words[at].startswith("-") and _is_secret(words[at], script=script):
            spans.append(Span(at, 0, len(words[at]), "program-argument"))
    if programs & LOGIN_FIRST and (match := LOGIN.match(bare)):
        spans.append(Span(index, *match.span(1), "program-argument"))
    return spans


# Texts.


def _in_text(text: str, index: int, offset: int) -> list[Span]:
    """Secrets in `text`, whatever it is: argument `index`, or a part of it that begins at `offset`."""
    lower = text.lower()
    # A program's name makes only the words after it suspect, and no text. And a pipe takes what was suspect before it.
    if TRIGGER.search(lower) is None and "ASIA" not in text and "|" not in text:
        return []
    found: list[tuple[int, int, str]] = []
    for words, name, pattern in _SHAPES:
        if any(map(lower.__contains__, words)):
            found += [(*match.span(), name) for match in pattern.finditer(text)]
    for words, rule, pattern in _TEXTS:
        if not any(map(lower.__contains__, words)):
            continue
        done = 0
        for match in pattern.finditer(text):
            # What is inside of another one is not looked at again: time would grow with the square of the length.
            if match.start() < done:
                continue
            begin, end = _announced(rule, text, match)
            if begin < end:
                found.append((begin, end, rule.name))
                done = end
    if "@" in text:
        found += _in_userinfo(text)
    found += _by_key(text)
    return [Span(index, offset + begin, offset + end, rule) for begin, end, rule in found]


def _announced(rule: Text, text: str, match: re.Match[str]) -> tuple[int, int]:
    """Begin and end of the secret that `match` announces; an empty one if it is none."""
    begin = match.end()
    if rule.until is Until.MATCH:
        begin, end = match.span(match.lastindex or 0)
    elif rule.until is Until.KEY:
        end = text.find("-----END", begin)
        end = len(text) if end < 0 else end
    elif rule.until is Until.QUOTE:
        quote = text[begin : begin + (2 if text[begin] == "\\" else 1)]
        begin += len(quote)
        end = text.find(quote, begin)
        end = len(text) if end < 0 else end
    elif rule.until is Until.LINE:
        # In an argument of its own a header has quotation marks that belong to it: Digest username="…".
        end = (_WHOLE_LINE if match.start() == 0 else _LINE_END).match(text, begin).end()  # type: ignore[union-attr]
    else:
        end = _WORD_END.match(text, begin).end()  # type: ignore[union-attr]
    value = text[begin:end].strip()
    if not value or MARK in value[:8]:
        return 0, 0
    if rule.name == "bearer" and (len(value) < 8 or value.isalpha()):
        return 0, 0
    if rule.until in (Until.LINE, Until.WORD, Until.MATCH) and SHELL_REFERENCE.fullmatch(value):
        return 0, 0
    if rule.name == "piped-password" and not _reads_password(text, match.end()):
        return 0, 0
    if rule.name == "url-token" and not (any(map(str.isdigit, value)) and any(map(str.isalpha, value))):
        return 0, 0
    return begin, end


def _reads_password(text: str, begin: int) -> bool:
    """Whether the command of a script that begins at `begin` reads a password from its standard input."""
    words = [word.strip("\"'").rpartition("/")[2] for word in _COMMAND.match(text, begin)[0].split()]  # type: ignore[index]
    return not READS_PASSWORD.isdisjoint(words) or ("sudo" in words and any(map(_SUDO_STDIN.fullmatch, words)))


def _in_userinfo(text: str) -> list[tuple[int, int, str]]:
    """Passwords in URLs. One may hold any sign that a URL may not, so it goes up to the last ``@``."""
    found = []
    position = 0
    while (match := USERINFO.search(text, position)) is not None:
        begin = match.end()
        following = text.find("://", begin)
        limit = _AUTHORITY_END.match(text, begin, len(text) if following < 0 else following).end()  # type: ignore[union-attr]
        authority = text.find("/", begin, limit)
        at = text.rfind("@", begin, limit if authority < 0 else authority)
        if at < 0 and authority >= 0 and not text[begin:authority].isdigit():
            at = text.rfind("@", begin, limit)
        if at > begin and not SHELL_REFERENCE.fullmatch(text[begin:at]):
            found.append((begin, at, "url-password"))
        # So that what follows is not read again from each of its own colons.
        position = limit
    return found


def _by_key(text: str) -> list[tuple[int, int, str]]:
    """Values of keys whose names say that they are secret: JSON, YAML, forms, connection strings, assignments."""
    found: list[tuple[int, int, str]] = []
    done = 0
    for match in KEYWORD.finditer(text):
        begin = match.end()
        if begin < done:
            continue
        separator = match[1]
        name = text[max(0, match.start() - 63) : match.start(1)]
        if not is_secret_name(name[len(name.rstrip(_NAME_LETTERS)) :]):
            continue
        quote = text[begin : begin + 1]
        escaped = _ESCAPED_QUOTE.match(text, begin)
        quoted = quote in ("'", '"') and bool(quote)
        empty = separator == ":" or (separator[-1] in " \t" and separator[0] == "=")
        if empty and not quoted and escaped is None:
            # user/token:latest is an image, and in `password= src/` there is none.
            continue
        if quoted:
            end = quoted_end(text, begin + 1, quote)
            begin, end = begin + 1, end - 1 if text[end - 1] == quote and end - 1 > begin else end
        elif escaped is not None:
            begin = escaped.end()
            end = text.find(escaped[0], begin)
            end = len(text) if end < 0 else end
        else:
            if text.startswith(("$(", "`"), begin) or (begin == len(text) - 1 and text[begin] == "$"):
                # Before its end is looked for, which each of many keys in a row would do again. A script's word ends
                # before the parenthesis.
                continue
            end = _BARE.match(text, begin).end()  # type: ignore[union-attr]
            if SHELL_REFERENCE.fullmatch(text[begin:end]):
                continue
            if text[begin:end].endswith("("):
                # A function's call, in some program's text; keys in it have the same end.
                done = end
                continue
        if begin < end and not _is_harmless(text[begin:end]):
            found.append((begin, end, "key"))
            done = end
    return found
