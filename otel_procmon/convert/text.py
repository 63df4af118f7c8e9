"""Text that can be encoded, whatever bytes it was made from."""

from __future__ import annotations

import re
from typing import Final

_NOT_BYTES: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that ``surrogateescape`` does not make."""


def encodable(text: str) -> str:
    r"""`text` with U+FFFD for what UTF-8 cannot hold.

    Lone surrogates come from bytes that were not UTF-8 (Python's ``surrogateescape``) and from JSON's ``\ud800``. One
    of them in one attribute would cost a whole batch of records when that is encoded. As Unicode recommends, and Go and
    browsers do, a character that is cut short becomes one U+FFFD, however many bytes of it are there.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _NOT_BYTES.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text
