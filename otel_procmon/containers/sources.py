"""Which sources of metadata this host has, and how they are opened. What is not there is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from otel_procmon.containers.kube_access import ApiServer, find_access
from otel_procmon.containers.metadata import Metadata, MetadataSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from otel_procmon.config import ContainerOptions
    from otel_procmon.ledger import Ledger

ENDPOINT_VARIABLE: Final = "CONTAINER_RUNTIME_ENDPOINT"
"""crictl's own."""
_WELL_KNOWN: Final = (
    "run/k3s/containerd/containerd.sock",
    "run/crio/crio.sock",
    "run/cri-dockerd.sock",
    "run/containerd/containerd.sock",
)
"""crictl's, and that of k3s. The first three are there for Kubernetes only; the last one is Docker's, too."""

_PATIENCE_S: Final = 10.0


class EndpointError(ValueError):
    """A runtime's endpoint that cannot be used. The message is one sentence."""


def find_socket(options: ContainerOptions, environ: Mapping[str, str], root: Path) -> str | None:
    """The path of the runtime's socket; None if there is none. Raises EndpointError.

    What the configuration or crictl's variable name need not be there yet; of the well-known places one that is.
    """
    if options.runtime_endpoint is not None:
        return _path(options.runtime_endpoint, "containers.runtime_endpoint")
    if endpoint := environ.get(ENDPOINT_VARIABLE, "").strip():
        return _path(endpoint, ENDPOINT_VARIABLE)
    return next((str(path) for name in _WELL_KNOWN if (path := root / name).is_socket()), None)


def _path(endpoint: str, place: str) -> str:
    """A socket's path, from ``unix:///path`` or a bare path. Raises EndpointError."""
    url = urlsplit(endpoint)
    if not url.scheme and endpoint.startswith("/"):
        return endpoint
    if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
        return unquote(url.path)
    raise EndpointError(
        f"{place} is {endpoint!r}; write the runtime's socket, as in unix:///run/containerd/containerd.sock"
    )


def open_metadata(
    options: ContainerOptions,
    environ: Mapping[str, str],
    root: Path,
    *,
    node: str,
    keep_annotation: Callable[[str], bool],
    ledger: Ledger,
) -> Metadata | None:
    """Start asking whoever can be asked; None if there is nobody. Raises EndpointError.

    Args:
        options: What is to be asked.
        environ: Says where.
        root: The host's root directory, where sockets and service accounts are.
        node: The node's name, unless `options` has another.
        keep_annotation: Which of a pod's annotations are kept, by their keys.
        ledger: Counts.
    """
    runtime: MetadataSource | None = None
    api: MetadataSource | None = None
    if options.ask_runtime and (path := find_socket(options, environ, root)) is not None:
        from otel_procmon.containers.cri import RuntimeSource  # noqa: PLC0415 - gRPC costs 17 MB

        # Also where nothing waits for the answer, it is of use to what comes later.
        patience_s = max(options.hold_ns / 1e9, _PATIENCE_S)
        runtime = RuntimeSource(path, ledger, patience_s=patience_s, keep_annotation=keep_annotation)
    if options.ask_kubernetes and (access := find_access(environ, root, options.kubeconfig)) is not None:
        from otel_procmon.containers.pod_watch import PodWatch  # noqa: PLC0415 - urllib3 costs 11 MB

        api = PodWatch(lambda: ApiServer(access), options.node_name or node, ledger, keep_annotation=keep_annotation)
    if runtime is None and api is None:
        return None
    return Metadata(runtime, api)
