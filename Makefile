# Everything below sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.11 or newer.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# `make demo DATA=folder DATABASE=ludb` runs on real recordings instead of synthetic ones.
DATA ?=
DATABASE ?= synthetic
OUT ?= demo/$(DATABASE)

# `make bench SHARDS='shards/ludb shards/georgia'` measures on real recordings instead of synthetic ones.
SHARDS ?=

.PHONY: demo test bench test-cluster torture mutants check fix golden setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	# DS_BUILD_OPS=0: DeepSpeed without its compiled operators, which nothing here needs.
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python tools/demo.py --database $(DATABASE) --out $(OUT) $(if $(DATA),--data $(DATA))

# Without reordering: tests/conftest.py puts the longest files first, xdist those with most tests.
test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Everything that has a speed, against what it is compared with; on a CPU some ten minutes.
bench: $(READY)
	$(BIN)/python tools/bench.py $(if $(SHARDS),--shards $(SHARDS))

# The scripts of slurm/ under a real Slurm of two nodes on this machine, and two machines that are network namespaces;
# some ten minutes on two cores.
test-cluster: $(READY)
	@test "$$(id -u)" = 0 || { echo "test-cluster starts Slurm's daemons and needs root" >&2; exit 1; }
	@for name in munged slurmctld slurmd sbatch ip sshd pdsh; do PATH=$$PATH:/usr/sbin command -v $$name > /dev/null || \
		{ echo "test-cluster needs $$name: apt-get install slurm-wlm munge iproute2 openssh-server pdsh" >&2; exit 1; }; \
		done
	ECGFM_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster

# Kills, signals, full disks and damaged files against real runs, and a table of what came of each; some 15 minutes.
torture: $(READY)
	$(BIN)/python tools/torture.py

# Small faults in a copy of the code, each of which a named test must notice; some ten minutes on two cores.
mutants: $(READY)
	$(BIN)/python tests/mutation/mutants.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rewrites the golden loss curves; review the difference before committing it.
golden: $(READY)
	$(BIN)/python -m pytest tests/golden --rewrite-golden

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
