"""The command line: ``otel-procmon run``, ``watch``, ``replay`` and ``doctor``.

What cannot work is said in one sentence, with the remedy, and ends with exit code 1; wrong usage with 2, as argparse
does. A run that was ended by Ctrl-C or SIGTERM has done what it was asked to and ends with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import platform
import resource
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_procmon import __version__
from otel_procmon.agent import Agent
from otel_procmon.capture import Capture, KernelCapture, RecordingCapture, TetragonCapture
from otel_procmon.config import Config, ConfigError, read_config
from otel_procmon.containers.hold import Hold
from otel_procmon.containers.sources import EndpointError, open_metadata
from otel_procmon.convert.happenings import Converter
from otel_procmon.convert.host import host_resource
from otel_procmon.convert.resource import ANNOTATION_PREFIX, Resources, selects_keys
from otel_procmon.convert.users import UserNames
from otel_procmon.deliver.delivery import Delivery, DeliveryError
from otel_procmon.deliver.exporters import ExporterDelivery
from otel_procmon.deliver.file import FileDelivery
from otel_procmon.filters import Filter, FilterError, read_filter_file
from otel_procmon.ledger import Ledger
from otel_procmon.outputs import LineOutput, Output, RecordOutput
from otel_procmon.privileges import PrivilegeError
from otel_procmon.redact.filters import RedactionError, own_filters, read_redaction_filters
from otel_procmon.redact.stage import Redaction, unredacted
from otel_procmon.rights import chosen_user, give_up, has_place
from otel_procmon.source.bcc import BccSource, perf_is_asked_for
from otel_procmon.source.bcc_program import Places
from otel_procmon.source.choice import LOADERS, choose
from otel_procmon.source.ebpf import BTF, EbpfSource
from otel_procmon.source.errors import SourceError
from otel_procmon.source.pins import Pins
from otel_procmon.source.recording import Host, RecordingSource, RecordingWriter
from otel_procmon.source.tetragon import TetragonSource
from otel_procmon.telemetry import Gauge, Telemetry
from otel_procmon.view.compact import compact_line
from otel_procmon.view.quote import valid_unicode
from otel_procmon.view.tetragon_json import tetragon_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_procmon.containers.metadata import Metadata
    from otel_procmon.convert.records import Resource
    from otel_procmon.events import Event
    from otel_procmon.lineage.image import Happening
    from otel_procmon.source.kernel import KernelSource

PROG: Final = "otel-procmon"

_DRAIN_S: Final = 10.0
"""How long what waits is given to leave when the agent ends."""
_LAST_METRICS_S: Final = 2.0
_PATIENCE_S: Final = 0.5

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
PASSWD: Final = Path("/etc/passwd")

_SOURCES: Final = "auto, ebpf, bcc, tetragon:PATH, tetragon:- or recording:PATH"
_OUTPUTS: Final = "otlp, otlp-json[:PATH], json[:PATH] or compact[:PATH]"

_log = logging.getLogger(PROG)


class UsageError(Exception):
    """The command line asks for something that there is not. The message is one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default the process's own. Returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose > 1 else logging.INFO if options.verbose else logging.WARNING,
        format=f"{PROG}: %(message)s",
    )
    try:
        if options.command == "unpin":
            return _unpin()
        if options.command == "doctor":
            return _doctor(verbose=bool(options.verbose))
        return _run(options)
    except UsageError as error:
        _say(f"{PROG} {options.command}: {error}")
        return 2
    except (
        ConfigError,
        DeliveryError,
        EndpointError,
        FilterError,
        PrivilegeError,
        RedactionError,
        SourceError,
    ) as error:
        _say(f"{PROG}: {error}")
        return 1
    except KeyboardInterrupt:
        # While it starts; later Ctrl-C is a request to end (`_on_signals`).
        return 128 + signal.SIGINT


