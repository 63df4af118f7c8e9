"""The configuration file, and the pages that are generated from the table of options."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.config import (
    Capture,
    Config,
    ConfigError,
    DeliveryOptions,
    FilterOptions,
    LineageOptions,
    PrivilegeOptions,
    RecordOptions,
    TraceOptions,
    pages,
    read_config,
)
from otel_procmon.convert.host import host_resource
from otel_procmon.deliver.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[str | bytes], Config]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "examples" / "otel-procmon.yaml"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file with the given content."""

    def read_content(content: str | bytes) -> Config:
        path = tmp_path / "c.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_config(path)

    return read_content


@pytest.fixture
def refusal(read: Read, tmp_path: Path) -> Callable[[str | bytes], str]:
    """The message that refuses the given content, without the directory of the file."""

    def refuse(content: str | bytes) -> str:
        with pytest.raises(ConfigError) as failure:
            read(content)
        message = str(failure.value).replace(f"{tmp_path}/", "")
        assert message.endswith((".", "?"))
        assert message.isprintable()
        assert len(message) < 600
        return message

    return refuse


def test_page_is_current() -> None:
    assert PAGE.read_text() == pages.document(), "run: make docs"


def test_example_is_current() -> None:
    assert EXAMPLE.read_text() == pages.example(), "run: make docs"


def test_example_is_the_defaults() -> None:
    assert read_config(EXAMPLE) == Config()


def test_running_the_module_prints_page_and_example() -> None:
    for arguments, path in (((), PAGE), (("example",), EXAMPLE)):
        command = [sys.executable, "-m", "otel_procmon.config", *arguments]
        assert subprocess.run(command, capture_output=True, check=True).stdout == path.read_bytes()


def test_every_option_is_in_the_example_and_the_page() -> None:
    names = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text(), re.MULTILINE))
    fields = {
        f"{section.name}.{option.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(default := getattr(Config(), section.name))
        for option in dataclasses.fields(default)
    } | {"source", "outputs"}
    assert names == {re.sub("_(ns|bytes)$", "", name) for name in fields}


class Asked(dict[str, str]):
    """An environment that remembers what was asked of it."""

    def __init__(self, **values: str) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        self.names.add(key)
        return super().__getitem__(key)


def test_page_has_the_environment_variables_that_are_read(tmp_path: Path) -> None:
    environ = Asked(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317")
    read_settings(environ, "traces")
    read_settings(environ, "logs")
    host_resource(environ, tmp_path)
    documented: set[str] = set()
    for name in re.findall(r"^\| `(OTEL_[A-Z_<>]+)`", PAGE.read_text(), re.MULTILINE):
        documented |= {name.replace("<SIGNAL>_", form) for form in ("", "TRACES_", "LOGS_")}
    assert documented == environ.names


def test_page_has_the_defaults_of_batching() -> None:
    for signal, prefix in (("traces", "OTEL_BSP_"), ("logs", "OTEL_BLRP_")):
        batching = read_settings({}, signal).batching  # type: ignore[arg-type]
        for name, value in (
            ("MAX_QUEUE_SIZE", batching.queue_size),
            ("MAX_EXPORT_BATCH_SIZE", batching.batch_size),
            ("SCHEDULE_DELAY", int(batching.delay_s * 1000)),
        ):
            assert f"| `{prefix}{name}` | `{value}` |" in PAGE.read_text()


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "{}", "trace:\nfilters: null\n", "\ufeff{}"])
def test_what_says_nothing_is_the_defaults(read: Read, content: str) -> None:
    assert read(content) == Config()


