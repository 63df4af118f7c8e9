"""Runs the tests that belong to every kernel in guests, one for each kernel and loader, and keeps what came of it.

    sudo python -m tests.kernel.boot.matrix [--kernels …] [--loaders …] [--results DIRECTORY]

Each guest runs `pytest` of this Python in the working directory, as `tests/kernel/boot/run` gives it: the tests marked
`every_loader`, and where the object of CO-RE is loaded, those marked `every_kernel`, too. A guest's account is a file
``KERNEL-LOADER.json`` in the directory of results, from which `table.py` makes the table of docs/kernels.md; what it
wrote is beside it, in ``KERNEL-LOADER.log``, and is shown where something failed.

Exits 1 if a guest did not come to its end, a test failed, or one was skipped: a skip there is a gap that nobody sees.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.boot.image import make_image, python_directories
from tests.kernel.boot.result import Case, Guest, read_guest, write_guest

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOT = Path(__file__).parent
KERNELS = ("5.10", "6.1", "6.12", "backports")
TOO_NEW = {"bcc": ("backports",)}
"""Kernels that a loader is not put to. The compiler of Debian 12's BCC knows the headers up to 6.12's (docs/bcc.md)."""
SELECTIONS = {"ebpf": "every_kernel or every_loader", "bcc": "every_loader or only_bcc"}
"""Which tests a loader is put to. Where a trace goes on and what a sweep finds out is the same code for both."""

CPUS = 2
"""Of a guest: several tests are about what happens at the same time. Emulated, they share one of the host's (`run`)."""
GUEST_SECONDS = 3600
BEGINS = "=== junit ==="
SCRIPT = f"""\
uname -r
"$1" -m pytest -p no:cacheprovider -q --durations=15 \\
    --junitxml=/run/junit.xml -m "$2" tests/kernel
code=$?
echo "{BEGINS}"
cat /run/junit.xml
exit $code
"""
"""In the guest, whose only way to hand something over is its output. Its arguments: Python, and which tests."""


@dataclass(frozen=True, slots=True)
class Job:
    """One guest to be run."""

    kernel: str
    """As `get` knows it."""
    directory: Path
    """Where `get` put the kernel; its last part is the version."""
    loader: str
    images: tuple[Path, ...]


def parse(output: str, job: Job, seconds: float) -> Guest:
    """What a guest's output says. Without a report in it, no test is in the account, and `Guest.complete` is false."""
    _, found, report = output.partition(f"{BEGINS}\n")
    tests: list[Case] = []
    if found:
        try:
            root = ET.fromstring(report)
        except ET.ParseError:
            found = ""
        else:
            tests = [_test(case) for case in root.iter("testcase")]
    return Guest(job.kernel, job.directory.name, job.loader, round(seconds), bool(found), tests)


def _test(case: ET.Element) -> Case:
    """One test of a report of pytest (``junit_family=xunit2``)."""
    outcome = "passed"
    for kind in ("skipped", "failure", "error"):
        if case.find(kind) is not None:
            outcome = "skipped" if kind == "skipped" else "failed"
    module = case.get("classname", "").rpartition(".")[2]
    return Case(module, case.get("name", ""), outcome, round(float(case.get("time", 0)), 1))


def run(job: Job, results: Path) -> Guest:
    """Run a guest to its end, and keep its account and its output in `results`."""
    command = [str(BOOT / "run"), "--cpus", str(CPUS), "--memory", "3072", "--seconds", str(GUEST_SECONDS)]
    for image in job.images:
        command += ["--image", str(image)]
    command += [job.kernel, "--", "bash", "-c", SCRIPT, "guest", sys.executable, SELECTIONS[job.loader]]
    began = time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, "PROCMON_REQUIRE": "kernel", "PROCMON_SOURCE": job.loader, "PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
        check=False,
    )
    guest = parse(done.stdout, job, time.monotonic() - began)
    name = f"{job.directory.name}-{job.loader}"
    (results / f"{name}.log").write_text(done.stdout)
    write_guest(results / f"{name}.json", guest)
    print(f"{guest.version}, {guest.loader}: {guest.summary()}", flush=True)
    if not guest.good:
        print(done.stdout.partition(BEGINS)[0], flush=True)
    return guest


def get(kernel: str) -> Path:
    """The directory of a kernel, downloaded if need be. CalledProcessError if there is none."""
    done = subprocess.run([BOOT / "get", kernel], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def forget(results: Path, kernels: Sequence[str], loaders: Sequence[str]) -> None:
    """Remove the accounts of guests that will run again: one of a kernel that is the newest no more would stay."""
    for path in results.glob("*.json"):
        old = read_guest(path)
        if old.kernel in kernels and old.loader in loaders:
            path.unlink()
            path.with_suffix(".log").unlink(missing_ok=True)


def headers_image(kernel: Path) -> Path:
    """An image of a kernel's headers, kept beside it."""
    image = kernel.parent / f".headers-{kernel.name}.ext4"
    if not image.exists():
        make_image(image, [kernel / "usr"])
    return image


def main() -> int:
    """Run the guests. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kernels", nargs="+", default=KERNELS, metavar="KERNEL", help="as for get: %(default)s")
    parser.add_argument("--loaders", nargs="+", default=tuple(SELECTIONS), choices=tuple(SELECTIONS))
    parser.add_argument("--results", type=Path, default=Path("build/kernels"), help="where to keep what came of it")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="guests at a time")
    asked = parser.parse_args()
    asked.results.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        forget(asked.results, asked.kernels, asked.loaders)
        kernels = {kernel: get(kernel) for kernel in asked.kernels}
        with tempfile.TemporaryDirectory() as directory:
            python = Path(directory, "python.ext4")
            make_image(python, python_directories())
            jobs = [
                Job(name, kernel, loader, (python, headers_image(kernel)) if loader == "bcc" else (python,))
                for loader in asked.loaders
                for name, kernel in kernels.items()
                if name not in TOO_NEW.get(loader, ())
            ]
            with ThreadPoolExecutor(asked.at_once) as pool:
                guests = list(pool.map(lambda job: run(job, asked.results), jobs))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    bad = [f"{guest.version} with {guest.loader}" for guest in guests if not guest.good]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcomes = sum((guest.outcomes for guest in guests), Counter[str]())
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"accounts are in {asked.results}; {used.ru_utime + used.ru_stime:.0f} s of CPU time were used")
    print(f"{len(guests)} guests: {told or 'no tests'} in {time.monotonic() - began:.0f} s")
    if bad:
        print(f"matrix: failed: {', '.join(bad)}", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
