"""Everything that can be configured, and the one YAML file that it is read from.

`_OPTIONS` is the one table: it says how each option is read, what it may be and what it is for. The defaults stand in
the dataclasses. ``python -m otel_procmon.config`` prints ``docs/configuration.md``, and with the argument ``example``
prints ``examples/otel-procmon.yaml``.

The file is configuration, not a document: its anchors, aliases and tags have no meaning that an option could not have
without them, and nothing is ever constructed from it but the options' own values.
"""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MS: Final = 1_000_000
_S: Final = 1000 * _MS
_MINUTE: Final = 60 * _S
_HOUR: Final = 60 * _MINUTE
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_UINT32_MAX: Final = 2**32 - 1

FILE_MAX_BYTES: Final = 256 * _KIB
"""Of a configuration file. A real one has a few kilobytes, and parsing takes time that grows with the size."""


class ConfigError(ValueError):
    """A configuration that cannot be read, or says what cannot be.

    The message is one sentence for people: the file, the line, the option, what is wrong and what it may be.
    """


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """What is to leave this host; `otel_procmon.filters` gives the meaning."""

    namespaces: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    uids: tuple[int, ...] = ()
    containers: tuple[str, ...] = ()
    container_ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """How events are taken from the kernel."""

    poll_interval_ns: int = 100 * _MS
    ring_bytes: int = 16 * _MIB
    wake_fraction: float = 0.25
    arguments_max_bytes: int = 64 * _KIB
    snapshot: bool = True


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Where a new trace begins, and when an image that goes on announces itself."""

    service_age_ns: int = 5 * _MINUTE
    max_age_ns: int = _HOUR
    max_spans: int = 4000
    open_after_ns: int = 10 * _S


@dataclass(frozen=True, slots=True)
class LineageOptions:
    """How much of the past is remembered."""

    max_images: int = 131_072
    grace_ns: int = 10 * _S
    sweep_interval_ns: int = 30 * _S


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """Who is asked for containers and pods, and how long what happens in them waits for the answer."""

    ask_runtime: bool = True
    runtime_endpoint: str | None = None
    ask_kubernetes: bool = True
    kubeconfig: str | None = None
    node_name: str | None = None
    hold_ns: int = 10 * _S
    max_held: int = 16_384


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What log records and spans say."""

    failed_exit_is_error: bool = True
    well_known_labels: bool = False
    pod_labels: tuple[str, ...] = ("*",)
    pod_annotations: tuple[str, ...] = ()
    systemd_services: bool = True
    cluster_name: str | None = None
    cluster_uid: str | None = None


