"""The one error that sources raise: input that cannot be had at all."""

from __future__ import annotations


class SourceError(Exception):
    """A source cannot be opened or read any more.

    The message is one sentence for people: what is wrong and what to do about it.
    """
