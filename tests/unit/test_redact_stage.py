"""Redaction of events, from whichever source, on to every output; and rules of one's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.capture import TetragonCapture
from otel_procmon.cli import main
from otel_procmon.config import Config, read_config
from otel_procmon.decode.tetragon import decode_tetragon
from otel_procmon.events import Discovered, Exec, Exit, Fork, Process
from otel_procmon.ledger import Ledger
from otel_procmon.redact.filters import RedactionError, own_filters, read_redaction_filters
from otel_procmon.redact.stage import Redaction, unredacted
from otel_procmon.source.json_stream import JsonText

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2x"
NS = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def keep_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line runs in this process here, whose rights the tests after it need: they go for good."""
    monkeypatch.setattr("otel_procmon.cli.give_up", lambda *_, **__: None)


def process_of(**fields: Any) -> Process:
    return Process(**{"exec_id": "id", "pid": 7, "binary": "/bin/tool", "start_unix_ns": NS, **fields})


def exec_of(process: Process, **fields: Any) -> Exec:
    return Exec(time_unix_ns=NS, observed_unix_ns=NS, process=process, parent_exec_id=None, **fields)


def tetragon_exec(arguments: str, **process: Any) -> dict[str, Any]:
    own = {
        "exec_id": "bjoxOjc=",
        "pid": 7,
        "binary": "/usr/bin/curl",
        "arguments": arguments,
        "start_time": "2023-11-14T22:13:20Z",
    }
    parent = {
        "exec_id": "bjoxOjY=",
        "pid": 6,
        "binary": "/bin/sh",
        "arguments": f'-c "curl -u bob:{SECRET} x"',
        "start_time": "2023-11-14T22:13:19Z",
    }
    return {
        "process_exec": {
            "process": {**own, **process},
            "parent": parent,
            "ancestors": [{"exec_id": "bjoxOjU=", "binary": "/bin/bash", "arguments": f"--token {SECRET}"}],
        },
        "node_name": "n",
        "time": "2023-11-14T22:13:20Z",
    }  # fmt: skip


def decoded(document: dict[str, Any]) -> Exec | Exit:
    event = decode_tetragon(JsonText(json.dumps(document).encode(), "x:1"), NS, Ledger())
    assert isinstance(event, Exec | Exit)
    return event


def test_an_exec_says_by_which_rules_it_was_redacted() -> None:
    ledger = Ledger()
    argv = ("mysql", f"-p{SECRET}", "--token", SECRET)
    event = Redaction(ledger)(exec_of(process_of(argv=argv, args_count=4)))
    assert isinstance(event, Exec)
    assert event.process.argv == ("mysql", "-p*****", "--token", "*****")
    assert event.process.redacted == ("option", "program-option")
    assert event.process.args_count == 4
    assert ledger.counts() == {("redact", "replaced: option"): 1, ("redact", "replaced: program-option"): 1}


def test_what_has_no_secret_is_the_same_object() -> None:
    redaction = Redaction(Ledger())
    fork = Fork(time_unix_ns=NS, exec_id="a", parent_exec_id="b", pid=1, parent_pid=2)
    for event in (
        fork,
        exec_of(process_of(argv=("ls", "-p"), cwd="/srv")),
        exec_of(process_of(argv=None)),
        decoded(
            {**tetragon_exec("-s x"), "process_exec": {"process": tetragon_exec("-s x")["process_exec"]["process"]}}
        ),
    ):
        assert redaction(event) is event


def test_discovered_and_exit_are_redacted_too() -> None:
    redaction = Redaction(Ledger())
    process = process_of(argv=("tool", f"--password={SECRET}"))
    found = redaction(Discovered(time_unix_ns=NS, observed_unix_ns=NS, process=process, parent_exec_id=None))
    assert isinstance(found, Discovered)
    assert found.process.argv == ("tool", "--password=*****")
    ended = redaction(
        Exit(time_unix_ns=NS, observed_unix_ns=NS, exec_id="id", pid=7, code=0, process=process, parent=process)
    )
    assert SECRET not in repr(ended)


@pytest.mark.parametrize("field", ["binary", "cwd", "executable", "interpreter"])
def test_paths_are_redacted(field: str) -> None:
    path = "/tmp/ghp_" + "a1" * 18 + "/x"
    changed = Redaction(Ledger()).process(process_of(argv=("x",), **{field: path}))
    assert getattr(changed, field) == "/tmp/*****/x"
    assert changed.redacted == ("github-token",)


def test_the_programs_own_name_is_looked_at() -> None:
    # What setproctitle() leaves, found by the snapshot at the start.
    title = f"worker: --api-key={SECRET} --port 80"
    assert Redaction(Ledger()).process(process_of(argv=(title,))).argv == ("worker: --api-key=***** --port 80",)


