"""``examples/compose``: what it mounts is there, and what it runs are the versions that are tested."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).parents[2]
COMPOSE = TOP / "examples" / "compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


def test_everything_of_the_checkout_that_is_mounted_is_there() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    ours = [source for source in sources if source.startswith(".")]
    assert len(ours) >= 6
    assert [source for source in ours if not (COMPOSE / source).exists()] == []
    assert (COMPOSE / SERVICES["otel-procmon"]["build"] / "Dockerfile").exists()


def test_images_are_the_versions_that_the_tests_build() -> None:
    script = (TOP / "tests/system/bed/build-backends").read_text()
    built = dict(re.findall(r"^(collector|loki)=v(\S+)$", script, re.MULTILINE))
    built["jaeger"] = re.search(r"^# Jaeger (\S+)\. ", script, re.MULTILINE)[1]  # type: ignore[index]
    images = {name: service["image"].rpartition(":")[2] for name, service in SERVICES.items() if "image" in service}
    assert {name: images[name] for name in built} == built
    builder = yaml.safe_load((TOP / "tests/system/bed/collector-builder.yaml").read_text())
    components = [each["gomod"] for kind, listed in builder.items() if kind != "dist" for each in listed]
    assert {component.rpartition(" v")[2] for component in components} == {built["collector"]}


def test_every_variable_of_the_collector_is_one_that_its_configurations_have() -> None:
    texts = [TOP / "collector-config/tempo-loki.yaml", COMPOSE / "collector.yaml"]
    known = {name for text in texts for name in re.findall(r"\$\{env:(\w+)", text.read_text())}
    assert set(SERVICES["collector"]["environment"]) <= known


def test_data_sources_lead_to_each_other() -> None:
    sources = yaml.safe_load((COMPOSE / "grafana/datasources/datasources.yaml").read_text())["datasources"]
    uids = {source["uid"] for source in sources}
    targets = set(re.findall(r'"datasourceUid": "(\w+)"', json.dumps(sources)))
    assert targets == uids == {"loki", "tempo", "jaeger"}
    hosts = {re.fullmatch(r"http://(\w+):\d+", source["url"])[1] for source in sources}  # type: ignore[index]
    assert hosts <= set(SERVICES)
