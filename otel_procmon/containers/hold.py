"""Puts containers and pods on what happens, and holds back for a while what has to wait for them.

Of one container everything leaves in the order in which it came; what happens on the host, and in other containers,
does not wait for it. What has waited for `hold_ns` leaves as it is, marked incomplete, and so does from then on
everything else of that container, until something is known of it. Memory is bounded: where more would wait than
`max_held`, the container that has waited longest leaves early.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_procmon.containers.metadata import Found
    from otel_procmon.events import Process
    from otel_procmon.ledger import Ledger
    from otel_procmon.lineage.image import Happening, Image

PLACE: Final = "containers"
"""Where in the ledger happenings are accounted for."""

_NEVER_IN_A_POD: Final = frozenset({"docker", "lxc", "podman", "systemd-nspawn"})
"""Runtimes that, unless the path has a pod too, nobody whom we ask knows of."""
_GIVEN_UP_MAX: Final = 4096
"""Containers that are remembered as those to wait no more for. Another one that was forgotten waits anew."""


class Directory(Protocol):
    """What `otel_procmon.containers.metadata.Metadata` is, and what tests put in its place."""

    def find(self, container_id: str | None, pod_uid: str | None) -> Found:
        """What is known, from memory."""

    def seek(self, container_id: str) -> None:
        """Find out about a container soon."""

    def settle(self, timeout_s: float) -> None:
        """Wait until all that was sought has been looked for once."""


class _Waiting(NamedTuple):
    since_ns: int
    first: int
    """Number of the first happening that waits."""
    happenings: deque[Happening]


class Hold:
    """Between lineage and the filters. Not thread-safe."""

    def __init__(
        self, directory: Directory, ledger: Ledger, *, hold_ns: int, max_held: int, clock_ns: Callable[[], int]
    ) -> None:
        """Begin with nothing held.

        Args:
            directory: Where containers and pods are looked up.
            ledger: Counts what waited, and what left incomplete.
            hold_ns: How long a container's happenings wait at most. 0: nothing ever waits.
            max_held: How many wait at most, of all containers together.
            clock_ns: A clock that never goes back.
        """
        self._directory = directory
        self._ledger = ledger
        self._hold_ns = hold_ns
        self._max_held = max_held
        self._clock_ns = clock_ns
        self._waiting: dict[str, _Waiting] = {}
        """By container id, or for what is in a pod but in no container, by the pod's uid; the longest first."""
        self._given_up: dict[str, None] = {}
        self._held = 0
        self._taken = 0

    def __len__(self) -> int:
        return self._held

    def mark(self) -> int:
        """How much was taken so far, for `has_left`."""
        return self._taken

    def has_left(self, mark: int) -> bool:
        """Whether all that was taken before `mark` was given back."""
        return all(waiting.first >= mark for waiting in self._waiting.values())

    def pass_on(self, happenings: Sequence[Happening]) -> list[Happening]:
        """Take `happenings`; give back, with what is known of their containers, those that may leave now."""
        leaving = self._due() if self._waiting else []
        for happening in happenings:
            process = happening.image.process
            if process.pod_uid is None and (
                process.container_id is None
                or (process.container is not None and process.container.runtime in _NEVER_IN_A_POD)
            ):
                leaving.append(happening)
            else:
                self._take(happening, leaving)
        self._taken += len(happenings)
        return leaving

    def flush(self, timeout_s: float) -> list[Happening]:
        """Give back everything that is held, after a last look for at most `timeout_s`."""
        if not self._waiting:
            return []
        self._directory.settle(timeout_s)
        leaving = self._due()
        for key in list(self._waiting):
            leaving += self._give_up(key, "incomplete: the agent ended")
        return leaving

    def _take(self, happening: Happening, leaving: list[Happening]) -> None:
        image = happening.image
        process = image.process
        key = process.container_id or process.pod_uid
        assert key is not None
        waiting = self._waiting.get(key)
        if waiting is None:
            found = self._directory.find(process.container_id, process.pod_uid)
            if not found.pending:
                self._given_up.pop(key, None)
                self._leave(happening, found, leaving)
                return
            if process.container_id is not None:
                self._directory.seek(process.container_id)
            if key in self._given_up or not self._hold_ns:
                self._leave(happening, found, leaving)
                return
            waiting = _Waiting(self._clock_ns(), self._taken, deque())
            self._waiting[key] = waiting
        waiting.happenings.append(happening)
        self._held += 1
        self._ledger.count(PLACE, "noted: held")
        if self._held > self._max_held:
            leaving += self._give_up(next(iter(self._waiting)), "incomplete: too many were held")

    def _due(self) -> list[Happening]:
        """What has waited long enough, or need not wait any more."""
        leaving: list[Happening] = []
        now_ns = self._clock_ns()
        for key, waiting in list(self._waiting.items()):
            process = waiting.happenings[0].image.process
            found = self._directory.find(process.container_id, process.pod_uid)
            if not found.pending:
                self._release(key, found, leaving)
            elif now_ns - waiting.since_ns >= self._hold_ns:
                leaving += self._give_up(key, "incomplete: nothing came in time")
        return leaving

    def _release(self, key: str, found: Found, leaving: list[Happening]) -> None:
        waiting = self._waiting.pop(key)
        self._held -= len(waiting.happenings)
        for happening in waiting.happenings:
            self._leave(happening, found, leaving)

    def _give_up(self, key: str, outcome: str) -> list[Happening]:
        """Wait no more for `key`. Counted only where something is missing: the runtime alone may have told enough."""
        waiting = self._waiting[key]
        process = waiting.happenings[0].image.process
        found = self._directory.find(process.container_id, process.pod_uid)
        leaving: list[Happening] = []
        self._release(key, found, leaving)
        if found.container is None or found.pod is None:
            self._ledger.count(PLACE, outcome, len(leaving))
        self._given_up[key] = None
        if len(self._given_up) > _GIVEN_UP_MAX:
            del self._given_up[next(iter(self._given_up))]
        return leaving

    def _leave(self, happening: Happening, found: Found, leaving: list[Happening]) -> None:
        image = happening.image
        image.process = _with(image.process, found)
        # A view shows the parent too, of which nothing may have been told: a fork.
        parent: Image | None = image.parent
        if parent is not None and parent.process.container_id == image.process.container_id:
            parent.process = _with(parent.process, found)
        leaving.append(happening)


def _with(process: Process, found: Found) -> Process:
    """`process` with its container and pod. The same object if it has them already, which it is most of the time."""
    container = process.container if found.container is None else found.container
    pod = process.pod if found.pod is None else found.pod
    # No pod, no incompleteness: a container may well be in none.
    incomplete = (found.container is None or found.pod is None) and (found.pending or process.pod_uid is not None)
    if container is process.container and pod is process.pod and incomplete is process.metadata_incomplete:
        return process
    return replace(process, container=container, pod=pod, metadata_incomplete=incomplete)
