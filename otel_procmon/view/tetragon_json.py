"""Events as Tetragon's JSON, one object a line.

What Tetragon writes is protojson with proto field names (its ``pkg/encoder``): fields in the order of their
declaration, zero values left out except where the field is a wrapper (``pid``, ``uid``, ``auid``, ``tid``, a
container's ``pid``), times with 0, 3, 6 or 9 digits. An event that came from Tetragon goes out as it came in, field
for field. One of our own is built from the same pieces that Tetragon would have filled in, and from no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from otel_procmon.containers.exec_probe import maybe_exec_probe
from otel_procmon.decode.tetragon import LOST_EXIT
from otel_procmon.events import Discovered, Pod, Process
from otel_procmon.lineage.image import Ended, Happening, Image, Started
from otel_procmon.rfc3339 import format_rfc3339
from otel_procmon.view.arguments import process_arguments
from otel_procmon.view.quote import valid_unicode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_DOCKER_ID_CHARACTERS = 31
"""How much of the container id Tetragon's ``docker`` holds."""
_AUID_UNSET = 2**32 - 1

# Tetragon, pkg/reader/exec: flagsOrdered
_IN_INIT_TREE = "inInitTree"
_FLAGS = (
    "execve",
    "procFS",
    "errorEnvs",
    "truncArgs",
    "miss",
    "errorFilename",
    "errorArgs",
    "nocwd",
    "rootcwd",
    "errorCWD",
    "clone",
    "errorCgroupName",
    "errorCgroupID",
    "errorCgroupSubsysCgrp",
    "errorCgroupSubsys",
    "errorCgroups",
    "errorPathResolutionCwd",
    "dataFilename",
    "dataArgs",
    _IN_INIT_TREE,
)

_ENCODER = msgspec.json.Encoder()


def tetragon_json(
    happening: Happening,
    *,
    cluster_name: str | None = None,
    tells_annotation: Callable[[str], bool] = lambda _: False,
) -> bytes | None:
    """The line for `happening`, without a line end; None if Tetragon has no event for it.

    `cluster_name` is the configured one; `tells_annotation` says by its key which annotations of a pod are in an event
    of our own: none if not asked for, as with Tetragon.

    An image that another program replaced has no exit, and an opening span is OpenTelemetry's business. A process that
    was already running is a ``process_exec`` with the flag ``procFS``, as when Tetragon itself starts.
    """
    document = _document(happening, _Settings(cluster_name, tells_annotation))
    if document is None:
        return None
    try:
        return _ENCODER.encode(document)
    except UnicodeEncodeError:
        return _ENCODER.encode(_encodable(document))


class _Settings(NamedTuple):
    cluster_name: str | None
    tells_annotation: Callable[[str], bool]


def _document(happening: Happening, settings: _Settings) -> dict[str, Any] | None:
    if isinstance(happening, Started):
        if not isinstance(happening.event, Discovered) and happening.event.raw is not None:
            return happening.event.raw
        return _exec(happening, settings)
    if isinstance(happening, Ended):
        if happening.event is not None and happening.event.raw is not None:
            return happening.event.raw
        return _exit(happening, settings)
    return None


def _exec(happening: Started, settings: _Settings) -> dict[str, Any]:
    image = happening.image
    process = _process(image, settings)
    if isinstance(happening.event, Discovered) and "procFS" not in image.process.flags:
        process["flags"] = _flags(image, ("procFS", *(flag for flag in image.process.flags if flag != "execve")))
    event = {"process": process}
    if (parent := _parent(image, settings)) is not None:
        event["parent"] = parent
    return _envelope("process_exec", event, image.process, happening.event.time_unix_ns, settings)


def _exit(happening: Ended, settings: _Settings) -> dict[str, Any] | None:
    image, exit_ = happening.image, happening.event
    if exit_ is None and image.ended != "lost":
        return None
    process = _process(image, settings)
    event: dict[str, Any] = {"process": process}
    if (parent := _parent(image, settings)) is not None:
        event["parent"] = parent
    time_unix_ns = image.end_unix_ns if exit_ is None else exit_.time_unix_ns
    if exit_ is None or (exit_.code is None and exit_.signal is None):
        # Tetragon writes nothing when it loses an exit, and an absent `status` means 0: a reader would take silence for
        # a process that still runs, and an exit with nothing in it for a success. `signal` is free text that readers
        # look at before the status; `tetra getevents -o compact` prints this as `💥 exit … lost`, just as we do.
        event["signal"] = LOST_EXIT
    elif exit_.signal is not None:
        event["signal"] = exit_.signal
    elif exit_.code:
        event["status"] = exit_.code
    event["time"] = format_rfc3339(time_unix_ns)
    return _envelope("process_exit", event, image.process, time_unix_ns, settings)


