# make demo: the whole study in miniature.   make test: the whole test suite.   make lab: the notebooks in JupyterLab.
# Each makes its own virtual environment in .venv first.  PYTHON=python3.12 make ... chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_CPU := https://download.pytorch.org/whl/cpu

.PHONY: demo test lab lint notebooks clean

demo: $(VENV)/.installed
	$(BIN)/python -m notebooks_src.run miniature
	$(BIN)/python -m aape atlas miniature
	$(BIN)/python -m notebooks_src.report miniature

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -q --durations=10

lab: $(VENV)/.installed
	$(BIN)/jupyter lab

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.installed
	$(BIN)/python -m notebooks_src.generate

# PyPI's torch for Linux brings gigabytes of CUDA libraries. Where there is no NVIDIA driver the CPU build is tried, and
# where its index does not answer PyPI's is taken after all: everything works the same.
$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@if [ "$$(uname)" = Linux ] && [ ! -e /proc/driver/nvidia/version ]; then \
		$(BIN)/python -m pip install --isolated --quiet --retries 0 --timeout 10 --index-url $(TORCH_CPU) torch torchvision \
		2>/dev/null \
		&& $(BIN)/python -c "import torchvision" \
		|| { echo "$(TORCH_CPU) does not serve us: PyPI's torch is installed, with its CUDA libraries"; \
		$(BIN)/python -m pip uninstall --quiet --yes torch torchvision 2>/dev/null; }; fi
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .cache outputs
