"""What this host can do, what is missing, and the one command or setting that mends it."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO
from urllib.parse import urlsplit

from otel_procmon import __version__
from otel_procmon.capture import answers
from otel_procmon.config import Capture, ContainerOptions
from otel_procmon.containers.kube_access import find_access
from otel_procmon.containers.pod_watch import examine_api
from otel_procmon.containers.sources import EndpointError, find_socket
from otel_procmon.decode.kernel import KernelDecoder
from otel_procmon.deliver.delivery import DeliveryError
from otel_procmon.deliver.settings import Signal, read_settings
from otel_procmon.events import Exec
from otel_procmon.privileges import CANDIDATES, PrivilegeError, held, least
from otel_procmon.source.bcc import BccSource, perf_is_asked_for
from otel_procmon.source.bcc_program import Places
from otel_procmon.source.choice import choose
from otel_procmon.source.ebpf import BTF, EbpfSource
from otel_procmon.source.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from otel_procmon.source.kernel import KernelSource

_CONNECT_S: Final = 2.0
_SEEN_S: Final = 2.0
_LOOK_S: Final = 0.05
_CGROUP2_MAGIC: Final = Path("/sys/fs/cgroup/cgroup.controllers")
_HYBRID: Final = Path("/sys/fs/cgroup/unified/cgroup.controllers")
_SIGNALS: Final[tuple[Signal, ...]] = ("traces", "logs")


class Finding(NamedTuple):
    """One thing that was looked at."""

    state: str
    """``ok``; ``missing``: capture does not work without it; ``note``: it works, but less well."""
    what: str


def examine(environ: Mapping[str, str], out: TextIO, *, verbose: bool) -> int:
    """Write what is found to `out`. Returns 0 if this host can capture, else 1."""
    missing = 0
    for finding in _findings(environ, out if verbose else None):
        out.write(f"{finding.state:<8} {finding.what}\n")
        missing += finding.state == "missing"
    out.write("This host can capture.\n" if not missing else "This host cannot capture yet: see what is missing.\n")
    return 1 if missing else 0


def _findings(environ: Mapping[str, str], messages: TextIO | None) -> Iterator[Finding]:
    yield Finding("ok", f"otel-procmon {__version__}, Python {platform.python_version()}, Linux {platform.release()}")
    yield from _source(environ, messages)
    yield _rights()
    yield _cgroups()
    if not Path("/etc/machine-id").exists():
        yield Finding("note", "no /etc/machine-id: host.id is the host's name; systemd-machine-id-setup makes one")
    yield from _containers(environ, Path("/"))
    yield from _endpoints(environ)


def _source(environ: Mapping[str, str], messages: TextIO | None) -> Iterator[Finding]:
    """Which loader ``--source auto`` takes, why, and whether it works."""
    try:
        choice = choose(BTF, Places(), platform.release())
    except SourceError as error:
        yield Finding("missing", str(error))
        return
    yield Finding("ok", f"--source auto takes {choice.loader}: {choice.why}")
    if choice.loader == "ebpf":
        yield _capture(EbpfSource(Capture()), messages)
    else:
        yield _capture(BccSource(Capture(), perf=perf_is_asked_for(environ)), messages)


def _capture(source: KernelSource, messages: TextIO | None) -> Finding:
    """Load the program in earnest, and see whether it tells of a process that is started now."""
    try:
        source.open()
    except SourceError as error:
        return Finding("missing", str(error))
    finally:
        if messages is not None:
            for message in source.messages:
                messages.write(f"loader   {message}\n")
    decoder = KernelDecoder("", unix_ns=lambda ns: ns, observed_unix_ns=lambda: 0, page_bytes=1)
    try:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        seen = False
        # One reading may be full of what else runs.
        until = time.monotonic() + _SEEN_S
        while not seen and time.monotonic() < until:
            events = [decoder.decode(record) for record in source.read(_LOOK_S)]
            seen = any(isinstance(event, Exec) and event.process.pid == child.pid for event in events)
        running = len(source.snapshot(lambda _: True))
        needed = least(CANDIDATES, lambda: answers(source, snapshots=True))
    except (SourceError, PrivilegeError) as error:
        return Finding("missing", str(error))
    finally:
        source.detach()
        source.close()
    if not seen:
        return Finding(
            "missing",
            "The program is loaded, but a process that was started now was not told with its pid: this is a pid "
            "namespace of its own; run in the host's (docker run --pid=host, hostPID: true).",
        )
    afterwards = f"the capabilities {', '.join(sorted(needed))} are" if needed else "no capability is"
    return Finding(
        "ok",
        f"the BPF program loads, and sees what starts; {running} processes and kernel threads run; once it is loaded, "
        f"{afterwards} needed",
    )


def _rights() -> Finding:
    """Whether what runs already can be told in full."""
    if "SYS_PTRACE" in held():
        return Finding("ok", "capability SYS_PTRACE: what runs already is told with its path and directory")
    return Finding(
        "note",
        "without the capability SYS_PTRACE what runs already is told without its path and directory: run as root, or "
        "add it; it is given up when that is read",
    )


def _cgroups() -> Finding:
    if _CGROUP2_MAGIC.exists():
        return Finding("ok", "cgroup v2: containers are known by their cgroup")
    if _HYBRID.exists():
        return Finding("ok", "cgroup v1 and v2 (hybrid): containers are known by the cgroup that is used")
    return Finding("ok", "cgroup v1: containers are known by their cgroup")


def _containers(environ: Mapping[str, str], root: Path) -> Iterator[Finding]:
    """Whether the runtime and the Kubernetes API answer, where there is a sign of them."""
    try:
        path = find_socket(ContainerOptions(), environ, root)
    except EndpointError as error:
        yield Finding("missing", str(error))
        path = None
    if path is not None:
        from otel_procmon.containers.cri import examine_runtime  # noqa: PLC0415 - gRPC costs 17 MB

        answers, what = examine_runtime(path)
        yield Finding("ok" if answers else "note", what)
    access = find_access(environ, root)
    if access is not None:
        node = environ.get("NODE_NAME") or socket.gethostname()
        answers, what = examine_api(access, node)
        yield Finding("ok" if answers else "note", what)


def _endpoints(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether somebody listens where OTLP would go. Nothing is sent."""
    seen = set()
    for signal in _SIGNALS:
        try:
            settings = read_settings(environ, signal)
        except DeliveryError as error:
            yield Finding("note", f"{error}")
            continue
        if settings.otlp is None or settings.otlp.endpoint in seen:
            continue
        endpoint = settings.otlp.endpoint
        seen.add(endpoint)
        url = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        port = url.port or {"https": 443, "http": 80}.get(url.scheme, 4317)
        try:
            socket.create_connection((url.hostname or "localhost", port), _CONNECT_S).close()
        except OSError as error:
            yield Finding(
                "note",
                f"{signal}: nobody answers at {url.hostname}:{port} ({(error.strerror or str(error)).lower()}): start "
                "a Collector there, set OTEL_EXPORTER_OTLP_ENDPOINT, or use -o compact or -o otlp-json:FILE",
            )
        else:
            yield Finding("ok", f"{signal}: somebody listens at {url.hostname}:{port}")
