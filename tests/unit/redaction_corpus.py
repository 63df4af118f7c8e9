"""The corpus of command lines in ``data/redaction-corpus.txt``; its head explains its form."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parent / "data/redaction-corpus.txt"
_SECRET = re.compile("⟦(.*?)⟧")
_FILLER = re.compile(r"@(=?)(\d+)|#(\d+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class CorpusLine(NamedTuple):
    """One command line, as it is and as it should become."""

    number: int
    line: str
    argv: tuple[str, ...]
    expected: tuple[str, ...]
    secrets: tuple[str, ...]


def read_corpus(path: Path = CORPUS) -> list[CorpusLine]:
    """All lines of `path`."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text or text.startswith("#"):
            continue
        rng = random.Random(number)
        filled = _SECRET.sub(lambda match, rng=rng: f"⟦{_filled(match[1], rng)}⟧", text)  # type: ignore[misc]
        line = filled.replace("⟦", "").replace("⟧", "")
        marked = shlex.split(filled)
        secrets = [secret for argument in marked for secret in _SECRET.findall(argument)]
        expected = [_SECRET.sub("*****", argument) for argument in marked]
        lines.append(CorpusLine(number, line, tuple(shlex.split(line)), tuple(expected), tuple(secrets)))
    return lines


def _filled(secret: str, rng: random.Random) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[3]:
            return "".join(rng.choices("0123456789abcdef", k=int(match[3])))
        # Digits among them, since a word of letters only is no token to some rules.
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" if match[1] else _LETTERS
        return "".join(rng.choices(letters, k=int(match[2])))

    return _FILLER.sub(fill, secret)
