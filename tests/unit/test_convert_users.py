"""User names from a passwd file."""

from __future__ import annotations

import os
from typing import Any

from otel_procmon.convert.text import encodable
from otel_procmon.convert.users import UserNames


def test_names(tmp_path: Any) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_bytes(
        b"root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/root:/bin/sh\n\n# comment\nbad:x:zero:0\n:x:5:5\n"
        b"short:x\nj\xff:x:1000:1000::/:/bin/sh\n+nis\n"
    )
    name = UserNames(passwd)
    assert [name(0), name(1000), name(5), name(7)] == ["root", "j\ufffd", None, None]


def test_file_is_read_again_when_it_changed(tmp_path: Any) -> None:
    passwd = tmp_path / "passwd"
    now = 5.0
    name = UserNames(passwd, lambda: now)
    assert name(3) is None
    passwd.write_text("sys:x:3:3::/dev:\n")
    assert name(3) is None, "it was looked at just now"
    now += 0.1
    assert name(3) == "sys"
    replacement = tmp_path / "new"
    replacement.write_text("abc:x:3:3::/dev:\n")
    os.replace(replacement, passwd)  # noqa: PTH105
    now += 0.1
    assert name(3) == "abc"
    passwd.unlink()
    now += 0.1
    assert name(3) is None


def test_text_that_cannot_be_encoded() -> None:
    assert encodable("plain") == "plain"
    assert encodable("ä€😀") == "ä€😀"
    assert encodable("a\ud800b\udcffc") == "a\ufffdb\ufffdc"
