"""Identities: an image's ``exec_id``, and the span and trace ids that are hashes of it.

They depend on nothing but the kernel's own numbers, the node's name and the boot. So an agent that restarts gives the
same ids again, a child can name its parent's span before that exists, and sending twice is harmless.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from otel_procmon.events import Process
    from otel_procmon.lineage.image import Image

_ONE_PROCESS_NS: Final = 1000
"""Times of less than this apart, on one pid, are of one process: before the kernel gives a pid again it has given all
others (``pid_max`` is 301 at least), and a fork takes it longer than this."""


# Each id is asked for several times: by the event of its image, and by those of its children.
@lru_cache(maxsize=8192)
def make_exec_id(node: str, boot_start_ns: int, generation: int, pid: int) -> str:
    """``base64("<node>:<ns>:<pid>")``, as in Tetragon.

    ``<ns>`` is the process's ``start_boottime`` plus how often it has exec'd (``self_exec_id``), so that two images of
    one process differ.
    """
    return b64encode(f"{node}:{boot_start_ns + generation}:{pid}".encode("utf-8", "surrogateescape")).decode()


def process_id(process: Process) -> str | None:
    """The identity of a process, the same for all its images; None where the source does not tell processes apart."""
    if process.boot_start_ns is None:
        return None
    return make_exec_id(process.node or "", process.boot_start_ns, 0, process.pid)


def exec_id_numbers(exec_id: str) -> tuple[int, int] | None:
    """The time in nanoseconds and the pid inside an ``exec_id``; None if it is none.

    The node may be empty or hold colons.
    """
    try:
        _, ns, pid = b64decode(exec_id, validate=True).rsplit(b":", 2)
    except (Error, ValueError):
        return None
    return (int(ns), int(pid)) if ns.isdigit() and pid.isdigit() and len(ns) <= 20 and len(pid) <= 10 else None


def succeeds(exec_id: str, before: str) -> bool:
    """Whether the process of the image `before` came to run `exec_id`, by their ids alone. Both are of one node.

    True only of ids that `make_exec_id` made; Tetragon counts no execs in its own, but takes the time of each.
    """
    numbers, numbers_before = exec_id_numbers(exec_id), exec_id_numbers(before)
    if numbers is None or numbers_before is None or numbers[1] != numbers_before[1]:
        return False
    return 0 < numbers[0] - numbers_before[0] < _ONE_PROCESS_NS


class SpanIds:
    """Span and trace ids of images, 8 and 16 bytes, never zero.

    `boot_id` keeps two boots of one host apart, on which pids and times since boot may be the same; for events of other
    hosts, whose boot is not known, it is empty.
    """

    def __init__(self, boot_id: str) -> None:
        self._key = blake2b(boot_id.encode(), digest_size=16).digest()

    def span_id(self, exec_id: str) -> bytes:
        """The id of the span that tells of an image, or that opens it."""
        return self._hash(exec_id, b"span", 8)

    def life_span_id(self, image: Image) -> bytes:
        """The id of the second span of an image that had an opening span."""
        return self._hash(image.exec_id, b"life", 8)

    def trace_id(self, exec_id: str, container_id: str = "") -> bytes:
        """The id of a trace by where it begins: an image, or a process (`process_id`) while it is in a container."""
        return self._hash(f"{exec_id} {container_id}" if container_id else exec_id, b"trace", 16)

    def _hash(self, exec_id: str, purpose: bytes, size: int) -> bytes:
        text = exec_id.encode("utf-8", "surrogatepass")
        digest = blake2b(text, digest_size=size, key=self._key, person=purpose).digest()
        return digest if any(digest) else b"\1".rjust(size, b"\0")
