# Every target needs the network at most once, in `setup`; afterwards nothing is fetched while pyproject.toml and
# constraints.txt stay the same. ARGS is handed on: make test ARGS="tests/core -x"

BIN := .venv/bin
ARGS ?=
JOBS ?= 2
DEMO ?= gemma

export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all verify lint index catalog docs bench bench-peers clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv once (PYTHON=python3.12 names the interpreter); later a matter of milliseconds
	@python3 scripts/setup.py

demo: setup ## adapt the demo's model to the demo's documents; DEMO=pico is tiny and needs no terms
ifeq ($(DEMO),gemma)
	@echo "The demo tunes a Gemma model. Gemma is provided under and subject to the Gemma Terms of Use, which come with"
	@echo "the installed package and stand at ai.google.dev/gemma/terms. Running 'make demo' passes '--accept-terms gemma',"
	@echo "as the next line shows: by running it you accept them. 'make demo DEMO=pico' needs no terms."
	$(BIN)/luthier adapt --demo --accept-terms gemma --out runs/demo $(ARGS)
else
	$(BIN)/luthier adapt --demo --$(DEMO) --out runs/demo-$(DEMO) $(ARGS)
endif

test: setup ## every test that is not marked slow, in JOBS processes (2)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

verify: setup ## all oracle tests, contract suites and mutants; writes status/; ARGS="--since COMMIT" looks at less
	$(BIN)/python scripts/verify.py $(ARGS)

test-all: setup ## every test, the slow ones too
	$(BIN)/python -m pytest -m "" $(ARGS)

lint: setup ## ruff, mypy and the walls between the floors
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

index: setup ## write src/luthier/components.jsonl anew from the classes
	$(BIN)/python -m luthier.core.index

catalog: setup ## the techniques, their components and their status
	$(BIN)/luthier catalog $(ARGS)

docs: setup ## the documentation site in build/site
	$(BIN)/python scripts/make_docs.py
	$(BIN)/zensical build --strict -f zensical.toml

bench: setup ## measure ours alone: training, generation, growth with the data; writes benchmarks/RESULTS.md
ifeq ($(LUTHIER_ACCEPT_TERMS),)
	@echo "The benchmarks tune a Gemma model, which comes under the Gemma Terms of Use (ai.google.dev/gemma/terms)."
	@echo "Read and accept them: LUTHIER_ACCEPT_TERMS=gemma make $@"; exit 2
endif
	$(call measured,--contenders luthier)

bench-peers: setup ## the same beside TRL, Trainer, LLaMA-Factory and llama.cpp, after building their environments
ifeq ($(LUTHIER_ACCEPT_TERMS),)
	@echo "The benchmarks tune a Gemma model, which comes under the Gemma Terms of Use (ai.google.dev/gemma/terms)."
	@echo "Read and accept them: LUTHIER_ACCEPT_TERMS=gemma make $@"; exit 2
endif
	$(BIN)/python scripts/make_peers.py --jobs $$(nproc)
	$(call measured,)

# Every workload in turn; $(1) names the contenders where not all are wanted.
define measured
	$(BIN)/python benchmarks/train_speed.py --workload gemma-lora $(1) $(ARGS)
	$(BIN)/python benchmarks/train_speed.py --workload gemma-lora --dtype float32 --rounds 1 $(or $(1),--contenders luthier,trainer,trl)
	$(BIN)/python benchmarks/train_speed.py --workload gemma-full $(1) $(ARGS)
	$(BIN)/python benchmarks/train_speed.py --workload minilm-classify $(1) $(ARGS)
	$(BIN)/python benchmarks/train_speed.py --workload gemma-top-layers --rounds 1
	$(BIN)/python benchmarks/train_speed.py --workload minilm-top-layers --rounds 1
	$(BIN)/python benchmarks/generate_speed.py $(1) $(ARGS)
	$(BIN)/python benchmarks/scaling.py $(ARGS)
	$(BIN)/python benchmarks/memory.py $(1)
	$(BIN)/python benchmarks/results.py
endef

clean: ## remove caches, builds and runs/
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -path ./.venv -prune -o -path ./.git -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf .venv
