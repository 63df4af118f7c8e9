"""Tetragon's JSON events as `Exec` and `Exit`.

Tetragon writes protojson with proto field names; a reader of protojson takes the lowerCamelCase names and 64-bit
integers as strings too, so both are taken here. Field names and meanings: ``api/v1/tetragon/tetragon.proto`` and
``events.proto`` of cilium/tetragon. What is essential and missing makes a `DecodeError`; anything else of the wrong
type is left out and counted (`decode.fields`). Whatever this module does not know stays in the event's ``raw``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from otel_procmon.decode.errors import DecodeError
from otel_procmon.decode.fields import PLACE, UINT32_MAX, Fields, json_type
from otel_procmon.events import Container, Event, Exec, Exit, Pod, Process
from otel_procmon.lineage.ids import exec_id_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_procmon.ledger import Ledger
    from otel_procmon.source.json_stream import JsonText

_MAX_DEPTH = 64
"""How deeply an event may be nested; Tetragon's own reach about 10."""

_EVENT_KINDS = frozenset(
    {
        "process_exec",
        "process_exit",
        "process_kprobe",
        "process_tracepoint",
        "process_loader",
        "process_uprobe",
        "process_usdt",
        "process_lsm",
        "process_throttle",
        "rate_limit_info",
        "test",
    },
)
_ENVELOPE = frozenset({"node_name", "time", "aggregation_info", "cluster_name", "node_labels"})
_MAPS = frozenset({"pod_labels", "pod_annotations", "node_labels"})
"""Fields whose keys are data, not field names."""

_KERNEL = "<kernel>"
_LOST = "<enomem>"
"""Stands for a binary or arguments that Tetragon received but could not keep."""
_KTHREADD_PID = 2


LOST_EXIT = "lost"
"""What otel-procmon's own JSON has in the place of a signal for an exit that nobody saw (`view.tetragon_json`)."""


def decode_tetragon(text: JsonText, observed_unix_ns: int, ledger: Ledger) -> Event | None:
    """The event that `text` tells of; None for kinds that pass by, counted.

    Raises `DecodeError`, and nothing else whatever the bytes are.
    """
    if text.problem is not None:
        raise DecodeError(f"{text.place}: {text.problem}")
    document = _parse(text, ledger)
    kind = _kind(document, text.place)
    raw = document
    if _proto_name(kind) != kind or b'"execId"' in text.text:
        document = _with_proto_names(document)
        kind = _proto_name(kind)
    if kind == "process_exec":
        return _exec(document, raw, text.place, observed_unix_ns, ledger)
    if kind == "process_exit":
        return _exit(document, raw, text.place, observed_unix_ns, ledger)
    ledger.count(PLACE, f"passed by: {kind if kind in _EVENT_KINDS else 'other'}")
    return None


def _parse(text: JsonText, ledger: Ledger) -> dict[str, Any]:
    source = text.text
    try:
        document = msgspec.json.decode(source)
    except RecursionError:
        raise DecodeError(f"{text.place}: nested too deeply to be a Tetragon event") from None
    except ValueError as error:
        document = _repaired(source)
        if document is None:
            raise DecodeError(f"{text.place}: not valid JSON: {error}") from None
        ledger.count(PLACE, "repaired: invalid UTF-8")
    if not isinstance(document, dict):
        raise DecodeError(f"{text.place}: a JSON {json_type(document)} instead of an object")
    # The count of brackets is cheap and, for what Tetragon writes, always enough.
    if source.count(b"{") + source.count(b"[") > _MAX_DEPTH and _depth(document) > _MAX_DEPTH:
        raise DecodeError(f"{text.place}: nested too deeply to be a Tetragon event")
    return document


def _repaired(source: bytes) -> Any:
    """What `source` says without what is not UTF-8 in it; None if that is not what ails it.

    Looked for here, because versions of msgspec differ in what they raise for it: UnicodeDecodeError, or since 0.23 the
    DecodeError that they raise for everything else.
    """
    repaired = source.decode("utf-8", "replace")
    if repaired.encode() == source:
        return None
    try:
        return msgspec.json.decode(repaired)
    except (ValueError, RecursionError):
        return None


