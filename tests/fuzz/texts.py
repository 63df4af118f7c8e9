"""Targets: small texts that others choose: cgroup paths, times, patterns, selectors, a receiver's answers."""

from __future__ import annotations

import contextlib
import math

from otel_procmon.containers.cgroup import parse_cgroup
from otel_procmon.containers.unit import parse_unit
from otel_procmon.deliver import answer
from otel_procmon.deliver.batch import Batch
from otel_procmon.deliver.http import retry_after_s
from otel_procmon.patterns import compile_re2
from otel_procmon.rfc3339 import format_rfc3339, parse_rfc3339
from otel_procmon.selectors import parse_selector
from otel_procmon.view.quote import quote_unless_plain, quote_unless_printable, valid_unicode
from tests.fuzz.choices import TEXTS, Choices

PATH_PARTS = (
    *TEXTS,
    b"/kubepods.slice",
    b"/kubepods-pod0f1e2d3c_0000_1111_2222_333344445555.slice",
    b"/pod0f1e2d3c-0000-1111-2222-333344445555",
    b"/cri-containerd-" + b"a" * 64 + b".scope",
    b"/docker/" + b"b" * 64,
    b":cri-containerd:" + b"c" * 64,
    b"/libpod-conmon-" + b"d" * 64,
    b"/lxc.payload.web",
    b"/machine-a\\x2db.scope/payload",
    b"/ecs/0123456789abcdef0123456789abcdef-1",
    b"/kata_overhead/",
    b"/user.slice/user-1000.slice/user@1000.service/app.slice/x@1.service",
    b"/system.slice/run-u12.service",
    b" (deleted)",
)


def cgroup(data: bytes) -> None:
    """Any path is a container's, a service's or nobody's."""
    choices = Choices(data)
    known = b"".join(choices.of(PATH_PARTS) for _ in range(choices.below(7)))
    path = (known + choices.rest()).decode("utf-8", "surrogateescape")
    identity = parse_cgroup(path)
    assert identity.container_id is None or 0 < len(identity.container_id) <= 255
    assert identity.pod_uid is None or len(identity.pod_uid) in (32, 36)
    service = parse_unit(path)
    assert service is None or service.unit.endswith(".service")


def time(data: bytes) -> None:
    """A text that is a time comes back as the same time; any other is a ValueError."""
    with contextlib.suppress(ValueError):
        unix_ns = parse_rfc3339(data.decode("utf-8", "surrogateescape"))
        assert 0 <= unix_ns < 2**63
        assert parse_rfc3339(format_rfc3339(unix_ns)) == unix_ns
    unix_ns = Choices(data).number() & 2**63 - 1
    assert parse_rfc3339(format_rfc3339(unix_ns)) == unix_ns


PATTERN_PARTS = (
    *(
        rb"\d \W \x{41} \Q \E \pL \C \z \b (?i) (?:a (?P<n> (?<n> [^ ] [[:alpha:]] [[:^word:]] [a-z [\D ( ) | * + ? *? {1,2} "
        rb"{1000} {,3} (?=x) (?m-s: ^ $ . a \0 \777 \\ -"
    ).split(),
)


def pattern(data: bytes) -> None:
    """Any pattern is one that Python compiles, or a ValueError."""
    choices = Choices(data)
    text = b"".join(choices.of(PATTERN_PARTS) for _ in range(choices.below(12))) + choices.raw(24)
    with contextlib.suppress(ValueError):
        compiled = compile_re2(text.decode("utf-8", "surrogateescape"))
        # Their time may grow with the power of the length, as the module says: no more than a few characters.
        compiled.search("")
        compiled.search("aZ\n0-")


SELECTOR_PARTS = tuple(b"a b/c =  == != in notin ( ) , ! > < 7 99999999999999999999 -x example.com/role".split(b" "))


def selector(data: bytes) -> None:
    """Any text is a selector, or a ValueError."""
    choices = Choices(data)
    text = b" ".join(choices.of(SELECTOR_PARTS) for _ in range(choices.below(12))) + choices.raw(24)
    with contextlib.suppress(ValueError):
        selects = parse_selector(text.decode("utf-8", "surrogateescape"))
        for labels in ({}, {"a": "7"}, {"a": "9" * 30}, {"a": "\ud800", "b/c": ""}):
            assert selects(labels) in (True, False)


def quoted(data: bytes) -> None:
    """Whatever a text is, what a view makes of it is printable and one line."""
    text = data.decode("utf-8", "surrogateescape")
    for line in (quote_unless_plain(text), quote_unless_printable(text)):
        assert valid_unicode(line).isprintable()
        valid_unicode(line).encode()


ANSWER_PARTS = tuple(
    (
        b'{ } [ ] , : "partialSuccess":{ "rejectedSpans": "rejectedLogRecords": "errorMessage": "message": 1e999 -1 "7" '
        b'"-7" "x" NaN -Infinity 0.5 null true 99999999999999999999 "\\ud800" {} [] \x12\x02 \x08\x01 \xff'
    ).split()
)


def answered(data: bytes) -> None:
    """Whatever a receiver answers, no more than a batch has is rejected, and no delay is below zero or no number."""
    choices = Choices(data)
    batch = Batch(choices.of(("logs", "traces")), choices.below(9), b"")
    if choices.chance(3):
        parts = [choices.of(ANSWER_PARTS) for _ in range(choices.below(12))]
        body = b"".join(parts)
    else:
        body = choices.rest()
    for read in (answer.accepted, answer.accepted_json):
        accepted = read(batch, body)
        assert accepted is None or 0 <= accepted.rejected <= batch.records
    assert isinstance(answer.status_message(body), str)
    assert isinstance(answer.status_message_json(body), str)
    for delay in (answer.retry_delay_s(body), retry_after_s(body.decode("latin-1"), 1e9)):
        assert delay is None or (delay >= 0 and math.isfinite(delay))
