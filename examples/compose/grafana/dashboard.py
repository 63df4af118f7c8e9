"""The dashboard "What runs", as Python. `python examples/compose/grafana/dashboard.py` prints the JSON for Grafana.

With grafana-foundation-sdk (`pip install otel-procmon[dev]`). Every query in it is run against a real Loki by the
project's tests.
"""

from __future__ import annotations

import sys

from grafana_foundation_sdk.builders import logs, loki, stat, table, tempo, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
)

LOKI = DataSourceRef(type_val="loki", uid="${loki}")
TEMPO = DataSourceRef(type_val="tempo", uid="${tempo}")

EXECS = '{service_name=~"$workload", service_name!=""} | event_name="process.exec"'
EXITS = '{service_name=~"$workload", service_name!=""} | event_name="process.exit"'

BY_WORKLOAD = f"sum by (service_name) (count_over_time({EXECS} [$__auto]))"
FAILURES = f"sum by (service_name, process_executable_name) (count_over_time({EXITS} | error_type!=`` [$__auto]))"
OUT_OF_MEMORY = f"sum(count_over_time({EXITS} | procmon_exit_oom_killed=`true` [$__range]))"
SIGNALLED = f"sum(count_over_time({EXITS} | procmon_exit_signal!=`` [$__range]))"
MOST_CPU = (
    "topk(20, sum by (service_name, process_executable_name) (sum_over_time("
    f"{EXITS} | unwrap procmon_usage_cpu_user [$__range])))"
)
MOST_MEMORY = (
    "topk(20, max by (service_name, process_executable_name) (max_over_time("
    f"{EXITS} | unwrap procmon_usage_max_rss [$__range])))"
)
RARE = f"bottomk(20, sum by (process_executable_path) (count_over_time({EXECS} [$__range])))"
# Once in the time that is shown and never in the week before it.
NEW = (
    f"sum by (process_executable_path) (count_over_time({EXECS} [$__range]))"
    f" unless sum by (process_executable_path) (count_over_time({EXECS} [7d] offset $__range))"
)
# (An announcement of a program that runs on takes 1 µs.)
SLOWEST = '{resource.service.name=~"$workload" && duration>1s} | select(span.process.command)'
LINEAGE = EXECS
LINEAGE_COLUMNS = (
    "service_name",
    "process_executable_path",
    "procmon_parent_executable_name",
    "procmon_ancestors",
    "process_user_name",
    "process_interactive",
    "trace_id",
)
"""What the table of lineage shows of a line's labels."""


def _query(expression: str, legend: str = "") -> loki.Dataquery:
    return loki.Dataquery().datasource(LOKI).expr(expression).legend_format(legend)


def _over_time(title: str, expression: str, legend: str) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).datasource(LOKI).unit("short").min(0).span(12).height(8)
    return panel.with_target(_query(expression, legend).range(range_val=True))


def _number(title: str, expression: str) -> stat.Panel:
    panel = stat.Panel().title(title).datasource(LOKI).no_value("0").span(6).height(4)
    return panel.with_target(_query(expression).instant(instant=True))


def _ranking(title: str, expression: str, unit: str = "short") -> table.Panel:
    panel = table.Panel().title(title).datasource(LOKI).unit(unit).span(12).height(9)
    panel = panel.with_target(_query(expression).instant(instant=True))
    # One row for each series, its labels in columns.
    return panel.with_transformation(
        DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
    )


def _lineage() -> table.Panel:
    panel = table.Panel().title("Who started what").datasource(LOKI).span(24).height(12).filterable(filterable=True)
    panel = panel.with_target(_query(LINEAGE).max_lines(500).range(range_val=True))
    panel = panel.with_transformation(
        DataTransformerConfig(id_val="extractFields", options={"source": "labels", "replace": False})
    )
    columns = {name: position for position, name in enumerate(("Time", *LINEAGE_COLUMNS))}
    return panel.with_transformation(
        DataTransformerConfig(
            id_val="organize",
            options={"indexByName": columns, "includeByName": dict.fromkeys(columns, True)},
        )
    )


def dashboard() -> Dashboard:
    """The dashboard."""
    workload = (
        QueryVariable("workload")
        .label("Workload")
        .datasource(LOKI)
        .query({"label": "service_name", "refId": "LokiVariableQueryEditor-VariableQuery", "stream": "", "type": 1})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )
    slowest = table.Panel().title("Took longest").datasource(TEMPO).span(12).height(9)
    slowest = slowest.with_target(
        tempo.TempoQuery().datasource(TEMPO).query_type("traceql").query(SLOWEST).limit(50).ref_id("A")
    )
    panels = (
        _over_time("Programs started, by workload", BY_WORKLOAD, "{{service_name}}"),
        _over_time("Failures", FAILURES, "{{service_name}}: {{process_executable_name}}"),
        _number("Killed for lack of memory", OUT_OF_MEMORY),
        _number("Ended by a signal", SIGNALLED),
        _ranking("Programs that were not run in the week before", NEW),
        _ranking("Run least often", RARE),
        slowest,
        _ranking("Used most CPU time", MOST_CPU, "s"),
        _ranking("Used most memory", MOST_MEMORY, "bytes"),
        _lineage(),
        logs.Panel()
        .title("Everything")
        .datasource(LOKI)
        .span(24)
        .height(12)
        .with_target(_query('{service_name=~"$workload", service_name!=""}').range(range_val=True)),
    )
    made = (
        Dashboard("What runs")
        .uid("otel-procmon")
        .description("Every program that was run: who started it, how it ended, and what it used.")
        .tags(["otel-procmon"])
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(DatasourceVariable("loki").label("Loki").type("loki"))
        .with_variable(DatasourceVariable("tempo").label("Tempo").type("tempo"))
        .with_variable(workload)
    )
    for panel in panels:
        made = made.with_panel(panel)
    return made


def document() -> str:
    """The JSON that is in ``dashboards/processes.json``."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
