# Two commands: `make demo` makes pictures without a host, `make test` checks everything.
# While working: `make check`, in two minutes. All set up .venv themselves; `make clean` starts over.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build is enough for the embedded family; TORCH="torch" takes the registry's newest.
TORCH ?= torch==2.13.0

.PHONY: demo test check host lint types locales score clean

demo: $(VENV)/.ready
	$(BIN)/prior-art demo --out output

# On both cores; what needs a host (tests/host) in one of the two processes, where a ComfyUI is found.
test: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# The fast lane: what a change breaks most often, without templates, parity, training and hosts.
check: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not host and not browser"

# The pack in a ComfyUI's editor: in the one that is found, or how to get one.
host: $(VENV)/.ready
	$(BIN)/python -m tests.host.editor

lint: $(VENV)/.ready types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package is this folder, whatever its name; mypy finds it as prior_art through a link.
types: $(VENV)/.ready
	mkdir -p $(VENV)/types
	ln -sfn ../.. $(VENV)/types/prior_art
	MYPYPATH=$(VENV)/types $(BIN)/mypy

# locales/en says what the nodes' schemas say.
locales: $(VENV)/.ready
	$(BIN)/python -m prior_art.headless.locales

score: $(VENV)/.ready
	$(BIN)/python -m prior_art.shapes.score karlo --prompts 200 --json output/score.json --out output/score.png

$(VENV)/.ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[headless,dev,registry]"
	# What tests/scale compares with, without the torchvision that it asks for: that changes torch.
	$(BIN)/pip install --quiet --no-deps torch-fidelity torchmetrics lightning-utilities
	touch $@

clean:
	rm -rf $(VENV) output
