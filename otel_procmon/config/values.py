"""The kinds of values that options have: how each is read from YAML, how it is written, and what it may be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

from otel_procmon.config.units import HOUR, KIB, MIB, MINUTE, MS, S
from otel_procmon.privileges import ALL, CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable

UINT32_MAX: Final = 2**32 - 1


class Kind(NamedTuple):
    """One kind of value.

    `read` raises ValueError for what the value may not be; with the node at fault, if that is one entry of a list.
    """

    may_be: str
    """Completes "write …"."""
    read: Callable[[yaml.Node], Any]
    write: Callable[[Any], str]


_DURATION_UNITS: Final = {"ms": MS, "s": S, "m": MINUTE, "h": HOUR}
SIZE_UNITS: Final = {"KiB": KIB, "MiB": MIB, "GiB": 1024 * MIB}
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
"""Not what else YAML 1.1 takes for a whole number, such as 010 for eight or 1:30 for ninety."""
_DECIMAL: Final = re.compile(r"[0-9]{0,18}\.?[0-9]{1,18}")
TAG: Final = "tag:yaml.org,2002:"


def _scalar(node: yaml.Node, *types: str) -> str:
    """The text of a single value, if YAML takes it for one of `types`."""
    if not isinstance(node, yaml.ScalarNode) or node.tag.removeprefix(TAG) not in types:
        raise ValueError
    text: str = node.value
    return text


def _measure(units: dict[str, int], least: int, most: int) -> Callable[[yaml.Node], int]:
    pattern = re.compile(f"({_NUMBER.pattern}) ?({'|'.join(units)})")

    def read(node: yaml.Node) -> int:
        text = _scalar(node, "str", "int")
        match = pattern.fullmatch(text)
        if match:
            value = int(match[1]) * units[match[2]]
        elif units is SIZE_UNITS and _NUMBER.fullmatch(text):
            value = int(text)
        else:
            raise ValueError
        if not least <= value <= most:
            raise ValueError
        return value

    return read


def in_units(value: int, units: dict[str, int]) -> str:
    """`value` in the largest unit that divides it."""
    for unit, factor in sorted(units.items(), key=lambda item: -item[1]):
        if value % factor == 0 and value:
            return f"{value // factor}{unit}"
    return f"{value}{min(units, key=lambda unit: units[unit])}" if units is _DURATION_UNITS else str(value)


def duration(least: int, most: int = 8760 * HOUR) -> Kind:
    """Nanoseconds, from `least` to `most`."""

    def write(value: int) -> str:
        return in_units(value, _DURATION_UNITS)

    may_be = f"a duration from {write(least)} to {write(most)}, with its unit: ms, s, m or h"
    return Kind(may_be, _measure(_DURATION_UNITS, least, most), write)


def size(least: int, most: int, *, power_of_two: bool = False) -> Kind:
    """Bytes, from `least` to `most`."""
    in_range = _measure(SIZE_UNITS, least, most)

    def read(node: yaml.Node) -> int:
        value = in_range(node)
        if power_of_two and value & (value - 1):
            raise ValueError
        return value

    def write(value: int) -> str:
        return in_units(value, SIZE_UNITS)

    what = "a power of two" if power_of_two else "a size"
    return Kind(f"{what} from {write(least)} to {write(most)}, with KiB, MiB or GiB, or in bytes", read, write)


def whole(least: int, most: int) -> Kind:
    """A whole number, from `least` to `most`."""

    def read(node: yaml.Node) -> int:
        text = _scalar(node, "int")
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {least} to {most}", read, str)


def _read_fraction(node: yaml.Node) -> float:
    text = _scalar(node, "float", "int")
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) < 1:
        raise ValueError
    return float(text)


def _read_switch(node: yaml.Node) -> bool:
    text = _scalar(node, "bool").lower()
    if text not in {"true", "yes", "on", "false", "no", "off"}:
        raise ValueError
    return text in {"true", "yes", "on"}


def _read_text(node: yaml.Node) -> str:
    return _scalar(node, "str")


def _read_filled(node: yaml.Node) -> str:
    text = _read_text(node)
    # No file can be called so; and neither can anything else that has to be named here.
    if not text.strip() or "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError
    return text


def _read_file(node: yaml.Node) -> str | None:
    return None if is_null(node) else _read_filled(node)


def list_of(item: Callable[[yaml.Node], Any], may_be: str, *, least: int = 0) -> Kind:
    """A list; one whose entries are all commented out is an empty one."""

    def entry(node: yaml.Node) -> Any:
        try:
            return item(node)
        except ValueError:
            raise ValueError(node) from None

    def read(node: yaml.Node) -> tuple[Any, ...]:
        if is_null(node):
            items: tuple[Any, ...] = ()
        elif isinstance(node, yaml.SequenceNode):
            items = tuple(map(entry, node.value))
        else:
            raise ValueError
        if len(items) < least:
            raise ValueError
        return items

    return Kind(may_be, read, lambda values: f"[{', '.join(map(str, values))}]")


def _read_capability(node: yaml.Node) -> str:
    text = _scalar(node, "str")
    if text != ALL and text.removeprefix("CAP_") not in CAPABILITIES:
        raise ValueError
    return text


def is_null(node: yaml.Node) -> bool:
    """Whether `node` is YAML's null, as an empty value is."""
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG}null"


FRACTION: Final = Kind("a number above 0 and below 1", _read_fraction, str)
SWITCH: Final = Kind("true or false", _read_switch, lambda value: "true" if value else "false")
SOURCE: Final = Kind("one text, such as ebpf", _read_filled, str)
FILE: Final = Kind("the path of a file", _read_file, lambda value: value or "null")
FILE_OR_NONE: Final = FILE._replace(may_be="the path of a file, or null")
SOCKET: Final = FILE._replace(may_be="a socket as unix:///path or as a bare path, or null")
DIRECTORY: Final = Kind("the path of a directory, or null", _read_file, lambda value: value or "null")
OUTPUTS: Final = list_of(_read_filled, "a list of texts such as [otlp, compact], at least one", least=1)
NAMESPACES: Final = list_of(_read_text, "a list of names such as [default, kube-system]; in quotes if like a number")
TEXT: Final = Kind("a text, or null", _read_file, lambda value: value or "null")
KEYS: Final = list_of(
    _read_filled, "a list of keys such as ['app', 'app.kubernetes.io/*'], in which * stands for any characters"
)._replace(write=lambda values: f"[{', '.join(map(repr, values))}]")
"""In quotes, since ``*`` begins an alias in YAML."""
SELECTORS: Final = list_of(_read_filled, "a list of label selectors, such as ['app=web,tier!=cache', 'org in (a, b)']")
CONTAINER_IDS: Final = list_of(_read_filled, "a list of texts such as ['3f0c9a1e2b7d'], in quotes")
REGEXES: Final = list_of(_read_text, "a list of regular expressions, such as ['^web-', '/sh$']")
NUMBERS: Final = list_of(
    whole(0, UINT32_MAX).read, f"a list of whole numbers from 0 to {UINT32_MAX}, such as [0, 1000]"
)
USER: Final = Kind("NAME, NAME:GROUP or UID:GID in quotes, or null", _read_file, lambda value: value or "null")
CAPABILITY_NAMES: Final = list_of(
    _read_capability, "a list of capabilities such as [SYS_PTRACE], by their names in capabilities(7), or [all]"
)
