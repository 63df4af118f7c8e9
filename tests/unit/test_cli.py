"""The command line: what is printed, what is said when something cannot work, and the exit codes.

Each command runs in a forked child: as isolated as a process of its own, and some hundred times as fast.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pty
import re
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import pytest

from otel_procmon import __version__, cli
from otel_procmon.config import Capture
from otel_procmon.source import ebpf, kernel, libbpf
from otel_procmon.source.errors import SourceError
from otel_procmon.source.recording import Batch, Host, RecordingWriter
from tests.kernel.truth.running import cannot_run
from tests.unit.wire_records import BOOT_NS, exec_record, exit_record, fork_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = Path(__file__).parent / "data" / "seed-events.json"
SEED_LINES = (
    "🚀 process default/xwing /usr/bin/whoami --version\n💥 exit    default/xwing /usr/bin/whoami --version 0\n"
)
CRASHED = 99
BOUND_S = 30.0
NOBODY = 65534


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines on standard error, without the first (what is read) and the last (the ledger)."""
        lines = self.err.splitlines()
        assert lines[0].startswith("otel-procmon: re")
        assert lines[-1].startswith("otel-procmon: ledger: ")
        return lines[1:-1]

    @property
    def ledger(self) -> str:
        return self.err.splitlines()[-1].removeprefix("otel-procmon: ledger: ")


class Command:
    """A command that runs. `streams` are the descriptors that it has as 0, 1 and 2; None is closed."""

    def __init__(
        self, *arguments: str, streams: tuple[int | None, int | None, int | None], before: Callable[[], object] | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(arguments, streams, before)

    @staticmethod
    def _child(arguments: tuple[str, ...], streams: tuple[int | None, ...], before: Any) -> None:
        code = CRASHED
        try:
            logging.root.handlers.clear()
            for number, stream in enumerate(streams):
                if stream is None:
                    os.close(number)
                else:
                    os.dup2(stream, number)
            os.closerange(3, 256)
            names = ("stdin", "stdout", "stderr")
            for number, (name, stream) in enumerate(zip(names, streams, strict=True)):
                errors = "backslashreplace" if number == 2 else "strict"
                file = None if stream is None else open(number, "w" if number else "r", errors=errors, closefd=False)  # noqa: SIM115
                setattr(sys, name, file)
            if before is not None:
                before()
            try:
                code = cli.main(arguments)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            for text in (sys.stdout, sys.stderr):
                if text is not None:
                    with contextlib.suppress(BrokenPipeError):
                        text.flush()
        except BaseException:  # noqa: BLE001 - a stack trace is what must not be
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def wait(self) -> int:
        """Its exit code, or the negative signal."""
        end = time.monotonic() + BOUND_S
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        pytest.fail("the command does not end")


@pytest.fixture
def otel_procmon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command to its end."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NODE_NAME", "here")

    def run(
        *arguments: str | Path,
        stdin: bytes | None = b"",
        closed: str = "",
        before: Callable[[], object] | None = None,
    ) -> Done:
        paths = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
        paths[0].write_bytes(stdin or b"")
        with paths[0].open("rb") as in_, paths[1].open("wb") as out, paths[2].open("wb") as err:
            files = {"stdin": in_, "stdout": out, "stderr": err}
            streams = [None if name in closed.split() else file.fileno() for name, file in files.items()]
            code = Command(*map(str, arguments), streams=tuple(streams), before=before).wait()  # type: ignore[arg-type]
        done = Done(code, paths[1].read_text(encoding="utf-8"), paths[2].read_text(encoding="utf-8"))
        assert "Traceback" not in done.err, done.err
        assert done.code != CRASHED
        return done

    return run


Run = Any


def recording(path: Path) -> Path:
    writer = RecordingWriter(str(path), Host(node="there", boot_id="b", page_bytes=4096))
    records = [fork_record(), exec_record(), exit_record(0x100)]
    writer.write(Batch(BOOT_NS, 1_700_000_000_000_000_000, records))
    writer.close()
    return path


