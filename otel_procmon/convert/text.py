"""Text that can be encoded, whatever bytes it was made from."""

from __future__ import annotations

import re
from typing import Final

_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    r"""`text` with U+FFFD for what UTF-8 cannot hold.

    Lone surrogates come from bytes that were not UTF-8 (Python's ``surrogateescape``) and from JSON's ``\ud800``. One
    of them in one attribute would cost a whole batch of records when that is encoded.
    """
    if text.isascii():
        return text
    return _SURROGATES.sub("\ufffd", text)