def _depth(document: dict[str, Any]) -> int:
    depth = 0
    level: list[Any] = [document]
    while level:
        depth += 1
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
    return depth


def _children(parent: Any) -> Iterator[Any]:
    return iter(parent.values() if isinstance(parent, dict) else parent)


def _kind(document: dict[str, Any], place: str) -> str:
    """The key that holds the event. The protocol allows one."""
    kinds = [key for key, value in document.items() if _proto_name(key) not in _ENVELOPE and value is not None]
    if not kinds:
        raise DecodeError(f"{place}: an object that holds no event")
    if len(kinds) == 1:
        return kinds[0]
    ours = [key for key in kinds if _proto_name(key) in ("process_exec", "process_exit")]
    if len(ours) > 1:
        raise DecodeError(f"{place}: more than one event in one object")
    return ours[0] if ours else kinds[0]


def _proto_name(name: str) -> str:
    """``processExec`` → ``process_exec``; proto names stay what they are."""
    return _CAPITAL.sub(r"_\g<0>", name).lower() if _CAPITAL.search(name) else name


_CAPITAL = re.compile(r"(?<=[a-z0-9])[A-Z]")


def _with_proto_names(value: Any) -> Any:
    """A copy of `value` in which all field names are proto names. As deep as `_MAX_DEPTH` at most."""
    if isinstance(value, dict):
        copy = {}
        for key, child in value.items():
            name = _proto_name(key)
            copy[name] = child if name in _MAPS else _with_proto_names(child)
        return copy
    if isinstance(value, list):
        return [_with_proto_names(child) for child in value]
    return value


class _Where(NamedTuple):
    """What the envelope of an event says of the processes in it."""

    node: str | None
    cluster_name: str | None

    @classmethod
    def of(cls, envelope: Fields) -> _Where:
        return cls(envelope.text("node_name"), envelope.text("cluster_name"))


def _exec(document: dict[str, Any], raw: dict[str, Any], place: str, observed_unix_ns: int, ledger: Ledger) -> Exec:
    envelope = Fields(document, "event", ledger)
    event = _event(document, "process_exec", place, ledger)
    fields = _process_fields(event, "process_exec", place)
    exec_id = _exec_id(fields, "process_exec", place)
    start_unix_ns = fields.time("start_time")
    time_unix_ns = envelope.time("time")
    if time_unix_ns is None:
        time_unix_ns = start_unix_ns
    if time_unix_ns is None:
        raise DecodeError(f"{place}: process_exec.process.start_time is missing, and so is time")
    pid = _pid(fields, exec_id, "process_exec", place)
    where = _Where.of(envelope)
    parent_exec_id = _parent_exec_id(fields, exec_id)
    parent = _parent(event, where)
    parent_pid = parent.pid if parent is not None else _pid_of(parent_exec_id)
    flags = _flags(fields)

    previous_exec_id = None
    if parent_exec_id is not None and parent_pid == pid and "clone" not in flags:
        # The same process ran another program before: it is its own parent here, and whose child it is only its
        # previous image knows.
        previous_exec_id = parent_exec_id
        parent_pid = None
        parent_fields = event.fields("parent")
        if parent_fields is not None:
            parent_pid = _pid_of(parent_fields.text("parent_exec_id"))
            parent_pid = None if parent_pid == pid else parent_pid

    return Exec(
        time_unix_ns=time_unix_ns,
        observed_unix_ns=observed_unix_ns,
        process=_process(
            fields,
            exec_id=exec_id,
            pid=pid,
            parent_pid=parent_pid,
            start_unix_ns=time_unix_ns if start_unix_ns is None else start_unix_ns,
            where=where,
        ),
        parent_exec_id=parent_exec_id,
        previous_exec_id=previous_exec_id,
        previous_is_fork=None if previous_exec_id is None else False,
        parent=parent,
        raw=raw,
    )


