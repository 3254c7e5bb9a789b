# Every target sets itself up: the first one that runs makes the virtual environment.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OUT    ?= runs/demo
# One thread per process: the matrices are small, and the tests run in parallel.
export OMP_NUM_THREADS := 1
export SDL_VIDEODRIVER ?= dummy
export MPLBACKEND := Agg

.PHONY: demo test check format docs notebooks release bench clean

ROOMS := $(BIN)/bilevel train --env BiLevel/FourRooms-v0 --runs 10 --seed 0

demo: $(READY)  ## BC-HG and MBHG lead a follower through the four rooms; leaves curves, maps and film in runs/demo
	@rm -rf $(OUT) && mkdir -p $(OUT)
	$(ROOMS) --leader mbhg --iterations 12 --no-progress --out $(OUT)/mbhg > $(OUT)/mbhg.log 2>&1 & beside=$$!; \
	$(ROOMS) --leader bchg --iterations 2231 --out $(OUT)/bchg && { wait $$beside || { cat $(OUT)/mbhg.log; exit 1; }; }
	$(BIN)/bilevel curves $(OUT)/bchg $(OUT)/mbhg --out $(OUT)/curves.png
	$(BIN)/bilevel video $(OUT)/bchg

test: $(READY)  ## everything, within an hour on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25
	$(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=900 -p no:cacheprovider examples
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

check: $(READY)  ## the quick round: format, lint, types, tests that are not slow
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tests.project.measures
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## the site, in docs/_build/html
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

notebooks: $(READY)  ## executes the paired scripts of examples/ and stores the notebooks with their outputs
	$(BIN)/python docs/notebooks.py

release: $(READY)  ## builds twice and tries wheel and sdist in new environments, into docs/data/release.json
	$(BIN)/python -m tests.project.release

bench: $(READY)
	$(BIN)/python benchmarks/outer_iteration.py
	$(BIN)/python benchmarks/dimension.py

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
