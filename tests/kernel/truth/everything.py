"""An agent with all of its features on at once, and the parties that it talks to.

Each feature that could need a right when everything is loaded is used after that: the ring and the counters are read,
sweeps look at all processes, OTLP, metrics and the spool have threads and files of their own, a container runtime and a
Kubernetes API (those of the unit tier) are asked, and the programs are pinned.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.test_containers import cgroups
from tests.kernel.truth.receiver import HOST, receiver
from tests.kernel.truth.running import cannot_run, pins
from tests.kernel.truth.workloads import ENVIRONMENT
from tests.system.bed.enclosure import cgroup_roots
from tests.unit.cri_server import RuntimeServer
from tests.unit.kube_server import KubeServer, pod

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.kernel.truth.receiver import Protocol, Received

NODE = "n1"
CONFIGURATION = "lineage: {sweep_interval: 1s}\n"
PACKAGE = Path(__file__).parents[3]


class Everything(NamedTuple):
    """What an agent with all features on is run with, and whom it talks to."""

    directory: Path
    """Which every user may enter."""
    arguments: tuple[str, ...]
    """Of ``otel-procmon run``."""
    env: dict[str, str]
    written: tuple[Path, ...]
    """Files that it writes."""
    spool: Path
    received: Received
    runtime: RuntimeServer
    api: KubeServer
    container_id: str
    pod_uid: str
    cgroups: list[Path]
    """Of the container."""

    def run_in_container(self, word: str) -> None:
        """Let the runtime know the container and the API its pod, and run a program in it, with `word` as an argument."""
        self.runtime.run(self.container_id, name="xwing", uid=self.pod_uid)
        self.api.put(pod("xwing", self.pod_uid))
        moves = "".join(f"echo $$ > {shlex.quote(str(cgroup / 'cgroup.procs'))}; " for cgroup in self.cgroups)
        subprocess.run(["sh", "-c", f"{moves} /bin/sh -c 'exit 3' {word}; exit 0"], env=ENVIRONMENT, check=True)


@contextmanager
def everything(protocol: Protocol) -> Iterator[Everything]:
    """All parties, until the end of the block."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="procmon-", dir="/var/tmp")))
        directory.chmod(0o755)
        received = stack.enter_context(receiver(protocol))
        runtime = RuntimeServer(directory / "cri.sock")
        stack.callback(runtime.stop)
        # As containerd makes it.
        (directory / "cri.sock").chmod(0o660)
        api = KubeServer()
        stack.callback(api.close)
        container_id, uid = uuid.uuid4().hex * 2, str(uuid.uuid4())
        roots = stack.enter_context(cgroups(f"/kubepods/besteffort/pod{uid}/{container_id}", cgroup_roots()))
        kubeconfig = api.kubeconfig(directory)
        kubeconfig.chmod(0o644)
        config = directory / "procmon.yaml"
        config.write_text(CONFIGURATION)
        written = tuple(directory / name for name in ("otlp.jsonl", "events.json", "lines", "recording"))
        yield Everything(
            directory=directory,
            arguments=(
                *(
                    "--config",
                    str(config),
                    *(["--pin"] if pins() else []),
                    "--spool",
                    str(directory / "spool"),
                    "-o",
                    "otlp",
                ),
                *("-o", f"otlp-json:{written[0]}", "-o", f"json:{written[1]}", "-o", f"compact:{written[2]}"),
                *("--record", str(written[3])),
            ),
            env={
                "NODE_NAME": NODE,
                "KUBECONFIG": str(kubeconfig),
                "CONTAINER_RUNTIME_ENDPOINT": f"unix://{runtime.path}",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{received.port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "OTEL_BLRP_SCHEDULE_DELAY": "100",
            },
            written=written,
            spool=directory / "spool",
            received=received,
            runtime=runtime,
            api=api,
            container_id=container_id,
            pod_uid=uid,
            cgroups=roots,
        )


@contextmanager
def place_for_pins(directory: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    path = directory / "bpf"
    path.mkdir()
    if subprocess.run(["mount", "-t", "bpf", "bpf", path], check=False, capture_output=True).returncode:
        cannot_run("kernel", "a BPF file system cannot be mounted")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def for_any_user(directory: Path, pins: Path | None = None) -> tuple[str, ...]:
    """The command that runs another one where every user may read this Python, and pins are `pins`.

    A developer's Python or checkout is often somewhere below root's home. Over there only what the agent needs is seen.
    """
    script = ["set -e"]
    if pins is not None:
        script.append(f"mount --bind {shlex.quote(str(pins))} /sys/fs/bpf")
    wanted = {Path(path).resolve() for path in (sys.base_prefix, sys.prefix, PACKAGE)}
    hidden = {path: top for path in wanted if (top := _not_for_all(path)) is not None}
    places = {path: directory / f"moved-{number}" for number, path in enumerate(sorted(hidden))}
    for path, place in places.items():
        script.append(f"mkdir -p {place} && mount --bind {shlex.quote(str(path))} {place}")
    script += [f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(str(top))}" for top in _topmost(hidden.values())]
    for path, place in places.items():
        script.append(f"mkdir -p {shlex.quote(str(path))} && mount --bind {place} {shlex.quote(str(path))}")
    script.append('exec "$@"')
    return ("unshare", "--mount", "sh", "-c", "\n".join(script), "for_any_user")


def _not_for_all(path: Path) -> Path | None:
    """The highest directory on the way to `path` that not everybody may enter."""
    return next((each for each in [*reversed(path.parents), path] if not each.stat().st_mode & 0o001), None)


def _topmost(paths: Iterable[Path]) -> list[Path]:
    unique = set(paths)
    return sorted(path for path in unique if not unique & set(path.parents))