@dataclass(frozen=True, slots=True)
class RedactionOptions:
    """What is taken out of command lines; `otel_procmon.redact` gives the meaning."""

    enabled: bool = True
    rules: tuple[str, ...] = ()
    file: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """What cannot be sent at once waits: in memory, then on disk."""

    queue_bytes: int = 32 * _MIB
    in_flight: int = 2
    spool_directory: str | None = "/var/lib/otel-procmon/spool"
    spool_max_bytes: int = 512 * _MIB


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. ``Config()`` is what an empty file says."""

    source: str = "ebpf"
    outputs: tuple[str, ...] = ("otlp",)
    filters: FilterOptions = field(default_factory=FilterOptions)
    capture: Capture = field(default_factory=Capture)
    trace: TraceOptions = field(default_factory=TraceOptions)
    lineage: LineageOptions = field(default_factory=LineageOptions)
    containers: ContainerOptions = field(default_factory=ContainerOptions)
    redaction: RedactionOptions = field(default_factory=RedactionOptions)
    records: RecordOptions = field(default_factory=RecordOptions)
    delivery: DeliveryOptions = field(default_factory=DeliveryOptions)


# How values are read and written.


class _Kind(NamedTuple):
    """One kind of value.

    `read` raises ValueError for what the value may not be; with the node at fault, if that is one entry of a list.
    """

    may_be: str
    """Completes "write …"."""
    read: Callable[[yaml.Node], Any]
    write: Callable[[Any], str]


_DURATION_UNITS: Final = {"ms": _MS, "s": _S, "m": _MINUTE, "h": _HOUR}
_SIZE_UNITS: Final = {"KiB": _KIB, "MiB": _MIB, "GiB": 1024 * _MIB}
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
"""Not what else YAML 1.1 takes for a whole number, such as 010 for eight or 1:30 for ninety."""
_FRACTION: Final = re.compile(r"[0-9]{0,18}\.?[0-9]{1,18}")
_TAG: Final = "tag:yaml.org,2002:"


def _scalar(node: yaml.Node, *types: str) -> str:
    """The text of a single value, if YAML takes it for one of `types`."""
    if not isinstance(node, yaml.ScalarNode) or node.tag.removeprefix(_TAG) not in types:
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
        elif units is _SIZE_UNITS and _NUMBER.fullmatch(text):
            value = int(text)
        else:
            raise ValueError
        if not least <= value <= most:
            raise ValueError
        return value

    return read


def _in_units(value: int, units: dict[str, int]) -> str:
    """`value` in the largest unit that divides it."""
    for unit, factor in sorted(units.items(), key=lambda item: -item[1]):
        if value % factor == 0 and value:
            return f"{value // factor}{unit}"
    return f"{value}{min(units, key=lambda unit: units[unit])}" if units is _DURATION_UNITS else str(value)


def _duration(least: int, most: int = 8760 * _HOUR) -> _Kind:
    def write(value: int) -> str:
        return _in_units(value, _DURATION_UNITS)

    may_be = f"a duration from {write(least)} to {write(most)}, with its unit: ms, s, m or h"
    return _Kind(may_be, _measure(_DURATION_UNITS, least, most), write)


def _size(least: int, most: int, *, power_of_two: bool = False) -> _Kind:
    in_range = _measure(_SIZE_UNITS, least, most)

    def read(node: yaml.Node) -> int:
        value = in_range(node)
        if power_of_two and value & (value - 1):
            raise ValueError
        return value

    def write(value: int) -> str:
        return _in_units(value, _SIZE_UNITS)

    what = "a power of two" if power_of_two else "a size"
    return _Kind(f"{what} from {write(least)} to {write(most)}, with KiB, MiB or GiB, or in bytes", read, write)


def _whole(least: int, most: int) -> _Kind:
    def read(node: yaml.Node) -> int:
        text = _scalar(node, "int")
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return _Kind(f"a whole number from {least} to {most}", read, str)


def _read_fraction(node: yaml.Node) -> float:
    text = _scalar(node, "float", "int")
    if not _FRACTION.fullmatch(text) or not 0 < float(text) < 1:
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
    return None if _is_null(node) else _read_filled(node)


def _list(item: Callable[[yaml.Node], Any], may_be: str, *, least: int = 0) -> _Kind:
    """A list; one whose entries are all commented out is an empty one."""

    def entry(node: yaml.Node) -> Any:
        try:
            return item(node)
        except ValueError:
            raise ValueError(node) from None

    def read(node: yaml.Node) -> tuple[Any, ...]:
        if _is_null(node):
            items: tuple[Any, ...] = ()
        elif isinstance(node, yaml.SequenceNode):
            items = tuple(map(entry, node.value))
        else:
            raise ValueError
        if len(items) < least:
            raise ValueError
        return items

    return _Kind(may_be, read, lambda values: f"[{', '.join(map(str, values))}]")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"


_FRACTION_KIND: Final = _Kind("a number above 0 and below 1", _read_fraction, str)
_SWITCH: Final = _Kind("true or false", _read_switch, lambda value: "true" if value else "false")
_SOURCE: Final = _Kind("one text, such as ebpf", _read_filled, str)
_FILE: Final = _Kind("the path of a file", _read_file, lambda value: value or "null")
_FILE_OR_NONE: Final = _FILE._replace(may_be="the path of a file, or null")
_SOCKET: Final = _FILE._replace(may_be="a socket as unix:///path or as a bare path, or null")
_DIRECTORY: Final = _Kind("the path of a directory, or null", _read_file, lambda value: value or "null")
_OUTPUTS: Final = _list(_read_filled, "a list of texts such as [otlp, compact], at least one", least=1)
_NAMESPACES: Final = _list(_read_text, "a list of names such as [default, kube-system]; in quotes if like a number")
_TEXT: Final = _Kind("a text, or null", _read_file, lambda value: value or "null")
_KEYS: Final = _list(
    _read_filled, "a list of keys such as ['app', 'app.kubernetes.io/*'], in which * stands for any characters"
)._replace(write=lambda values: f"[{', '.join(map(repr, values))}]")
"""In quotes, since ``*`` begins an alias in YAML."""
_SELECTORS: Final = _list(_read_filled, "a list of label selectors, such as ['app=web,tier!=cache', 'org in (a, b)']")
_CONTAINER_IDS: Final = _list(_read_filled, "a list of texts such as ['3f0c9a1e2b7d'], in quotes")
_REGEXES: Final = _list(_read_text, "a list of regular expressions, such as ['^web-', '/sh$']")
_NUMBERS: Final = _list(
    _whole(0, _UINT32_MAX).read, f"a list of whole numbers from 0 to {_UINT32_MAX}, such as [0, 1000]"
)


class _Option(NamedTuple):
    """One option. Its default is the dataclass's."""

    section: str
    """The attribute of `Config` that holds it; ``""``: `Config` itself."""
    attribute: str
    kind: _Kind
    brief: str

    @property
    def key(self) -> str:
        """Its name in the file: values bring their units along."""
        return re.sub("_(ns|bytes)$", "", self.attribute)

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}" if self.section else self.key

    @property
    def place(self) -> str:
        return f"{self.key} under {self.section}" if self.section else self.key

    @property
    def default(self) -> str:
        config = Config()
        return self.kind.write(getattr(getattr(config, self.section) if self.section else config, self.attribute))


