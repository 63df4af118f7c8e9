"""Rules of one's own: regular expressions from the configuration, and Tetragon's redaction filters from a file.

Tetragon's format (``pkg/fieldfilters/redaction.go``, its option ``--redaction-filters``): JSON objects, one after
another, each with ``redact``, regular expressions whose groups are replaced by ``*****``, and perhaps ``binary_regex``,
of which one must match the program's path. Its first version had the latter inside of ``match``. Matched is what
Tetragon matches: the arguments as one text, without the program's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_procmon.json_objects import json_objects
from otel_procmon.patterns import compile_re2
from otel_procmon.redact.find import Span

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator, Sequence

FILE_MAX_BYTES: Final = 1024 * 1024
OWN: Final = "own"
"""The name of rules from the configuration, where a record tells by which rule something was redacted."""
TETRAGON: Final = "filter"


class RedactionError(ValueError):
    """A rule that cannot work. The message is one sentence that names the place."""


class RedactionFilter(NamedTuple):
    """One rule."""

    name: str
    binaries: tuple[re.Pattern[str], ...]
    """Any of these must match the program's path; none: all programs."""
    patterns: tuple[re.Pattern[str], ...]
    """Their groups are what is replaced."""

    def concerns(self, binary: str) -> bool:
        """Whether it holds for `binary`."""
        return not self.binaries or any(pattern.search(binary) for pattern in self.binaries)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where in `text` something is to be replaced."""
        for pattern in self.patterns:
            for match in pattern.finditer(text):
                for group in range(1, pattern.groups + 1):
                    begin, end = match.span(group)
                    if begin < end:
                        yield begin, end

    def find_in_arguments(self, argv: Sequence[str]) -> Iterator[Span]:
        """Where in `argv`, the program's name first, something is to be replaced."""
        text = []
        begins = []
        position = 0
        for argument in argv[1:]:
            quote = '"' if " " in argument else ""
            begins.append(position + len(quote))
            text.append(f"{quote}{argument}{quote}")
            position += len(text[-1]) + 1
        for begin, end in self.find(" ".join(text)):
            for index, start in enumerate(begins):
                first, last = max(begin, start), min(end, start + len(argv[index + 1]))
                if first < last:
                    yield Span(index + 1, first - start, last - start, self.name)


def own_filters(expressions: Iterable[str]) -> list[RedactionFilter]:
    """The configuration's ``redaction.rules``. Raises RedactionError."""
    return [
        RedactionFilter(OWN, (), (_compiled(expression, f"redaction.rules, entry {number}"),))
        for number, expression in enumerate(expressions, start=1)
    ]


def read_redaction_filters(path: str) -> list[RedactionFilter]:
    """Tetragon's redaction filters in the file `path`. Raises RedactionError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
        if len(content) > FILE_MAX_BYTES:
            raise RedactionError(f"The file of redaction filters {path} is larger than {FILE_MAX_BYTES:,} bytes.")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RedactionError(
            f"The file of redaction filters {path} cannot be read: {error.strerror or error}."
        ) from error
    except UnicodeDecodeError as error:
        raise RedactionError(f"The file of redaction filters {path} is not UTF-8 text.") from error
    try:
        entries = list(json_objects(text))
    except ValueError as error:
        raise RedactionError(f"{path}, {error}") from error
    return [_filter(entry, f"{path}, filter {number}") for number, entry in enumerate(entries, start=1)]


def _filter(entry: Any, place: str) -> RedactionFilter:
    if not isinstance(entry, dict):
        raise RedactionError(f"{place}: not an object with redact.")
    fields = {_proto_name(str(key)): value for key, value in entry.items()}
    match = fields.pop("match", None)
    if match is not None:
        for part in match if isinstance(match, list) else [match]:
            inner = {_proto_name(str(key)): value for key, value in part.items()} if isinstance(part, dict) else None
            if inner is None or set(inner) - {"binary_regex"}:
                # To leave a condition out would redact more than was meant; to guess one, less.
                raise RedactionError(f"{place}: match may have binary_regex only, as Tetragon's filters do by now.")
            more = _texts(inner.get("binary_regex"), f"{place}, binary_regex of match")
            fields["binary_regex"] = [*_texts(fields.get("binary_regex"), f"{place}, binary_regex"), *more]
    if unknown := sorted(set(fields) - {"redact", "binary_regex"}):
        raise RedactionError(f"{place} has an unknown field {unknown[0]!r}: only redact and binary_regex are.")
    binaries = _texts(fields.get("binary_regex"), f"{place}, binary_regex")
    patterns = _texts(fields.get("redact"), f"{place}, redact")
    if not patterns:
        raise RedactionError(f"{place} redacts nothing: write regular expressions under redact.")
    return RedactionFilter(
        TETRAGON,
        tuple(_compiled(text, f"{place}, binary_regex", groups=False) for text in binaries),
        tuple(_compiled(text, f"{place}, redact") for text in patterns),
    )


def _proto_name(key: str) -> str:
    return "binary_regex" if key == "binaryRegex" else key


def _texts(value: Any, place: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RedactionError(f"{place} must be a list of regular expressions.")
    return value


def _compiled(expression: str, place: str, *, groups: bool = True) -> re.Pattern[str]:
    try:
        pattern = compile_re2(expression)
    except ValueError as error:
        raise RedactionError(f"{place}: {expression!r} is not a valid regular expression: {error}.") from error
    if groups and not pattern.groups:
        raise RedactionError(f"{place}: {expression!r} has no group: put parentheses around what is to be replaced.")
    return pattern
