SHELL := /bin/bash
# `make` says what there is. VENV names the virtual environment to work in.

VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
# Where `docs` writes: a check writes elsewhere, and compares.
INTO ?= .
# Which kernels `test-kernels` boots, if not all.
KERNELS ?=
# How many `fuzz` tries.
INPUTS ?= 10000000
BIN := $(VENV)/bin
# How uv puts together which versions of packages there are.
COMPILE := uv pip compile -q --no-config --python-version 3.10 --extra dev --no-annotate --upgrade \
	--custom-compile-command 'make constraints'

.DEFAULT_GOAL := help
.PHONY: help setup run test unit kernel test-kernels kernels-page test-system bench fuzz lint format docs proto bpf bpf-check constraints clean

help: ## what there is
	@awk -F ': ## ' '/^[a-z-]+: ## /{printf "%-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## make .venv, with the package (editable) and everything for working on it
	. .ci/machine.sh && require_python && make_venv $(VENV)
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -e '.[dev]'

run: ## run the agent, as root: events on the terminal and in procmon.otlp.jsonl
	examples/quickstart.sh

test: ## all checks and tests that can run here, against a built wheel
	tests/run.sh

unit: ## the unit tier, in .venv
	$(BIN)/pytest tests/unit

kernel: ## the kernel tier, in .venv, as root; nothing may be skipped
	PROCMON_REQUIRE=kernel $(BIN)/pytest tests/kernel

test-kernels: ## what is about the kernel, with both loaders, on four of Debian's under qemu, as root: a quarter of an hour on 2 CPUs
	. .ci/machine.sh && require_boot_packages
	$(PYTHON) -m tests.kernel.boot.matrix $(if $(KERNELS),--kernels $(KERNELS)) --results build/kernels

kernels-page: ## write the table of docs/kernels.md from what came of test-kernels
	$(PYTHON) -m tests.kernel.boot.table build/kernels docs/kernels.md

test-system: ## the system tier, in .venv, as root: a real Kubernetes node and real backends; its first run builds them
	PYTHON=$(PYTHON) tests/system/bed/prepare
	PROCMON_REQUIRE=system $(BIN)/pytest tests/system

bench: ## all benchmarks, in .venv, as root; some twenty minutes on an idle machine
	PYTHON=$(PYTHON) benchmarks/run.sh

fuzz: ## ten million inputs that mean no good, for all that reads; an hour or more; INPUTS=N for fewer, results in build/fuzz
	$(PYTHON) -m pip install -q -e '.[fuzz]'
	$(PYTHON) -m tests.fuzz.run --inputs $(INPUTS)

lint: ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: ## let ruff format, and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: ## generate docs/attributes.md, docs/configuration.md, examples/otel-procmon.yaml, docs/semconv and the dashboard
	mkdir -p $(INTO)/docs/semconv $(INTO)/examples/compose/grafana/dashboards
	$(PYTHON) -m otel_procmon.convert.attributes > $(INTO)/docs/attributes.md
	$(PYTHON) -m otel_procmon.convert.registry manifest > $(INTO)/docs/semconv/manifest.yaml
	$(PYTHON) -m otel_procmon.convert.registry signals > $(INTO)/docs/semconv/procmon.yaml
	$(PYTHON) -m otel_procmon.config > $(INTO)/docs/configuration.md
	$(PYTHON) -m otel_procmon.config example > $(INTO)/examples/otel-procmon.yaml
	$(PYTHON) examples/compose/grafana/dashboard.py > $(INTO)/examples/compose/grafana/dashboards/processes.json

proto: ## generate the messages of the Container Runtime Interface, in .venv-proto
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install -q grpcio-tools==1.63.2 'setuptools<81'
	.venv-proto/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. otel_procmon/containers/proto/cri.proto

constraints: ## the newest and the oldest versions of all Python packages that are allowed, into .ci/constraints*.txt
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install -q uv
	echo 'setuptools>=77' | .venv-constraints/bin/$(COMPILE) --universal -o .ci/constraints.txt \
		pyproject.toml requirements-compile.txt -
	.venv-constraints/bin/$(COMPILE) --resolution lowest-direct -o .ci/constraints-lowest.txt pyproject.toml

bpf: ## compile the BPF object, which is committed (Debian 12: clang llvm libbpf-dev)
	$(MAKE) -C bpf

bpf-check: ## is the committed BPF object what bpf/ compiles to?
	$(MAKE) -C bpf check

clean: ## remove what building and testing leave; virtual environments stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find otel_procmon tests -name __pycache__ -type d -prune -exec rm -rf {} +