# Replay


def test_seed_as_compact_lines(otel_procmon: Run) -> None:
    for more in ([], ["-o", "compact"], ["-o", "compact:-"]):
        done = otel_procmon("replay", SEED, *more)
        assert (done.code, done.out) == (0, SEED_LINES)
        assert done.said == []
        assert "output.compact: written 2; source: read 2" in done.ledger


def test_seed_comes_back_field_for_field(otel_procmon: Run) -> None:
    done = otel_procmon("replay", SEED, "-o", "json")
    expected = []
    text = SEED.read_text()
    while text.strip():
        document, end = json.JSONDecoder().raw_decode(text.lstrip())
        expected.append(document)
        text = text.lstrip()[end:]
    assert [json.loads(line) for line in done.out.splitlines()] == expected
    assert len(expected) == 2
    # As lines too, and from standard input.
    lines = "\n".join(map(json.dumps, expected)).encode()
    assert otel_procmon("replay", "-", "-o", "json", stdin=lines).out == done.out
    assert otel_procmon("replay", "/dev/stdin", stdin=lines).out == SEED_LINES


def test_outputs_go_together(otel_procmon: Run, tmp_path: Path) -> None:
    names = ["otlp-json", "json", "compact"]
    done = otel_procmon("replay", SEED, *(part for name in names for part in ("-o", f"{name}:{tmp_path}/{name}")))
    assert (done.code, done.out, done.said) == (0, "", [])
    assert (tmp_path / "compact").read_text() == SEED_LINES
    assert len((tmp_path / "json").read_text().splitlines()) == 2
    documents = [json.loads(line) for line in (tmp_path / "otlp-json").read_text().splitlines()]
    spans = [
        span
        for document in documents
        for resource in document.get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    logs = [
        record["eventName"]
        for document in documents
        for resource in document.get("resourceLogs", [])
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]
    assert logs == ["process.exec", "process.exit"]
    assert [span["name"] for span in spans] == ["bash", "whoami"], "the shell's opening span"
    assert spans[1]["parentSpanId"] == spans[0]["spanId"]
    assert spans[1]["traceId"] == spans[0]["traceId"]


def test_filters(otel_procmon: Run, tmp_path: Path) -> None:
    for options, lines in (
        (["--namespace", "default"], 2),
        (["--namespace", ""], 0),
        (["--namespace", "", "--namespace", "default"], 2),
        (["--pod", "^x"], 2),
        (["--pod", "y"], 0),
        (["--binary", "whoami$", "--pid", "51583"], 2),
        (["--pid", "1"], 0),
        (["--uid", "0"], 2),
        (["--container-id", "1fb931d2"], 2),
        (["--container", "^spaceship$"], 2),
        (["--container", "tie"], 0),
        (["--label", "!org"], 2),
        (["--label", "org=alliance"], 0),
    ):
        done = otel_procmon("replay", SEED, *options)
        assert (done.code, len(done.out.splitlines())) == (0, lines), options
    (tmp_path / "filter").write_text('export-denylist: \'{"event_set": ["PROCESS_EXIT"]}\'\n')
    assert otel_procmon("replay", SEED, "--filter-file", tmp_path / "filter").out == SEED_LINES.splitlines(True)[0]


def test_records_tell_what_is_configured(otel_procmon: Run, tmp_path: Path) -> None:
    path, config = recording(tmp_path / "recording"), tmp_path / "config.yaml"
    config.write_text("records: {cluster_name: prod, cluster_uid: u-0}\n")
    lines = otel_procmon("replay", path, "--config", config, "-o", "json").out.splitlines()
    assert [json.loads(line)["cluster_name"] for line in lines] == ["prod", "prod"]

    def resource() -> dict[str, str]:
        done = otel_procmon("replay", path, "--config", config, "-o", "otlp-json")
        first = json.loads(done.out.splitlines()[0])
        (found,) = first.get("resourceLogs") or first["resourceSpans"]
        return {one["key"]: one["value"]["stringValue"] for one in found["resource"]["attributes"]}

    told = {"k8s.cluster.name": "prod", "k8s.cluster.uid": "u-0", "service.name": "a"}
    assert resource().items() >= {**told, "procmon.systemd.unit": "a.service"}.items()
    config.write_text("records: {systemd_services: false}\n")
    assert resource()["service.name"] == "otel-procmon"
    assert not {"k8s.cluster.name", "procmon.systemd.unit"} & resource().keys()


def test_recording(otel_procmon: Run, tmp_path: Path) -> None:
    path = recording(tmp_path / "recording")
    line = "🚀 process there /bin/ls -l\n💥 exit    there /bin/ls -l 1\n"
    done = otel_procmon("replay", path)
    assert (done.code, done.out) == (0, line)
    assert done.err.startswith(f"otel-procmon: replaying {path}\n")
    assert otel_procmon("run", "--source", f"recording:{path}", "-o", "compact").out == line
    path.write_bytes(path.read_bytes()[:-3])
    done = otel_procmon("replay", path)
    assert (done.code, done.out) == (0, "")
    assert done.said == [f"otel-procmon: The recording {path} breaks off before byte {path.stat().st_size}."]


def test_pipe_is_read_from_its_beginning(otel_procmon: Run, tmp_path: Path) -> None:
    """``replay <(kubectl logs …)``: a look at what it is must not take anything."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.fork()
    if not writer:
        with path.open("wb") as file:
            file.write(SEED.read_bytes())
        os._exit(0)
    assert otel_procmon("replay", path).out == SEED_LINES
    os.waitpid(writer, 0)


# Input that is not what it should be


def test_file_that_is_missing_or_a_directory(otel_procmon: Run, tmp_path: Path) -> None:
    done = otel_procmon("replay", tmp_path / "nothing")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"otel-procmon: {tmp_path}/nothing does not exist: name the file that Tetragon exports to (its option "
        "--export-filename).\n"
    )
    done = otel_procmon("replay", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"otel-procmon: {tmp_path} is a directory: name a file of Tetragon's JSON in it, such as tetragon.log.\n"
    )


def test_file_that_may_not_be_read(otel_procmon: Run, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SEED.read_bytes())
    path.chmod(0)
    tmp_path.chmod(0o755)

    def become_nobody() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

    done = otel_procmon("replay", path, before=become_nobody)
    assert done.code == 1
    assert re.fullmatch(rf"otel-procmon: {path} (may not be read|cannot be).*\n", done.err)


def test_truncated_json(otel_procmon: Run, tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(SEED.read_bytes()[:3000])
    done = otel_procmon("replay", path)
    assert (done.code, done.out) == (0, SEED_LINES.splitlines(True)[0]), "what is whole is told"
    assert done.said == [f"otel-procmon: {path}:62: the JSON object breaks off"]
    assert "decode.tetragon: lost: malformed 1;" in done.ledger


def test_unknown_events_pass_by_counted(otel_procmon: Run) -> None:
    texts = b'{"process_kprobe": {"process": {}}}\n{"process_from_the_future": {}}\n'
    done = otel_procmon("replay", "-", stdin=texts)
    assert (done.code, done.out, done.said) == (0, "", [])
    assert done.ledger == "decode.tetragon: passed by: other 1, passed by: process_kprobe 1; source: read 2"


def test_what_is_no_event_at_all(otel_procmon: Run) -> None:
    done = otel_procmon(
        "replay", "-", stdin=b'nonsense\n{}\n[1]\n{"process_exec": 7}\n\xff\xfe\0\n' + SEED.read_bytes()
    )
    assert (done.code, done.out) == (0, SEED_LINES), "one bad record costs one record"
    assert [line.split(" ")[1] for line in done.said] == ["stdin:1:", "stdin:2:", "stdin:3:", "stdin:4:", "stdin:5:"]
    assert "lost: malformed 5" in done.ledger


def test_nothing_to_read(otel_procmon: Run) -> None:
    done = otel_procmon("replay", "-")
    assert (done.code, done.out, done.ledger) == (0, "", "nothing happened")
    done = otel_procmon("replay", "-", closed="stdin")
    assert (done.code, done.out) == (1, "")
    assert done.err == "otel-procmon: Standard input is closed: pipe Tetragon's JSON into it, or name a file.\n"


# Usage

_OUTPUTS = "otlp, otlp-json[:PATH], json[:PATH] or compact[:PATH]"
_SOURCES = "auto, ebpf, bcc, tetragon:PATH, tetragon:- or recording:PATH"


@pytest.mark.parametrize("output", ["nope", "", "json:", "compact:", "otlp:x", "otlp-json:", "JSON", "otlp,json"])
def test_unknown_output(otel_procmon: Run, output: str) -> None:
    done = otel_procmon("replay", SEED, "-o", output)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"otel-procmon replay: {output!r} is no output; use {_OUTPUTS}\n"


@pytest.mark.parametrize(
    "source", ["nope", "", "ebpf:x", "auto:x", "bcc:", "tetragon", "tetragon:", "recording", "recording:"]
)
def test_unknown_source(otel_procmon: Run, source: str) -> None:
    done = otel_procmon("watch", "--source", source)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"otel-procmon watch: {source!r} is no source; use {_SOURCES}\n"


def test_record_without_the_kernel(otel_procmon: Run, tmp_path: Path) -> None:
    done = otel_procmon("run", "--source", "tetragon:-", "--record", tmp_path / "r")
    assert done.code == 2
    assert "--record writes the kernel's records, so it goes with --source auto, ebpf or bcc only" in done.err
    assert not (tmp_path / "r").exists()


def test_pin_without_the_kernel(otel_procmon: Run) -> None:
    done = otel_procmon("run", "--source", "tetragon:-", "--pin")
    assert done.code == 2
    assert "--pin leaves programs in the kernel, so it goes with --source auto or ebpf only" in done.err
    done = otel_procmon("run", "--source", "bcc", "--pin")
    assert done.code == 2
    assert "those that BCC makes end with the agent" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["replay"], "the following arguments are required: FILE"),
        (["nope"], "invalid choice: 'nope'"),
        (["watch", "--nope"], "unrecognized arguments: --nope"),
        (["watch", "--pid", "x"], "argument --pid: 'x' is not a whole number from 0 to 4294967295"),
        (["watch", "--pid", "-1"], "argument --pid"),
        (["watch", "--uid", "4294967296"], "argument --uid: '4294967296' is not a whole number"),
        (["watch", "--uid", "٣"], "argument --uid: '٣' is not a whole number"),
        (["watch", "--color", "maybe"], "argument --color/--colour: invalid choice: 'maybe'"),
        (["replay", str(SEED), "--source", "ebpf"], "unrecognized arguments: --source ebpf"),
    ],
)
def test_wrong_usage(otel_procmon: Run, arguments: list[str], said: str) -> None:
    done = otel_procmon(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("usage: otel-procmon")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--binary", "otel-procmon: --binary: '(' is not a valid regular expression: "),
        ("--pod", "otel-procmon: --pod: '(' is not a valid regular expression: "),
    ],
)
def test_bad_expression(otel_procmon: Run, option: str, said: str) -> None:
    done = otel_procmon("replay", SEED, option, "(")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(said)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "The filter file FILE cannot be read: No such file or directory."),
        ("nonsense", "The filter file FILE must be a mapping with export-allowlist or export-denylist."),
        ("a: [", "The filter file FILE is not valid YAML: "),
        ("export-allowlist: 'nonsense'", "FILE"),
        ("export-allowlist: '{\"no_such_filter\": 1}'", "no_such_filter"),
    ],
)
def test_bad_filter_file(otel_procmon: Run, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "filters"
    if content is not None:
        path.write_text(content)
    done = otel_procmon("replay", SEED, "--filter-file", path)
    assert (done.code, done.out) == (1, "")
    assert said.replace("FILE", str(path)) in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "The configuration file FILE cannot be read: No such file or directory."),
        ("a: [", "FILE, line 1: not valid YAML: "),
        ("[]", "FILE"),
        ("sourse: ebpf", "sourse"),
        ("outputs: []", "FILE, line 1: outputs is an empty list"),
        ('source: "tetragon:a\\0b"', "FILE, line 1: source is "),
        ('source: "tetragon:\\ud800"', "FILE, line 1: source is "),
        ('outputs: ["json:a\\0b"]', "FILE, line 1: outputs has "),
        ("capture: {ring_size: 3}", "FILE"),
    ],
)
def test_bad_configuration(otel_procmon: Run, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    done = otel_procmon("watch", "--config", path)
    assert (done.code, done.out) == (1, "")
    assert said.replace("FILE", str(path)) in done.err
    assert done.err.count("\n") == 1


def test_configuration_and_what_the_command_line_changes_of_it(otel_procmon: Run, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("outputs: [json]\nfilters: {namespaces: [other]}\n")
    assert otel_procmon("replay", SEED, "--config", path).out == ""
    done = otel_procmon("replay", SEED, "--config", path, "--namespace", "default")
    assert done.out == SEED_LINES, "a replay shows lines unless it is told otherwise on the command line"
    done = otel_procmon("replay", SEED, "--config", path, "--namespace", "default", "-o", "json")
    assert done.out.startswith('{"process_exec"')


def test_version_and_help(otel_procmon: Run) -> None:
    assert otel_procmon("--version") == (0, f"otel-procmon {__version__}\n", "")
    for command in ([], ["run"], ["watch"], ["replay"], ["doctor"]):
        done = otel_procmon(*command, "--help")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("usage: otel-procmon")
        assert max(map(len, done.out.splitlines())) <= 80
        assert "%" not in done.out
    for word in ("run", "watch", "replay", "doctor"):
        assert re.search(rf"^    {word} ", otel_procmon("--help").out, re.MULTILINE)


# Outputs that cannot be written


def test_output_file_that_cannot_be_opened(otel_procmon: Run, tmp_path: Path) -> None:
    for name in ("compact", "json", "otlp-json"):
        done = otel_procmon("replay", SEED, "-o", f"{name}:{tmp_path}/missing/file")
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            f"otel-procmon: cannot write to {tmp_path}/missing/file (No such file or directory); name a file that can "
            "be written\n"
        )


@pytest.mark.parametrize("output", ["compact", "json", "otlp-json"])
def test_full_disk(otel_procmon: Run, output: str) -> None:
    done = otel_procmon("replay", SEED, "-o", f"{output}:/dev/full")
    assert done.code == 0
    assert len(done.said) == 1
    assert done.said[0].startswith(
        f"otel-procmon: output.{output}: cannot write to /dev/full (no space left on device): "
    )
    assert "lost" in done.ledger


@pytest.mark.parametrize("output", ["compact", "json", "otlp-json"])
def test_closed_standard_output(otel_procmon: Run, output: str) -> None:
    done = otel_procmon("replay", SEED, "-o", output, closed="stdout")
    assert (done.code, done.err) == (
        2,
        f"otel-procmon replay: standard output is closed; name a file, as in -o {output}:FILE\n",
    )


def test_closed_standard_error(otel_procmon: Run) -> None:
    done = otel_procmon("replay", SEED, closed="stderr")
    assert (done.code, done.out, done.err) == (0, SEED_LINES, "")
    assert otel_procmon("replay", "/nonexistent", closed="stderr").code == 1
    assert otel_procmon("replay", SEED, "-o", "nope", closed="stderr").code == 2


@pytest.mark.parametrize("output", ["compact", "json", "otlp-json"])
def test_reader_that_takes_one_line_and_goes(tmp_path: Path, output: str) -> None:
    """``| head -1`` ends the command soon, even one that would go on for ever, and nothing is said of it."""
    events = tmp_path / "events"
    text = b"".join(json.dumps(json.loads(part)).encode() + b"\n" for part in _seed_texts())
    events.write_bytes(text * 1500)
    readable, writable = os.pipe()
    with (tmp_path / "err").open("wb") as err:
        command = Command(
            *("watch", "--source", f"tetragon:{events}", "-o", output),
            streams=(None, writable, err.fileno()),
            before=None,
        )
        os.close(writable)
        assert os.read(readable, 100)
        os.close(readable)
        assert command.wait() == 0
    said = (tmp_path / "err").read_text().splitlines()
    assert len(said) == 2
    assert "lost" in said[-1]


def _seed_texts() -> list[str]:
    first, second = SEED.read_text().split("\n}\n{", 1)
    return [first + "}", "{" + second]


# Colours


ESCAPE = "\x1b["


def test_no_colours_but_on_a_terminal(otel_procmon: Run) -> None:
    assert ESCAPE not in otel_procmon("replay", SEED).out
    assert ESCAPE not in otel_procmon("replay", SEED, "--color", "never").out
    coloured = otel_procmon("replay", SEED, "--colour", "always").out
    assert re.sub(r"\x1b\[\d*m", "", coloured) == SEED_LINES
    assert coloured != SEED_LINES


@pytest.mark.parametrize(
    ("options", "environ", "coloured"),
    [
        ([], {}, True),
        (["--color", "never"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
    ],
)
def test_colours_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], environ: dict[str, str], coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    main, terminal = pty.openpty()
    with (tmp_path / "err").open("wb") as err:
        command = Command("replay", str(SEED), *options, streams=(None, terminal, err.fileno()), before=None)
        os.close(terminal)
        got = b""
        with contextlib.suppress(OSError):  # how a terminal whose other end is closed ends
            while piece := os.read(main, 4096):
                got += piece
        assert command.wait() == 0
    os.close(main)
    text = got.decode().replace("\r\n", "\n")
    assert (ESCAPE in text) == coloured
    assert re.sub(r"\x1b\[\d*m", "", text) == SEED_LINES


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_run_in_order(tmp_path: Path, number: signal.Signals) -> None:
    events = tmp_path / "events"
    events.write_bytes(SEED.read_bytes())
    readable, writable = os.pipe()
    with (tmp_path / "err").open("wb") as err:
        command = Command(
            "watch", "--source", f"tetragon:{events}", streams=(None, writable, err.fileno()), before=None
        )
        os.close(writable)
        got = os.read(readable, 10_000)
        os.kill(command.pid, signal.SIGUSR1)
        while "ledger" not in (tmp_path / "err").read_text():
            time.sleep(0.005)
        os.kill(command.pid, number)
        while select.select([readable], [], [], BOUND_S)[0] and (more := os.read(readable, 10_000)):
            got += more
        assert command.wait() == 0
    os.close(readable)
    assert got.decode() == SEED_LINES
    said = (tmp_path / "err").read_text().splitlines()
    assert said[0] == f"otel-procmon: reading Tetragon's events from {events}; Ctrl-C ends"
    assert [line.startswith("otel-procmon: ledger: ") for line in said[1:]] == [True, True]
    assert "output.compact: written 2" in said[-1]


def test_ctrl_c_while_it_starts(otel_procmon: Run) -> None:
    def interrupt() -> None:
        patch.object(cli, "_capture", side_effect=KeyboardInterrupt).start()

    done = otel_procmon("watch", before=interrupt)
    assert (done.code, done.err) == (130, "")


# The kernel that cannot be watched


def test_kernel_without_type_information(otel_procmon: Run, tmp_path: Path) -> None:
    def without() -> None:
        patch.object(ebpf, "BTF", tmp_path / "vmlinux").start()
        patch.object(kernel, "Library").start()

    done = otel_procmon("watch", before=without)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"otel-procmon: This kernel gives no type information ({tmp_path}/vmlinux is missing): boot one that was built "
        "with CONFIG_DEBUG_INFO_BTF=y, as those of Debian since 11 and Ubuntu since 20.10 are.\n"
    )


def test_machine_without_libbpf(otel_procmon: Run) -> None:
    def without() -> None:
        patch.object(libbpf, "SONAME", "libbpf-that-is-not-there.so.1").start()

    done = otel_procmon("run", "-o", "compact", before=without)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(
        r"otel-procmon: libbpf 1\.0 or newer is missing \(libbpf-that-is-not-there\.so\.1: .*\): on Debian and Ubuntu, "
        r"apt-get install libbpf1\.\n",
        done.err,
    )


def test_big_endian_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(SourceError, match="little-endian machines only"):
        ebpf.EbpfSource(Capture()).open()


def test_user_who_may_not(otel_procmon: Run) -> None:
    """In earnest, where libbpf and BTF are there."""
    try:
        libbpf.Library()
    except libbpf.LibbpfMissingError:
        cannot_run("kernel", "libbpf is missing")
    if not ebpf.BTF.exists():
        cannot_run("kernel", "this kernel has no BTF")
    compiled = ebpf.object_bytes()

    def become_nobody() -> None:
        # The repository may lie where nobody may read.
        patch.object(ebpf, "object_bytes", return_value=compiled).start()
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

    done = otel_procmon("watch", before=become_nobody)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "otel-procmon: Loading a BPF program needs root, or the capabilities BPF, PERFMON and SYS_RESOURCE: run it by "
        "sudo.\n"
    )


@pytest.mark.parametrize(
    ("number", "what", "lockdown", "messages", "said"),
    [
        (1, "bpf_object__load", "none integrity [confidentiality]", [], "locked down (lockdown=confidentiality)"),
        (1, "bpf_object__load", "[none] integrity", [], "does not allow BPF programs here"),
        (13, "bpf_object__load", "", ["processed 10 insns (limit 1000000)"], "does not take the BPF program"),
        (22, "bpf_object__load", "", [], "does not take the BPF program (Invalid argument; Linux "),
        (2, "bpf_program__attach", "", [], "The BPF program cannot be attached (bpf_program__attach: No such file"),
    ],
)
def test_why_the_program_cannot_be_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    what: str,
    lockdown: str,
    messages: list[str],
    said: str,
) -> None:
    (tmp_path / "lockdown").write_text(lockdown)
    monkeypatch.setattr(kernel, "LOCKDOWN", tmp_path / "lockdown")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sentence = kernel.sentence(libbpf.BpfError(number, what), messages)
    assert said in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_user_that_there_is_not(otel_procmon: Run) -> None:
    done = otel_procmon("replay", str(SEED), "--user", "no-such-user")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("otel-procmon: there is no user 'no-such-user' on this host; make one")


def test_doctor_says_what_is_missing(otel_procmon: Run, tmp_path: Path) -> None:
    def without() -> None:
        patch.object(ebpf, "BTF", tmp_path / "vmlinux").start()
        patch.object(kernel, "Library").start()
        patch.object(ebpf.EbpfSource, "messages", []).start()

    done = otel_procmon("doctor", before=without)
    assert (done.code, done.err) == (1, "")
    assert re.search(r"^missing  This kernel gives no type information", done.out, re.MULTILINE)
    assert done.out.endswith("This host cannot capture yet: see what is missing.\n")
    done = otel_procmon("doctor", closed="stdout", before=without)
    assert (done.code, done.err) == (
        2,
        "otel-procmon doctor: standard output is closed, and this writes to nowhere else\n",
    )


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`main` never runs in this process."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert isinstance(sys.stdout, io.TextIOBase)