def test_all_of_it(read: Read) -> None:
    content = """
source: "tetragon:-"
outputs: [otlp, "compact:/var/log/x"]
filters:
  namespaces: ['', default]
  pods: [^web-]
  binaries:
    - /sh$
    - '[0-9]'
  pids: [0, 4294967295]
  uids: [1000]
  containers: [ship]
  container_ids: ["12", 3f0c]
  labels: ['a=b,c!=d', x]
  file: lists.yaml
capture: {poll_interval: 1s, ring: 262144, wake_fraction: .5, arguments_max: 32 KiB, snapshot: no}
trace: {service_age: 0s, max_age: 2h, max_spans: 1, open_after: 1500ms}
lineage: {max_images: 1024, grace: 1m, sweep_interval: 10 s}
records:
  failed_exit_is_error: false
  well_known_labels: true
  pod_labels: [app, 'example.com/*']
  pod_annotations: ['*']
  systemd_services: false
  cluster_name: prod
  cluster_uid: 218fc5a9-a5f1-4b54-aa05-46717d0ab26d
delivery: {queue: 1MiB, in_flight: 64, spool_directory: ./spool, spool_max: 1024GiB}
privileges: {user: "procmon:adm", keep: [SYS_PTRACE, CAP_BPF]}
"""
    assert read(content) == Config(
        source="tetragon:-",
        outputs=("otlp", "compact:/var/log/x"),
        filters=FilterOptions(
            namespaces=("", "default"),
            pods=("^web-",),
            binaries=("/sh$", "[0-9]"),
            pids=(0, 2**32 - 1),
            uids=(1000,),
            containers=("ship",),
            container_ids=("12", "3f0c"),
            labels=("a=b,c!=d", "x"),
            file="lists.yaml",
        ),
        capture=Capture(10**9, 2**18, 0.5, 2**15, snapshot=False),
        trace=TraceOptions(0, 7200 * 10**9, 1, 1500 * 10**6),
        lineage=LineageOptions(1024, 60 * 10**9, 10 * 10**9),
        records=RecordOptions(
            failed_exit_is_error=False,
            well_known_labels=True,
            pod_labels=("app", "example.com/*"),
            pod_annotations=("*",),
            systemd_services=False,
            cluster_name="prod",
            cluster_uid="218fc5a9-a5f1-4b54-aa05-46717d0ab26d",
        ),
        delivery=DeliveryOptions(2**20, 64, "./spool", 2**40),
        privileges=PrivilegeOptions("procmon:adm", ("SYS_PTRACE", "CAP_BPF")),
    )


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_no_spool(read: Read, nothing: str) -> None:
    assert read(f"delivery:\n  spool_directory: {nothing}\n").delivery == DeliveryOptions(spool_directory=None)


