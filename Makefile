# Two commands: `make train` and `make test`. What they do is plain pip and python; the README shows those lines.

PYTHON ?= python3
PYTHON312 ?= python3.12
VENV ?= .venv
ARGS ?=
BIN = $(VENV)/bin
# What tests and the site need is some 150 packages: uv installs them in a quarter of pip's time. It reads no pip.conf, so
# where it does not find them pip does it; --no-compile, since pip would compile all of them, which takes as long again.
install = ($(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --editable "$(1)") || \
    $(BIN)/python -m pip install --quiet --no-compile --editable "$(1)"

# Python compiles what is imported, once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test test-all lint docs bench tpu clean

train: $(VENV)/installed
	$(BIN)/python -m experiments.vae --resume $(ARGS)

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# All instances and the heavy statistics, compiled as users do, and once more on the newest Python. An hour or so.
test-all: $(VENV)/installed-test lint
	COMPILED_AS_USERS_DO=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "" $(ARGS)
	.ci/newest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in docs/_build/html. Its code runs; a warning, a broken reference or a broken link is an error.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --jobs 2 docs docs/_build/html
	$(BIN)/python docs/links.py --no-status docs/_build/html/index.html

bench: $(VENV)/installed-test
	$(BIN)/python -m experiments.bench $(ARGS)

# Every training step compiled for TPU v5e, which needs none: docs/tpu.md. An hour or so.
tpu: .venv-tpu/installed
	.venv-tpu/bin/python -m experiments.tpu $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(call install,.[test])
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	$(call install,.[docs])
	touch $@ $(VENV)/installed

.venv-tpu/installed: pyproject.toml
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || \
	    { echo "the TPU compiler comes with the newest jax, which wants Python 3.12: set PYTHON312 to its path"; exit 1; }
	$(PYTHON312) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --no-compile --editable ".[cli]" "jax[tpu]"
	touch $@

clean:
	rm -rf $(VENV) .venv-tpu .venv-newest .venv-colab .jax_cache docs/_build build dist *.egg-info
