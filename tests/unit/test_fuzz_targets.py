"""The targets of `make fuzz`, on their seeds and on some thousands of inputs; and what fuzzing has found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import events
from tests.fuzz.targets import TARGETS

INPUTS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_some_inputs(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    for seed in seeds:
        target.run(seed)
    if name == "redact-time":
        # It measures time.
        return
    chance = random.Random(name)
    for _ in range(INPUTS):
        data = bytearray(
            chance.choice(seeds) if seeds and chance.random() < 0.5 else chance.randbytes(target.max_bytes)
        )
        for _ in range(chance.randrange(4) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        target.run(bytes(data[: chance.randrange(target.max_bytes + 1)]))


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "redact-time"])
@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def test_target_is_not_blind() -> None:
    """A fault that is put in is found."""
    with pytest.raises(AssertionError):
        events.through(b'{"process_exec":1}\n', expected=2)


@pytest.mark.parametrize(
    ("target", "data"),
    [
        ("redaction-file", b"\x03a\x15"),
        ("spool-directory", b"\n"),
        (
            "tetragon-sequence",
            bytes.fromhex("acf2ef3e8dc76add7c3a15e2c9c49d1181e36e3352d518d6c5e97bea3dd6818c9b837d2a2d13b67946"),
        ),
    ],
)
def test_what_was_found(target: str, data: bytes) -> None:
    TARGETS[target].run(data)