def test_all_of_a_tetragon_event_is_redacted() -> None:
    document = tetragon_exec(
        f'-H "Authorization: Bearer {SECRET}1" https://bob:{SECRET}@x/',
        environment_variables=[{"key": "DB_PASSWORD", "value": SECRET}, {"key": "HOME", "value": "/root"}],
        cwd=f"/srv/token={SECRET}",
        pod={"pod_annotations": {"last-applied": json.dumps({"password": SECRET})}},
        new_field={"deep": [f"--password {SECRET}", {"arguments": f"--password {SECRET}"}, 7, None]},
    )
    event = Redaction(Ledger())(decoded(document))
    assert isinstance(event, Exec)
    told = event.raw
    assert told is not None
    # Of a text that is no command line nobody knows what an option is.
    told["process_exec"]["process"]["new_field"]["deep"][0] = ""
    assert SECRET not in json.dumps(told)
    assert SECRET not in repr(event.process)
    assert SECRET not in repr(event.parent)
    variables = told["process_exec"]["process"]["environment_variables"]
    assert variables == [{"key": "DB_PASSWORD", "value": "*****"}, {"key": "HOME", "value": "/root"}]
    assert told["process_exec"]["process"]["exec_id"] == "bjoxOjc="
    assert told["process_exec"]["ancestors"][0]["arguments"] == "--token *****"


def test_field_names_in_camel_case_are_known_too() -> None:
    process = {"execId": "bjoxOjc=", "pid": 7, "binary": "/bin/x", "arguments": f"--token {SECRET}",
               "startTime": "2023-11-14T22:13:20Z", "environmentVariables": [{"key": "API_KEY", "value": SECRET}]}  # fmt: skip
    event = Redaction(Ledger())(decoded({"processExec": {"process": process}, "time": "2023-11-14T22:13:20Z"}))
    assert SECRET not in repr(event)


def test_a_redacted_event_keeps_what_is_unknown_in_it() -> None:
    document = tetragon_exec(f"--token {SECRET}", brand_new=[1, {"a": None}])
    event = Redaction(Ledger())(decoded(document))
    assert isinstance(event, Exec)
    assert event.raw is not None
    assert event.raw["process_exec"]["process"]["brand_new"] == [1, {"a": None}]
    assert list(event.raw["process_exec"]["process"]) == list(document["process_exec"]["process"])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_any_json_comes_through(value: Any) -> None:
    event = Redaction(Ledger())(decoded(tetragon_exec("x", environment_variables=value, other=value)))
    assert isinstance(event, Exec)


# Every output


