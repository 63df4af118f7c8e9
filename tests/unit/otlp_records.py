"""Strategies for any records that conversion could make, and for some that it does not."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from otel_procmon.convert.attributes import SCHEMA_URL
from otel_procmon.convert.records import LogRecord, Resource, Shared, Span
from otel_procmon.lineage.image import SpanRef

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(2**63), 2**63 - 1)
# JSON has one NaN; its sign and payload do not survive.
floats = st.floats(allow_nan=False) | st.just(math.nan)
values = st.one_of(texts, st.booleans(), numbers, floats, st.lists(texts, max_size=3).map(tuple))
attributes = st.dictionaries(texts.filter(bool), values, max_size=4)
shared = st.lists(st.integers(), max_size=2).flatmap(
    lambda parts: st.tuples(
        *(
            st.dictionaries(texts.map(f"shared {index}.{{}}".format), values, max_size=3).map(Shared)
            for index in range(len(parts))
        )
    )
)
times = st.integers(0, 2**63 - 1)
trace_ids = st.binary(min_size=16, max_size=16).filter(any)
span_ids = st.binary(min_size=8, max_size=8).filter(any)
references = st.builds(SpanRef, trace_ids, span_ids)
resources = st.lists(attributes, min_size=1, max_size=3).map(
    lambda found: [Resource({**each, "number": i}, SCHEMA_URL) for i, each in enumerate(found)]
)


def logs(resource: st.SearchStrategy[Resource]) -> st.SearchStrategy[LogRecord]:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "resource": resource,
        "event_name": texts,
        "time_unix_ns": times,
        "observed_unix_ns": times,
        "severity_number": st.sampled_from([9, 13]),
        "body": texts,
        "attributes": attributes,
        "shared": shared,
        "span": references,
    }
    return st.fixed_dictionaries(fields).map(lambda found: LogRecord(**found))


def spans(resource: st.SearchStrategy[Resource]) -> st.SearchStrategy[Span]:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "resource": resource,
        "name": texts,
        "span": references,
        "parent_span_id": st.none() | span_ids,
        "start_unix_ns": times,
        "end_unix_ns": times,
        "error": st.booleans(),
        "attributes": attributes,
        "shared": shared,
        "links": st.lists(references, max_size=2),
    }
    return st.fixed_dictionaries(fields).map(lambda found: Span(**found))


some_logs = resources.flatmap(lambda found: st.lists(logs(st.sampled_from(found)), min_size=1, max_size=6))
some_spans = resources.flatmap(lambda found: st.lists(spans(st.sampled_from(found)), min_size=1, max_size=6))
