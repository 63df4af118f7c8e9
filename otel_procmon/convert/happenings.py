"""What happened to images becomes log records and spans.

An exec, an exit and a discovery are log records; an image's life is a span. An image whose children left before it
ended has two spans: an opening one, which its children hang under, and its whole life under that one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from otel_procmon.convert import attributes as names
from otel_procmon.convert.records import LogRecord, Resource, Shared, Span
from otel_procmon.convert.text import encodable
from otel_procmon.events import Discovered, Process, Usage
from otel_procmon.lineage.image import Ended, Happening, Opened, Started, executable_name
from otel_procmon.rfc3339 import format_rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_procmon.convert.records import Attributes, Record
    from otel_procmon.convert.resource import Resources
    from otel_procmon.events import Exit
    from otel_procmon.lineage.image import Image

SEVERITY_INFO: Final = 9
SEVERITY_WARN: Final = 13

OPENING_SPAN_NS: Final = 1000
"""Jaeger complains of spans that last no time at all."""

_NAMELESS: Final = "process"
"""A span must have a name; an executable of which nothing is known has none."""

_MAX_INT64: Final = 2**63 - 1
_LATEST: Final = _MAX_INT64 - OPENING_SPAN_NS


class _Remembered:
    __slots__ = ("process", "resource", "shared")

    def __init__(self, process: Process, resource: Resource, shared: tuple[Shared, ...]) -> None:
        self.process = process
        self.resource = resource
        self.shared = shared


class Converter:
    """Makes records of what happened. Not thread-safe."""

    def __init__(
        self,
        resources: Resources,
        *,
        body: Callable[[Happening], str | None],
        life_span_id: Callable[[Image], bytes],
        user_name: Callable[[int], str | None] | None = None,
        failed_status: bool = True,
        remembered: int = 8192,
    ) -> None:
        """Remember what conversion needs to know.

        Args:
            resources: Finds the Resource of a process.
            body: The line for people that becomes a log record's body; where it gives None, a plain sentence does.
            life_span_id: The id of the second span of an image that had an opening span; 8 bytes.
            user_name: The name of a user id on the host, for ``process.user.name``. None: names are not told, as for
                events of other hosts.
            failed_status: Whether a failed exit makes its span's status Error, with ``error.type``. (Severity WARN it
                is in any case.)
            remembered: Most images whose attributes are kept between their records.
        """
        self._resources = resources
        self._body = body
        self._life_span_id = life_span_id
        self._user_name = user_name
        self._failed_status = failed_status
        self._remembered = remembered
        # The key is the image itself, which its entry thereby keeps alive, and no number that another could get.
        self._images: OrderedDict[Image, _Remembered] = OrderedDict()
        self._commons: dict[tuple[Any, ...], Shared] = {}

    def convert(self, happening: Happening) -> list[Record]:
        """The records that tell of `happening`, in the order in which they should leave."""
        if isinstance(happening, Started):
            return self._started(happening)
        if isinstance(happening, Opened):
            return self._opened(happening)
        return self._ended(happening)

    def _started(self, started: Started) -> list[Record]:
        image, event = started.image, started.event
        resource, shared = self._of(image)
        discovered = isinstance(event, Discovered)
        return [
            LogRecord(
                resource=resource,
                event_name=names.EVENT_DISCOVERED if discovered else names.EVENT_EXEC,
                time_unix_ns=_time(event.time_unix_ns),
                observed_unix_ns=_time(event.observed_unix_ns),
                severity_number=SEVERITY_INFO,
                body=self._text(started, image),
                attributes={},
                shared=shared,
                span=image.span,
            )
        ]

    def _opened(self, opened: Opened) -> list[Record]:
        image = opened.image
        resource, shared = self._of(image)
        attributes: Attributes = {names.PROCMON_SPAN: "open"}
        _entry(image, attributes)
        start = _time(image.process.start_unix_ns)
        return [
            Span(
                resource=resource,
                name=_span_name(image),
                span=image.span,
                parent_span_id=image.parent_span_id,
                start_unix_ns=start,
                end_unix_ns=start + OPENING_SPAN_NS,
                error=False,
                attributes=attributes,
                shared=shared,
                links=(image.link,) if image.link else (),
            )
        ]

    def _ended(self, ended: Ended) -> list[Record]:
        image, event = ended.image, ended.event
        resource, shared = self._of(image)
        self._images.pop(image, None)
        attributes: Attributes = {}
        if event is not None:
            attributes = _exit(event)
        elif image.ended is not None and image.ended != "exit":
            attributes[names.PROCMON_EXIT_REASON] = image.ended
        failure = _failure(event)
        error = failure is not None and self._failed_status
        if failure is not None and error:
            attributes[names.ERROR_TYPE] = failure
        shared = (*shared, Shared(attributes))
        records: list[Record] = [self._life(image, resource, shared, error=error)]
        if event is not None or image.ended == "lost":
            records.append(
                LogRecord(
                    resource=resource,
                    event_name=names.EVENT_EXIT,
                    time_unix_ns=_time(image.end_unix_ns if event is None else event.time_unix_ns),
                    observed_unix_ns=_time(ended.observed_unix_ns),
                    severity_number=SEVERITY_INFO if failure is None else SEVERITY_WARN,
                    body=self._text(ended, image),
                    attributes={},
                    shared=shared,
                    span=image.span,
                )
            )
        return records

    def _life(self, image: Image, resource: Resource, shared: tuple[Shared, ...], *, error: bool) -> Span:
        """The span from an image's start to its end, alone or under the opening span."""
        attributes: Attributes = {}
        start = _time(image.process.start_unix_ns)
        span, parent_span_id, links = image.span, image.parent_span_id, (image.link,) if image.link else ()
        if image.opened:
            attributes[names.PROCMON_SPAN] = "life"
            span, parent_span_id, links = (
                image.span._replace(span_id=self._life_span_id(image)),
                image.span.span_id,
                (),
            )
        else:
            _entry(image, attributes)
        return Span(
            resource=resource,
            name=_span_name(image),
            span=span,
            parent_span_id=parent_span_id,
            start_unix_ns=start,
            # Times of one event may differ by a microsecond at the source; no span may end before it began.
            end_unix_ns=max(start, _time(image.end_unix_ns)),
            error=error,
            attributes=attributes,
            shared=shared,
            links=links,
        )

    def _of(self, image: Image) -> tuple[Resource, tuple[Shared, ...]]:
        """Resource of an image, and the attributes that all of its records share."""
        known = self._images.get(image)
        if known is None or known.process is not image.process:
            known = _Remembered(image.process, self._resources.of(image.process), self._shared(image))
            if image.long_arguments:
                # So many bytes are not kept twice.
                return known.resource, known.shared
            self._images[image] = known
        self._images.move_to_end(image)
        while len(self._images) > self._remembered:
            self._images.popitem(last=False)
        return known.resource, known.shared

    def _shared(self, image: Image) -> tuple[Shared, ...]:
        """The attributes that tell what `image` runs, as whom, where, and where it comes from.

        A script that runs sed a thousand times differs in few of them: what it has in common with the others, and what
        its siblings have in common, is converted and encoded once.
        """
        process = image.process
        created = process.creation_unix_ns
        if created is None and image.forked_only:
            created = process.start_unix_ns
        flags = process.flags
        if image.forked_only and "clone" not in flags:
            flags = (*flags, "clone")
        argv, args_count = process.argv, process.args_count
        command_line = None
        if argv is None and process.arguments is not None:
            # The conventions advise against assembling this attribute. But one string is all that Tetragon tells, and
            # taking it apart would guess: an argument's own quotes are not escaped in it.
            command_line = f"{process.binary} {process.arguments}" if process.arguments else process.binary
        own = (
            process.pid,
            process.vpid,
            argv,
            command_line,
            len(argv) if args_count is None and argv is not None else args_count,
            None if created is None else format_rfc3339(_time(created)),
            process.exec_id,
        )
        program = (
            process.session_id or None,
            executable_name(process),
            process.executable or process.binary,
            argv[0] if argv else None,
            process.cwd,
            process.euid,
            process.uid,
            self._name_of_user(process),
            process.tty,
            process.cgroup,
            flags,
            process.auid,
            process.interpreter,
            process.executable_deleted or None,
            process.truncated,
            process.redacted,
            process.metadata_incomplete or None,
        )
        parent = (
            process.parent_pid,
            image.parent_exec_id,
            image.parent_name,
            image.parent_binary,
            image.ancestors,
            image.own or None,
        )
        return (
            self._common(_PROGRAM, program),
            self._common(_PARENT, parent),
            Shared(_known(zip(_OWN, own, strict=True))),
        )

    def _common(self, names_: tuple[str, ...], values: tuple[Any, ...]) -> Shared:
        """Attributes that other images are likely to have as well, with the same values."""
        # Of one name, all values are of one type: an int is not taken for a bool here.
        shared = self._commons.get(values)
        if shared is None:
            shared = Shared(_known(zip(names_, values, strict=True)))
            if len(self._commons) >= _COMMONS_MAX:
                # What is in use comes back soon.
                self._commons.clear()
            self._commons[values] = shared
        return shared

    def _name_of_user(self, process: Process) -> str | None:
        """The user's name, if the process sees the host's passwd file."""
        if process.euid is None or self._user_name is None:
            return None
        if process.container_id or process.container or process.pod or process.pod_uid:
            return None
        return self._user_name(process.euid)

    def _text(self, happening: Started | Ended, image: Image) -> str:
        """The body of a log record."""
        line = self._body(happening)
        if line is None:
            path = image.process.executable or image.process.binary or "an unknown program"
            path = path if path.isprintable() else ascii(path)
            process = f"{path} (pid {image.process.pid})"
            if isinstance(happening, Ended):
                line = f"process {process} is gone; its exit was not seen"
            else:
                line = f"process {process} was already running"
        return encodable(line)


