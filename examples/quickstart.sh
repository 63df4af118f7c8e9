#!/bin/bash
# sudo examples/quickstart.sh [ARGUMENT…]
#
# From a fresh checkout to live events, on Debian 12, Ubuntu 22.04 or 24.04: installs what is missing (Python 3.10 or
# newer with venv, libbpf 1) with apt, makes .venv in the checkout with otel-procmon in it, and runs the agent. Events go
# to the terminal and, as OTLP JSON lines, into procmon.otlp.jsonl; with OTEL_EXPORTER_OTLP_ENDPOINT set also there:
#
#     sudo OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 examples/quickstart.sh
#
# Arguments go to `otel-procmon run` in place of these outputs. PYTHON names the Python to use.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=.ci/machine.sh
. "$root/.ci/machine.sh"

# What is in .venv and not from here (a developer's) is used as it is; what is from here follows the checkout.
install_package() {
	local venv=$root/.venv stamp=$root/.venv/.otel-procmon-installed wheels
	if good_venv "$venv"; then
		if [ -x "$venv/bin/otel-procmon" ] && [ ! -e "$stamp" ]; then
			return
		fi
		if [ -e "$stamp" ] && [ -z "$(find "$root"/{otel_procmon,pyproject.toml,.ci/constraints.txt} -newer "$stamp" \
			-not -path '*/__pycache__*' -print -quit)" ]; then
			return
		fi
	fi
	make_venv "$venv"
	wheels=$(mktemp -d)
	say "installing otel-procmon in .venv"
	build_wheel "$root" "$venv/bin/python" "$wheels" || die "the package could not be built: see above"
	"$venv/bin/python" -m pip uninstall -q -y otel-procmon 2>/dev/null
	# What it needs, in the versions that it was tested with.
	"$venv/bin/python" -m pip install -q -c "$root/.ci/constraints.txt" "$wheels"/otel_procmon-*.whl ||
		die "the package could not be installed: see above"
	rm -rf "$wheels"
	touch "$stamp"
}

[ "$(id -u)" = 0 ] || die "capturing needs root: sudo examples/quickstart.sh"
require_python
require_libbpf
install_package

if [ $# = 0 ]; then
	set -- -o compact -o otlp-json:procmon.otlp.jsonl
	if [ -n "${OTEL_EXPORTER_OTLP_ENDPOINT:-}" ]; then
		set -- "$@" -o otlp
	fi
fi
exec "$root/.venv/bin/otel-procmon" run "$@"