_SECTIONS: Final = {
    "": (Config, ""),
    "filters": (
        FilterOptions,
        (
            "What is to leave this host. Within one option any value is enough; all options that are set must hold. "
            "Regular expressions are RE2's and need only match somewhere."
        ),
    ),
    "capture": (Capture, "How events are taken from the kernel (`source: ebpf`)."),
    "trace": (TraceOptions, "Where a new trace begins, and when a program that goes on is announced."),
    "lineage": (LineageOptions, "How much of the past is remembered."),
    "containers": (
        ContainerOptions,
        (
            "Who is asked for containers and pods (`source: ebpf`), and how long what happens in them waits for the "
            "answer. Nothing else waits. Where there is neither a runtime's socket nor a way to the Kubernetes API, "
            "nobody is asked and nothing waits."
        ),
    ),
    "redaction": (
        RedactionOptions,
        (
            "What is taken out of command lines before anything leaves, or any filter sees it: see redaction.md for "
            "what is found by itself."
        ),
    ),
    "records": (RecordOptions, "What log records and spans say."),
    "delivery": (DeliveryOptions, "What cannot be sent at once (`otlp`) waits: in memory, then on disk."),
}

_OPTIONS: Final = (
    _Option(
        "",
        "source",
        _SOURCE,
        "Where events come from: `ebpf` (this host's kernel), `tetragon:PATH` or `tetragon:-` (Tetragon's JSON, from a "
        "file or standard input), `recording:PATH` (what `--record` wrote).",
    ),
    _Option(
        "",
        "outputs",
        _OUTPUTS,
        "Where they go: `otlp` (as the OTEL_ variables say), `otlp-json` (OTLP as JSON lines), `json` (as Tetragon "
        "writes it), `compact` (a line for people); the latter three to standard output, or to a file as in "
        "`compact:PATH`.",
    ),
    _Option(
        "filters",
        "namespaces",
        _NAMESPACES,
        "Kubernetes namespaces, whole names. `''` is what runs outside of pods.",
    ),
    _Option("filters", "pods", _REGEXES, "Names of pods."),
    _Option("filters", "binaries", _REGEXES, "Paths of what runs."),
    _Option("filters", "pids", _NUMBERS, "Process ids, in the initial pid namespace."),
    _Option("filters", "uids", _NUMBERS, "Effective user ids, in the initial user namespace."),
    _Option("filters", "containers", _REGEXES, "Names of containers, in a pod those in its specification."),
    _Option("filters", "container_ids", _CONTAINER_IDS, "Container ids, or their beginnings."),
    _Option("filters", "labels", _SELECTORS, "Labels of pods, as for `kubectl get pods --selector`."),
    _Option(
        "filters",
        "file",
        _FILE,
        "A file with Tetragon's allow and deny lists (`export-allowlist`, `export-denylist`).",
    ),
    _Option(
        "capture",
        "poll_interval_ns",
        _duration(_MS, 10 * _S),
        "How often the ring buffer is read. Events wait this long at most; reading seldom costs less.",
    ),
    _Option(
        "capture",
        "ring_bytes",
        _size(256 * _KIB, 1024 * _MIB, power_of_two=True),
        "The ring buffer between kernel and agent. What finds it full is lost, and counted. An exec takes a few "
        "hundred bytes and its arguments.",
    ),
    _Option(
        "capture",
        "wake_fraction",
        _FRACTION_KIND,
        "How full the ring buffer gets before it is read ahead of time.",
    ),
    _Option(
        "capture",
        "arguments_max_bytes",
        _size(32 * _KIB, 64 * _KIB),
        "How much is kept of a program's arguments. The rest is cut, and the record says so.",
    ),
    _Option(
        "capture",
        "snapshot",
        _SWITCH,
        "Whether processes that run already are read, and told of (`process.discovered`), when capturing begins.",
    ),
    _Option(
        "trace",
        "service_age_ns",
        _duration(0),
        "What a process without a terminal starts when it is older than this is an activity of its own: a new trace.",
    ),
    _Option(
        "trace", "max_age_ns", _duration(_S), "A trace that is older than this takes no more spans: a new one begins."
    ),
    _Option(
        "trace",
        "max_spans",
        _whole(1, 1_000_000),
        "A trace that has this many spans takes no more. Backends cut or refuse long traces.",
    ),
    _Option(
        "trace",
        "open_after_ns",
        _duration(0),
        "A program that has run for this long when a record that leaves names it as parent first sends an opening "
        "span, so that backends can show the trace before it ends.",
    ),
    _Option(
        "lineage",
        "max_images",
        _whole(1024, 16_777_216),
        "How many running and lately ended programs are remembered.",
    ),
    _Option(
        "lineage",
        "grace_ns",
        _duration(0, _HOUR),
        "How long a program is remembered after its end, for events that come late.",
    ),
    _Option(
        "lineage",
        "sweep_interval_ns",
        _duration(_S, _HOUR),
        "How often it is checked whether processes still live whose exit may have been lost.",
    ),
    _Option(
        "containers",
        "ask_runtime",
        _SWITCH,
        "Whether the container runtime is asked, over the Container Runtime Interface: containerd, CRI-O, cri-dockerd. "
        "It knows a container at once.",
    ),
    _Option(
        "containers",
        "runtime_endpoint",
        _SOCKET,
        "Its socket, such as `unix:///run/containerd/containerd.sock`. `null`: as `CONTAINER_RUNTIME_ENDPOINT` says, "
        "else in one of the usual places.",
    ),
    _Option(
        "containers",
        "ask_kubernetes",
        _SWITCH,
        "Whether the Kubernetes API is asked for the pods of this node. It knows a pod's owners.",
    ),
    _Option(
        "containers",
        "kubeconfig",
        _FILE_OR_NONE,
        "How to reach it. `null`: by the pod's service account, else as `KUBECONFIG` says, else, on a node, by "
        "`~/.kube/config`.",
    ),
    _Option(
        "containers",
        "node_name",
        _TEXT,
        "This node's name in the Kubernetes API. `null`: as `NODE_NAME` says, else the host's name.",
    ),
    _Option(
        "containers",
        "hold_ns",
        _duration(0, 10 * _MINUTE),
        "How long what happens in a container waits until it is known what container it is. Then it leaves as it is, "
        "marked `procmon.metadata.incomplete`. `0ms`: nothing waits.",
    ),
    _Option(
        "containers",
        "max_held",
        _whole(1, 1_048_576),
        "How much may wait, of all containers together. Each takes about 3 KiB.",
    ),
    _Option(
        "redaction",
        "enabled",
        _SWITCH,
        "Whether secrets are replaced by `*****`. If not, all arguments leave as they are, and the agent warns.",
    ),
    _Option(
        "redaction",
        "rules",
        _REGEXES._replace(may_be=r"a list of regular expressions, such as ['--pin[= ](\d+)', 'corp-key-(\w+)']"),
        "More rules, beside those built in: RE2 expressions on the arguments as one text, whose groups are replaced.",
    ),
    _Option(
        "redaction",
        "file",
        _FILE_OR_NONE,
        "A file of Tetragon's redaction filters: JSON objects with `redact` and perhaps `binary_regex`.",
    ),
    _Option(
        "records",
        "failed_exit_is_error",
        _SWITCH,
        "Whether a code other than 0, or a signal, makes a span's status Error. `test` and `grep` fail all day.",
    ),
    _Option(
        "records",
        "well_known_labels",
        _SWITCH,
        "Whether a pod's `app.kubernetes.io/` labels count for `service.name`, `service.version` and the like.",
    ),
    _Option(
        "records",
        "pod_labels",
        _KEYS,
        "Which labels of a pod become `k8s.pod.label.<key>`. All, as in Tetragon: Kubernetes means them for selecting, "
        "so they are short and no secrets.",
    ),
    _Option(
        "records",
        "pod_annotations",
        _KEYS,
        "Which annotations of a pod become `k8s.pod.annotation.<key>`, and `pod_annotations` in Tetragon's JSON. They "
        "may be long and may hold secrets. (Those that begin with `resource.opentelemetry.io/` count in any case.)",
    ),
    _Option(
        "records",
        "systemd_services",
        _SWITCH,
        "Whether a process outside of containers has its systemd service as `service.name`: `nginx` for "
        "`nginx.service`, `postgresql` for `postgresql@15-main.service`.",
    ),
    _Option("records", "cluster_name", _TEXT, "`k8s.cluster.name`, and `cluster_name` in Tetragon's JSON."),
    _Option("records", "cluster_uid", _TEXT, "`k8s.cluster.uid`: by the conventions the uid of `kube-system`."),
    _Option(
        "delivery",
        "queue_bytes",
        _size(_MIB, 1024 * _MIB),
        "How much of each signal may wait in memory. A record takes about 1.3 KiB.",
    ),
    _Option("delivery", "in_flight", _whole(1, 64), "How many batches of each signal may be on their way at one time."),
    _Option(
        "delivery",
        "spool_directory",
        _DIRECTORY,
        "Holds what the receiver is not there for, or memory has no room for, until it can be sent, by this agent or "
        "the next one. Each agent needs its own. `null`: nothing waits on disk.",
    ),
    _Option(
        "delivery",
        "spool_max_bytes",
        _size(_MIB, 1024 * 1024 * _MIB),
        "How much of the disk it may take; beyond it the oldest goes first, and is counted. Files are compressed: a "
        "record of a full batch takes about 130 bytes, a batch 4 KiB at least. There are 262144 files at most.",
    ),
)


