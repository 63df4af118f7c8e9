"""Fuzz: run targets by atheris (coverage-guided), and say what was covered.

    python -m tests.fuzz.run [TARGET…] [--inputs N] [--directory DIRECTORY]

Without a TARGET all of them, one after another, which share N inputs. In DIRECTORY are then the corpus that was found
(``corpus/TARGET``; the next run goes on from there), what was found wrong (``found/TARGET-…``, one input each) and
``report.jsonl``. The exit code is 1 if anything was found. ``--replay FILE TARGET`` runs one input.

The environment says what real input to begin with: see `tests.fuzz.seeds`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INPUTS = 10_000_000
INPUT_SECONDS = 10
"""An input that takes longer is something found."""
MEMORY_MIB = 2048
"""So is one that makes memory grow beyond this."""
_DONE = re.compile(rb"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
_AT = re.compile(rb"#(\d+)\t")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--inputs", type=int, default=INPUTS, metavar="N")
    parser.add_argument("--directory", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the fuzzer's chances")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # What is malformed is told in the log, and here everything is.
    logging.getLogger("otel_procmon").setLevel(logging.CRITICAL)
    if options.one:
        _fuzz(options.targets[0], options)
    if options.measure:
        print(json.dumps(_measure(options.targets[0], options.directory)))
        return 0

    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - atheris has to be there before what it watches

    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"there is no target {name}; there are {', '.join(TARGETS)}")
    if options.replay:
        TARGETS[options.targets[0]].run(options.replay.read_bytes())
        return 0
    chosen = options.targets or list(TARGETS)
    shares = sum(TARGETS[name].share for name in chosen)
    found = 0
    for name in chosen:
        result = _run(name, max(1, options.inputs * TARGETS[name].share // shares), options)
        found += result["exit_code"] != 0
        print(json.dumps(result), flush=True)
        with (options.directory / "report.jsonl").open("a") as report:
            report.write(json.dumps(result) + "\n")
    return 1 if found else 0


def _run(name: str, inputs: int, options: argparse.Namespace) -> dict[str, Any]:
    """One target in a process of its own, which the fuzzer ends."""
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--directory", str(options.directory)]
    for part in ("corpus", "found", "log"):
        (options.directory / part).mkdir(parents=True, exist_ok=True)
    log = options.directory / "log" / f"{name}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        fuzzing = subprocess.run(
            [*command, "--one", "--inputs", str(inputs), "--seed", str(options.seed)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            check=False,
        )
    seconds = time.monotonic() - began
    said = log.read_bytes()
    done = list(_DONE.finditer(said))
    numbers = [int(number) for number in _AT.findall(said)]
    measured = subprocess.run([*command, "--measure"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    return {
        "target": name,
        "inputs": int(done[-1][1]) if done else max(numbers, default=0),
        "exit_code": fuzzing.returncode,
        "seconds": round(seconds),
        "edges": int(done[-1][2]) if done else None,
        "features": int(done[-1][3]) if done else None,
        "seed": options.seed,
        **(json.loads(measured.stdout) if measured.returncode == 0 else {}),
    }


def _fuzz(name: str, options: argparse.Namespace) -> None:
    """Does not return."""
    import atheris  # noqa: PLC0415 - an extra of its own, and only this needs it

    with atheris.instrument_imports(include=["otel_procmon"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415
    target = TARGETS[name]
    corpus = options.directory / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-runs={options.inputs}",
        f"-max_len={target.max_bytes}",
        f"-seed={options.seed % 2**32}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        "-report_slow_units=2",
        "-reload=0",
        "-verbosity=1",
        f"-artifact_prefix={options.directory}/found/{name}-",
        str(corpus),
    ]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()


def _measure(name: str, directory: Path) -> dict[str, Any]:
    """What the corpus covers of the target's modules, and the input that takes the most time."""
    import coverage  # noqa: PLC0415 - as above

    inputs = sorted((directory / "corpus" / name).iterdir())
    covering = coverage.Coverage(data_file=None, branch=True, source_pkgs=["otel_procmon"])
    covering.start()
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    target = TARGETS[name]
    for path in inputs:
        target.run(path.read_bytes())
    covering.stop()
    import otel_procmon  # noqa: PLC0415

    package = Path(otel_procmon.__file__).parent
    percents = {}
    for module in target.modules:
        numbers = covering._analyze(str(package / module)).numbers
        percents[module] = round(numbers.pc_covered, 1)
    slowest = 0.0
    for path in inputs:
        data = path.read_bytes()
        before = time.thread_time()
        target.run(data)
        slowest = max(slowest, time.thread_time() - before)
    return {
        "corpus": len(inputs),
        "covered_percent": percents,
        "slowest_ms": round(1000 * slowest, 1),
        "most_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
