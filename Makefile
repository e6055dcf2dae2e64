# Every target sets up what it needs: Python 3.10+ with venv and headers, and a C++ compiler.
PYTHON ?= python3
# Named first and exactly: a bare "torch" may bring gigabytes of another build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

# Trains DFPO on the shipped three-domain suite; plots and policy land in runs/.
demo: $(VENV)/installed
	$(BIN)/dfpo train $(ARGS)

# One thread a process and one process a core: most tests are too small to share.
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

bench: $(VENV)/installed
	$(BIN)/pytest bench/ --benchmark-only $(ARGS)

NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

$(VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info dfpo_kernels/*.so
