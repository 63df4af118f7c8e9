"""Times as text."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_procmon.rfc3339 import format_rfc3339, parse_rfc3339

LATEST = 2**63 - 1
TIMES = st.integers(0, LATEST)


@pytest.mark.parametrize(
    ("text", "unix_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2022-05-11T12:54:45.615Z", 1_652_273_685_615_000_000),
        ("2023-10-06T22:03:57.700327580Z", 1_696_629_837_700_327_580),
        ("2024-02-29T23:59:59.999999999Z", 1_709_251_199_999_999_999),
        ("2024-03-01T10:11:50.000000001+02:00", 1_709_280_710_000_000_001),
        ("2024-03-01T00:00:00-11:30", 1_709_292_600_000_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2024-03-01t08:10:00z", 1_709_280_600_000_000_000),
        ("2024-03-01T08:10:00.1Z", 1_709_280_600_100_000_000),
        ("2262-04-11T23:47:16.854775807Z", LATEST),
    ],
)
def test_parse(text: str, unix_ns: int) -> None:
    assert parse_rfc3339(text) == unix_ns


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an RFC 3339 time"),
        ("2024-03-01", "not an RFC 3339 time"),
        ("2024-03-01 08:10:00Z", "not an RFC 3339 time"),
        ("2024-03-01T08:10:00", "not an RFC 3339 time"),
        ("2024-03-01T08:10Z", "not an RFC 3339 time"),
        ("2024-03-01T08:10:00.Z", "not an RFC 3339 time"),
        ("2024-03-01T08:10:00.1234567890Z", "not an RFC 3339 time"),
        ("2024-03-01T08:10:00,5Z", "not an RFC 3339 time"),
        ("2024-03-01T08:10:00Z\n", "not an RFC 3339 time"),
        ("2024-03-01T08:10:00+0200", "not an RFC 3339 time"),
        ("٢٠٢٤-03-01T08:10:00Z", "not an RFC 3339 time"),
        ("2023-02-29T00:00:00Z", "day"),
        ("2024-13-01T00:00:00Z", "month"),
        ("0000-01-01T00:00:00Z", "year"),
        ("2024-03-01T24:00:00Z", "no such time of day"),
        ("2024-03-01T08:60:00Z", "no such time of day"),
        ("2024-03-01T08:10:60Z", "no such time of day"),
        ("2024-03-01T08:10:00+24:00", "no such offset"),
        ("2024-03-01T08:10:00+00:60", "no such offset"),
        ("1969-12-31T23:59:59.999999999Z", "before 1970"),
        ("1970-01-01T00:00:00+00:01", "before 1970"),
        ("2262-04-11T23:47:16.854775808Z", "after 2262"),
        ("9999-12-31T23:59:59Z", "after 2262"),
    ],
)
def test_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_rfc3339(text)


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_000, "1970-01-01T00:00:00.000001Z"),
        (1_000_000, "1970-01-01T00:00:00.001Z"),
        (615_000_000, "1970-01-01T00:00:00.615Z"),
        (600_000_000, "1970-01-01T00:00:00.600Z"),
        (1_000_000_000, "1970-01-01T00:00:01Z"),
        (LATEST, "2262-04-11T23:47:16.854775807Z"),
    ],
)
def test_format(unix_ns: int, text: str) -> None:
    assert format_rfc3339(unix_ns) == text


@given(st.one_of(TIMES, st.integers(0, LATEST // 10**9).map(lambda seconds: seconds * 10**9)))
@example(LATEST)
def test_what_is_written_is_read_again(unix_ns: int) -> None:
    text = format_rfc3339(unix_ns)
    assert parse_rfc3339(text) == unix_ns
    assert re.fullmatch(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.([0-9]{3}){1,3})?Z", text)


@given(TIMES, TIMES)
def test_another_time_is_another_text(one: int, other: int) -> None:
    assert (format_rfc3339(one) == format_rfc3339(other)) == (one == other)


@given(
    st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2262, 1, 1)),  # noqa: DTZ001 - the zone is drawn beside it
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_offsets_agree_with_the_standard_library(moment: dt.datetime, offset_minutes: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=offset_minutes))
    local = moment.replace(tzinfo=dt.timezone.utc).astimezone(zone)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    assert parse_rfc3339(local.isoformat()) == (local - epoch) // dt.timedelta(microseconds=1) * 1000