def test_commented_out_entries_and_aliases(read: Read) -> None:
    found = read("filters:\n  pods:\n  # - web\n  pids: &mine [1]\n  uids: *mine\n")
    assert found == Config(filters=FilterOptions(pids=(1,), uids=(1,)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source: []", "c.yaml, line 1: source is an empty list; write one text, such as ebpf."),
        ("source: 5", "c.yaml, line 1: source is 5; write one text, such as ebpf."),
        ("source: ' '", "c.yaml, line 1: source is ' '; write one text, such as ebpf."),
        ("outputs: otlp", "line 1: outputs is 'otlp'; write a list of texts such as [otlp, compact], at least one."),
        (
            "outputs: []",
            "line 1: outputs is an empty list; write a list of texts such as [otlp, compact], at least one.",
        ),
        ("outputs:\n- otlp\n- {}\n", "line 3: outputs has a mapping; write a list"),
        ("outputs: [yes]", "line 1: outputs has yes; write a list"),
        ("filters: {pids: [1,\n -1]}", "line 2: filters.pids has -1; write a list of whole numbers from 0 to 42949"),
        ("filters: {uids: [010]}", "filters.uids has 010; write"),
        ("filters: {uids: [4294967296]}", "filters.uids has 4294967296; write"),
        ("filters: {uids: ['0']}", "filters.uids has '0'; write"),
        ("filters: {pods: [12]}", "filters.pods has 12; write a list of regular expressions"),
        ("filters: {container_ids: [12]}", "filters.container_ids has 12; write a list of texts"),
        ("filters: {labels: [1]}", "filters.labels has 1; write a list of label selectors"),
        ("records: {pod_labels: ['']}", "records.pod_labels has ''; write a list of keys such as ['app'"),
        ("records: {cluster_name: 7}", "records.cluster_name is 7; write a text, or null."),
        ("filters: {file: [a]}", "filters.file is a list; write the path of a file."),
        ("trace:\n  max_age: 10\n", "line 2: trace.max_age is 10; write a duration from 1s to 8760h, with its unit"),
        ("trace: {max_age: 1d}", "trace.max_age is '1d'; write"),
        ("trace: {max_age: 1:30}", "trace.max_age is 1:30; write"),
        ("trace: {max_age: 500ms}", "trace.max_age is '500ms'; write a duration from 1s"),
        ("trace: {max_age: 99999h}", "trace.max_age is '99999h'; write"),
        ("trace: {max_age: }", "trace.max_age is empty; write a duration"),
        ("trace: {max_spans: 4000.0}", "trace.max_spans is 4000.0; write a whole number from 1 to 1000000."),
        ("trace: {max_spans: true}", "trace.max_spans is true; write a whole number"),
        ("trace: {max_spans: 0}", "trace.max_spans is 0; write"),
        ("trace: 5", "line 1: trace is 5; write options under it: service_age, max_age, max_spans, open_after."),
        ("capture: {ring: 3MiB}", "capture.ring is '3MiB'; write a power of two from 256KiB to 1GiB, with KiB, MiB"),
        ("capture: {ring: 128KiB}", "capture.ring is '128KiB'; write a power of two from 256KiB"),
        ("capture: {ring: 8MB}", "capture.ring is '8MB'; write"),
        ("capture: {arguments_max: 31KiB}", "capture.arguments_max is '31KiB'; write a size from 32KiB to 64KiB"),
        ("capture: {wake_fraction: 1}", "capture.wake_fraction is 1; write a number above 0 and below 1."),
        ("capture: {wake_fraction: .nan}", "capture.wake_fraction is .nan; write"),
        ("capture: {wake_fraction: 25%}", "capture.wake_fraction is '25%'; write"),
        ("capture: {snapshot: 1}", "capture.snapshot is 1; write true or false."),
        ("capture: {snapshot: 'true'}", "capture.snapshot is 'true'; write true or false."),
        ("capture: {snapshot: !!bool maybe}", "capture.snapshot is maybe; write true or false."),
        ("capture: {poll_interval: !!int x}", "capture.poll_interval is x; write"),
        (
            "delivery: {spool_directory: ' '}",
            "delivery.spool_directory is ' '; write the path of a directory, or null.",
        ),
        ("privileges: {user: 1000}", "privileges.user is 1000; write NAME, NAME:GROUP or UID:GID in quotes, or null."),
        ("privileges: {keep: [SYS_PTRACE, ROOT]}", "privileges.keep has 'ROOT'; write a list of capabilities"),
        ("privileges: {keep: all}", "privileges.keep is 'all'; write a list of capabilities such as [SYS_PTRACE]"),
        ("delivery: {spool_max: 0}", "delivery.spool_max is 0; write a size from 1MiB to 1024GiB, with KiB"),
        ("delivery: {in_flight: 0}", "delivery.in_flight is 0; write a whole number from 1 to 64."),
        ("lineage: {max_images: !!python/object/apply:os.system [echo]}", "lineage.max_images is a list; write"),
        (r'source: !!int "\e[31m"', r"source is '\x1b[31m'; write one text, such as ebpf."),
    ],
)
def test_wrong_values(refusal: Callable[[str], str], content: str, message: str) -> None:
    assert message in refusal(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trace:\n  max_span: 5\n", "c.yaml, line 2: there is no option 'trace.max_span'; did you mean max_spans?"),
        ("sources: ebpf", "there is no option 'sources'; did you mean source?"),
        ("filter: {}", "there is no option 'filter'; did you mean filters?"),
        ("max_spans: 5", "there is no option 'max_spans'; did you mean max_spans under trace?"),
        ("trace.max_spans: 5", "there is no option 'trace.max_spans'; did you mean max_spans under trace?"),
        ("records: {grace: 1s}", "there is no option 'records.grace'; did you mean grace under lineage?"),
        ("capture: {ring_bytes: 5}", "there is no option 'capture.ring_bytes'; did you mean ring?"),
        ("records: {grace_ns: 1}", "there is no option 'records.grace_ns'; did you mean grace under lineage?"),
        (
            "zzz: 5",
            "there is no option 'zzz'; there are source, outputs, filters, capture, trace, lineage, containers, ",
        ),
        ("on: 5", "there is no option 'on'; "),
        ("<<: {source: x}", "there is no option '<<'; "),
        ("records: {zzz: 5}", "there is no option 'records.zzz'; there are failed_exit_is_error, well_known_labels, "),
        (f"{'x' * 1000}: 5", f"there is no option '{'x' * 60}…'; "),
    ],
)
def test_unknown_options(refusal: Callable[[str], str], content: str, message: str) -> None:
    assert message in refusal(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- ebpf", "c.yaml, line 1: a list where options should stand, such as source: ebpf."),
        ("ebpf", "c.yaml, line 1: 'ebpf' where options should stand"),
        ("? [a]\n: 5\n", "c.yaml, line 1: a list where an option's name should be."),
        ("source: a\ntrace: {}\nsource: a\n", "c.yaml, line 3: 'source' stands here again, after line 1."),
        ("trace:\n  max_age: 1h\n  max_age: 1h\n", "line 3: 'trace.max_age' stands here again, after line 2."),
        ("source: a\nb", "c.yaml, line 2: not valid YAML: "),
        ("a: 'x", "not valid YAML: "),
        ("source: *a", "c.yaml, line 1: not valid YAML: found undefined alias 'a'."),
        ("source: a\n---\nsource: b\n", "c.yaml, line 2: not valid YAML: but found another document."),
        ("source: a\n\x1b[31m: 5", "c.yaml, line 2: a control character, which YAML does not allow."),
        (b"source: a\ntrace: \xff", "c.yaml, line 2: not UTF-8 text."),
        ("[" * 10_000, "c.yaml: not valid YAML: nested too deeply."),
        ("- " * 10_000, "c.yaml: not valid YAML: nested too deeply."),
        ("#" * 300_000, "c.yaml is larger than 256KiB."),
    ],
)
def test_not_a_configuration(refusal: Callable[[str | bytes], str], content: str | bytes, message: str) -> None:
    assert message in refusal(content)


