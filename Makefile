# make serve   a small real model on 127.0.0.1:8000 (ARGS="--port 9000" for more)
# make test    all checks and all tests, with all that they need
# make check   the checks alone: format, lint, types, import contracts
# make sanitize  the CPU backend's op tests over address and undefined-behaviour sanitizers
# make bench   this machine's figures
# make clean   away with all that make made, models excepted

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --constraint constraints.txt
MODEL := smollm2-135m
NATIVE := $(shell find csrc -type f 2>/dev/null) $(wildcard CMakeLists.txt)

.PHONY: serve test check sanitize bench clean chromium
.DELETE_ON_ERROR:

serve: $(VENV)/.installed
	@exec $(BIN)/headrace serve $(ARGS)

test: check chromium
	@$(BIN)/headrace pull $(MODEL)
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The kernels at -O1, checked at every access. What tile instructions read and write is not seen.
CXX ?= c++
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)
sanitize: $(VENV)/.tested
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
		-DHEADRACE_SANITIZE=ON -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" >/dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/sanitize
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python tests/sanitized.py build/sanitize/_native*.so tests/unit/runtime/backends \
		-k "test_cpu_ or (test_launch and not cuda and not reference)"

bench: $(VENV)/.installed
	$(BIN)/headrace bench
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/serve.py

# The browser of the page's test: Debian's own. Where it cannot be had, that one test says so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	|| echo "No chromium, and no right to install it: the browser test will be skipped."

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Headrace needs Python 3.11 or newer (make PYTHON=...)."; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# The editable install runs the sources in this tree; only the native part is built.
$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	@echo "Installing Headrace and building its kernels; the first time takes about a minute"
	@$(INSTALL) pip
	@$(INSTALL) scikit-build-core nanobind cmake ninja
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

# torch is the oracle of some tests. It goes in first, by its exact pin, so that nothing that
# depends on it chooses another.
$(VENV)/.tested: $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) --group test --group check
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis screenshots
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '_native*.so' -delete
