# `make demo` and `make test` set themselves up in .venv on first use. Variables that you may want to set:
#   PYTHON=python3.12          interpreter of the environment
#   TORCH_INDEX=URL            PyTorch's own CPU wheel index; without it a machine without a GPU gets whatever build
#                              of 2.13.0 pip finds
#   TORCH=torch==2.6.0         another torch
#   TRITON=triton==3.2.0       another triton; the default is the one that torch 2.13.0 is built with, which the tile
#                              table was checked with
#   WORKERS=4                  test processes
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)
TORCH_INDEX ?=
TRITON ?= $(if $(HAS_GPU),triton,triton==3.7.1)
STAMP := $(VENV)/.installed
# Peers of tests whose wheels would get in the way of other packages.
PEERS := $(VENV)/peers
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs
# One thread per worker: two torch programs that both spread over all cores slow each other down many times.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest
WORKERS ?= 2

.PHONY: setup demo test test-fast test-gpu test-emulated bench tune gpu test-min wheel-test weights weights-emoji lint format docs web test-web clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PY) -m pip install --quiet --editable ".[test]" "$(TRITON)"
	# NATTEN is a peer in tests and benchmarks; it is built from source against the installed torch. Tests and
	# benchmarks that need it skip themselves where the build fails.
	-$(PY) -m pip install --quiet setuptools wheel && $(PY) -m pip install --quiet --no-build-isolation --no-deps natten==0.21.7
	# A port of it to Apple's GPUs, for tests of gradients: its path in plain PyTorch runs on a CPU.
	-$(PY) -m pip install --quiet --no-deps natten-mps==0.3.3
	# A peer of the Inception network in tests. It requires torchvision, which its network does without.
	-$(PY) -m pip install --quiet --no-deps --target $(PEERS) torch-fidelity==0.4.0
	touch $@

# Fine-tunes the embedded VAR into MVAR on handwritten digits, compares the two, writes demo_out/.
demo: $(STAMP)
	$(PY) -m mvar_models demo --out demo_out

# Of long tables of cases it takes a part, another each time; `MVAR_EVERYTHING=1 make test` takes all, in about an hour.
# Two processes: the Triton kernels run in Triton's interpreter, which must be chosen before the first import.
test: $(STAMP)
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests --ignore=tests/triton
	$(PYTEST) -n $(WORKERS) --dist worksteal tests/triton

# What to run while writing code, in a minute on two cores; tests/conftest.py lists what is left out.
test-fast: $(STAMP)
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m "not slow" tests --ignore=tests/triton --ignore=tests/emulator

# The GPU tests on emulated GPUs, which execute the PTX that Triton compiles, and for gfx942 its LLVM IR, WORKERS targets
# side by side: all of tests/triton on sm_80 and sm_90, the sweep of the tile table on the others. About 45 minutes on
# two cores. CAPABILITIES="90" chooses. WARPS=1 runs one warp at a time and finds races; in lockstep is faster.
CAPABILITIES ?= 80 90 100 120 gfx942
test-emulated: $(STAMP)
	printf '%s\n' $(CAPABILITIES) | xargs -P $(WORKERS) -I CAPABILITY sh -c ' \
	  case CAPABILITY in 80|90) tests=tests/triton;; *) tests=tests/triton/test_tile_table.py;; esac; \
	  MVAR_EVERYTHING=1 EMULATED=CAPABILITY EMULATED_WARPS=$(WARPS) PYTHONPATH=.:tests/support:tests/emulator OMP_NUM_THREADS=1 \
	  $(PY) -m pytest -p emulated_plugin -p no:cacheprovider -q $$tests > emulated-CAPABILITY.txt 2>&1'; \
	status=$$?; tail -n 12 $(CAPABILITIES:%=emulated-%.txt); exit $$status

# On a machine with a GPU; runs from the tree and installs nothing.
test-gpu:
	MVAR_EVERYTHING=1 PYTHONPATH=.:tests/support $(or $(GPU_PYTHON),$(PYTHON)) -m pytest -q \
	  tests/triton tests/kernels/test_attention.py tests/kernels/test_gradients.py \
	  $(shell $(or $(GPU_PYTHON),$(PYTHON)) -c "import xdist; print('-n 8 --dist worksteal')" 2>/dev/null)

# Attention, models, sampling and memory on this machine next to every peer, in ten minutes on two cores: tables on
# the terminal; CSV, JSON, Markdown and plots in bench_out/. `python -m benchmarks --suite memory` and the like,
# without --quick, measure larger models.
bench: $(STAMP)
	$(PY) -m benchmarks --suite attention --suite cpu-targets --seconds 0.2 --out bench_out
	$(PY) -m benchmarks --suite model --suite sampling --suite memory --quick --out bench_out

# Searches the tile table on this machine's GPU and rewrites it. Like test-gpu it runs from the tree and installs nothing.
tune:
	PYTHONPATH=. $(or $(GPU_PYTHON),$(PYTHON)) -m benchmarks.tune

# Tests, benchmarks of every suite and tuning on a GPU in one go, about 9 minutes; results in OUT.
gpu:
	OUT="$(or $(OUT),bench_out)" sh benchmarks/on_gpu.sh

# The oldest supported versions, in an environment of their own.
test-min:
	$(MAKE) test VENV=.venv-min PYTHON=python3.10 TORCH=torch==2.6.0 TRITON=triton==3.2.0

# Builds the wheel, installs it in a clean environment outside the tree and samples digits there.
wheel-test: $(STAMP)
	$(PY) scripts/wheel_check.py

# How the embedded weights were made, step by step; about 20 minutes on two cores.
weights: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" sh mvar_models/weights/digits/reproduce.sh

# The emoji models: fetches the images with npm, trains and rounds. A stage takes two hours at most in one call; the next
# call continues where it was. WORK=FOLDER holds the runs.
weights-emoji: $(STAMP)
	PYTHONPATH=. $(PY) scripts/emoji_weights.py $(if $(WORK),--work $(WORK))

# What `make demo` and `make test` do without: linters and the documentation's tools have stamps of their own.
$(DEV_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable ".[dev]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable ".[docs]"
	touch $@

# The versions are pinned by the extra `dev`, the rules are in pyproject.toml.
lint: $(DEV_STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Rewrites what ruff can rewrite.
format: $(DEV_STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The pages of docs/ as a site in site/; a broken link is an error.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	if [ -d web/dist ]; then cp -r web/dist site/web; fi

# The page that samples in the browser, in web/dist; `make docs` then puts it into the site. Needs Node 20 and npm.
web: $(STAMP)
	for model in emoji digits; do test -d web/public/models/$$model || \
	  $(PY) -m mvar_models export --model mvar-$$model --onnx web/public/models/$$model --weights float16; done
	cd web && npm install --no-audit --no-fund && npm run build

# The built page in headless Chromium (CHROMIUM=FILE, default /usr/bin/chromium): the same images as Python's, edits,
# screenshots in web/test/screenshots.
test-web: web
	$(PY) web/test/expected.py web/test/expected.json
	cd web && npm test -- test/expected.json test/screenshots

clean:
	rm -rf build dist *.egg-info demo_out bench_out runs site