# Reading the file.


def read_config(path: str | Path) -> Config:
    """What the YAML file `path` says; what it does not name stays at its default. Raises `ConfigError`."""
    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, key_node, node in _entries(_compose(path), "", path):
        if key in _SECTIONS:
            for inner_key, inner_key_node, inner_node in _entries(node, key, path):
                _read_option(values, key, inner_key, (inner_key_node, inner_node), path)
        else:
            _read_option(values, "", key, (key_node, node), path)
    sections = {name: kind(**values[name]) for name, (kind, _) in _SECTIONS.items() if name}
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
        raise ConfigError(f"The configuration file {path} is larger than {_in_units(FILE_MAX_BYTES, _SIZE_UNITS)}.")
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
    if node is None or _is_null(node):
        return
    if not isinstance(node, yaml.MappingNode):
        if section:
            names = ", ".join(option.key for option in _OPTIONS if option.section == section)
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
    for option in _OPTIONS:
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
    here = [option.key for option in _OPTIONS if option.section == section]
    if not section:
        here += [name for name in _SECTIONS if name]
    near = difflib.get_close_matches(key[:100], here, n=1, cutoff=0.5)
    for option in _OPTIONS:
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
    if _is_null(node):
        return "empty"
    text: str = node.value
    return _trimmed(text) if node.tag == f"{_TAG}str" or not re.fullmatch(r"[\w.:+-]{1,60}", text) else text


