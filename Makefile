# Everything runs from a virtual environment that the first target makes; the second time it costs nothing.
PYTHON ?= python3
# two ranks, but on a machine with a single GPU one
RANKS ?= $(if $(filter 1,$(shell nvidia-smi -L 2>/dev/null | grep -c GPU)),1,2)
# without a GPU: DeepSpeed's launcher need not look for one, and warn twice that it found none
ACCELERATOR := $(if $(wildcard /dev/nvidia* /dev/kfd /dev/dxg),,DS_ACCELERATOR=cpu)
CONFIG ?= configs/quickstart.yaml
OVERRIDES ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart quickstart-short test parity faults fuzz slow-test memory3-test results-check slurm-test browser-test \
    gpu-test lint docs package bench gpu-bench wheelhouse clean

$(READY): setup.py constraints.txt
	@echo "making $(VENV) and installing what constraints.txt pins: a minute or two"
	@$(PYTHON) -m venv $(VENV)
	@# torch first and by its pin: what follows must find it, not choose another build
	@$(BIN)/python -m pip install -qq "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	@touch $@

# a corpus from this machine, a tokenizer, shards, two phases of training on RANKS ranks, a sample
quickstart: $(READY)
	@$(BIN)/python launchers/prepare_data.py --config $(CONFIG) $(OVERRIDES)
	@$(ACCELERATOR) OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed -q --num_gpus $(RANKS) \
	    launchers/pretrain.py --config $(CONFIG) $(OVERRIDES)
	@echo; echo "a sample:"
	@$(BIN)/python launchers/generate.py --config $(CONFIG) $(OVERRIDES) --prompt "def " --max-tokens 120

# the same commands with a tenth of the tokens
SHORT := run.name=quickstart-short phases.0.tokens=163840 phases.0.lr.warmup_tokens=40960 \
    phases.1.tokens=163840 phases.1.lr.warmup_tokens=40960 phases.1.lr.decay_tokens=0
quickstart-short:
	@$(MAKE) --no-print-directory quickstart OVERRIDES="$(SHORT)"

# three workers for two cores, because a test that starts ranks or commands waits for them; each takes whole files, the
# longest first (tests/conftest.py)
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# the whole matrix of topologies against one rank: 486 cells, some seconds each on 2 cores
parity: $(READY)
	$(BIN)/python -m tests.distributed.parity

# kills, damage, signals, other topologies, bad losses, hangs, full disks: about a quarter of an hour on 2 cores
faults: $(READY)
	$(BIN)/python -m tests.e2e.faults --kills 50 --damage 20

# inputs that nobody has typed yet, EXAMPLES of each kind: 100,000 take hours
EXAMPLES ?= 100000
fuzz: $(READY)
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/unit/*/test_fuzz*.py --timeout 0

slow-test: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 1800

# all of explicit memory that needs no data folder
memory3-test: $(READY)
	$(BIN)/python -m pytest -m "memory3 and not slow and not gpu"

# a real Slurm of two nodes in network namespaces; needs root, and installs Debian's packages where they are missing
slurm-test: $(READY)
	@tests/slurm/install.sh
	PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest -m slurm -rs tests/slurm

# the report and a page of a real MLflow server in Chromium, which must be installed (apt-get install chromium)
browser-test: $(READY)
	$(BIN)/python -m pytest -m browser --timeout 600 -rs

# needs a CUDA device
gpu-test: $(READY)
	$(BIN)/python -m pytest -m gpu --timeout 600

# a published number of docs/results.md is found again; BABI and BOOKS: folders with bAbI's tasks and the books
results-check: $(READY)
	$(BIN)/python experiments/results_check.py --babi $(BABI) --background $(BOOKS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation site in build/site; a broken link, anchor or reference is an error
docs: $(READY)
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# a wheel and an sdist in dist/, and the wheel tried in an environment that has no checkout
package: $(READY)
	rm -rf build/lib dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m pytest -m "slow or not slow" --timeout 900 tests/unit/launchers/test_package.py

bench: $(READY)
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/segments.py
	$(BIN)/python benchmarks/linear.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/babilong_data.py
	$(BIN)/python benchmarks/bank.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/explicit.py

# needs a CUDA device; under nine minutes, parts that no longer fit are left out
gpu-bench: $(READY)
	benchmarks/gpu.sh

# wheels for a machine with PyTorch and no package index: WHEELS=wheelhouse benchmarks/gpu.sh there
wheelhouse: $(READY)
	benchmarks/wheelhouse.sh wheelhouse

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
