"""An image and what happened to it: what lineage hands to the stages after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from otel_procmon.events import Discovered, Exec, Exit, Fork

if TYPE_CHECKING:
    from otel_procmon.events import Process

EntryReason = Literal["unknown_parent", "kernel_parent", "init_parent", "container", "session", "service", "limit"]
"""Why a trace begins at an image: design rules 1 to 5, in their order."""

EndReason = Literal["exit", "exec", "lost"]
"""How an image ended: its process exited, ran another program, or vanished without an event."""


class SpanRef(NamedTuple):
    """A span in some trace: 16 bytes of trace id, 8 of span id."""

    trace_id: bytes
    span_id: bytes


class Image:
    """One program that a process runs, in its place in the lineage. Only `lineage.table` changes it."""

    __slots__ = (
        "ancestors",
        "began_trace",
        "boot_start_ns",
        "children",
        "discovered",
        "end_unix_ns",
        "ended",
        "entry_reason",
        "exec_id",
        "fork",
        "forked_only",
        "hearsay",
        "in_init_tree",
        "link",
        "long_arguments",
        "missed",
        "opened",
        "own",
        "parent",
        "parent_binary",
        "parent_exec_id",
        "parent_name",
        "parent_span_id",
        "pid_key",
        "process",
        "referred",
        "span",
        "trace_images",
        "trace_start_unix_ns",
    )

    def __init__(self, known: Process | Fork, span: SpanRef) -> None:
        self.exec_id = known.exec_id
        """The image's identity."""
        self.pid_key = known.node, known.pid
        self.boot_start_ns = known.boot_start_ns
        self.process: Process
        self.fork: Fork | None = None
        """All that is known, of a fork whose trace nobody has asked for yet: process, span, entry, link, init tree,
        ancestors and parent's name are not set.

        Nobody outside of `lineage.table` sees such an image.
        """
        if isinstance(known, Fork):
            self.fork = known
        else:
            self.process = known
        self.span = span
        """The span that tells of this image: its trace and its id."""
        self.parent: Image | None = None
        """The parent while it is in the table. After its end the copies below remain."""
        self.parent_exec_id: str | None = None
        self.parent_span_id: bytes | None = None
        """Span id of the parent in the same trace; None for an entry."""
        self.parent_name: str | None = None
        self.parent_binary: str | None = None
        self.ancestors: tuple[str, ...] = ()
        """Executable names, nearest first, at most 16."""
        self.entry_reason: EntryReason | None = None
        """Set where this image is the root of its trace."""
        self.began_trace = False
        """Its trace began in its process: at this image, or at one that this one took the place of."""
        self.link: SpanRef | None = None
        """For an entry: the parent's span in the other trace."""
        self.forked_only = False
        """It has not exec'd since its fork: no process.exec is told of it."""
        self.children = False
        """Others name it as their parent."""
        self.discovered = False
        """It was already running when it was first seen."""
        self.hearsay = False
        """Its beginning was not seen: known from the event of another image (Tetragon), or from its exit."""
        self.in_init_tree = False
        """It descends from the first process of its container: `lineage.init_tree`."""
        self.own = False
        """It is this agent, or descends from it."""
        self.long_arguments = 0
        """How many characters its arguments have, if that is many (`lineage.arguments`)."""
        self.missed = 0
        """In how many sweeps in a row its process was not found."""
        self.opened = False
        """Its opening span was sent; its whole life becomes a second span under it."""
        self.referred = False
        """A span that already left names this one as its parent or by its link."""
        self.ended: EndReason | None = None
        self.end_unix_ns = 0
        self.trace_start_unix_ns = 0
        self.trace_images: list[int] = [0]
        """One counter shared by all images of the trace."""

    @property
    def name(self) -> str:
        """``process.executable.name``: the last component of what runs."""
        return executable_name(self.process)


# No NamedTuples: there are several of these for each process, and compiled classes are made in a fifth of the time.


class Started:
    """An image began (`Exec`), or was found running (`Discovered`): a log record."""

    __slots__ = ("event", "image")

    def __init__(self, image: Image, event: Exec | Discovered) -> None:
        self.image = image
        self.event = event


class Ended:
    """An image ended: a span, and a log record unless another program took its place (``image.ended == "exec"``)."""

    __slots__ = ("event", "image", "observed_unix_ns")

    def __init__(self, image: Image, event: Exit | None, observed_unix_ns: int) -> None:
        self.image = image
        self.event = event
        """None where the image ended by exec, or was lost."""
        self.observed_unix_ns = observed_unix_ns


class Opened:
    """An image that goes on is about to be named by a span that leaves: its opening span."""

    __slots__ = ("image",)

    def __init__(self, image: Image) -> None:
        self.image = image


Happening = Started | Ended | Opened


def executable_name(process: Process) -> str:
    """Last component of what `process` runs, of a script the script's, of a memfd its name; ``""`` if unknown."""
    path = process.executable or process.binary
    name = path.rstrip("/").rpartition("/")[2]
    return name or path or process.name or ""
