# Everything runs in .venv, with the versions of constraints.txt; only Python, a C++ compiler and make must be there.

PYTHON ?= python3
CXX ?= g++
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Modules, not scripts: the path of the checkout may be too long, or hold a space, for a script's first line.
RUN := "$(BIN)/python" -m
PIP := $(RUN) pip --disable-pip-version-check --quiet
PINNED := --constraint constraints.txt
SOURCES := pyproject.toml README.md $(wildcard CMakeLists.txt) \
	$(shell find csrc python -type f ! -name '*.pyc' ! -name '*.so')
NATIVE := $(shell find csrc -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))
SANITIZE := build/sanitize
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
RUNTIMES := $(shell for name in libasan.so libubsan.so libstdc++.so.6; do $(CXX) -print-file-name=$$name; done)

.PHONY: demo test lint format sanitize wheel bench clean

demo: $(VENV)/installed
	"$(BIN)/bm-fast" demo

test: $(VENV)/installed
	$(RUN) pytest

lint: $(VENV)/installed
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(if $(NATIVE),"$(BIN)/clang-format" --dry-run --Werror $(NATIVE))
	$(RUN) mypy

format: $(VENV)/installed
	$(RUN) ruff check --fix
	$(RUN) ruff format
	$(if $(NATIVE),"$(BIN)/clang-format" -i $(NATIVE))

# The binding gets hostile arguments under AddressSanitizer and UBSan. Leaks are not looked for: Python never frees all.
sanitize: $(SANITIZE)/installed
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZE)/site \
		$(RUN) pytest tests/test_fuzz_binding.py

# The built wheel must work in an environment that holds nothing else.
wheel: $(VENV)/installed
	rm -rf dist build/wheel-venv
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist --config-settings build-dir=build/release .
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip --disable-pip-version-check --quiet install $(PINNED) dist/*.whl
	build/wheel-venv/bin/python tests/wheel_smoke.py

bench: $(VENV)/installed
	$(PIP) install $(PINNED) rbms
	"$(BIN)/python" bench/run.py $(ARGS)

clean:
	rm -rf build dist $(VENV)

$(VENV)/tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PINNED) cmake ninja pybind11 scikit-build-core
	touch $@

# Build isolation is off: it would build with versions that constraints.txt does not pin.
$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(PIP) install $(PINNED) --no-build-isolation --config-settings build-dir=build/release ".[dev]"
	touch $@

$(SANITIZE)/installed: $(VENV)/installed
	$(PIP) install --no-deps --no-build-isolation --upgrade --target $(SANITIZE)/site \
		--config-settings build-dir=$(SANITIZE)/build --config-settings install.strip=false \
		--config-settings cmake.define.CMAKE_CXX_FLAGS="$(SANITIZERS)" .
	touch $@