def _envelope(
    kind: str, event: dict[str, Any], process: Process, time_unix_ns: int, settings: _Settings
) -> dict[str, Any]:
    document: dict[str, Any] = {kind: event}
    if process.node:
        document["node_name"] = process.node
    document["time"] = format_rfc3339(time_unix_ns)
    if cluster_name := process.cluster_name or settings.cluster_name:
        document["cluster_name"] = cluster_name
    return document


def _parent(image: Image, settings: _Settings) -> dict[str, Any] | None:
    """The parent while it is known, else as much of it as its child remembers."""
    if image.parent is not None:
        return _process(image.parent, settings)
    if image.parent_exec_id is None:
        return None
    parent: dict[str, Any] = {"exec_id": image.parent_exec_id}
    if image.parent_binary:
        parent["binary"] = image.parent_binary
    return parent


def _process(image: Image, settings: _Settings) -> dict[str, Any]:
    process = image.process
    document: dict[str, Any] = {"exec_id": process.exec_id, "pid": process.pid}
    # Tetragon's `uid` is the effective user.
    uid = process.uid if process.euid is None else process.euid
    if uid is not None:
        document["uid"] = uid
    if process.cwd:
        document["cwd"] = process.cwd
    if process.binary:
        document["binary"] = process.binary
    if arguments := process_arguments(process):
        document["arguments"] = arguments
    if flags := _flags(image, process.flags):
        document["flags"] = flags
    document["start_time"] = format_rfc3339(process.start_unix_ns)
    document["auid"] = _AUID_UNSET if process.auid is None else process.auid
    if process.pod is not None:
        document["pod"] = _pod(process, process.pod, settings)
    if process.container_id:
        document["docker"] = process.container_id[:_DOCKER_ID_CHARACTERS]
    if image.parent_exec_id:
        document["parent_exec_id"] = image.parent_exec_id
    document["tid"] = process.pid
    if process.vpid is not None or process.in_init_tree is not None:
        # A wrapper: Tetragon writes `false` as well.
        document["in_init_tree"] = image.in_init_tree
    return document


def _flags(image: Image, flags: Collection[str]) -> str:
    """`flags` in Tetragon's order, with what only lineage knows. Those that Tetragon has not got come last."""
    known = set(flags)
    if image.in_init_tree:
        known.add(_IN_INIT_TREE)
    rest = [flag for flag in flags if flag not in _FLAGS]
    return " ".join([*(flag for flag in _FLAGS if flag in known), *rest])


def _pod(process: Process, pod: Pod, settings: _Settings) -> dict[str, Any]:
    document: dict[str, Any] = _present({"namespace": pod.namespace, "name": pod.name, "uid": pod.uid})
    container = process.container
    if container is not None:
        part: dict[str, Any] = {"id": f"{container.runtime}://{container.id}" if container.runtime else container.id}
        if container.name:
            part["name"] = container.name
        if image := _present({"id": container.image_id, "name": container.image_name}):
            part["image"] = image
        if container.start_time:
            part["start_time"] = container.start_time
        if process.vpid is not None:
            part["pid"] = process.vpid
        if maybe_exec_probe(process):
            part["maybe_exec_probe"] = True
        document["container"] = part
    # protojson writes the entries of a map in the order of their keys.
    if pod.labels:
        document["pod_labels"] = dict(sorted(pod.labels.items()))
    document |= _present({"workload": pod.workload, "workload_kind": pod.workload_kind})
    annotations = {key: value for key, value in sorted(pod.annotations.items()) if settings.tells_annotation(key)}
    if annotations:
        document["pod_annotations"] = annotations
    return document


def _present(fields: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}


def _encodable(value: Any) -> Any:
    """A copy of `value` whose strings are all valid Unicode."""
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, dict):
        return {valid_unicode(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return value
