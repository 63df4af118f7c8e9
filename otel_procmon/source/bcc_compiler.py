"""Compiles the BPF program with BCC. Run as a program of its own, by the Python that BCC was installed for.

The BPF Compiler Collection carries a whole clang: 140 MB, which end with this process. Nothing is loaded here, so it
needs no rights. It reads one JSON object from standard input:

    ``package``   directory of the Python package ``bcc`` that is to be used
    ``text``      the C source
    ``flags``     the compiler's arguments, as lists to be tried in turn
    ``programs``  names of the programs

and writes one to standard output: ``programs``, by name the instructions in base64. What the compiler has to say goes
to standard error. It exits 1 if no list of arguments works.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def load_bcc(package: Path) -> Any:
    """The module in `package`, whatever else is called ``bcc`` on the module search path."""
    spec = importlib.util.spec_from_file_location(
        "bcc", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Answer the one question on standard input. Returns the exit code."""
    asked = json.load(sys.stdin)
    bcc = load_bcc(Path(asked["package"]))
    for flags in asked["flags"]:
        try:
            module = bcc.BPF(text=asked["text"].encode(), cflags=flags)
        except Exception as error:  # noqa: BLE001 - it raises just that
            sys.stderr.write(f"{error}\n")
            continue
        programs = {name: base64.b64encode(module.dump_func(name.encode())).decode() for name in asked["programs"]}
        json.dump({"programs": programs}, sys.stdout)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