def _say(line: str) -> None:
    """Write a line to standard error, if there still is one."""
    # There is no sys.stderr if it was closed before the start.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Every process on this host, from exec to exit, as OpenTelemetry logs and spans.",
        epilog="OTLP goes where the OTEL_EXPORTER_OTLP_ variables say. See also docs/configuration.md.",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: everything")

    selecting = argparse.ArgumentParser(add_help=False)
    selecting.add_argument("--config", metavar="FILE", help="read the configuration from this YAML file")
    selecting.add_argument(
        "-o",
        "--output",
        action="append",
        metavar="OUTPUT",
        help=f"where to: {_OUTPUTS}; without PATH to standard output; may be repeated",
    )
    selecting.add_argument(
        "--color", "--colour", choices=("auto", "always", "never"), default="auto", help="colours in the compact view"
    )
    selecting.add_argument(
        "--user", metavar="NAME[:GROUP]", help="become this user when everything is loaded and open (privileges.user)"
    )
    selection = selecting.add_argument_group(
        "filters", "each may be repeated: any of the values; of different filters all must hold"
    )
    selection.add_argument("--namespace", action="append", metavar="NS", help='Kubernetes namespace; "" is the host')
    selection.add_argument("--pod", action="append", metavar="REGEX", help="pod's name")
    selection.add_argument("--binary", action="append", metavar="REGEX", help="executable's path")
    selection.add_argument("--pid", action="append", type=_number, metavar="PID", help="process id")
    selection.add_argument("--uid", action="append", type=_number, metavar="UID", help="effective user id")
    selection.add_argument("--container", action="append", metavar="REGEX", help="container's name")
    selection.add_argument("--container-id", action="append", metavar="ID", help="container id, or its beginning")
    selection.add_argument("--label", action="append", metavar="SELECTOR", help="pod's labels: app=web,tier!=cache")
    selection.add_argument("--filter-file", metavar="FILE", help="Tetragon's export-allowlist and export-denylist")

    live = argparse.ArgumentParser(add_help=False)
    live.add_argument("--source", metavar="SOURCE", help=f"where from: {_SOURCES}; auto if not given")
    live.add_argument("--record", metavar="FILE", help="also write the kernel's records to FILE, to be replayed")
    live.add_argument(
        "--pin",
        action="store_true",
        help="leave the programs in the kernel at the end: the next agent goes on where this one stopped",
    )
    live.add_argument(
        "--spool",
        metavar="DIR",
        help='where waits what OTLP cannot send, instead of the configured place; "none": nowhere',
    )

    commands.add_parser(
        "run", parents=[common, live, selecting], help="capture and export: the agent (default output: otlp)"
    )
    commands.add_parser("watch", parents=[common, live, selecting], help="capture and show: run -o compact")
    replay = commands.add_parser(
        "replay",
        parents=[common, selecting],
        help="Tetragon's JSON, or a recording, into any output (default: compact)",
    )
    replay.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    commands.add_parser("unpin", parents=[common], help="remove what run --pin has left in the kernel")
    commands.add_parser("doctor", parents=[common], help="what this host can do, and how to mend what it cannot")
    return parser


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _doctor(*, verbose: bool) -> int:
    from otel_procmon.doctor import examine  # noqa: PLC0415 - it imports what other commands may not need

    if sys.stdout is None:
        raise UsageError("standard output is closed, and this writes to nowhere else")
    try:
        code = examine(os.environ, sys.stdout, verbose=verbose)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def configure(options: argparse.Namespace) -> Config:
    """The configuration file's, changed by what stands on the command line. Raises ConfigError."""
    config = Config() if options.config is None else read_config(options.config)
    chosen: dict[str, tuple[str | int, ...]] = {
        name: tuple(values)
        for name, values in (
            ("namespaces", options.namespace),
            ("pods", options.pod),
            ("binaries", options.binary),
            ("pids", options.pid),
            ("uids", options.uid),
            ("containers", options.container),
            ("container_ids", options.container_id),
            ("labels", options.label),
        )
        if values is not None
    }
    filters = replace(config.filters, **chosen)  # type: ignore[arg-type]
    if options.filter_file is not None:
        filters = replace(filters, file=options.filter_file)
    config = replace(config, filters=filters)
    if options.user is not None:
        config = replace(config, privileges=replace(config.privileges, user=options.user))
    if options.output:
        config = replace(config, outputs=tuple(options.output))
    elif options.command in ("watch", "replay"):
        config = replace(config, outputs=("compact",))
    if options.command == "replay":
        # It waits for the receiver rather than leave something for another time.
        return replace(config, delivery=replace(config.delivery, spool_directory=None))
    if options.spool is None and config.delivery == Config().delivery and not has_place(config.delivery):
        # The place that it has by default is root's, unless a service manager has made it this user's.
        config = replace(config, delivery=replace(config.delivery, spool_directory=None))
    if options.spool is not None:
        directory = None if options.spool == "none" else options.spool
        config = replace(config, delivery=replace(config.delivery, spool_directory=directory))
    return config if options.source is None else replace(config, source=options.source)