def _exit(document: dict[str, Any], raw: dict[str, Any], place: str, observed_unix_ns: int, ledger: Ledger) -> Exit:
    envelope = Fields(document, "event", ledger)
    event = _event(document, "process_exit", place, ledger)
    fields = _process_fields(event, "process_exit", place)
    exec_id = _exec_id(fields, "process_exit", place)
    time_unix_ns = envelope.time("time")
    if time_unix_ns is None:
        time_unix_ns = event.time("time")
    if time_unix_ns is None:
        # The start is known, but it would be a lie about when the process ended.
        raise DecodeError(f"{place}: process_exit.time is missing, and so is time")
    pid = _pid(fields, exec_id, "process_exit", place)
    where = _Where.of(envelope)
    parent_exec_id = _parent_exec_id(fields, exec_id)
    parent = _parent(event, where)
    parent_pid = parent.pid if parent is not None else _pid_of(parent_exec_id)
    if parent_pid == pid:
        parent_pid = None

    start_unix_ns = fields.time("start_time")
    process = None
    if start_unix_ns is not None:
        process = _process(
            fields, exec_id=exec_id, pid=pid, parent_pid=parent_pid, start_unix_ns=start_unix_ns, where=where
        )
    signal = event.text("signal")
    code = None
    if signal is None:
        code = event.number("status", 255) if event.has("status") else 0
    elif signal == LOST_EXIT:
        signal = None
    return Exit(
        time_unix_ns=time_unix_ns,
        observed_unix_ns=observed_unix_ns,
        exec_id=exec_id,
        pid=pid,
        code=code,
        signal=signal,
        parent_exec_id=parent_exec_id,
        parent_pid=parent_pid,
        process=process,
        parent=parent,
        raw=raw,
    )


def _event(document: dict[str, Any], kind: str, place: str, ledger: Ledger) -> Fields:
    value = document[kind]
    if not isinstance(value, dict):
        raise DecodeError(f"{place}: {kind} is a JSON {json_type(value)}, not an object")
    return Fields(value, kind, ledger)


def _process_fields(event: Fields, kind: str, place: str) -> Fields:
    fields = event.fields("process")
    if fields is None:
        raise DecodeError(f"{place}: {kind}.process is missing")
    return fields


def _exec_id(fields: Fields, kind: str, place: str) -> str:
    exec_id = fields.text("exec_id")
    if exec_id is None:
        raise DecodeError(f"{place}: {kind}.process.exec_id is missing")
    return exec_id


def _pid(fields: Fields, exec_id: str, kind: str, place: str) -> int:
    pid = fields.number("pid")
    if pid is None:
        pid = _pid_of(exec_id)
    if pid is None:
        raise DecodeError(f"{place}: {kind}.process.pid is missing")
    return pid


def _pid_of(exec_id: str | None) -> int | None:
    numbers = None if exec_id is None else exec_id_numbers(exec_id)
    return None if numbers is None or numbers[1] > UINT32_MAX else numbers[1]


def _parent_exec_id(fields: Fields, exec_id: str) -> str | None:
    """The parent's exec_id; None for ``<kernel>``, which names itself."""
    parent_exec_id = fields.text("parent_exec_id")
    return None if parent_exec_id == exec_id else parent_exec_id


def _parent(event: Fields, where: _Where) -> Process | None:
    """The parent as the event describes it, if that is enough to be a process."""
    fields = event.fields("parent")
    if fields is None:
        return None
    exec_id = fields.text("exec_id")
    start_unix_ns = fields.time("start_time")
    if exec_id is None or start_unix_ns is None:
        return None
    pid = fields.number("pid")
    if pid is None:
        pid = _pid_of(exec_id)
    if pid is None:
        return None
    parent_pid = _pid_of(_parent_exec_id(fields, exec_id))
    if parent_pid == pid:
        parent_pid = None
    return _process(fields, exec_id=exec_id, pid=pid, parent_pid=parent_pid, start_unix_ns=start_unix_ns, where=where)


def _flags(fields: Fields) -> tuple[str, ...]:
    return tuple((fields.text("flags") or "").split())