# Attributes of `_shared`, in its order.
_OWN: Final = (
    names.PROCESS_PID,
    names.PROCESS_VPID,
    names.PROCESS_COMMAND_ARGS,
    names.PROCESS_COMMAND_LINE,
    names.PROCESS_ARGS_COUNT,
    names.PROCESS_CREATION_TIME,
    names.PROCMON_EXEC_ID,
)
_PROGRAM: Final = (
    names.PROCESS_SESSION_LEADER_PID,
    names.PROCESS_EXECUTABLE_NAME,
    names.PROCESS_EXECUTABLE_PATH,
    names.PROCESS_COMMAND,
    names.PROCESS_WORKING_DIRECTORY,
    names.PROCESS_USER_ID,
    names.PROCESS_REAL_USER_ID,
    names.PROCESS_USER_NAME,
    names.PROCESS_INTERACTIVE,
    names.PROCESS_LINUX_CGROUP,
    names.PROCMON_FLAGS,
    names.PROCMON_AUID,
    names.PROCMON_INTERPRETER,
    names.PROCMON_EXECUTABLE_DELETED,
    names.PROCMON_TRUNCATED,
    names.PROCMON_REDACTED,
    names.PROCMON_METADATA_INCOMPLETE,
)
_PARENT: Final = (
    names.PROCESS_PARENT_PID,
    names.PROCMON_PARENT_EXEC_ID,
    names.PROCMON_PARENT_EXECUTABLE_NAME,
    names.PROCMON_PARENT_EXECUTABLE_PATH,
    names.PROCMON_ANCESTORS,
    names.PROCMON_SELF,
)
_COMMONS_MAX: Final = 4096
_EXIT: Final = (
    names.PROCESS_EXIT_CODE,
    names.PROCMON_EXIT_SIGNAL,
    names.PROCMON_EXIT_CORE_DUMPED,
    names.PROCMON_EXIT_OOM_KILLED,
    names.PROCESS_EXIT_TIME,
    names.PROCMON_USAGE_CPU_USER,
    names.PROCMON_USAGE_CPU_SYSTEM,
    names.PROCMON_USAGE_MAX_RSS,
    names.PROCMON_USAGE_IO_READ,
    names.PROCMON_USAGE_IO_WRITTEN,
)


