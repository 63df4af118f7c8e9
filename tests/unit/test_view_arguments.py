"""Arguments as one string, as Tetragon has them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.view.arguments import arguments_text, process_arguments
from tests.unit.happenings import image


@pytest.mark.parametrize(
    ("argv", "arguments"),
    [
        ([], ""),
        (["ls"], ""),
        (["ls", "-l", "/"], "-l /"),
        (["sh", "-c", "exec ls -l"], '-c "exec ls -l"'),
        (["sh", "-c", 'echo "a b"'], '-c "echo "a b""'),
        (["a", "one", "", "two"], "one  two"),
        (["a", "", "one", "", ""], "one"),
        (["a", "", ""], ""),
        (["", "x"], "x"),
        (["a", " "], '" "'),
        (["a", "tab\there", "line\nbreak"], "tab\there line\nbreak"),
    ],
)
def test_joined_as_tetragon_does(argv: list[str], arguments: str) -> None:
    assert arguments_text(argv) == arguments


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, ""),
        ({"argv": ()}, ""),
        ({"argv": ("ls", "-l")}, "-l"),
        ({"arguments": '-c "as it was read"'}, '-c "as it was read"'),
        ({"arguments": ""}, ""),
    ],
)
def test_of_a_process(fields: dict[str, Any], arguments: str) -> None:
    assert process_arguments(image(**fields).process) == arguments


@given(st.lists(st.text(st.characters(exclude_characters=' "'), min_size=1), min_size=1))
def test_without_spaces_and_empty_ones_they_can_be_split_again(argv: list[str]) -> None:
    assert arguments_text(argv).split(" ") == (argv[1:] or [""])