def test_aliases_cannot_multiply(refusal: Callable[[str], str]) -> None:
    lines = ["a: &a0 [1]", *(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(30))]
    assert "there is no option 'a'" in refusal("\n".join(lines))
    nested = "filters: {pids: &a [1], uids: [*a, *a]}"
    assert "filters.uids has a list" in refusal(nested)
    assert "filters.uids has a list" in refusal("filters: {uids: &a [*a]}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "absent.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "a\0b", "null byte"),
    ):
        with pytest.raises(ConfigError, match=f"^The configuration file .* cannot be read: .*{reason}"):
            read_config(path)


def test_a_pipe_will_do() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"source: 'tetragon:-'\n")
        os.close(writer)
        assert read_config(f"/dev/fd/{reader}").source == "tetragon:-"
    finally:
        os.close(reader)


def texts() -> Iterator[st.SearchStrategy[bytes]]:
    """Bytes of any kind, and what looks like YAML."""
    yield st.binary(max_size=200)
    words = [
        "source",
        "trace",
        ":",
        " ",
        "\n",
        "  ",
        "-",
        "[",
        "]",
        "{",
        "}",
        "max_age",
        "1h",
        "&a",
        "*a",
        "!!int",
        "'",
    ]
    yield st.lists(st.sampled_from(words), max_size=40).map(lambda parts: "".join(parts).encode())


@given(st.one_of(*texts()))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    message = ""
    try:
        read_config(path)
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()
