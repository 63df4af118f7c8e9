"""A Kubernetes API server that knows nothing but pods: lists in pieces, watches, bookmarks, and all that goes wrong.

The real one is in the system tier. This one can forget its history, cut watches off, talk garbage and refuse.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKEN = "first-token"


def pod(name: str, uid: str, **more: Any) -> dict[str, Any]:
    """A pod of the node n1 as the API has it, without a status unless `status` is given."""
    meta = {
        "name": name,
        "namespace": "default",
        "uid": uid,
        "labels": {"class": name},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "example.com/owner": "team-a"},
        **more.get("metadata", {}),
    }
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": "n1"}, "status": more.get("status", {})}


def running(name: str, container_id: str, **more: Any) -> dict[str, Any]:
    """The status of a container that runs."""
    return {
        "name": name,
        "containerID": f"containerd://{container_id}",
        "image": "docker.io/tgraf/netperf:latest",
        "imageID": "docker.io/tgraf/netperf@sha256:8e86",
        "restartCount": 0,
        "state": {"running": {"startedAt": "2024-03-01T08:10:01Z"}},
        **more,
    }


class KubeServer:
    """Serves what is in its attributes; `put`, `delete` and `send` tell all watches."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.oldest = 0
        """Up to where changes are forgotten: a watch from before that is Gone."""
        self.piece = 1000
        self.token = TOKEN
        self.refuse: tuple[int, dict[str, str]] | None = None
        """Status and headers, instead of any answer."""
        self.queries: list[dict[str, str]] = []
        self.before_piece: Callable[[], None] = lambda: None
        self._changes: list[tuple[int, bytes]] = []
        self._changed = threading.Condition()
        self._generation = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self, directory: Path) -> Path:
        """A file that leads here, with today's token."""
        path = directory / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "clusters": [{"name": "c", "cluster": {"server": self.address}}],
                    "users": [{"name": "u", "user": {"token": self.token}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        return path

    def put(self, one: dict[str, Any]) -> None:
        """A pod is new, or changed."""
        kind = "MODIFIED" if one["metadata"]["uid"] in self.pods else "ADDED"
        self.pods[one["metadata"]["uid"]] = one
        self._next(kind, one)

    def delete(self, uid: str) -> None:
        self._next("DELETED", self.pods.pop(uid))

    def bookmark(self, version: int) -> None:
        self.version = version - 1
        self._next("BOOKMARK", {"kind": "Pod", "metadata": {}})

    def send(self, line: bytes) -> None:
        """Any line, to whoever watches."""
        with self._changed:
            self._changes.append((self.version, line))
            self._changed.notify_all()

    def forget(self) -> None:
        """All changes so far."""
        with self._changed:
            self.oldest = self.version
            self._changes.clear()

    def cut(self) -> None:
        """End all watches in the middle."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def watches(self) -> list[str]:
        """From where each watch began."""
        return [query["resourceVersion"] for query in list(self.queries) if query.get("watch")]

    def lists(self) -> list[dict[str, str]]:
        return [query for query in list(self.queries) if not query.get("watch")]

    def close(self) -> None:
        self.cut()
        self._http.shutdown()
        self._http.server_close()

    def _next(self, kind: str, one: dict[str, Any]) -> None:
        with self._changed:
            self.version += 1
            one["metadata"] = {**one["metadata"], "resourceVersion": str(self.version)}
            self._changes.append((self.version, json.dumps({"type": kind, "object": one}).encode()))
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = dict(parse_qsl(urlsplit(self.path).query))
                server.queries.append(query)
                if server.refuse is not None:
                    status, headers = server.refuse
                    self._answer(status, {"kind": "Status", "message": "as the test says", "code": status}, headers)
                elif self.headers["authorization"] != f"Bearer {server.token}":
                    self._answer(401, {"kind": "Status", "message": "Unauthorized", "code": 401})
                elif query.get("watch"):
                    self._watch(query)
                else:
                    self._list(query)

            def _answer(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _list(self, query: dict[str, str]) -> None:
                begin = int(query.get("continue", "0"))
                server.before_piece()
                if begin and server.oldest >= server.version:
                    self._answer(410, {"kind": "Status", "message": "too old", "code": 410})
                    return
                pods = list(server.pods.values())
                end = begin + server.piece
                meta = {"resourceVersion": str(server.version)}
                if end < len(pods):
                    meta["continue"] = str(end)
                self._answer(200, {"kind": "PodList", "metadata": meta, "items": pods[begin:end]})

            def _watch(self, query: dict[str, str]) -> None:
                at = int(query["resourceVersion"])
                generation = server._generation
                if at < server.oldest:
                    self._answer(410, {"kind": "Status", "message": "too old resource version", "code": 410})
                    return
                self.send_response(200)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                sent = 0
                while True:
                    with server._changed:
                        while len(server._changes) <= sent and server._generation == generation:
                            server._changed.wait(10)
                        if server._generation != generation:
                            self.close_connection = True
                            return
                        version, line = server._changes[sent]
                        sent += 1
                    if version > at or not line.startswith(b'{"type"'):
                        # In two pieces: what is a line need not be what comes at once.
                        for part in (line[:7], line[7:] + b"\n"):
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

            def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

        return Handler
