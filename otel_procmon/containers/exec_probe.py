"""Which processes may be a Kubernetes exec probe of their container: liveness, readiness, startup.

A probe is started like a ``kubectl exec``, again and again, and nothing marks it. As Tetragon does it
(``pkg/filters/health_check.go``), what runs the very command of a probe is taken for one; so whoever runs the same by
hand is taken for one too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_procmon.redact.rules import MARK

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
    if not command or len(command) != len(arguments) + 1 or not all(map(_is, arguments, command[1:])):
        return False
    program = command[0]
    if program.startswith("/"):
        return program == binary
    return program.rpartition("/")[2] == binary.rpartition("/")[2]


def _is(argument: str, written: str) -> bool:
    """Whether `argument` is what is `written` in the pod, where a secret may still stand that was redacted here."""
    if MARK not in argument:
        return argument == written
    first, *middle, last = argument.split(MARK)
    if not written.startswith(first) or len(written) < len(first) + len(last):
        return False
    position, end = len(first), len(written) - len(last)
    for piece in middle:
        position = written.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return written.endswith(last)
