"""How to reach the Kubernetes API: by the pod's own service account, or by a kubeconfig file.

Of the package `kubernetes` only configuration and transport are used: addresses, certificates, tokens and how they are
renewed, proxies. It takes half a second and 20 MB to import, and urllib3 11 MB: not before somebody asks for the API.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import urllib3

SERVICE_ACCOUNT: Final = Path("var/run/secrets/kubernetes.io/serviceaccount/token")
_KUBELET: Final = Path("var/lib/kubelet")
_CONNECT_S: Final = 10.0
_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A watch is silent for minutes, and a server that loses its power says nothing either: found out within a minute.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Access(NamedTuple):
    """Where what is needed to reach the API stands."""

    kubeconfig: str | None
    """A file, or several, separated by colons; None: the service account."""

    def __str__(self) -> str:
        return "the service account" if self.kubeconfig is None else self.kubeconfig


class AccessError(Exception):
    """The API cannot be asked, and will not be asked by trying again soon. The message is one sentence."""


def find_access(environ: Mapping[str, str], root: Path, kubeconfig: str | None = None) -> Access | None:
    """How the API can be reached from here; None if nothing says that there is one.

    A kubeconfig file that is named goes first, then the pod's service account, then ``KUBECONFIG``, and on a node also
    ``~/.kube/config``: elsewhere that leads to some cluster that this host is no part of.
    """
    if kubeconfig is not None:
        return Access(kubeconfig)
    if environ.get("KUBERNETES_SERVICE_HOST") and (root / SERVICE_ACCOUNT).is_file():
        return Access(None)
    if named := environ.get("KUBECONFIG", "").strip():
        return Access(named)
    if (home := environ.get("HOME")) and (root / _KUBELET).is_dir():
        own = Path(home, ".kube/config")
        if os.access(own, os.R_OK):
            return Access(str(own))
    return None


class ApiServer:
    """The API server, by GET requests."""

    def __init__(self, access: Access) -> None:
        """Read the configuration; connect to nothing. Raises AccessError."""
        import urllib3  # noqa: PLC0415 - see the module
        from kubernetes import client, config  # noqa: PLC0415

        self._timeout = urllib3.Timeout

        load: Any = config  # It has no types.
        self._configuration: Any = client.Configuration()
        # Whether and when to try again is decided where it is known what for.
        self._configuration.retries = False
        self._configuration.socket_options = list(_SOCKET_OPTIONS)
        try:
            if access.kubeconfig is None:
                load.load_incluster_config(client_configuration=self._configuration)
            else:
                load.load_kube_config(access.kubeconfig, client_configuration=self._configuration, persist_config=False)
        except Exception as error:
            # It raises its own ConfigException, and whatever a malformed file leads to.
            raise AccessError(f"{access} does not say how to reach the Kubernetes API ({error})") from error
        self._pool: urllib3.PoolManager = client.ApiClient(self._configuration).rest_client.pool_manager

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self._configuration.host)

    def get(self, path: str, query: Mapping[str, str], read_timeout_s: float) -> urllib3.BaseHTTPResponse:
        """The answer, whose body is not read yet. Raises urllib3's HTTPError, OSError and AccessError."""
        headers = {"accept": "application/json"}
        try:
            # This renews a token that is about to expire.
            settings = self._configuration.auth_settings()
        except Exception as error:
            raise AccessError(f"the token for the Kubernetes API cannot be renewed ({error})") from error
        for setting in settings.values():
            if setting["value"]:
                headers[setting["key"]] = setting["value"]
        return self._pool.request(
            "GET",
            f"{self.address.rstrip('/')}{path}?{urlencode(query)}",
            headers=headers,
            preload_content=False,
            retries=False,
            timeout=self._timeout(connect=_CONNECT_S, read=read_timeout_s),
        )

    def close(self) -> None:
        """Let go of its connections."""
        self._pool.clear()