def _run(options: argparse.Namespace) -> int:
    config = configure(options)
    ledger = Ledger()
    filter_ = _filter(config)
    redact = _redaction(config, ledger)
    kind, path = _source(options, config)
    node = os.environ.get("NODE_NAME") or socket.gethostname()
    local = kind in LOADERS
    identity = chosen_user(config, os.environ, local=local)
    # The kernel first: what happens while the exporters are set up waits in the ring.
    capture, greeting = _capture(kind, path, node, config, ledger, options=options, redact=redact)
    try:
        lines, deliveries, sends = _sinks(config, options.color, ledger)
        # What can only be opened by root is open now, and no thread runs yet. From here on others' input is looked at.
        give_up(config, identity, capture, os.environ, sends=sends)
        if sends:
            deliveries.append(ExporterDelivery(os.environ, ledger, config.delivery))
        # Events that are not this host's, or not of now, say themselves what container they are of.
        metadata = _metadata(config, node, ledger) if local else None
    except BaseException:
        capture.close()
        raise
    hold = None
    if metadata is not None:
        hold = Hold(
            metadata,
            ledger,
            hold_ns=config.containers.hold_ns,
            max_held=config.containers.max_held,
            clock_ns=time.monotonic_ns,
        )
    outputs: list[Output] = list(lines)
    told = config.records
    host = host_resource(
        os.environ,
        Path("/"),
        host_name=node,
        local=local,
        node_name=config.containers.node_name or os.environ.get("NODE_NAME"),
        cluster_name=told.cluster_name,
        cluster_uid=told.cluster_uid,
    )
    telemetry = None
    if deliveries:
        converter = Converter(
            Resources(
                host,
                local=local,
                well_known_labels=told.well_known_labels,
                pod_labels=told.pod_labels,
                pod_annotations=told.pod_annotations,
                systemd_services=told.systemd_services,
            ),
            body=lambda happening: compact_line(happening, colour=False),
            life_span_id=capture.ids.life_span_id,
            user_name=UserNames(PASSWD) if local else None,
            failed_status=told.failed_exit_is_error,
        )
        outputs.append(RecordOutput(converter, deliveries, wait=options.command == "replay"))

    if (exporters := [one for one in deliveries if isinstance(one, ExporterDelivery)]) and options.command != "replay":
        telemetry = _telemetry(host, ledger, capture, exporters[0], hold)
    agent = Agent(capture, filter_, outputs, ledger, hold)
    _on_signals(agent)
    # The table holds many objects, hardly any of them in a cycle: to look through all of them after every 700 new ones
    # took a third of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    _say(f"{PROG}: {greeting}")
    try:
        agent.run()
    finally:
        if metadata is not None:
            metadata.close()
        line = agent.close(_DRAIN_S)
        if telemetry is not None:
            telemetry.shutdown(_LAST_METRICS_S)
        _say(f"{PROG}: ledger: {line or 'nothing happened'}")
    return 0


def _metadata(config: Config, node: str, ledger: Ledger) -> Metadata | None:
    """Whoever can be asked for containers. Raises EndpointError."""
    told = selects_keys(config.records.pod_annotations)
    return open_metadata(
        config.containers,
        os.environ,
        Path("/"),
        node=node,
        keep_annotation=lambda key: key.startswith(ANNOTATION_PREFIX) or told(key),
        ledger=ledger,
    )


