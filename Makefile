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
NATIVE := $(shell find csrc tests -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))
SANITIZE := build/sanitize
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
PRELOADED := $(shell for name in libasan.so libubsan.so libstdc++.so.6; do $(CXX) -print-file-name=$$name; done)
SANITIZED := LD_PRELOAD="$(PRELOADED)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONPATH=$(SANITIZE)/site "$(BIN)/python"

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

# Legal and hostile arguments under AddressSanitizer and UBSan, on every instruction set that this processor has.
# Leaks are not looked for: Python itself does not free everything. Reports of sanitizers are not captured.
sanitize: $(SANITIZE)/installed
	$(SANITIZED) -c "from bm_fast import _C; assert '$(SANITIZE)' in _C.__file__, _C.__file__"
	for isa in $$($(SANITIZED) -c "from bm_fast import _C; print(*_C.usable_isas())"); do \
		BM_FAST_ISA=$$isa $(SANITIZED) -m pytest --capture=sys tests/test_fuzz_*.py || exit 1; \
	done

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
		--config-settings cmake.define.CMAKE_CXX_FLAGS="$(SANITIZERS)" --config-settings cmake.define.BM_CUDA=OFF .
	touch $@
