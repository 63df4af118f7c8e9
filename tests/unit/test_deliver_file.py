"""OTLP JSON lines in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_procmon.convert.records import LogRecord, Resource, Span
from otel_procmon.deliver.file import FileDelivery
from otel_procmon.ledger import Ledger
from otel_procmon.lineage.image import SpanRef
from tests.unit.test_deliver_line_file import largest_file

if TYPE_CHECKING:
    import pytest

HOST = Resource({"service.name": "s"}, "")


def log(body: str = "line") -> LogRecord:
    return LogRecord(
        resource=HOST,
        event_name="process.exec",
        time_unix_ns=1,
        observed_unix_ns=2,
        severity_number=9,
        body=body,
        attributes={},
        span=SpanRef(b"t" * 16, b"s" * 8),
    )


def span(name: str = "curl") -> Span:
    return Span(
        resource=HOST,
        name=name,
        span=SpanRef(b"t" * 16, b"s" * 8),
        parent_span_id=None,
        start_unix_ns=1,
        end_unix_ns=2,
        error=False,
        attributes={},
    )


def kinds(path: Path) -> list[str]:
    return [next(iter(json.loads(line))) for line in path.read_text().splitlines()]


def test_one_line_for_each_signal_of_a_batch(tmp_path: Path) -> None:
    path, ledger = tmp_path / "out.jsonl", Ledger()
    delivery = FileDelivery(path, ledger)
    delivery.put([log(), span(), log()])
    assert kinds(path) == ["resourceSpans", "resourceLogs"], "it is there at once"
    delivery.put([log()], wait=True)
    delivery.put([])
    assert delivery.flush(0.0)
    assert delivery.shutdown(0.0)
    assert delivery.shutdown(0.0)
    assert kinds(path) == ["resourceSpans", "resourceLogs", "resourceLogs"]
    assert ledger.counts() == {("output.otlp-json.logs", "exported"): 3, ("output.otlp-json.traces", "exported"): 1}


def test_records_after_the_end_are_counted(tmp_path: Path) -> None:
    ledger = Ledger()
    delivery = FileDelivery(tmp_path / "out.jsonl", ledger)
    delivery.shutdown(0.0)
    delivery.put([log(), span()])
    assert ledger.lost() == 2


def test_a_record_that_cannot_be_encoded_costs_itself_only(tmp_path: Path) -> None:
    path, ledger = tmp_path / "out.jsonl", Ledger()
    delivery = FileDelivery(path, ledger)
    delivery.put([log("a"), log("\ud800"), log("c")])
    delivery.shutdown(0.0)
    assert kinds(path) == ["resourceLogs", "resourceLogs"]
    assert ledger.counts() == {
        ("output.otlp-json.logs", "exported"): 2,
        ("output.otlp-json.logs", "lost: cannot be encoded"): 1,
    }


def test_what_cannot_be_written_is_counted_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A line has many records."""
    ledger = Ledger()
    delivery = FileDelivery(Path("/dev/full"), ledger)
    delivery.put([log(), log(), span()])
    assert not delivery.closed
    delivery.shutdown(0.0)
    assert ledger.counts() == {
        ("output.otlp-json.logs", "lost: export failed"): 2,
        ("output.otlp-json.traces", "lost: export failed"): 1,
    }
    (message,) = caplog.messages
    assert message.startswith("output.otlp-json: cannot write to /dev/full (no space left on device): ")


def test_after_a_line_that_was_cut_the_next_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, ledger = tmp_path / "out.jsonl", Ledger()
    delivery = FileDelivery(path, ledger)
    delivery.put([log()])
    whole = path.stat().st_size
    with largest_file(whole + 10):
        delivery.put([log("cut")])
        delivery.put([log("not at all")])
    delivery.put([log("after")])
    delivery.put([log("more")])
    delivery.shutdown(0.0)
    first, cut, *rest = path.read_text().splitlines()
    assert "line" in first
    assert len(cut) == 10
    assert [json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"] for line in rest] == [
        {"stringValue": "after"},
        {"stringValue": "more"},
    ]
    assert ledger.counts() == {
        ("output.otlp-json.logs", "exported"): 3,
        ("output.otlp-json.logs", "lost: export failed"): 2,
    }
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"output.otlp-json: cannot write to {path}",
        f"output.otlp-json: writing to {path} works again; 1 more records were lost",
    ]


SCRIPT = """
import sys
sys.path.append(sys.argv[1])
from tests.unit.test_deliver_file import FileDelivery, Ledger, log, span
ledger = Ledger()
delivery = FileDelivery(None, ledger)
delivery.put([log(), span()])
if len(sys.argv) > 2:
    sys.stdin.read()
    delivery.put([log()])
delivery.shutdown(0.0)
print(ledger.line(), file=sys.stderr)
"""


def script(*arguments: str, **options: Any) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[2]), *arguments]


def test_standard_output() -> None:
    result = subprocess.run(script(), capture_output=True, text=True, timeout=60, check=True)
    assert [next(iter(json.loads(line))) for line in result.stdout.splitlines()] == ["resourceSpans", "resourceLogs"]


def test_a_reader_that_goes_away_is_counted() -> None:
    with subprocess.Popen(
        script("wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.readline()
        child.stdout.close()
        child.stdin.close()
        said = child.stderr.read()
        assert child.wait(60) == 0
    assert "output.otlp-json.logs: exported 1, lost: export failed 1" in said
