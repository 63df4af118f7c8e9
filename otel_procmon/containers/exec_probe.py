"""Which processes may be a Kubernetes exec probe of their container: liveness, readiness, startup.

A probe is started like a ``kubectl exec``, again and again, and nothing marks it. As Tetragon does it
(``pkg/filters/health_check.go``), what runs the very command of a probe is taken for one; so whoever runs the same by
hand is taken for one too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.events import Process


def maybe_exec_probe(process: Process) -> bool:
    """Whether `process` may be one, as far as is known of its pod; else as the source tells."""
    container, pod = process.container, process.pod
    if container is None:
        return False
    if container.maybe_exec_probe:
        return True
    if pod is None or not pod.exec_probes or container.name is None:
        return False
    probes = pod.exec_probes.get(container.name)
    if not probes or process.argv is None:
        return False
    arguments = _arguments(process, process.argv)
    return any(_runs(process.binary, arguments, command) for command in probes)


def _arguments(process: Process, argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments that were passed to exec. For a script the kernel has put its interpreter before it."""
    if process.interpreter is not None and process.binary in argv[1:3]:
        return tuple(argv[argv.index(process.binary, 1) + 1 :])
    return tuple(argv[1:])


def _runs(binary: str, arguments: Sequence[str], command: Sequence[str]) -> bool:
    """Whether `binary` with `arguments` is `command`, whose program may have been found by the PATH."""
    if not command or tuple(command[1:]) != arguments:
        return False
    program = command[0]
    if program.startswith("/"):
        return program == binary
    return program.rpartition("/")[2] == binary.rpartition("/")[2]
