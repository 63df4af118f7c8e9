"""Times as RFC 3339 text, exact to the nanosecond, as protojson reads and writes them.

`datetime` stops at microseconds, so the fraction is handled as a number of its own here.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from functools import lru_cache

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_SECOND_NS = 1_000_000_000
_LATEST_NS = 2**63 - 1


@lru_cache(maxsize=64)
def _day_seconds(day: str) -> int:
    """Seconds from the epoch to the beginning of `day` (``YYYY-MM-DD``). Raises ValueError if there is no such day."""
    return (dt.date.fromisoformat(day).toordinal() - _EPOCH_DAY) * 86_400


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since the Unix epoch.

    Takes what protojson takes: 0 to 9 digits of fraction, ``Z`` or an offset. Times before 1970 or after 2262 are
    refused, because OTLP's unsigned and other people's signed 64 bits hold neither. Raises ValueError.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time")
    day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
    hours, minutes, seconds = int(hour), int(minute), int(second)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError("no such time of day")
    total = _day_seconds(day) + hours * 3600 + minutes * 60 + seconds
    if sign is not None:
        if int(offset_hour) > 23 or int(offset_minute) > 59:
            raise ValueError("no such offset from UTC")
        offset = int(offset_hour) * 3600 + int(offset_minute) * 60
        total += offset if sign == "-" else -offset
    nanoseconds = total * _SECOND_NS
    if fraction is not None:
        nanoseconds += int(fraction) * 10 ** (9 - len(fraction))
    if not 0 <= nanoseconds <= _LATEST_NS:
        raise ValueError("before 1970 or after 2262")
    return nanoseconds


@lru_cache(maxsize=64)
def _format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def format_rfc3339(unix_ns: int) -> str:
    """`unix_ns` in UTC with as many digits of fraction as protojson prints: none, 3, 6 or 9."""
    seconds, fraction = divmod(unix_ns, _SECOND_NS)
    text = _format_second(seconds)
    if fraction == 0:
        return text + "Z"
    if fraction % 1_000_000 == 0:
        return f"{text}.{fraction // 1_000_000:03d}Z"
    if fraction % 1_000 == 0:
        return f"{text}.{fraction // 1_000:06d}Z"
    return f"{text}.{fraction:09d}Z"
