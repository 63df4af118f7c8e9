"""Make a recording for the benchmarks: what the kernel told while a script like autoconf's ran. Needs root.

python benchmarks/record.py FILE [--runs N]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parts import ROOT

sys.path.append(str(ROOT))

from tests.kernel.truth import workloads

CHECKS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=int, default=6, help="of the script, some 2,500 processes each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        workloads.write_configure(Path(directory) / "configure", checks=CHECKS)
        command = [sys.executable, "-m", "otel_procmon", "run", "-o", f"otlp-json:{os.devnull}", "--record"]
        agent = subprocess.Popen([*command, str(options.file)], stderr=subprocess.PIPE, text=True)
        assert agent.stderr is not None
        while (line := agent.stderr.readline()) and "capturing" not in line:
            print(line, end="", file=sys.stderr)
        for _ in range(options.runs):
            subprocess.run(
                ["./configure"],
                cwd=directory,
                env=workloads.ENVIRONMENT,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        time.sleep(1)
        agent.send_signal(signal.SIGTERM)
        print(agent.stderr.read(), end="", file=sys.stderr)
        if agent.wait():
            raise SystemExit(agent.returncode)


if __name__ == "__main__":
    main()
