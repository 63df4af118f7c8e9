"""Whether what is tested is what was asked for: compiled modules, or Python's."""

from __future__ import annotations

import ast
import os
from importlib import import_module
from pathlib import Path

SETUP = Path(__file__).parents[2] / "setup.py"


def compiled_modules() -> list[str]:
    """Those that ``setup.py`` names. It is read, not run: it would begin to build."""
    for statement in ast.parse(SETUP.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "COMPILED":
            return [module.replace("/", ".") for module in ast.literal_eval(statement.value)]
    raise AssertionError("setup.py does not name them")


def test_modules_are_compiled_where_it_was_asked_for() -> None:
    asked = bool(os.environ.get("PROCMON_COMPILE"))
    modules = compiled_modules()
    assert "encode.otlp" in modules
    for module in modules:
        file = import_module(f"otel_procmon.{module}").__file__
        assert file is not None
        assert file.endswith(".so") == asked, file
