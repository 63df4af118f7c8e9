"""The pods of this node from the Kubernetes API: listed once, then watched, in one thread.

The protocol is that of https://kubernetes.io/docs/reference/using-api/api-concepts/ (lists in pieces, resource
versions, bookmarks). A watch that ends goes on where it stopped; only when the server has forgotten that place (410)
are pods listed anew.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
import urllib3

from otel_procmon.containers.kube_access import AccessError, ApiServer
from otel_procmon.containers.pods import Pods, decode_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_procmon.containers.kube_access import Access
    from otel_procmon.containers.metadata import Known, State
    from otel_procmon.ledger import Ledger

_log = logging.getLogger(__name__)

PLACE: Final = "containers.kubernetes"

PATH: Final = "/api/v1/pods"
_PIECE: Final = 500
_LIST_S: Final = 60.0
_WATCH_S: Final = (240, 360)
"""Watches end after a while, not all of a cluster's agents' at once. A server that vanished is noticed by then."""
_LONGER_S: Final = 30.0
_EXAMINE_S: Final = 10.0
_READ_BYTES: Final = 65_536
_LINE_MAX_BYTES: Final = 32 * 1024 * 1024
"""An object in the API has 1.5 MiB at most (etcd's limit for a request)."""
_LIST_MAX_BYTES: Final = 256 * 1024 * 1024
_BACK_OFF_S: Final = (0.5, 30.0)
_REFUSED_S: Final = 60.0
_ERRORS_TOLD: Final = 3

_GONE: Final = 410
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403


class _Meta(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    # Of a list.
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, gc=False):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    items: list[msgspec.Raw] | None = None


class _Change(msgspec.Struct, gc=False):
    object: msgspec.Raw
    type: str = ""


class _Object(msgspec.Struct, gc=False):
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _Problem(msgspec.Struct, gc=False):
    code: int = 0
    message: str = ""


_LISTS: Final = msgspec.json.Decoder(_List)
_CHANGES: Final = msgspec.json.Decoder(_Change)
_OBJECTS: Final = msgspec.json.Decoder(_Object)
_PROBLEMS: Final = msgspec.json.Decoder(_Problem)


class ApiError(Exception):
    """The API server refused; `status` is HTTP's."""

    def __init__(self, status: int, message: str, retry_after_s: float = 0) -> None:
        super().__init__(f"{status}: {message}" if message else str(status))
        self.status = status
        self.retry_after_s = retry_after_s


class PodWatch:
    """A `MetadataSource`."""

    def __init__(
        self,
        connect: Callable[[], ApiServer],
        node: str,
        ledger: Ledger,
        *,
        keep_annotation: Callable[[str], bool] = lambda _: True,
        back_off_s: tuple[float, float] = _BACK_OFF_S,
        refused_s: float = _REFUSED_S,
    ) -> None:
        """Start asking.

        Args:
            connect: Gives the server, in the thread that asks; raises AccessError.
            node: The node's name, as the API knows it.
            ledger: Counts what was told.
            keep_annotation: Which of a pod's annotations are kept, by their keys.
            back_off_s: How long to wait after the first failure, and after many.
            refused_s: How long to wait where nothing but an administrator can help.
        """
        self._connect = connect
        self._node = node
        self._ledger = ledger
        self._keep_annotation = keep_annotation
        self._back_off_s = back_off_s
        self._refused_s = refused_s
        self._pods = Pods()
        self._version = ""
        """Up to where all changes are known. Empty: nothing is."""
        self._forgotten = False
        """The server has forgotten what we last knew, so what it remembers may be older."""
        self._failures = 0
        self._told: str | None = None
        self._malformed = 0
        self._said_empty = False
        self._closing = threading.Event()
        self._answer: urllib3.BaseHTTPResponse | None = None
        self.state: State = "starting"
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)
        self._thread.start()

    def find(self, container_id: str | None, pod_uid: str | None) -> Known:
        """See `MetadataSource.find`."""
        return self._pods.find(container_id, pod_uid)

    def seek(self, container_id: str) -> None:
        """See `MetadataSource.seek`: the server tells of its own accord."""

    def may_come(self, container_id: str | None, pod_uid: str | None) -> bool:  # noqa: ARG002
        """See `MetadataSource.may_come`. The server is told of containers some seconds after they start."""
        return pod_uid is not None and self.state != "off"

    def settle(self, timeout_s: float) -> None:
        """See `MetadataSource.settle`: nothing is ever asked for."""

    def __len__(self) -> int:
        return len(self._pods)

    def close(self) -> None:
        """See `MetadataSource.close`."""
        self._closing.set()
        _interrupt(self._answer)
        self._thread.join(1)

    def _run(self) -> None:
        server: ApiServer | None = None
        while not self._closing.is_set():
            wait_s = 0.0
            try:
                if server is None:
                    server = self._connect()
                if not self._version:
                    self._list(server)
                self._watch(server)
            except ApiError as error:
                wait_s = self._refused(error, server)
                if error.status == _UNAUTHORIZED:
                    # The token is not what it was, or the whole configuration.
                    server = None
            except AccessError as error:
                server = None
                self.state = "off"
                self._tell(f"{error}; pods are known without it as far as the container runtime tells of them")
                wait_s = self._refused_s
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                # ValueError: msgspec's, of a list that is none; and urllib3's, of a socket that was closed.
                if not self._closing.is_set():
                    wait_s = self._away(str(error), server)
            if self._closing.wait(wait_s):
                break
        if server is not None:
            server.close()

    def _list(self, server: ApiServer) -> None:
        """Learn of all pods. Raises ApiError, urllib3's HTTPError, OSError and ValueError."""
        uids: list[str] = []
        query = {"fieldSelector": f"spec.nodeName={self._node}", "limit": str(_PIECE)}
        if not self._forgotten:
            # From the server's memory: else it reads all of the cluster's pods from etcd, for each node.
            query["resourceVersion"] = "0"
        while True:
            with _answered(server.get(PATH, query, _LIST_S)) as answer:
                body = answer.read(_LIST_MAX_BYTES)
            piece = _LISTS.decode(body)
            uids += filter(None, map(self._put, piece.items or ()))
            if not piece.metadata.continue_:
                break
            query["continue"] = piece.metadata.continue_
            query.pop("resourceVersion", None)
        self._forgotten = False
        self._pods.keep_only(uids)
        self._version = piece.metadata.resource_version
        if not self._version:
            raise ValueError("a list of pods without metadata.resourceVersion")
        self._ledger.count(PLACE, "listed")
        self._works(server)
        if not uids and not self._said_empty:
            # One pod there is at least, if the agent runs in one.
            self._said_empty = True
            _log.warning(
                "the Kubernetes API at %s has no pods of node %s: if that is not this node's name there, set NODE_NAME",
                server.address,
                self._node,
            )

    def _watch(self, server: ApiServer) -> None:
        """Learn of changes until the server ends it. Raises as `_list` does."""
        seconds = random.randint(*_WATCH_S)  # noqa: S311 - nothing secret
        query = {
            "fieldSelector": f"spec.nodeName={self._node}",
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        lines = 0
        with _answered(server.get(PATH, query, seconds + _LONGER_S)) as answer:
            self._answer = answer
            if self._closing.is_set():
                return
            try:
                self._works(server)
                for line in _lines(answer):
                    self._change(line)
                    lines += 1
                    self._failures = 0
            finally:
                self._answer = None
        if not lines and not self._closing.is_set():
            # A proxy that ends every watch at once must not make a storm of them.
            self._failures += 1
            self._closing.wait(self._delay_s())

    def _change(self, line: bytes) -> None:
        """One change. Raises ApiError; what is malformed is counted and left out."""
        try:
            change = _CHANGES.decode(line)
            if change.type == "ERROR":
                problem = _PROBLEMS.decode(change.object)
                raise ApiError(problem.code, problem.message)
            meta = _OBJECTS.decode(change.object).metadata
        except ValueError as error:
            self._bad(error, line)
            return
        if change.type in ("ADDED", "MODIFIED"):
            self._put(change.object)
        elif change.type == "DELETED":
            # What it was in the end: its containers' last states.
            self._put(change.object)
            self._pods.remove(meta.uid)
        elif change.type != "BOOKMARK":
            self._ledger.count(PLACE, "dropped: of an unknown kind")
        if meta.resource_version:
            self._version = meta.resource_version

    def _put(self, raw: msgspec.Raw) -> str | None:
        """Remember a pod; gives its uid, also of one that cannot be read any further."""
        try:
            state = decode_pod(raw, self._keep_annotation)
        except ValueError as error:
            self._bad(error, bytes(raw))
            with contextlib.suppress(ValueError):
                return _OBJECTS.decode(raw).metadata.uid or None
            return None
        self._pods.put(state)
        return state.pod.uid

    def _bad(self, error: Exception, data: bytes) -> None:
        self._ledger.count(PLACE, "dropped: malformed")
        self._malformed += 1
        if self._malformed <= _ERRORS_TOLD:
            pod = "a pod"
            with contextlib.suppress(ValueError):
                meta = _OBJECTS.decode(data).metadata
                pod = f"pod {meta.namespace}/{meta.name}"
            _log.warning("the Kubernetes API told of %s what cannot be read: %s", ascii(pod)[1:-1], error)

    def _works(self, server: ApiServer) -> None:
        self.state = "ready"
        if self._told is not None:
            self._told = None
            _log.warning("the Kubernetes API at %s answers again", server.address)

    def _refused(self, error: ApiError, server: ApiServer | None) -> float:
        """How long to wait after the server said no."""
        if error.status == _GONE:
            self._ledger.count(PLACE, "noted: history was gone")
            self._forgotten = True
            if not self._version:
                # In the middle of a list, then: from its beginning.
                return self._delay_s()
            self._version = ""
            return 0
        if error.status == _FORBIDDEN:
            self.state = "off"
            self._ledger.count(PLACE, "failed: not permitted")
            self._tell(
                f"the Kubernetes API does not permit to list and watch pods ({error}): grant it to the agent's service "
                "account (examples/kubernetes); until then pods are known as far as the container runtime tells of them"
            )
            return self._refused_s * random.uniform(0.8, 1.2)  # noqa: S311
        return max(error.retry_after_s, self._away(str(error), server))

    def _away(self, why: str, server: ApiServer | None) -> float:
        """How long to wait after a failure that goes away by itself."""
        self._failures += 1
        self._ledger.count(PLACE, "failed: no answer")
        # That a watch is cut off once is no news; it goes on.
        if self._failures > 1 or self.state == "starting":
            self.state = "away"
            where = "" if server is None else f" at {server.address}"
            self._tell(f"the Kubernetes API{where} does not answer ({why}); it is asked again and again")
        return self._delay_s()

    def _delay_s(self) -> float:
        first, most = self._back_off_s
        return min(most, first * 2.0 ** min(self._failures, 16)) * random.uniform(0.5, 1)  # noqa: S311

    def _tell(self, sentence: str) -> None:
        """Say it once, until it is over."""
        if self._told is None:
            self._told = sentence
            _log.warning("%s", sentence)


def examine_api(access: Access, node: str) -> tuple[bool, str]:
    """Whether the Kubernetes API lets the agent list this node's pods, and a sentence about it."""
    where = str(access)
    try:
        server = ApiServer(access)
        where = f"{server.address}, by {access}"
        query = {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
        with _answered(server.get(PATH, query, _EXAMINE_S)) as answer:
            pods = len(_LISTS.decode(answer.read(_LIST_MAX_BYTES)).items or ())
    except AccessError as error:
        return False, f"{error}; mend it, or set containers.ask_kubernetes to false"
    except ApiError as error:
        return False, (
            f"the Kubernetes API ({where}) refuses to list pods ({error}): let the agent's service account get, list "
            "and watch pods (examples/kubernetes)"
        )
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return False, f"the Kubernetes API ({where}) does not answer ({error}): see its address and the network"
    hint = "" if pods else f"; is {node!r} this node's name there? If not, set NODE_NAME"
    return True, f"the Kubernetes API ({where}) lists {pods} pods of this node{hint}"


@contextlib.contextmanager
def _answered(answer: urllib3.BaseHTTPResponse) -> Iterator[Any]:
    """`answer`, if it is a good one. Raises ApiError."""
    try:
        if answer.status == 200:
            yield answer
            return
        body = answer.read(_READ_BYTES)
        message = answer.reason or ""
        with contextlib.suppress(ValueError):
            message = _PROBLEMS.decode(body).message or message
        after = answer.headers.get("retry-after", "")
        raise ApiError(answer.status, message, min(float(after), 300.0) if after.isdigit() else 0)
    finally:
        # Whatever of it was not read goes with its connection.
        answer.close()


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a watch, as they come. The last one counts only if it is complete."""
    rest = bytearray()
    for data in answer.stream(_READ_BYTES):
        rest += data
        *complete, last = rest.split(b"\n")
        rest = bytearray(last)
        yield from (bytes(line) for line in complete if line.strip())
        if len(rest) > _LINE_MAX_BYTES:
            raise ValueError("a change of a pod that has no end")


def _interrupt(answer: Any) -> None:
    """Wake the thread that waits for more of `answer`: closing it here would wait for that thread."""
    connection = getattr(answer, "connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(2)
