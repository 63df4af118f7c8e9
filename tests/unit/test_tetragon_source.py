"""Reading files, pipes and standard input as they grow, rotate and end. Nothing here depends on how fast it is."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_procmon.source.errors import SourceError
from otel_procmon.source.tetragon import JsonText, TetragonSource

BOUND_S = 20.0
"""How long a read waits for what must come; never reached unless something is broken."""


def line(number: int) -> bytes:
    return json.dumps({"process_exec": {"process": {"exec_id": str(number)}}}).encode()


@contextlib.contextmanager
def opened(path: Path | str | None, *, follow: bool = False) -> Iterator[TetragonSource]:
    source = TetragonSource(None if path is None else str(path), follow=follow)
    source.open()
    try:
        yield source
    finally:
        source.close()


def take(source: TetragonSource, count: int) -> list[JsonText]:
    """The next `count` pieces, however many reads it takes; each must come within the bound."""
    pieces: list[JsonText] = []
    while len(pieces) < count:
        got = source.read(BOUND_S)
        assert got, f"{len(pieces)} of {count} pieces"
        pieces += got
    assert len(pieces) == count
    return pieces


def texts(pieces: list[JsonText]) -> list[bytes]:
    return [piece.text for piece in pieces]


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_bytes(b"\n".join(map(line, range(5000))))
    with opened(path) as source:
        pieces = take(source, 5000)
        assert source.read(0) is None
        assert source.read(0) is None
    assert texts(pieces) == [line(number) for number in range(5000)]
    assert pieces[-1].place == f"{path}:5000"


def test_an_empty_file_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with opened(tmp_path / "empty") as source:
        assert source.read(BOUND_S) is None


def test_a_pipe_on_standard_input_gives_what_is_there_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    monkeypatch.setattr("otel_procmon.source.tetragon._STDIN", readable)
    try:
        with opened("-") as source:
            assert source.read(0) == []
            os.write(writable, line(1) + b"\n" + line(2)[:9])
            assert take(source, 1) == [JsonText(line(1), "stdin:1")]
            assert source.read(0) == []
            os.write(writable, line(2)[9:] + b"\n" + line(3))
            assert take(source, 1) == [JsonText(line(2), "stdin:2")]
            os.close(writable)
            assert take(source, 1) == [JsonText(line(3), "stdin:3")]
            assert source.read(BOUND_S) is None
        os.fstat(readable)
    finally:
        os.close(readable)


def test_a_read_returns_when_something_comes_not_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout here is longer than any test run is allowed to take."""
    readable, writable = os.pipe()
    monkeypatch.setattr("otel_procmon.source.tetragon._STDIN", readable)
    writer = threading.Thread(target=os.write, args=(writable, line(1) + b"\n"))
    try:
        with opened(None) as source:
            writer.start()
            assert source.read(86_400) == [JsonText(line(1), "stdin:1")]
    finally:
        writer.join()
        os.close(readable)
        os.close(writable)


def test_a_named_pipe_is_opened_before_its_writer_comes(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with opened(path) as source:
        assert source.read(0) == []
        with path.open("wb", buffering=0) as writer:
            writer.write(line(1) + b"\n")
            assert texts(take(source, 1)) == [line(1)]
        assert source.read(BOUND_S) is None


def test_a_followed_named_pipe_outlives_its_writers(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with opened(path, follow=True) as source:
        for number in range(3):
            with path.open("wb", buffering=0) as writer:
                writer.write(line(number) + b"\n")
            assert texts(take(source, 1)) == [line(number)]
            assert source.read(0) == []


def test_a_followed_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "tetragon.log"
    path.write_bytes(line(1) + b"\n")
    with opened(path, follow=True) as source, path.open("ab", buffering=0) as log:
        assert texts(take(source, 1)) == [line(1)]
        assert source.read(0) == []
        log.write(line(2)[:10])
        assert source.read(0) == []
        log.write(line(2)[10:] + b"\n")
        assert take(source, 1) == [JsonText(line(2), f"{path}:2")]


def test_a_followed_file_is_renamed_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "tetragon.log"
    path.write_bytes(line(1) + b"\n")
    with opened(path, follow=True) as source:
        assert texts(take(source, 1)) == [line(1)]
        with path.open("ab", buffering=0) as log:
            path.rename(tmp_path / "tetragon-old.log")
            assert source.read(0) == []
            log.write(line(2) + b"\n" + line(3)[:12])
        path.write_bytes(line(4) + b"\n")
        pieces = take(source, 3)
    assert texts(pieces) == [line(2), line(3)[:12], line(4)]
    assert [piece.problem is None for piece in pieces] == [True, False, True]
    assert pieces[-1].place == f"{path}:1"


def test_a_followed_file_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "tetragon.log"
    path.write_bytes(line(1) + b"\n" + line(2) + b"\n")
    with opened(path, follow=True) as source:
        assert texts(take(source, 2)) == [line(1), line(2)]
        os.truncate(path, 0)
        assert source.read(0) == []
        with path.open("ab", buffering=0) as log:
            log.write(line(3) + b"\n")
        assert take(source, 1) == [JsonText(line(3), f"{path}:1")]


def test_a_missing_file_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.json does not exist: name the file"):
        TetragonSource(str(tmp_path / "nothing.json"), follow=True).open()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a directory: name a file"):
        TetragonSource(str(tmp_path), follow=False).open()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.touch()

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so the refusal is made here.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match="may not be read: run as root"):
        TetragonSource(str(path), follow=False).open()


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    os.close(writable)
    monkeypatch.setattr("otel_procmon.source.tetragon._STDIN", readable)
    with pytest.raises(SourceError, match="Standard input is closed"):
        TetragonSource(None, follow=False).open()


def test_reading_what_is_not_open() -> None:
    with pytest.raises(SourceError, match="not open"):
        TetragonSource("x", follow=False).read(0)
