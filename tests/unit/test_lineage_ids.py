"""Identities: readable by Tetragon's users, the same after a restart, never zero."""

from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from otel_procmon.lineage import ids
from otel_procmon.lineage.ids import SpanIds, make_exec_id, process_id
from tests.unit.happenings import image

BOOT = "3e7a5b1c-0000-4000-8000-000000000001"


def test_exec_id_is_tetragons() -> None:
    # The seed's own: node kind-control-plane, 11428615636901 ns, pid 51583.
    assert make_exec_id("kind-control-plane", 11428615636900, 1, 51583) == (
        "a2luZC1jb250cm9sLXBsYW5lOjExNDI4NjE1NjM2OTAxOjUxNTgz"
    )
    assert make_exec_id("", 5, 0, 1) == "OjU6MQ=="


def test_exec_ids_of_two_images_of_a_process_differ() -> None:
    assert len({make_exec_id("n", 1000, generation, 5) for generation in range(5)}) == 5


@given(st.binary(max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_exec_id_is_parsed_from_the_right(node: bytes, start_ns: int, generation: int, pid: int) -> None:
    exec_id = make_exec_id(node.decode("utf-8", "surrogateescape"), start_ns, generation, pid)
    assert b64decode(exec_id, validate=True).rsplit(b":", 2) == [
        node,
        str(start_ns + generation).encode(),
        str(pid).encode(),
    ]


def test_ids_are_fixed() -> None:
    """A change of these breaks the traces of everything that runs while the agent is upgraded."""
    own = SpanIds(BOOT)
    assert own.span_id("aGVyZTo2OjQwMA==").hex() == "9513463419064d6e"
    assert own.life_span_id(image(exec_id="aGVyZTo2OjQwMA==")).hex() == "16b1fde52d8cc8aa"
    assert own.trace_id("aGVyZTo2OjQwMA==").hex() == "dfd8df3dbe38abd312d9b0eac7f97c49"


@given(st.text(st.characters(codec=None)), st.text(max_size=40))
def test_ids_depend_on_the_image_and_the_boot_only(exec_id: str, boot_id: str) -> None:
    one, same, other = SpanIds(boot_id), SpanIds(boot_id), SpanIds(boot_id + "2")
    one_image = image(exec_id=exec_id)
    assert one.span_id(exec_id) == same.span_id(exec_id) != other.span_id(exec_id)
    assert one.trace_id(exec_id) == same.trace_id(exec_id) != other.trace_id(exec_id)
    assert one.life_span_id(one_image) == same.life_span_id(one_image) != one.span_id(exec_id)
    assert [len(one.span_id(exec_id)), len(one.life_span_id(one_image)), len(one.trace_id(exec_id))] == [8, 8, 16]


def test_process_has_one_id_whatever_it_runs() -> None:
    first, second = (image(exec_id=f"e{number}").process for number in (1, 2))
    assert process_id(first) is None, "Tetragon does not tell when a process was forked"
    known = [replace(process, boot_start_ns=5, node="n", pid=7) for process in (first, second)]
    assert [process_id(process) for process in known] == [make_exec_id("n", 5, 0, 7)] * 2


def test_trace_of_a_process_in_a_container() -> None:
    own = SpanIds(BOOT)
    assert len({own.trace_id("a"), own.trace_id("a", "c"), own.trace_id("a", "d"), own.trace_id("b", "c")}) == 4
    assert own.trace_id("a", "") == own.trace_id("a")


def test_ids_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def __init__(self, *_: Any, digest_size: int, **__: Any) -> None:
            self.size = digest_size

        def digest(self) -> bytes:
            return bytes(self.size)

    made = SpanIds(BOOT)
    monkeypatch.setattr(ids, "blake2b", Zero)
    assert made.span_id("a") == bytes(7) + b"\1"
    assert made.trace_id("a") == bytes(15) + b"\1"


def test_boot_id_of_any_length_is_taken() -> None:
    # blake2b's own limit for a key is 64 bytes.
    assert SpanIds("x" * 100).span_id("a") != SpanIds("x" * 101).span_id("a")
