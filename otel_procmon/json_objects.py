"""JSON values that stand one after another in a text, as in Tetragon's filter lists: a line each, or pretty-printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def json_objects(text: str) -> Iterator[Any]:
    """The values in `text`. Raises ValueError, whose message names the line, at the first one that is not JSON."""
    decoder = json.JSONDecoder()
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"line {line}: not valid JSON: {error}") from error
        yield value
