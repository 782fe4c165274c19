# Two commands for a fresh machine: `make demo` installs what it needs into .venv, `make test` the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt

.PHONY: install demo test test-slow lint format docs clean

install: $(VENV)/.installed

# What the demo needs; without compiled modules, which pip would write for all files and Python writes for those it uses.
# A torch that is in .venv already (a CUDA build, say) is kept: then the constraint on it does not apply.
$(VENV)/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Limbert needs Python 3.11 or newer; say which one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi \
	  > $(VENV)/constraints.txt
	@echo "installing into $(VENV) (some minutes)"
	@$(PIP) --no-compile -e '.[demo]'
	@touch $@

$(VENV)/.installed: $(VENV)/.demo
	@$(PIP) -e '.[demo,dev,docs,export,report,scale,search,serve]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/limbert demo

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: install
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