def _printable(text: str | None) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text or "")


def _trimmed(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")


# The pages that are generated.


class _Variable(NamedTuple):
    """An environment variable that OpenTelemetry defines and otel-procmon honours."""

    name: str
    """With ``<SIGNAL>_`` where there is one form for both signals and one for each."""
    default: str
    brief: str


def _variables() -> Iterator[_Variable]:
    from otel_procmon.deliver.settings import (  # noqa: PLC0415 - it costs an import that only this page needs
        DEFAULT_BATCH_SIZE,
        DEFAULT_QUEUE_SIZE,
    )

    yield _Variable("OTEL_SDK_DISABLED", "false", "`true`: nothing leaves over OTLP.")
    for signal in ("TRACES", "LOGS"):
        yield _Variable(
            f"OTEL_{signal}_EXPORTER", "otlp", f"`otlp`, `console` or both, or `none`, for {signal.lower()}."
        )
    otlp = "OTEL_EXPORTER_OTLP_<SIGNAL>_"
    yield _Variable(f"{otlp}PROTOCOL", "http/protobuf", "`grpc` or `http/protobuf`.")
    yield _Variable(
        f"{otlp}ENDPOINT",
        "http://localhost:4318, for grpc http://localhost:4317",
        "Where to send. For HTTP the signal's path (`/v1/traces`, `/v1/logs`) is added to the common one, and the form "
        "for one signal is taken as it is.",
    )
    yield _Variable(f"{otlp}HEADERS", "", "`key=value` pairs, separated by commas, percent-encoded.")
    yield _Variable(
        f"{otlp}TIMEOUT",
        "10000",
        "Milliseconds for one try to send a batch (milliseconds as in the specification; the Python SDK by itself "
        "takes seconds).",
    )
    yield _Variable(f"{otlp}COMPRESSION", "none", "`gzip` or `none`; for HTTP also `deflate`.")
    yield _Variable(f"{otlp}INSECURE", "false", "`true`: grpc without TLS, for an endpoint without a scheme.")
    yield _Variable(f"{otlp}CERTIFICATE", "the system's", "File with the certificates that a server is checked by.")
    yield _Variable(f"{otlp}CLIENT_CERTIFICATE", "", "File with this client's own certificate.")
    yield _Variable(f"{otlp}CLIENT_KEY", "", "File with its key.")
    for prefix, signal, delay in (("OTEL_BSP_", "Spans", "5000"), ("OTEL_BLRP_", "Log records", "1000")):
        yield _Variable(f"{prefix}MAX_QUEUE_SIZE", str(DEFAULT_QUEUE_SIZE), f"{signal} that may wait for delivery.")
        yield _Variable(f"{prefix}MAX_EXPORT_BATCH_SIZE", str(DEFAULT_BATCH_SIZE), f"{signal} in one batch.")
        yield _Variable(f"{prefix}SCHEDULE_DELAY", delay, "Milliseconds that a batch waits to become full.")
        yield _Variable(f"{prefix}EXPORT_TIMEOUT", "30000", "Milliseconds for one batch, if that is the shorter time.")
    yield _Variable("OTEL_RESOURCE_ATTRIBUTES", "", "Attributes of the host's Resource: `key=value`, as for headers.")
    yield _Variable(
        "OTEL_SERVICE_NAME",
        "otel-procmon",
        "`service.name` of what runs outside of containers and of systemd services, and of the agent itself.",
    )


def document() -> str:
    """The text of ``docs/configuration.md``."""
    lines = [
        "<!-- Generated by `python -m otel_procmon.config`. Do not edit. -->",
        "",
        "# Configuration",
        "",
        "Everything can be set in one YAML file, given by `--config FILE`; `examples/otel-procmon.yaml` is one with",
        "every option at its default. Options of the command line go before the file's. An unknown or repeated option,",
        "or a value that cannot be, is an error at the start that names the line.",
        "",
        "Where OTLP goes, and how, is set by OpenTelemetry's own [environment variables](#environment-variables).",
        "",
    ]
    for section, (_, brief) in _SECTIONS.items():
        lines += [f"## `{section}`", "", brief, ""] if section else ["## Source and outputs", ""]
        lines += ["| Option | Default | May be | Meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{option.name}` | `{option.default}` | {option.kind.may_be} | {option.brief} |"
            for option in _OPTIONS
            if option.section == section
        ]
        lines.append("")
    lines += [
        "## Environment variables",
        "",
        "They mean what OpenTelemetry's specification says. An empty variable is an unset one. A value that cannot be",
        "is an error at the start, where the specification would have it ignored. `<SIGNAL>_` is `TRACES_` or `LOGS_`",
        "for one signal, or absent for both; the form for one signal goes first.",
        "",
        "| Variable | Default | Meaning |",
        "|---|---|---|",
        *(
            f"| `{variable.name}` | {variable.default and f'`{variable.default}`'} | {variable.brief} |"
            for variable in _variables()
        ),
        "",
        "Besides these, `NODE_NAME` is the node's name in exec_ids and lines, as for Tetragon (else the host's name),",
        "and `k8s.node.name`; `NO_COLOR` keeps colours out of the compact view.",
        "",
    ]
    return "\n".join(lines)


def example() -> str:
    """The text of ``examples/otel-procmon.yaml``."""
    lines = [
        "# Generated by `python -m otel_procmon.config example`: every option of otel-procmon at its default.",
        "# Keep what you change; what is not named stays as it is here. docs/configuration.md says more.",
    ]
    for section, (_, brief) in _SECTIONS.items():
        lines.append("")
        indent = ""
        if section:
            lines += [*_comment(brief, ""), f"{section}:"]
            indent = "  "
        for option in _OPTIONS:
            if option.section == section:
                lines += _comment(f"{option.brief} Write {option.kind.may_be}.", indent)
                lines.append(f"{indent}{option.key}: {option.default}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(text.replace("`", ""), 110, initial_indent=prefix, subsequent_indent=prefix)


if __name__ == "__main__":
    sys.stdout.write(example() if sys.argv[1:] == ["example"] else document())