@pytest.mark.parametrize("output", ["json", "compact", "otlp-json"])
def test_no_output_tells_a_secret(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.json"
    exec_ = tetragon_exec(f"-u bob:{SECRET} https://x/")
    exit_ = {"process_exit": exec_["process_exec"], "node_name": "n", "time": "2023-11-14T22:13:21Z"}
    file.write_text(json.dumps(exec_) + "\n" + json.dumps(exit_) + "\n")
    assert main(["replay", str(file), "-o", f"{output}:{tmp_path / 'out'}"]) == 0
    told = (tmp_path / "out").read_text(encoding="utf-8")
    assert "bob:*****" in told
    assert SECRET not in told
    assert SECRET not in "".join(capsys.readouterr())
    if output == "otlp-json":
        assert "procmon.redacted" in told


def test_filters_see_what_is_left(tmp_path: Path) -> None:
    file = tmp_path / "events.json"
    file.write_text(json.dumps(tetragon_exec(f"-u bob:{SECRET} https://x/")) + "\n")
    lists = tmp_path / "lists.yaml"
    out = tmp_path / "out"
    for pattern, lines in ((SECRET, 1), (r"bob:\\*{5}", 0)):
        lists.write_text(f'export-denylist: \'{{"arguments_regex": ["{pattern}"]}}\'')
        out.unlink(missing_ok=True)
        assert main(["replay", str(file), "-o", f"compact:{out}", "--filter-file", str(lists)]) == 0
        assert len(out.read_text().splitlines()) == lines


def test_it_is_turned_off_in_so_many_words_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, config, out = tmp_path / "events.json", tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(json.dumps(tetragon_exec(f"-u bob:{SECRET} https://x/")) + "\n")
    config.write_text("redaction:\n  enabled: false\n")
    assert main(["replay", str(file), "-o", f"compact:{out}", "--config", str(config)]) == 0
    assert SECRET in out.read_text()
    assert "redaction.enabled is false" in caplog.text
    event = exec_of(process_of(argv=("x", "--token", SECRET)))
    assert unredacted(event) is event


def test_a_capture_redacts_unless_it_is_told_not_to() -> None:
    class Source:
        def __init__(self) -> None:
            self.pieces = [[JsonText(json.dumps(tetragon_exec(f"-u bob:{SECRET}")).encode(), "x:1")]]

        def read(self, timeout_s: float) -> list[JsonText] | None:  # noqa: ARG002
            return self.pieces.pop() if self.pieces else None

    capture = TetragonCapture(Source(), Config(), Ledger(), live=False)  # type: ignore[arg-type]
    happenings = capture.step()
    assert happenings is not None
    happenings += capture.stop()
    assert happenings
    for happening in happenings:
        assert SECRET not in repr(happening.image.process)


@pytest.mark.parametrize("text", [f'{{"process_exec": {{"process": {{"arguments": "--token {SECRET}" }} }} }}',
                                  f'{{"process_exec": "--token {SECRET}"}}', f'{{"x": "--token {SECRET}" , }}'])  # fmt: skip
def test_errors_do_not_quote_the_event(
    text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "events.json"
    file.write_text(text + "\n")
    assert main(["replay", str(file), "-o", f"compact:{tmp_path / 'out'}"]) == 0
    assert "events.json" in caplog.text
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


# Rules of one's own


def test_own_rules_are_added_to_those_built_in(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(r"""redaction: {rules: ['--pin[= ](\d+)', 'corp-(\w+)-key']}""")
    redaction = Redaction(Ledger(), own_filters(read_config(config).redaction.rules))
    process = redaction.process(process_of(argv=("tool", "--pin", "1234", "corp-abc-key x", "--token", SECRET)))
    assert process.argv == ("tool", "--pin", "*****", "corp-*****-key x", "--token", "*****")
    assert process.redacted == ("option", "own")
    one = redaction.process(process_of(arguments=f"--pin 1234 --token {SECRET}"))
    assert one.arguments == "--pin ***** --token *****"


def test_tetragons_filters(tmp_path: Path) -> None:
    file = tmp_path / "filters.json"
    # The second as in its documentation, the third in its first version's form.
    file.write_text(
        r'{"redact": ["(?:--code|-c)[\\s=]+(\\S+)", "(cheese)cake"]}'
        "\n"
        r'{"binary_regex": ["(?:^|/)special$"], "redact": ["\\W(qux)\\W"]}'
        "\n"
        r'{"match": {"binary_regex": ["old$"]}, "redact": ["(o(l)d)"]}'
    )
    redaction = Redaction(Ledger(), read_redaction_filters(str(file)))
    argv = ("x", "--code", "abc", "cheesecake", "a qux b", "old")
    assert redaction.process(process_of(argv=argv)).argv == ("x", "--code", "*****", "*****cake", "a qux b", "old")
    changed = redaction.process(process_of(argv=argv, binary="/opt/special"))
    assert changed.argv == ("x", "--code", "*****", "*****cake", "a ***** b", "old")
    assert redaction.process(process_of(argv=("x", "old"), binary="/old")).argv == ("x", "*****")
    assert (
        redaction.process(process_of(arguments='-c x "a qux b"', binary="/special")).arguments == '-c ***** "a ***** b"'
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "not an object"),
        ('{"redact": []}', "redacts nothing"),
        ('{"redact": "x"}', "must be a list"),
        ('{"redact": ["x"]}', "has no group"),
        ('{"redact": ["(x"]}', "not a valid regular expression"),
        ('{"redact": ["(x)"], "pod_regex": ["a"]}', "unknown field 'pod_regex'"),
        ('{"match": {"namespace": ["a"]}, "redact": ["(x)"]}', "match may have binary_regex only"),
        ('{"redact": ["(x)"]} {"redact": ["(?=x)"]}', "filter 2"),
        ('{"match": {"binary_regex": 5}, "redact": ["(x)"]}', "binary_regex of match must be a list"),
        ('{"match": {"binary_regex": {"a": 1}}, "redact": ["(x)"]}', "binary_regex of match must be a list"),
        ('{"match": {"binary_regex": ["a"]}, "binary_regex": "b", "redact": ["(x)"]}', "binary_regex must be a list"),
    ],
)
def test_filters_that_cannot_work_are_errors_at_the_start(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "filters.json"
    file.write_text(content)
    with pytest.raises(RedactionError, match=r"filters\.json") as raised:
        read_redaction_filters(str(file))
    assert message in str(raised.value)
    config = tmp_path / "config.yaml"
    config.write_text(f"redaction:\n  file: {file}\n")
    (tmp_path / "events").write_text("")
    assert main(["replay", str(tmp_path / "events"), "--config", str(config)]) == 1
    assert message in capsys.readouterr().err


def test_a_filter_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RedactionError, match="cannot be read"):
        read_redaction_filters(str(tmp_path / "none"))
