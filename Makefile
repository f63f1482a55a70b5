# Two commands: `make demo` makes pictures without a host, `make test` checks everything.
# Both set up .venv themselves; `make clean` starts over.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build is enough for the embedded family; TORCH="torch" takes the registry's newest.
TORCH ?= torch==2.13.0

.PHONY: demo test lint score clean

demo: $(VENV)/.ready
	$(BIN)/prior-art demo --out output

test: $(VENV)/.ready lint
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

score: $(VENV)/.ready
	$(BIN)/python -m prior_art.shapes.score karlo --prompts 200 --json output/score.json --out output/score.png

$(VENV)/.ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[headless,dev]"
	touch $@

clean:
	rm -rf $(VENV) output
