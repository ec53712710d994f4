# Every target sets up what it needs in .venv, once; again only when the requirements change.
#
#   make install   the set-up alone
#   make demo      the page on this machine          ARGS="--port 7861" passes flags on
#   make test      all tests                         ARGS="-k masking" passes flags on
#   make check     lint, formatting, types
#   make bench     side by side with peers; writes benchmarks/results/
#
# PYTHON=python3.12 picks the interpreter that .venv is made with (3.11 to 3.12).

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Each stamp is younger than the requirements that were installed.
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help install demo test check bench

help:
	@sed -n '3,9s/^# \{0,1\}//p' Makefile

install: $(RUNTIME)

demo: $(RUNTIME)
	$(BIN)/python -m app $(ARGS)

test: $(DEV)
	$(BIN)/python -m pytest $(ARGS)

check: $(DEV)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(DEV)
	$(BIN)/python -m benchmarks.bench_reconstruct
	$(BIN)/python -m benchmarks.bench_train
	$(BIN)/python -m benchmarks.bench_loader
	$(BIN)/python -m benchmarks.bench_onnx
	$(BIN)/python -m benchmarks.bench_threads
	$(BIN)/python -m benchmarks.parity

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 to 3.12 is needed:" \
			"make PYTHON=python3.12 ..." >&2; \
		exit 1; \
	}
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): requirements.txt | $(VENV)/.created
	@echo "Installing requirements.txt into $(VENV); torch is large, so this takes minutes once."
	$(PIP) install -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt requirements-data.txt requirements-onnx.txt requirements-science.txt \
		requirements-train.txt $(RUNTIME)
	$(PIP) install -r requirements-dev.txt
	@touch $@
