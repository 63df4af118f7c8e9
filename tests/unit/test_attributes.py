"""The attribute registry against the conventions' package, and the generated page against the registry."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.semconv import _incubating
from opentelemetry.semconv import attributes as stable
from opentelemetry.semconv.schemas import Schemas

from otel_procmon.convert import attributes as names

if TYPE_CHECKING:
    from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "attributes.md"


def constants(package: ModuleType) -> set[str]:
    """All names in the modules of `package`; a template's is the part before ``.<key>``."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        content = vars(importlib.import_module(module.name))
        found |= {value for key, value in content.items() if key.isupper() and isinstance(value, str)}
    return found


STABLE = constants(stable)
ALL = STABLE | constants(importlib.import_module(_incubating.__name__ + ".attributes"))
CONVENTIONAL = [a for a in names.ATTRIBUTES if a.origin != "procmon"]
OURS = [a for a in names.ATTRIBUTES if a.origin == "procmon"]


@pytest.mark.parametrize("attribute", CONVENTIONAL, ids=lambda a: a.name)
def test_conventional_names_exist(attribute: Any) -> None:
    name = attribute.name.removesuffix(".<key>")
    assert name in ALL
    assert (name in STABLE) == (attribute.origin == "stable")


@pytest.mark.parametrize("attribute", OURS, ids=lambda a: a.name)
def test_our_names_are_in_our_namespace_and_not_conventional(attribute: Any) -> None:
    assert attribute.name.startswith("procmon.")
    assert attribute.name not in ALL


def test_names_are_unique_and_none_is_another_ones_namespace() -> None:
    all_names = [a.name for a in names.ATTRIBUTES]
    assert len(all_names) == len(set(all_names))
    # "a.b" and "a.b.c" together cannot be shown by backends that nest attributes.
    assert not [(a, b) for a in all_names for b in all_names if b.startswith(a + ".")]


def test_process_is_never_in_the_resource() -> None:
    assert not [a for a in names.ATTRIBUTES if a.name.startswith("process.") and "resource" in a.places]


def test_every_constant_is_registered() -> None:
    constants_ = {v for k, v in vars(names).items() if k.split("_")[0] in {"PROCESS", "PROCMON", "HOST", "OS", "K8S"}}
    assert constants_ <= {a.name for a in names.ATTRIBUTES}
    assert {v for k, v in vars(names).items() if k.startswith("EVENT_")} == {e.name for e in names.EVENTS}


def test_schema_is_one_that_exists() -> None:
    assert Schemas.V1_44_0.value == names.SCHEMA_URL


def test_page_is_current() -> None:
    assert PAGE.read_text() == names.document(), "run: python -m otel_procmon.convert.attributes > docs/attributes.md"