def _filter(config: Config) -> Filter:
    filters = config.filters
    allow, deny = read_filter_file(filters.file) if filters.file is not None else ([], [])
    return Filter.of(
        namespaces=filters.namespaces,
        pods=filters.pods,
        binaries=filters.binaries,
        pids=filters.pids,
        uids=filters.uids,
        containers=filters.containers,
        container_ids=filters.container_ids,
        labels=filters.labels,
        allow=allow,
        deny=deny,
    )


def _redaction(config: Config, ledger: Ledger) -> Callable[[Event], Event]:
    """What takes secrets out of events. Raises RedactionError."""
    redaction = config.redaction
    filters = own_filters(redaction.rules)
    if redaction.file is not None:
        filters += read_redaction_filters(redaction.file)
    if not redaction.enabled:
        _log.warning("redaction.enabled is false: secrets in command lines leave as they are")
        return unredacted
    return Redaction(ledger, filters)


def _source(options: argparse.Namespace, config: Config) -> tuple[str, str]:
    """Kind and path of the source. Raises UsageError."""
    if options.command == "replay":
        return ("recording" if _is_recording(options.file) else "tetragon"), options.file
    kind, colon, path = config.source.partition(":")
    if (kind in LOADERS) == bool(colon) or kind not in (*LOADERS, "tetragon", "recording") or (colon and not path):
        raise UsageError(f"{config.source!r} is no source; use {_SOURCES}")
    if options.record is not None and kind not in LOADERS:
        raise UsageError("--record writes the kernel's records, so it goes with --source auto, ebpf or bcc only")
    if options.pin and kind == "bcc":
        raise UsageError(
            "--pin needs programs that every agent finds the same; those that BCC makes end with the agent"
        )
    if options.pin and kind not in LOADERS:
        raise UsageError("--pin leaves programs in the kernel, so it goes with --source auto or ebpf only")
    return kind, path


def _is_recording(path: str) -> bool:
    # What is read from a pipe (replay <(zcat …)) is gone.
    if not os.path.isfile(path):  # noqa: PTH113 - False where Path raises
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(22) == b"otel-procmon recording"
    except OSError:
        # Whoever opens it in earnest says why it cannot be read.
        return False


def _capture(
    kind: str,
    path: str,
    node: str,
    config: Config,
    ledger: Ledger,
    *,
    options: argparse.Namespace,
    redact: Callable[[Event], Event],
) -> tuple[Capture, str]:
    """The open capture, and what to say of it. Raises SourceError."""
    if kind in LOADERS:
        pinned = False
        if kind == "auto":
            kind, why = choose(BTF, Places(), platform.release())
            _log.info("source: %s: %s", kind, why)
            if options.pin and kind == "bcc":
                _log.warning("nothing is pinned, for BCC makes the programs here: they end with this agent")
        source: KernelSource
        if kind == "bcc":
            source = BccSource(config.capture, perf=perf_is_asked_for(os.environ))
        else:
            pinned = options.pin
            source = EbpfSource(config.capture, pins=Pins() if pinned else None)
        source.open()
        if source.started_clean:
            ledger.count("kernel", "lost: pinned by another version, with what it held", source.started_clean)
            _log.warning("what an agent of another version or configuration had pinned was removed")
        host = Host(node=node, boot_id=BOOT_ID.read_text(encoding="ascii").strip(), page_bytes=resource.getpagesize())
        recording = None if options.record is None else RecordingWriter(options.record, host)
        kernel = KernelCapture(source, host, config, ledger, recording, pinned=pinned, redact=redact)
        made = " by BCC" if kind == "bcc" else ""
        taken_over = ", going on where the last agent stopped" if source.taken_over else ""
        return kernel, f"capturing every process of {node} (Linux {platform.release()}){made}{taken_over}; Ctrl-C ends"
    if kind == "recording":
        recorded = RecordingSource(path)
        return RecordingCapture(recorded, recorded.open(), config, ledger, redact=redact), f"replaying {path}"
    follow = options.command != "replay"
    tetragon = TetragonSource(None if path == "-" else path, follow=follow)
    tetragon.open()
    name = "standard input" if path == "-" else path
    what = f"reading Tetragon's events from {name}" + ("; Ctrl-C ends" if follow else "")
    return TetragonCapture(tetragon, config, ledger, live=follow, redact=redact), what


