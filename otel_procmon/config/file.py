"""Reads the one YAML file.

The file is configuration, not a document: its anchors, aliases and tags have no meaning that an option could not have
without them, and nothing is ever constructed from it but the options' own values.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from otel_procmon.config.options import Config
from otel_procmon.config.table import OPTIONS, SECTIONS
from otel_procmon.config.units import KIB
from otel_procmon.config.values import SIZE_UNITS, TAG, in_units, is_null

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_MAX_BYTES: Final = 256 * KIB
"""Of a configuration file. A real one has a few kilobytes, and parsing takes time that grows with the size."""


class ConfigError(ValueError):
    """A configuration that cannot be read, or says what cannot be.

    The message is one sentence for people: the file, the line, the option, what is wrong and what it may be.
    """


def read_config(path: str | Path) -> Config:
    """What the YAML file `path` says; what it does not name stays at its default. Raises `ConfigError`."""
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, key_node, node in _entries(_compose(path), "", path):
        if key in SECTIONS:
            for inner_key, inner_key_node, inner_node in _entries(node, key, path):
                _read_option(values, key, inner_key, (inner_key_node, inner_node), path)
        else:
            _read_option(values, "", key, (key_node, node), path)
    sections = {name: kind(**values[name]) for name, (kind, _) in SECTIONS.items() if name}
    return Config(**values[""], **sections)


def _compose(path: str | Path) -> yaml.Node | None:
    """The file as YAML's nodes; None if there is nothing in it but comments."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The configuration file {path} cannot be read: {reason}.") from error
    if len(content) > FILE_MAX_BYTES:
        raise ConfigError(f"The configuration file {path} is larger than {in_units(FILE_MAX_BYTES, SIZE_UNITS)}.")
    text = ""
    try:
        text = content.decode("utf-8-sig")
        # By the parser in Python: the one in C overflows its stack where this one raises RecursionError.
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text.") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}, line {line}: a control character, which YAML does not allow.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not valid YAML: {_printable(error.problem or error.context)}.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else _printable(" ".join(str(error).split()))
        raise ConfigError(f"{path}: not valid YAML: {reason}.") from error
    return node


def _entries(node: yaml.Node | None, section: str, path: str | Path) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Key, its node and the value's node of each entry of a mapping; nothing if it is empty."""
    if node is None or is_null(node):
        return
    if not isinstance(node, yaml.MappingNode):
        if section:
            names = ", ".join(option.key for option in OPTIONS if option.section == section)
            problem = f"{section} is {_shown(node)}; write options under it: {names}"
        else:
            problem = f"{_shown(node)} where options should stand, such as source: ebpf"
        raise ConfigError(f"{path}, line {_line(node)}: {problem}.")
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{path}, line {_line(key_node)}: {_shown(key_node)} where an option's name should be.")
        key: str = key_node.value
        if key in lines:
            name = f"{section}.{key}" if section else key
            raise ConfigError(f"{path}, line {_line(key_node)}: {name!r} stands here again, after line {lines[key]}.")
        lines[key] = _line(key_node)
        yield key, key_node, value_node


def _read_option(
    values: dict[str, dict[str, Any]], section: str, key: str, nodes: tuple[yaml.Node, yaml.Node], path: str | Path
) -> None:
    key_node, node = nodes
    for option in OPTIONS:
        if (option.section, option.key) == (section, key):
            break
    else:
        name = f"{section}.{key}" if section else key
        problem = f"there is no option {_trimmed(name)}; {_suggestion(section, key)}"
        raise ConfigError(f"{path}, line {_line(key_node)}: {problem}")
    try:
        values[section][option.attribute] = option.kind.read(node)
    except ValueError as error:
        verb, fault = ("has", error.args[0]) if error.args else ("is", node)
        problem = f"{option.name} {verb} {_shown(fault)}; write {option.kind.may_be}"
        raise ConfigError(f"{path}, line {_line(fault)}: {problem}.") from None


def _suggestion(section: str, key: str) -> str:
    """What may have been meant by an unknown `key`: one of its section, one of another, or any."""
    here = [option.key for option in OPTIONS if option.section == section]
    if not section:
        here += [name for name in SECTIONS if name]
    near = difflib.get_close_matches(key[:100], here, n=1, cutoff=0.5)
    for option in OPTIONS:
        if key in (option.key, option.name, option.attribute) and (option.section != section or not near):
            return f"did you mean {option.place}?"
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(here)}."


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def _shown(node: yaml.Node) -> str:
    """A node as messages show it: nothing in it can drive a terminal."""
    if isinstance(node, yaml.SequenceNode):
        return "a list" if node.value else "an empty list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if is_null(node):
        return "empty"
    text: str = node.value
    return _trimmed(text) if node.tag == f"{TAG}str" or not re.fullmatch(r"[\w.:+-]{1,60}", text) else text


def _printable(text: str | None) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text or "")


def _trimmed(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")