def _process(
    fields: Fields, *, exec_id: str, pid: int, parent_pid: int | None, start_unix_ns: int, where: _Where
) -> Process:
    flags = _flags(fields)
    binary = fields.text("binary") or ""
    arguments = fields.text("arguments") or ""
    truncated = []
    if binary == _LOST:
        binary = ""
        truncated.append("binary")
    elif "truncFilename" in flags:
        truncated.append("binary")
    if arguments == _LOST:
        arguments = ""
        truncated.append("arguments")
    elif "truncArgs" in flags or "errorArgs" in flags:
        truncated.append("arguments")

    # Tetragon's `uid` is the effective one (its proto says so, and bpf_execve_event.h fills it from creds.euid).
    uid = gid = egid = None
    euid = fields.user_id("uid")
    credentials = fields.fields("process_credentials")
    if credentials is not None:
        uid, gid, egid = credentials.user_id("uid"), credentials.user_id("gid"), credentials.user_id("egid")
        effective = credentials.user_id("euid")
        euid = euid if effective is None else effective

    pod, container, vpid = _pod(fields)
    return Process(
        exec_id=exec_id,
        pid=pid,
        binary=binary,
        start_unix_ns=start_unix_ns,
        flags=flags,
        arguments=arguments,
        executable_deleted=_deleted(fields),
        cwd=fields.text("cwd"),
        parent_pid=parent_pid,
        vpid=vpid,
        uid=uid,
        gid=gid,
        euid=euid,
        egid=egid,
        auid=fields.user_id("auid"),
        container_id=fields.text("docker") if container is None else container.id,
        container=container,
        pod=pod,
        pod_uid=None if pod is None else pod.uid,
        node=where.node,
        cluster_name=where.cluster_name,
        in_init_tree=fields.truth("in_init_tree"),
        kernel_thread=_is_kernel_thread(pid, parent_pid, binary, flags),
        truncated=tuple(truncated),
    )


def _is_kernel_thread(pid: int, parent_pid: int | None, binary: str, flags: tuple[str, ...]) -> bool:
    """Pid 0 is Tetragon's ``<kernel>``; kernel threads are kthreadd and its children that never exec'd."""
    if pid == 0 or binary == _KERNEL:
        return True
    return "procFS" in flags and _KTHREADD_PID in (pid, parent_pid)


def _deleted(fields: Fields) -> bool:
    """Tetragon describes the binary's file only where it has no links: deleted, or never in a directory."""
    properties = fields.fields("binary_properties")
    file = None if properties is None else properties.fields("file")
    inode = None if file is None else file.fields("inode")
    return inode is not None and inode.number("links") == 0


def _pod(fields: Fields) -> tuple[Pod | None, Container | None, int | None]:
    """The pod, its container, and the process's pid in there."""
    pod = fields.fields("pod")
    if pod is None:
        return None, None, None
    container = vpid = None
    source = pod.fields("container")
    if source is not None:
        vpid = source.number("pid")
        container = _container(source)
    return (
        Pod(
            namespace=pod.text("namespace"),
            name=pod.text("name"),
            uid=pod.text("uid"),
            labels=pod.strings("pod_labels"),
            annotations=pod.strings("pod_annotations"),
            workload=pod.text("workload"),
            workload_kind=pod.text("workload_kind"),
        ),
        container,
        vpid,
    )


def _container(fields: Fields) -> Container | None:
    container_id = fields.text("id")
    if container_id is None:
        return None
    runtime, separator, bare_id = container_id.partition("://")
    if not separator:
        runtime, bare_id = "", container_id
    if not bare_id:
        return None
    image = fields.fields("image")
    start_time = fields.text("start_time")
    return Container(
        id=bare_id,
        runtime=runtime or None,
        name=fields.text("name"),
        image_id=None if image is None else image.text("id"),
        image_name=None if image is None else image.text("name"),
        start_time=start_time,
        maybe_exec_probe=bool(fields.truth("maybe_exec_probe")),
    )