def _sinks(config: Config, colour: str, ledger: Ledger) -> tuple[list[LineOutput], list[Delivery], bool]:
    """Where lines and records go, as far as it is files, and whether records are sent as well.

    Raises UsageError, DeliveryError.
    """
    lines: list[LineOutput] = []
    deliveries: list[Delivery] = []
    sends = False
    for output in dict.fromkeys(config.outputs):
        name, colon, path = output.partition(":")
        target = Path(path) if path and path != "-" else None
        if name not in ("otlp", "otlp-json", "json", "compact") or (colon and not path) or (name == "otlp" and colon):
            raise UsageError(f"{output!r} is no output; use {_OUTPUTS}")
        if name != "otlp" and target is None and sys.stdout is None:
            raise UsageError(f"standard output is closed; name a file, as in -o {name}:FILE")
        if name == "otlp":
            sends = True
        elif name == "otlp-json":
            deliveries.append(FileDelivery(target, ledger))
        else:
            render = _json(config) if name == "json" else _compact(colour, target, os.environ)
            lines.append(LineOutput(name, target, render, ledger))
    return lines, deliveries, sends


def _json(config: Config) -> Callable[[Happening], bytes | None]:
    """Makes Tetragon's JSON. Of annotations, which may hold secrets, what records tell as well."""
    return partial(
        tetragon_json,
        cluster_name=config.records.cluster_name,
        tells_annotation=selects_keys(config.records.pod_annotations),
    )


def _compact(colour: str, path: Path | None, environ: Mapping[str, str]) -> Callable[[Happening], bytes | None]:
    """Makes compact lines, coloured on a terminal unless NO_COLOR is set."""
    coloured = colour == "always"
    if colour == "auto":
        coloured = path is None and sys.stdout.isatty() and not environ.get("NO_COLOR")

    def render(happening: Happening) -> bytes | None:
        line = compact_line(happening, colour=coloured)
        return None if line is None else valid_unicode(line).encode()

    return render


def _telemetry(
    host: Resource, ledger: Ledger, capture: Capture, delivery: ExporterDelivery, hold: Hold | None
) -> Telemetry:
    """The agent's own metrics. Raises DeliveryError."""
    gauges = [
        Gauge("procmon.delivery.waiting", "{record}", "Records that wait in memory.", delivery.waiting),
        Gauge("procmon.spool.records", "{record}", "Records that wait on disk.", lambda: delivery.spooled()[0]),
        Gauge("procmon.spool.size", "By", "What they take on disk.", lambda: delivery.spooled()[1]),
    ]
    if isinstance(capture, KernelCapture):
        gauges += [
            Gauge("procmon.processes", "{process}", "Processes and kernel threads that run.", capture.running),
            Gauge("procmon.images", "{image}", "Images in the process table.", capture.images),
            Gauge("procmon.ring.utilization", "1", "Which part of the ring buffer is taken.", capture.filled),
        ]
    if hold is not None:
        gauges.append(Gauge("procmon.containers.held", "{event}", "What waits to know its container.", hold.__len__))
    return Telemetry(os.environ, host, ledger, capture.count, *gauges)


def _unpin() -> int:
    pins = Pins()
    pins.open()
    try:
        removed = pins.remove_all()
    finally:
        pins.close()
    _say(f"{PROG}: {'everything that was pinned is removed' if removed else 'nothing was pinned'}")
    return 0


def _on_signals(agent: Agent) -> None:
    asked_at: list[float] = []

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        # Whoever asks again does not want to wait. But a shell and timeout(1) send a signal twice at one time.
        asked_at.append(time.monotonic())
        if asked_at[-1] - asked_at[0] > _PATIENCE_S:
            os._exit(128 + number)
        agent.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, lambda number, frame: agent.ask())  # noqa: ARG005
