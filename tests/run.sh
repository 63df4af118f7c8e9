#!/bin/bash
# sudo tests/run.sh [PYTEST-ARGUMENT…]
#
# Everything that can be checked on this machine: ruff, mypy --strict, whether the generated pages are current, and the
# tests, against a wheel built from this checkout. Without root it works as well, but the kernel tier is skipped.
#
# Missing system packages are installed with apt when root; Python packages go into .venv-test.
#
#     PROCMON_REQUIRE   tiers that must run instead of being skipped: "kernel" by default for root on a kernel with BTF
#     PROCMON_CHECKS    what to do, by default "lint types docs tests"
#     PROCMON_VENV      another virtual environment than .venv-test
#     PROCMON_COMPILE   if set, the package is compiled (setup.py)
#     PROCMON_VERSIONS  which Python packages, as a file for pip's -c: by default .ci/constraints.txt; /dev/null for the newest,
#                       .ci/constraints-lowest.txt for the oldest that pyproject.toml promises
#     PYTHON            the Python to make it with: by default the newest from 3.10 on
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=.ci/machine.sh
. "$root/.ci/machine.sh"
venv=${PROCMON_VENV:-$root/.venv-test}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
checks=${PROCMON_CHECKS:-lint types docs tests}

# What the kernel tier and the checks run, by the Debian package that has it.
require_tools() {
	local missing=()
	command -v gcc >/dev/null || missing+=(gcc)
	[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
	command -v make >/dev/null || missing+=(make)
	command -v strace >/dev/null || missing+=(strace)
	command -v runc >/dev/null || missing+=(runc)
	command -v busybox >/dev/null || missing+=(busybox-static)
	if [ ${#missing[@]} -gt 0 ]; then
		if can_install; then
			install_packages "${missing[@]}" || die "apt could not install ${missing[*]}: see above"
		else
			say "missing, and some tests will be skipped: ${missing[*]}"
		fi
	fi
}

# The package as users get it, not as it lies here. The same version may have other content: never keep the old one.
install_wheel() {
	local wheels wheel constraints=${PROCMON_VERSIONS:-$root/.ci/constraints.txt}
	make_venv "$venv"
	[ -w "$venv" ] || die "$venv cannot be written (was it made by root?): set PROCMON_VENV to another directory"
	wheels=$(mktemp -d)
	build_wheel "$root" "$venv/bin/python" "$wheels" "$constraints" || die "the wheel could not be built: see above"
	wheel=$(echo "$wheels"/otel_procmon-*.whl)
	say "installing it in $venv"
	if ! "$venv/bin/python" -m pip install -q --no-deps --force-reinstall "$wheel" ||
		! "$venv/bin/python" -m pip install -q --upgrade --upgrade-strategy eager \
			-c "$constraints" "${wheel}[dev]"; then
		die "the wheel could not be installed: see above"
	fi
	rm -rf "$wheels"
}

lint() { "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check .; }

types() { "$venv/bin/mypy"; }

docs() {
	local fresh file stale=()
	fresh=$(mktemp -d)
	make -s docs PYTHON="$venv/bin/python" INTO="$fresh" || return 1
	for file in $(cd "$fresh" && find . -type f); do
		diff -u "$root/$file" "$fresh/$file" || stale+=("${file#./}")
	done
	rm -rf "$fresh"
	[ ${#stale[@]} = 0 ] || { say "not current: ${stale[*]}; run: make docs" && return 1; }
}

tests() { "$venv/bin/pytest" -o cache_dir="$venv/cache/pytest" "$@"; }

require_python
require_tools
[ -z "${PROCMON_COMPILE:-}" ] || require_headers
require_libbpf || say "the kernel tier cannot run without it"
install_wheel

cd "$root"
# What tools remember stays out of the checkout, where it would be root's.
export RUFF_CACHE_DIR=$venv/cache/ruff MYPY_CACHE_DIR=$venv/cache/mypy PYTHONPYCACHEPREFIX=$venv/cache/python
export HYPOTHESIS_STORAGE_DIRECTORY=$venv/cache/hypothesis
# `python -m otel_procmon` is to run the wheel, not the checkout that is the working directory.
export PYTHONSAFEPATH=1
if [ "$(id -u)" = 0 ] && [ -e /sys/kernel/btf/vmlinux ]; then
	export PROCMON_REQUIRE=${PROCMON_REQUIRE-kernel}
fi

failed=()
for check in $checks; do
	case $check in
	lint | types | docs | tests) ;;
	*) die "PROCMON_CHECKS has $check: it may have lint, types, docs and tests" ;;
	esac
	say "$check"
	"$check" "$@" || failed+=("$check")
done
say "$("$venv/bin/python" --version), wheel of this checkout; done: $checks; tiers required: ${PROCMON_REQUIRE:-none}"
[ ${#failed[@]} = 0 ] || die "failed: ${failed[*]}"
