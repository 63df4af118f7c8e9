"""The wire contract as the compiled BPF object has it, against what Python reads and writes.

The truth is ``bpf/procmon.h``; the object's BTF has its types, and `make bpf-check` proves that the object is current.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_procmon import wire
from otel_procmon.source import ebpf, kernel
from tests.unit.btf import Btf, section

if TYPE_CHECKING:
    from enum import IntEnum, IntFlag

BPF = Path(__file__).parents[2] / "bpf"


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(ebpf.object_bytes())


def laid_out(layout: tuple[tuple[str, str], ...], start: int = 0) -> list[tuple[str, int, int]]:
    """Name, offset and size of each field, packed without gaps."""
    sizes = [struct.calcsize("<" + format_) for _, format_ in layout]
    offsets = accumulate([start, *sizes[:-1]])
    return [(name, offset, size) for (name, _), offset, size in zip(layout, offsets, sizes, strict=True)]


TASK_BYTES = struct.calcsize("<" + "".join(format_ for _, format_ in wire.TASK))
HEAD = ("task", 0, TASK_BYTES)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("procmon_task", laid_out(wire.TASK)),
        ("procmon_fork", [HEAD]),
        ("procmon_exec", [HEAD, *laid_out(wire.EXEC_TAIL, TASK_BYTES)]),
        ("procmon_exit", [HEAD, *laid_out(wire.EXIT_TAIL, TASK_BYTES)]),
        ("procmon_config", laid_out(kernel.CONFIG)),
        ("procmon_counters", laid_out(kernel.COUNTERS)),
    ],
)
def test_struct_is_what_python_reads(btf: Btf, name: str, fields: list[tuple[str, int, int]]) -> None:
    compiled = btf.struct(name)
    assert [(member.name, member.offset_bytes, member.size_bytes) for member in compiled.members] == fields
    # No padding at the end either.
    assert compiled.size_bytes == sum(size for _, _, size in fields)


@pytest.mark.parametrize(
    ("name", "prefix", "known"),
    [
        ("procmon_kind", "PROCMON_", wire.Kind),
        ("procmon_field", "PROCMON_FIELD_", wire.Field),
        ("procmon_fact", "PROCMON_FACT_", wire.Fact),
    ],
)
def test_constants_are_what_python_knows(btf: Btf, name: str, prefix: str, known: type[IntEnum | IntFlag]) -> None:
    compiled = {constant.removeprefix(prefix): value for constant, value in btf.enum(name).items()}
    # How many there are, in C only.
    compiled.pop("KINDS", None)
    assert compiled == {member.name: int(member) for member in known}


def test_counters_have_one_for_each_kind(btf: Btf) -> None:
    kinds = btf.enum("procmon_kind")["PROCMON_KINDS"]
    assert {format_ for _, format_ in kernel.COUNTERS} == {f"{kinds}Q"}


def test_macros_are_what_python_knows() -> None:
    """Macros are not in BTF, so these are read in the source."""
    header = (BPF / "procmon.h").read_text(encoding="ascii")
    source = (BPF / "maps.h").read_text(encoding="ascii")
    assert f"#define PROCMON_WIRE_VERSION {wire.WIRE_VERSION}\n" in header
    assert f"#define BUFFERS_PER_CPU_MAX {kernel.BUFFERS_PER_CPU_MAX}\n" in source


def test_object_has_no_debugging_information_but_btf() -> None:
    """No DWARF, which is large and names the directory that it was built in."""
    elf = ebpf.object_bytes()
    for name in (".debug_info", ".debug_line", ".debug_str"):
        with pytest.raises(KeyError):
            section(elf, name)
