# What a developer runs. Everything lives in .venv, which `make demo` and `make test` create when it is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

# Stamps are touched last, so that an installation that was interrupted is done again.
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev

# `make conformance` compares with QEMU's TCG where that is installed.
CONFORMANCE_FLAGS ?= $(if $(shell command -v qemu-system-x86_64 2>/dev/null),--qemu)

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test check format stress bench tlfs prove findings conformance checkout-named litmus clean

help:
	@echo "make demo         run the demo guest: two VPs, two VTLs, a protected page"
	@echo "make test         run the tests"
	@echo "make check        formatting, lint and types"
	@echo "make format       format the sources"
	@echo "make stress       run the protocols' scenarios under 10,000 schedules each"
	@echo "make bench        measure against the rivals, side by side"
	@echo "make tlfs         run the tests of the TLFS checklist and write docs/TLFS.md"
	@echo "make prove        check every protocol, at large sizes too, and write docs/PROOFS.md: about 10 minutes"
	@echo "make findings     check open questions of KVM's list and write docs/findings"
	@echo "make conformance  run kvm-unit-tests: KVM_UNIT_TESTS=dir names a built checkout"
	@echo "make litmus       judge the kernel's litmus tests: LITMUS=dir names tools/memory-model/litmus-tests"
	@echo "make clean        remove everything that these commands made"

demo: $(READY)
	@$(BIN)/vtlkit run demo --cpus 2 $(DEMO_FLAGS)

test: $(DEV)
	@$(BIN)/python -m pytest

check: $(DEV)
	@status=0; \
	report=$$($(BIN)/ruff format --check . 2>&1) || { status=1; echo "$$report"; }; \
	$(BIN)/ruff check --quiet . || status=1; \
	$(BIN)/mypy --no-error-summary || status=1; \
	exit $$status

format: $(DEV)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

stress: $(READY)
	@$(BIN)/vtlkit stress $(STRESS_FLAGS)

bench: $(READY)
	@$(BIN)/python -m benchmarks.harness $(BENCH_FLAGS)

tlfs: $(DEV)
	@$(BIN)/python -m tests.tlfs.generate

prove: $(DEV)
	@$(BIN)/python -m tests.checker.prove $(PROVE_FLAGS)

findings: $(READY)
	@mkdir -p docs/findings
	@$(BIN)/python -m vtlkit.checker.findings docs/findings

conformance: checkout-named $(READY)
	@$(BIN)/python -m tests.conformance.kvm_unit_tests --dir "$(KVM_UNIT_TESTS)" --output docs/CONFORMANCE.md $(CONFORMANCE_FLAGS)

checkout-named:
	@test -n "$(KVM_UNIT_TESTS)" || { echo "make conformance: set KVM_UNIT_TESTS=dir to a built kvm-unit-tests checkout" >&2; exit 2; }

litmus: $(READY)
	@test -n "$(LITMUS)" || { echo "make litmus: set LITMUS=dir to a folder of litmus tests, such as a kernel's tools/memory-model/litmus-tests" >&2; exit 2; }
	@$(BIN)/python -m tests.checker.litmus.table $(foreach dir,$(LITMUS),--dir "$(dir)") --origin "$(LITMUS_ORIGIN)" --output docs/LITMUS.md

clean:
	@rm -rf $(VENV) dist build conformance-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "vtlkit needs Python 3.11 or later: there is no '$(PYTHON)'; set PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vtlkit needs Python 3.11 or later: '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install --editable .
	@touch $@

$(DEV): $(READY)
	@$(PIP) install --editable '.[dev]'
	@touch $@
