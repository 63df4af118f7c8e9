"""The registry for weaver against the attributes, and the generated files against the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_procmon.convert import registry
from otel_procmon.convert.attributes import ATTRIBUTES, EVENTS, SCHEMA_URL

FILES = Path(__file__).parents[2] / "docs" / "semconv"
GROUPS: dict[str, dict[str, Any]] = {group["id"]: group for group in registry.signals()["groups"]}


@pytest.mark.parametrize(("name", "file"), [("manifest", "manifest.yaml"), ("signals", "procmon.yaml")])
def test_files_are_current(name: str, file: str) -> None:
    assert (FILES / file).read_text() == registry.document(name), "run: make docs"
    assert yaml.safe_load(registry.document(name)) == (
        registry.manifest() if name == "manifest" else registry.signals()
    )


def test_our_own_attributes_are_defined_with_their_types() -> None:
    defined = {each["id"]: each["type"] for each in GROUPS["registry.procmon"]["attributes"]}
    assert defined == {a.name: a.type for a in ATTRIBUTES if a.origin == "procmon"}


def test_our_own_strings_have_examples_of_their_type() -> None:
    for each in GROUPS["registry.procmon"]["attributes"]:
        assert ("examples" in each) == each["type"].startswith("string"), each["id"]
        for example in each.get("examples", ()):
            elements = example if each["type"] == "string[]" else [example]
            assert isinstance(elements, list)
            assert all(isinstance(element, str) for element in elements)


@pytest.mark.parametrize(
    ("group", "place"),
    [("span.procmon.image", "span"), ("procmon.resource", "resource"), *((f"event.{e.name}", "log") for e in EVENTS)],
)
def test_every_signal_refers_to_what_it_has(group: str, place: str) -> None:
    references = [each["ref"] for each in GROUPS[group]["attributes"]]
    assert references == [a.name.removesuffix(".<key>") for a in ATTRIBUTES if place in a.places]
    required = [each["ref"] for each in GROUPS[group]["attributes"] if each["requirement_level"] == "required"]
    assert required == [a.name for a in ATTRIBUTES if place in a.places and a.when == "always"]


def test_references_are_to_the_schema_that_records_name() -> None:
    (upstream,) = registry.manifest()["dependencies"]
    assert upstream["schema_url"] == SCHEMA_URL
    assert upstream["registry_path"].endswith(f"@v{SCHEMA_URL.rpartition('/')[2]}[model]")
