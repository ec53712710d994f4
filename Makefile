# Every target sets up what it needs in .venv, once; again only when the requirements change.
#
#   make install   the set-up alone: the page, training and the command .venv/bin/mae
#   make demo      the page on this machine          ARGS="--port 7861" passes flags on
#   make web       the page without a server, into build/web     ARGS="--weights W" passes flags on
#   make web-serve the same on this machine  ARGS="--port 7871"
#   make test      all tests                         ARGS="-k masking" passes flags on
#   make check     lint, formatting, types, of Python and of the browser's modules
#   make bench     side by side with peers; writes benchmarks/results/
#
# PYTHON=python3.13 picks the interpreter that .venv is made with (3.11 to 3.14).
# The browser's modules are checked and tested where there is Node.js 18.18 or newer with npm;
# MAE_REQUIRE_NODE=1 fails where there is none.
# TORCH_INDEX= takes PyTorch from pip's own index, which has CUDA; another address, from there.

PYTHON ?= python3
ARGS ?=
CPU_TORCH := https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
# Each stamp is younger than the requirements that were installed.
RUNTIME := $(VENV)/.installed-runtime
ONNX := $(VENV)/.installed-onnx
DEV := $(VENV)/.installed-dev
# Likewise, of package-lock.json.
NODE_MODULES := node_modules/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# Empty where the browser's modules cannot be checked.
NODE := $(shell command -v npm >/dev/null && node -p \
	'const [major, minor] = process.versions.node.split("."); major * 100 + +minor >= 1818 || ""' \
	2>/dev/null)

.PHONY: help install demo web web-serve test check test-stage check-stage bench

help:
	@sed -n '3,14s/^# \{0,1\}//p' Makefile

install: $(RUNTIME)

demo: $(RUNTIME)
	$(BIN)/python -m app $(ARGS)

web: $(ONNX) $(NODE_MODULES)
	$(BIN)/python -m web.build build/web $(ARGS)

web-serve: $(RUNTIME)
	$(BIN)/python -m web.serve build/web $(ARGS)

# Two at a time, for much of a test is waiting; the tests of a file share what they start. In the
# order of files, as those of the fewest tests are the browser's: last, each would be alone.
test: $(DEV) test-stage
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(DEV) check-stage
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

ifneq ($(NODE),)
# Tests build the page without a server.
test: $(NODE_MODULES)

test-stage:
	node --test --test-reporter=spec tests/stage/*.test.js tests/web/*.test.js

check-stage: $(NODE_MODULES)
	node_modules/.bin/tsc
	node_modules/.bin/eslint .
else
test-stage check-stage:
	@echo "The browser's modules are not checked: there is no Node.js 18.18 or newer with npm."; \
		[ "$(MAE_REQUIRE_NODE)" != 1 ]
endif

bench: $(DEV)
	$(BIN)/python -m benchmarks.bench_reconstruct
	$(BIN)/python -m benchmarks.bench_train
	$(BIN)/python -m benchmarks.bench_loader
	$(BIN)/python -m benchmarks.bench_onnx
	$(BIN)/python -m benchmarks.bench_threads
	$(BIN)/python -m benchmarks.parity

$(VENV)/.created:
	@fail() { echo "error: $$1" >&2; exit 1; }; \
	command -v $(PYTHON) >/dev/null || \
		fail "there is no $(PYTHON); install Python 3.11 to 3.14, or name yours: make PYTHON=..."; \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		fail "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 to 3.14 is needed: make PYTHON=python3.13"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		fail "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

# A machine without an NVIDIA GPU is spared CUDA where PyTorch's index of CPU builds answers. Sizes
# are of torch 2.13.0 and what it brings on x86-64, without the rest.
$(RUNTIME): requirements.txt requirements-train.txt pyproject.toml | $(VENV)/.created
	@index="$(TORCH_INDEX)"; what="from pip's own index; with CUDA, it is 2.7 GB"; \
	if [ "$(origin TORCH_INDEX)" = undefined ] && [ "$$(uname -s)" = Linux ] \
		&& [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi >/dev/null \
		&& $(BIN)/python -c 'import urllib.request as web; web.urlopen("$(CPU_TORCH)/torch/", timeout=5)' \
			2>/dev/null; \
	then index=$(CPU_TORCH); fi; \
	if [ -n "$$index" ]; then what="from $$index; for the CPU, it is 0.2 GB"; fi; \
	echo "Installing into $(VENV), which takes minutes once. PyTorch comes $$what."; \
	set -ex; \
	$(PIP) install $${index:+--extra-index-url "$$index"} -r requirements-train.txt; \
	$(PIP) install --no-deps --editable .
	@touch $@

$(ONNX): requirements-onnx.txt $(RUNTIME)
	$(PIP) install -r requirements-onnx.txt
	@touch $@

$(DEV): requirements-dev.txt requirements-data.txt requirements-dense.txt requirements-onnx.txt \
		requirements-science.txt $(RUNTIME)
	$(PIP) install -r requirements-dev.txt
	@touch $@

$(NODE_MODULES): package-lock.json
	@command -v npm >/dev/null || \
		{ echo "error: there is no npm; install Node.js 18.18 or newer, which has it" >&2; exit 1; }
	npm ci --no-audit --no-fund
	@touch $@
