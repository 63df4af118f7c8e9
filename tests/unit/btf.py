"""Reads the C types out of a compiled BPF object: as much of ELF and BTF as the layout test needs.

Formats: elf(5), and Documentation/bpf/btf.rst of the kernel. Only 64-bit little-endian objects.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = 0xEB9F

# Kinds of types, include/uapi/linux/btf.h. What follows struct btf_type is of these many bytes:
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_FIXED_BYTES: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_BYTES_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_NAMES_FOR_OTHERS: Final = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)


@dataclass(frozen=True)
class Member:
    """A member of a struct."""

    name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class Struct:
    """A struct, its members in the order of their offsets."""

    size_bytes: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class _Type:
    name: str
    kind: int
    size_or_type: int
    details: bytes
    """What follows ``struct btf_type``."""


def section(elf: bytes, name: str) -> bytes:
    """The contents of a section. Raises `KeyError` if there is none of that name."""
    assert elf[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    (headers,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)

    def header(index: int) -> tuple[int, int, int]:
        name_offset, *_, offset, length = struct.unpack_from("<IIQQQQ", elf, headers + index * size)
        return name_offset, offset, length

    _, names, _ = header(names_index)
    for index in range(count):
        name_offset, offset, length = header(index)
        start = names + name_offset
        if elf[start : elf.index(b"\0", start)] == name.encode():
            return elf[offset : offset + length]
    raise KeyError(name)


class Btf:
    """The types of a compiled BPF object."""

    def __init__(self, elf: bytes) -> None:
        raw = section(elf, ".BTF")
        magic, _, _, header_bytes, types_at, types_bytes, strings_at, _ = struct.unpack_from("<HBBIIIII", raw)
        assert magic == _MAGIC, "not little-endian BTF"
        self._strings = raw[header_bytes + strings_at :]
        # Number 0 is void.
        self._types = [_Type("", 0, 0, b"")]
        position, end = header_bytes + types_at, header_bytes + types_at + types_bytes
        while position < end:
            name, info, size_or_type = struct.unpack_from("<III", raw, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            position += 12
            length = _FIXED_BYTES.get(kind, 0) + _BYTES_EACH.get(kind, 0) * count
            details = raw[position : position + length]
            position += length
            self._types.append(_Type(self._string(name), kind, size_or_type, details))

    def struct(self, name: str) -> Struct:
        """``struct name``. Raises `KeyError` if the object has no such type."""
        found = self._find(name, _STRUCT)
        members = []
        for member_name, type_number, offset_bits in struct.iter_unpack("<III", found.details):
            # The upper 8 bits are the size of a bit field, where there are any. The contract has none.
            offset_bytes, bits = divmod(offset_bits, 8)
            assert not bits
            members.append(Member(self._string(member_name), offset_bytes, self._size(type_number)))
        return Struct(found.size_or_type, tuple(members))

    def enum(self, name: str) -> dict[str, int]:
        """The constants of ``enum name``. Raises `KeyError` if the object has no such type."""
        found = self._find(name, _ENUM)
        return {self._string(constant): value for constant, value in struct.iter_unpack("<Ii", found.details)}

    def _find(self, name: str, kind: int) -> _Type:
        for candidate in self._types:
            if candidate.kind == kind and candidate.name == name:
                return candidate
        raise KeyError(name)

    def _size(self, number: int) -> int:
        found = self._types[number]
        if found.kind in (_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64):
            return found.size_or_type
        if found.kind == _PTR:
            return 8
        if found.kind == _ARRAY:
            element, _, count = struct.unpack("<III", found.details)
            return self._size(element) * int(count)
        assert found.kind in _NAMES_FOR_OTHERS, f"kind {found.kind} has no size"
        return self._size(found.size_or_type)

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()
