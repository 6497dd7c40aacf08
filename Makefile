# make demo: the whole study in miniature.   make test: the whole test suite.
# Each makes its own virtual environment in .venv first.  PYTHON=python3.12 make ... chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint notebooks clean

demo: $(VENV)/.installed
	$(BIN)/python -m notebooks_src.run miniature
	$(BIN)/python -m notebooks_src.report miniature

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.installed
	$(BIN)/python -m notebooks_src.generate

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .cache outputs
