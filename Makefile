# Five commands, each doing its own set-up:
#
#   make demo       executes notebooks/01_quickstart.ipynb, prints its accuracy and where the result is
#   make test       lint, types, the tests, and the notebooks against their stored outputs
#   make audit      checks everything that is installed against the advisory database
#   make test-long  the tests that take minutes each
#   make matrix     the fast tests on every Python and torch that is declared: gigabytes and hours.
#                   ONLY=torch2.6 runs some environments, TESTS=ranks one part of the tests.
#                   `scripts/matrix.py --table` prints the stored results.
#
# PYTHON=python3.12 picks another interpreter, VENV=path another place for the virtual environment.

PYTHON ?= python3
VENV ?= .venv

venv := $(abspath $(VENV))
python := $(venv)/bin/python
# One stamp per interpreter. Another PYTHON makes a new environment; the environment's own doesn't.
interpreter := import sys; print(sys.implementation.cache_tag, sys.base_prefix.strip("/").replace("/", "-").replace(" ", "-"), sep="-")
stamp := $(venv)/.ready-$(shell $(PYTHON) -c '$(interpreter)' 2>/dev/null)

# The panel's bundle is made when the package is installed.
frontend := $(wildcard icelaunch_nb/notebook/frontend/*.json icelaunch_nb/notebook/frontend/src/*)

.PHONY: demo test test-long audit matrix setup packages clean
.DELETE_ON_ERROR:

demo: setup
	$(python) scripts/demo.py notebooks/01_quickstart.ipynb build/demo

# The tests of code that differs for ipykernel 6, which has no subshells, or that uses private names
# of ipykernel.
on_both := tests/end_to_end/kernel/test_clicks.py tests/end_to_end/kernel/test_asyncio.py $(foreach folder,kernel browser,$(addprefix tests/end_to_end/$(folder)/,test_magic.py test_form.py)) \
    tests/end_to_end/browser/test_panel.py

nbval := $(python) -m pytest --nbval --nbval-current-env --nbval-cell-timeout 120 --nbval-sanitize-with notebooks/sanitize.cfg notebooks

# The etcd server of the tests is in the environment's bin.
test: export PATH := $(venv)/bin:$(PATH):/usr/sbin:/sbin
test: setup packages
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) scripts/check_frontend.py
	$(python) -m pytest tests -m "not long"
	$(python) -m pytest --ipykernel 6 $(on_both)
	$(nbval)
	PYTHONPATH="$(venv)/ipykernel6" $(nbval)

test-long: export PATH := $(venv)/bin:$(PATH):/usr/sbin:/sbin
test-long: setup packages
	$(python) -m pytest tests -m long

setup: $(stamp)

$(stamp): pyproject.toml requirements-dev.txt hatch_build.py $(frontend)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; make PYTHON=... picks one")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call install,python3-venv)
	@if [ "$$($(python) -c '$(interpreter)' 2>/dev/null)" != "$$($(PYTHON) -c '$(interpreter)')" ] \
	    || ! $(python) -m pip --version >/dev/null 2>&1; then \
	    echo "making $(venv)"; $(PYTHON) -m venv --clear "$(venv)"; \
	fi
	@echo "installing the package and requirements-dev.txt; torch is large, the first time takes minutes"
	@rm -f "$(venv)"/.ready-*
	@$(python) -m pip install --quiet --disable-pip-version-check --editable . --requirement requirements-dev.txt
	@rm -rf "$(venv)/ipykernel6" # beside the newest one, for the tests that run on both: pytest --ipykernel 6
	@$(python) -m pip install --quiet --disable-pip-version-check --target "$(venv)/ipykernel6" --no-deps ipykernel==6.31.0
	@touch "$@"

# Tests that use network namespaces as machines need `ip` and `unshare`. Those of the panel need a
# browser. Where these can't be installed, the tests skip and say so.
packages: export PATH := $(PATH):/usr/sbin:/sbin
packages:
	@command -v ip >/dev/null || $(call install,iproute2) || echo "without iproute2: tests in network namespaces skip"
	@command -v unshare >/dev/null || $(call install,util-linux) || echo "without util-linux: tests in network namespaces skip"
	@command -v chromium >/dev/null || $(call install,chromium) || echo "without chromium: tests of the panel in a browser skip"

# Not part of `make test`, because it needs pypi.org's JSON API, one release at a time. With --strict,
# a package that can't be looked up fails.
audit: setup
	@$(python) -m pip install --quiet --disable-pip-version-check pip-audit
	$(python) -m pip_audit --strict --skip-editable --progress-spinner off

# Not part of `make test` either. The environments stay in build/matrix, for the next time.
matrix: export PATH := $(PATH):/usr/sbin:/sbin
matrix: setup packages
	@$(python) -m pip install --quiet --disable-pip-version-check uv
	$(python) scripts/matrix.py --only "$(ONLY)" $(TESTS)

clean:
	rm -rf "$(venv)" build

# Installs a Debian package, as root or through sudo. If neither works, it says what is missing.
install = { \
    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
    if command -v apt-get >/dev/null && { [ -z "$$sudo" ] || command -v sudo >/dev/null; }; then \
        echo "installing the Debian package $(1)"; \
        $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1); \
    else echo "$(1) is missing, and can't be installed from here" >&2; false; fi; }