def _time(time_unix_ns: int) -> int:
    """A time that OTLP can hold, whatever arithmetic made it."""
    if 0 <= time_unix_ns <= _LATEST:
        return time_unix_ns
    return 0 if time_unix_ns < 0 else _LATEST


def _span_name(image: Image) -> str:
    return encodable(image.name) or _NAMELESS


def _known(found: Iterable[tuple[str, Any]]) -> Attributes:
    """What of `found` is known and fits into OTLP: no empty texts and lists, no numbers beyond 64 bits."""
    attributes: Attributes = {}
    for name, value in found:
        if value is None:
            continue
        kind = type(value)
        if kind is str:
            if value:
                attributes[name] = value if value.isascii() else encodable(value)
        elif kind is int:
            if -_MAX_INT64 <= value <= _MAX_INT64:
                attributes[name] = value
        elif kind is not tuple:
            attributes[name] = value
        elif value:
            # Joined, so that mostly one look is enough.
            plain = "".join(value).isascii()
            attributes[name] = value if plain else tuple([encodable(text) for text in value])
    return attributes


def _entry(image: Image, attributes: Attributes) -> None:
    if image.entry_reason is not None:
        attributes[names.PROCMON_ENTRY_REASON] = image.entry_reason


def _exit(event: Exit) -> Attributes:
    usage = event.usage or _NOTHING_USED
    # In the order of _EXIT.
    values = (
        # waitpid knows no exit code where a signal ended the process; 128 + n is what shells make of it.
        event.code if event.signal is None else None,
        event.signal,
        event.core_dumped if event.signal else None,
        event.oom_killed if event.signal else None,
        format_rfc3339(_time(event.time_unix_ns)),
        None if usage.cpu_user_ns is None else usage.cpu_user_ns / 1e9,
        None if usage.cpu_system_ns is None else usage.cpu_system_ns / 1e9,
        usage.max_rss_bytes,
        usage.read_bytes,
        usage.written_bytes,
    )
    return _known(zip(_EXIT, values, strict=True))


_NOTHING_USED: Final = Usage()


def _failure(event: Exit | None) -> str | None:
    """``error.type`` of an exit: the signal or the code; None if it did not fail."""
    if event is None:
        return None
    if event.signal is not None:
        return encodable(event.signal) or "signal"
    return str(event.code) if event.code else None
