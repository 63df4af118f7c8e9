#!/bin/sh
# Runs all benchmarks, one after the other, as root; `make bench`. The results are in benchmarks/results/latest.json and,
# as tables, on standard output. It takes a quarter of an hour on two cores that have nothing else to do.
#
#   PYTHON            the Python that otel-procmon is installed in (compiled or not), with the development dependencies
#   BENCH_ROUNDS      how often each comparison is repeated (5)
#   BENCH_QUICK       if set, everything is so short that it only shows that it works
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
rounds=${BENCH_ROUNDS:-5}
runs=6 latency_s=60
live=
if [ -n "${BENCH_QUICK:-}" ]; then
	rounds=1 runs=1 latency_s=5
	live="--execs 3000 --checks 10 --storm-seconds 3 --million 10000"
fi
if [ "$(id -u)" != 0 ]; then
	echo "make bench loads BPF programs, and so needs root: sudo make bench" >&2
	exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
mkdir -p benchmarks/results

say() { printf '\n== %s\n' "$*"; }

say recording
"$python" benchmarks/record.py "$scratch/recording" --runs "$runs"
say "stages"
"$python" benchmarks/stages.py "$scratch/recording" --rounds "$rounds"
say "pipeline"
"$python" benchmarks/pipeline.py "$scratch/recording" --rounds "$rounds"
say "redaction"
"$python" benchmarks/redact.py "$scratch/recording" --rounds "$rounds"
say "spool"
"$python" benchmarks/spool.py "$scratch/recording" --batches 40
say "live"
# shellcheck disable=SC2086 # options, split on purpose
"$python" benchmarks/live.py --rounds "$rounds" $live
say "latency"
"$python" benchmarks/latency.py --rounds "$rounds" --seconds "$latency_s"
