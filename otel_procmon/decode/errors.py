"""The one error that decoding raises: a piece of input that is not the event it should be."""

from __future__ import annotations


class DecodeError(ValueError):
    """A piece of input that cannot be decoded.

    The message is one sentence that begins with the place (``FILE:LINE``, or a record's number), so that whoever reads
    it can look there. Whoever catches it counts it and goes on: one bad record costs one record.
    """
