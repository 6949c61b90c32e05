# Everything a person or CI runs. `make demo` and `make test` need git, make and Python 3.11 or newer, nothing else.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test test-slow mutants chaos chaos-full lint fuzz audit bench bench-smoke bench-methods bench-scale bench-together bench-gpu results-autoft results-methods docs clean

demo: $(READY)  ## the main job, small: embedded Postgres, local Ray, a few minutes
	$(BIN)/autoft demo

test: $(READY)  ## the test suite, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not browser"

test-slow: $(READY)  ## whole studies, the demo, a real browser (needs chromium and ../shared)
	$(BIN)/python -m pytest -m "slow or browser"

mutants: $(READY)  ## put each known defect back: its tests must fail; under 5 minutes on 2 cores
	$(BIN)/python -m tests.mutants.run

FUZZ_SECONDS ?= 10

fuzz: $(READY)  ## look for inputs that crash a reader, FUZZ_SECONDS (10) for each of some twenty readers
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

audit: $(READY)  ## known vulnerabilities of the pinned dependencies; needs a network, and says so where it has none
	$(BIN)/python -m tests.audit.run

chaos: $(READY)  ## break everything a study runs on, one seed: under 20 minutes on 2 cores; writes tests/chaos/latest.json (needs root and iproute2)
	$(BIN)/python -m tests.chaos

chaos-full: $(READY)  ## the same with seeds 0 to 9, and both storms in full: hours
	$(BIN)/python -m tests.chaos --seed 0-9 --full

lint: $(READY)  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## overhead of a trial, start-up, peers, pruning, scale: hours on 2 cores; writes benches/records/ and benches/latest.json
	$(BIN)/python -m benches.trial_overhead
	$(BIN)/python -m benches.startup
	$(BIN)/python -m benches.peers
	$(BIN)/python -m benches.pruning
	$(BIN)/python -m benches.scale

bench-smoke: $(READY)  ## the first of these on a few trials, without writing a record
	$(BIN)/python -m benches.trial_overhead --trials 2 --dry-run

bench-methods: $(READY)  ## cost of each method's step, memory and optimizer state against plain fine-tuning (needs ../shared)
	$(BIN)/python -m benches.methods

bench-gpu: $(READY)  ## on a GPU: trials against the pure compiled step and the card's matrix rate, then a small study that must hold
	$(BIN)/python -m benches.gpu
	$(BIN)/python -m benches.gpu --study

bench-together: $(READY)  ## several trials as one program against one after the other (needs ../shared for the larger model)
	$(BIN)/python -m benches.together

bench-scale: $(READY)  ## the coordinator before simulated workers, 1 to 4,096, and histories of up to 10,000 trials; about 10 minutes
	$(BIN)/python -m benches.scale

results-autoft: $(READY)  ## AutoFT and its baselines on three shifts; resumable, over an hour; writes docs/results/autoft.md (needs ../shared)
	$(BIN)/python -m benches.results_autoft

results-methods: $(READY)  ## every method on PACS and the strongest on digits; resumable, over an hour; writes docs/results/methods.md (needs ../shared)
	$(BIN)/python -m benches.results_methods

docs: $(READY)  ## print docs/cli.md, docs/study-file.md and docs/presets.md again from the code
	$(BIN)/python -m docs.generate

clean:
	rm -rf .venv build dist runs

# wilds is for tests/data/test_wilds.py alone; of its dependencies, torch_scatter would have to be compiled.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps wilds
	@touch $(READY)
