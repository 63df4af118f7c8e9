"""What is to leave this host: the command line's filters, and Tetragon's allow and deny lists.

Both work as in Tetragon. Within one option or field any value is enough, all options or fields must hold. Of an allow
list one entry must hold, of a deny list none. Regular expressions are RE2's and need only match somewhere
(`otel_procmon.patterns` says what differs in Python).

What happens to an image is accepted or refused as a whole: its log record, its span and its line in a view. For
``event_set``, ``PROCESS_EXEC`` concerns its beginning (also one that is only discovered, as in Tetragon) and
``PROCESS_EXIT`` its end, whatever ended it, with its span and with the opening span that announces that one.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import yaml

from otel_procmon.containers.exec_probe import maybe_exec_probe
from otel_procmon.json_objects import json_objects
from otel_procmon.lineage.image import Started
from otel_procmon.patterns import compile_re2
from otel_procmon.selectors import parse_selector
from otel_procmon.view.arguments import process_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from otel_procmon.events import Process
    from otel_procmon.lineage.image import Happening, Image

    Test = Callable[[Happening], bool]

T = TypeVar("T")

_ANCESTORS_LIMIT = 1024
"""How far up the lineage is looked, in case it were a circle."""
_DOCKER_ID_CHARACTERS = 31
_UINT32_MAX = 2**32 - 1


class FilterError(ValueError):
    """A filter that cannot work. The message is one sentence that names the place and the field."""


class FilterEntry(NamedTuple):
    """One entry of an allow or deny list."""

    fields: Mapping[str, Any]
    place: str
    """Where it stands, for messages: ``FILE, export-denylist, entry 2``."""


class Filter:
    """A decision on each `Happening`; see the module."""

    def __init__(self, tests: Sequence[Test], allow: Sequence[Sequence[Test]], deny: Sequence[Sequence[Test]]) -> None:
        self._tests = tuple(tests)
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._nothing_asked = not (self._tests or self._allow or self._deny)

    @classmethod
    def of(
        cls,
        *,
        namespaces: Sequence[str] = (),
        pods: Sequence[str] = (),
        binaries: Sequence[str] = (),
        pids: Sequence[int] = (),
        uids: Sequence[int] = (),
        containers: Sequence[str] = (),
        container_ids: Sequence[str] = (),
        labels: Sequence[str] = (),
        allow: Sequence[FilterEntry | Mapping[str, Any]] = (),
        deny: Sequence[FilterEntry | Mapping[str, Any]] = (),
    ) -> Filter:
        """The filter for these options. Raises `FilterError`.

        `namespaces` are names, ``""`` being the host; `pods`, `binaries` and `containers` (their names) are regular
        expressions; `uids` are effective user ids, as Tetragon's ``uid``; `container_ids` are ids or their beginnings;
        `labels` are selectors. `allow` and `deny` are the entries of Tetragon's lists.
        """
        tests: list[Test] = []
        if namespaces:
            tests.append(_namespace(namespaces, "--namespace"))
        if pods:
            tests.append(_pod_regex(pods, "--pod"))
        if binaries:
            tests.append(_binary_regex(binaries, "--binary"))
        if pids:
            tests.append(_pid(pids, "--pid"))
        if uids:
            tests.append(_uid(uids, "--uid"))
        if containers:
            tests.append(_container_name_regex(containers, "--container"))
        if container_ids:
            tests.append(_container_id_prefix(container_ids, "--container-id"))
        if labels:
            tests.append(_labels(labels, "--label"))
        return cls(
            tests,
            [_entry(entry, "allow list", number) for number, entry in enumerate(allow, start=1)],
            [_entry(entry, "deny list", number) for number, entry in enumerate(deny, start=1)],
        )

    def accepts(self, happening: Happening) -> bool:
        """Whether `happening` is to leave."""
        if self._nothing_asked:
            return True
        if not all(test(happening) for test in self._tests):
            return False
        if self._allow and not any(all(test(happening) for test in entry) for entry in self._allow):
            return False
        return not any(all(test(happening) for test in entry) for entry in self._deny)


def read_filter_file(path: str) -> tuple[list[FilterEntry], list[FilterEntry]]:
    """The allow and the deny list in a YAML or JSON file.

    A mapping with ``export-allowlist`` and ``export-denylist`` (as in Tetragon's ConfigMap) or ``exportAllowList`` and
    ``exportDenyList`` (its Helm values); also a whole ConfigMap with them in ``data``, or whole Helm values with them
    in ``tetragon``. Each is a string of JSON objects, as in Tetragon, or a list of objects. Raises `FilterError`.
    """
    try:
        document = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise FilterError(f"The filter file {path} cannot be read: {error.strerror or error}.") from error
    except (LookupError, AttributeError) as error:
        # How PyYAML takes a `!!bool` or a `!!timestamp` that is none.
        raise FilterError(f"The filter file {path} is not valid YAML: a value does not fit its tag.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise FilterError(f"The filter file {path} is not valid YAML: {reason}") from error
    if not isinstance(document, dict):
        raise FilterError(f"The filter file {path} must be a mapping with export-allowlist or export-denylist.")
    settings = document
    for nest in ("data", "tetragon"):
        if not any(_list_name(key) for key in settings) and isinstance(document.get(nest), dict):
            settings = document[nest]
    lists: dict[str, list[FilterEntry]] = {}
    for key, value in settings.items():
        name = _list_name(key)
        if name is None:
            if settings is document:
                raise FilterError(
                    f"The filter file {path} has an unknown key {key!r}: only export-allowlist and export-denylist are."
                )
            continue
        if name in lists:
            raise FilterError(f"The filter file {path} has {key!r} twice, in two spellings.")
        lists[name] = _entries(value, f"{path}, {key}")
    if not lists:
        raise FilterError(f"The filter file {path} has neither export-allowlist nor export-denylist.")
    return lists.get("allow", []), lists.get("deny", [])


def _list_name(key: Any) -> str | None:
    letters = re.sub("[^a-z]", "", str(key).lower())
    return {"exportallowlist": "allow", "exportdenylist": "deny"}.get(letters)


def _entries(value: Any, place: str) -> list[FilterEntry]:
    if value is None:
        return []
    if isinstance(value, str):
        try:
            objects = list(json_objects(value))
        except ValueError as error:
            raise FilterError(f"{place}, {error}") from error
    elif isinstance(value, list):
        objects = value
    else:
        raise FilterError(f"{place}: neither JSON lines nor a list of objects.")
    entries = []
    for number, fields in enumerate(objects, start=1):
        if not isinstance(fields, dict):
            raise FilterError(f"{place}, entry {number}: not an object.")
        entries.append(FilterEntry(fields, f"{place}, entry {number}"))
    return entries


def _entry(entry: FilterEntry | Mapping[str, Any], list_name: str, number: int) -> list[Test]:
    """The tests of one entry, all of which must hold; none at all hold for everything, as in Tetragon."""
    if not isinstance(entry, FilterEntry):
        entry = FilterEntry(entry, f"{list_name}, entry {number}")
    tests = []
    for key, value in entry.fields.items():
        name = re.sub("(?<=[a-z])[A-Z]", r"_\g<0>", str(key)).lower()  # protojson reads binaryRegex too
        place = f"{entry.place}: {key}"
        if name in _NOT_DERIVABLE:
            raise FilterError(f"{place} cannot be evaluated here: {_NOT_DERIVABLE[name]}.")
        if name not in _FIELDS and name not in _SWITCHES:
            known = sorted([*_FIELDS, *_SWITCHES])
            raise FilterError(f"{place} is not a filter field; known are {', '.join(known)}.")
        if value is None:
            continue
        if name in _SWITCHES:
            tests.append(_SWITCHES[name](value, place))
            continue
        if not isinstance(value, list):
            raise FilterError(f"{place} must be a list.")
        if value:
            tests.append(_FIELDS[name](value, place))
    return tests


# What the fields look at. Every maker takes the values and the place for messages, and gives a test.


def _texts(values: Sequence[Any], place: str) -> list[str]:
    for value in values:
        if not isinstance(value, str):
            raise FilterError(f"{place}: {value!r} is not a string.")
    return list(values)


def _numbers(values: Sequence[Any], place: str) -> frozenset[int]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _UINT32_MAX:
            raise FilterError(f"{place}: {value!r} is not a number from 0 to {_UINT32_MAX}.")
    return frozenset(values)


def _compiled(compiler: Callable[[str], T], value: str, what: str, place: str) -> T:
    try:
        return compiler(value)
    except ValueError as error:
        raise FilterError(f"{place}: {value!r} is not a valid {what}: {error}.") from error


def _search(values: Sequence[Any], place: str) -> Callable[[str], bool]:
    """Whether any of the patterns matches somewhere in a text."""
    patterns = [_compiled(compile_re2, value, "regular expression", place) for value in _texts(values, place)]
    return lambda text: any(pattern.search(text) for pattern in patterns)


def _in_pod(process: Process) -> bool:
    """Whether metadata say that `process` runs in a pod. A pod of which only the uid is known counts as well."""
    return process.pod is not None or process.pod_uid is not None


def _namespace(values: Sequence[Any], place: str) -> Test:
    namespaces = frozenset(_texts(values, place))

    def test(happening: Happening) -> bool:
        process = happening.image.process
        if process.pod is None:
            return "" in namespaces and not _in_pod(process)
        return (process.pod.namespace or "") in namespaces

    return test


def _namespace_regex(values: Sequence[Any], place: str) -> Test:
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        pod = happening.image.process.pod
        return pod is not None and matches(pod.namespace or "")

    return test


def _pod_regex(values: Sequence[Any], place: str) -> Test:
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        pod = happening.image.process.pod
        return pod is not None and matches(pod.name or "")

    return test


def _labels(values: Sequence[Any], place: str) -> Test:
    selectors = [_compiled(parse_selector, value, "label selector", place) for value in _texts(values, place)]

    def test(happening: Happening) -> bool:
        pod = happening.image.process.pod
        return pod is not None and any(selects(pod.labels) for selects in selectors)

    return test


def _container_name_regex(values: Sequence[Any], place: str) -> Test:
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        container = happening.image.process.container
        return container is not None and matches(container.name or "")

    return test


def _container_id(values: Sequence[Any], place: str) -> Test:
    """Tetragon's field holds 31 characters; patterns for those and for the whole id both match."""
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        container_id = happening.image.process.container_id or ""
        return matches(container_id) or matches(container_id[:_DOCKER_ID_CHARACTERS])

    return test


def _container_id_prefix(values: Sequence[Any], place: str) -> Test:
    """Beginnings of ids; where only Tetragon's 31 characters are known, those of a longer id are enough."""
    prefixes = _texts(values, place)
    if "" in prefixes:
        raise FilterError(f"{place}: an empty container id would select everything.")

    def test(happening: Happening) -> bool:
        container_id = happening.image.process.container_id
        if not container_id:
            return False
        short = len(container_id) == _DOCKER_ID_CHARACTERS
        return any(
            container_id.startswith(prefix) or (short and prefix.startswith(container_id)) for prefix in prefixes
        )

    return test


def _binary_regex(values: Sequence[Any], place: str) -> Test:
    matches = _search(values, place)
    return lambda happening: matches(happening.image.process.binary)


def _arguments_regex(values: Sequence[Any], place: str) -> Test:
    matches = _search(values, place)
    return lambda happening: matches(process_arguments(happening.image.process))


def _parent_binary_regex(values: Sequence[Any], place: str) -> Test:
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        binary = _parent_binary(happening)
        return binary is not None and matches(binary)

    return test


def _parent_arguments_regex(values: Sequence[Any], place: str) -> Test:
    """Only while the parent, or the event's own description of it, is there."""
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        parent = _parent(happening)
        return parent is not None and matches(process_arguments(parent))

    return test


def _ancestor_binary_regex(values: Sequence[Any], place: str) -> Test:
    """Ancestors beyond the parent, as in Tetragon, as far as they still live or Tetragon's event lists them."""
    matches = _search(values, place)

    def test(happening: Happening) -> bool:
        if any(matches(ancestor.process.binary) for ancestor in islice(_ancestors(happening.image), 1, None)):
            return True
        return any(matches(binary) for binary in _listed_ancestors(happening))

    return test


def _pid(values: Sequence[Any], place: str) -> Test:
    pids = _numbers(values, place)
    return lambda happening: happening.image.process.pid in pids


def _uid(values: Sequence[Any], place: str) -> Test:
    uids = _numbers(values, place)

    def test(happening: Happening) -> bool:
        process = happening.image.process
        return (process.uid if process.euid is None else process.euid) in uids

    return test


def _pid_set(values: Sequence[Any], place: str) -> Test:
    """Processes with one of these pids, and their descendants.

    A descendant is known by the ancestors that are still in the process table. Where one in between has left it, what
    is below is no longer seen as a descendant, except its own child, which remembers its parent's pid. And a pid that
    is used again is another process: as in Tetragon, this is for looking at something now, not for production.
    """
    pids = _numbers(values, place)

    def test(happening: Happening) -> bool:
        image = happening.image
        if image.process.pid in pids or image.process.parent_pid in pids:
            return True
        return any(
            ancestor.process.pid in pids or ancestor.process.parent_pid in pids for ancestor in _ancestors(image)
        )

    return test


_EVENT_NUMBERS = {1: "PROCESS_EXEC", 5: "PROCESS_EXIT"}
_EVENT_NAMES: Collection[str] = frozenset(
    {
        "UNDEF",
        "PROCESS_EXEC",
        "PROCESS_EXIT",
        "PROCESS_KPROBE",
        "PROCESS_TRACEPOINT",
        "PROCESS_LOADER",
        "PROCESS_UPROBE",
        "PROCESS_THROTTLE",
        "PROCESS_LSM",
        "PROCESS_USDT",
        "TEST",
        "RATE_LIMIT_INFO",
    },
)


def _event_set(values: Sequence[Any], place: str) -> Test:
    """Kinds that are never made here are taken and match nothing: Tetragon's own default list names them."""
    names = set()
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            names.add(_EVENT_NUMBERS.get(value, ""))
        elif isinstance(value, str) and value in _EVENT_NAMES:
            names.add(value)
        else:
            raise FilterError(f"{place}: {value!r} is not a kind of event.")
    begins, ends = "PROCESS_EXEC" in names, "PROCESS_EXIT" in names
    return lambda happening: begins if isinstance(happening, Started) else ends


def _health_check(value: Any, place: str) -> Test:
    """Whether it may be an exec probe of its container, or the child of one; Tetragon's own default list denies those.

    Of processes without a pod's metadata nothing of the kind is known, and they are none.
    """
    if not isinstance(value, bool):
        raise FilterError(f"{place} must be true or false.")

    def test(happening: Happening) -> bool:
        parent = _parent(happening)
        probe = maybe_exec_probe(happening.image.process) or (parent is not None and maybe_exec_probe(parent))
        return probe is value

    return test


def _in_init_tree(value: Any, place: str) -> Test:
    """Whether it descends from the first process of its container (`Image.in_init_tree`): not from a ``kubectl exec``.

    As in Tetragon, what nothing is known of does not.
    """
    if not isinstance(value, bool):
        raise FilterError(f"{place} must be true or false.")
    return lambda happening: happening.image.in_init_tree is value


_FIELDS: Mapping[str, Callable[[Sequence[Any], str], Test]] = {
    "ancestor_binary_regex": _ancestor_binary_regex,
    "arguments_regex": _arguments_regex,
    "binary_regex": _binary_regex,
    "container_id": _container_id,
    "container_name_regex": _container_name_regex,
    "event_set": _event_set,
    "labels": _labels,
    "namespace": _namespace,
    "namespace_regex": _namespace_regex,
    "parent_arguments_regex": _parent_arguments_regex,
    "parent_binary_regex": _parent_binary_regex,
    "pid": _pid,
    "pid_set": _pid_set,
    "pod_regex": _pod_regex,
}

_SWITCHES: Mapping[str, Callable[[Any, str], Test]] = {"health_check": _health_check, "in_init_tree": _in_init_tree}
"""Fields that are true or false, and no list."""
_NOT_DERIVABLE = {
    "capabilities": "events do not carry capabilities",
    "cel_expression": "there is no evaluator for CEL",
    "policy_names": "there are no tracing policies",
}
"""Fields that Tetragon has. To pass over one would let out what somebody wanted to keep in."""


def _ancestors(image: Image) -> Iterator[Image]:
    """The images above `image`, the parent first, as far as they are in the process table."""
    ancestor = image.parent
    for _ in range(_ANCESTORS_LIMIT):
        if ancestor is None:
            return
        yield ancestor
        ancestor = ancestor.parent


def _parent(happening: Happening) -> Process | None:
    if happening.image.parent is not None:
        return happening.image.parent.process
    # An opening span has no event, an end may have none.
    event = getattr(happening, "event", None)
    parent: Process | None = getattr(event, "parent", None)
    return parent


def _parent_binary(happening: Happening) -> str | None:
    parent = _parent(happening)
    return happening.image.parent_binary if parent is None else parent.binary


def _listed_ancestors(happening: Happening) -> Iterator[str]:
    """Binaries of the ``ancestors`` in an event of Tetragon's, where that was told to list them."""
    raw = getattr(getattr(happening, "event", None), "raw", None)
    if raw is None:
        return
    for kind in ("process_exec", "process_exit", "processExec", "processExit"):
        event = raw.get(kind)
        ancestors = event.get("ancestors") if isinstance(event, dict) else None
        for ancestor in ancestors if isinstance(ancestors, list) else ():
            binary = ancestor.get("binary") if isinstance(ancestor, dict) else None
            if isinstance(binary, str):
                yield binary
