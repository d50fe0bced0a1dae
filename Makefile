# Every target needs only `python3` (3.11 to 3.13) with `venv`; `make env` brings the rest.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
ARGS ?=
MEMBERS ?=
comma := ,
NAME ?= $(subst $(comma),+,$(MEMBERS))
# For Kaggle: a Python of its version, how to push, and which ensemble.
KAGGLE_PYTHON ?= python3.12
PUSH ?= create
BUNDLED = $(or $(strip $(if $(NAME),name=$(NAME)) $(ARGS)),paths=demo name=demo)
.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow lint types prepare train ensemble report submission kaggle \
	kaggle-push gpu gpu-pack lock clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo "Settings go into ARGS, e.g.  make train ARGS='experiment=effnet_b5 -m fold=0,1,2,3'"

env: .venv/.complete ## build .venv from requirements.lock (does nothing when nothing changed)

.venv/.complete: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: env ## synthetic competition of real DICOM files -> the whole pipeline -> output/demo
	$(RUN) rsna_bcd.synthesize paths=demo
	$(RUN) rsna_bcd.prepare paths=demo crop=demo
	$(RUN) rsna_bcd.train paths=demo experiment=demo -m fold=0,1
	$(RUN) rsna_bcd.ensemble paths=demo name=demo members=[demo]
	$(RUN) rsna_bcd.submit paths=demo name=demo
	$(RUN) rsna_bcd.evaluate paths=demo name=demo
	$(RUN) rsna_bcd.report paths=demo name=demo 'baseline=[metadata,intensity]'

test: env lint types ## lint, types and the tests (under 15 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

test-slow: env ## the longer checks
	$(BIN)/pytest -m slow $(ARGS)

lint: env ## ruff: style and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: env ## mypy
	$(BIN)/mypy

prepare: env ## DICOM + CSV -> crops, one table per split, manifest, folds
	$(RUN) rsna_bcd.prepare $(ARGS)

train: env ## one fold of one experiment, or a sweep (-m fold=0,1,2,3)
	$(RUN) rsna_bcd.train $(ARGS)

ensemble: env ## members' out-of-fold predictions -> weights, threshold, honest score
	$(RUN) rsna_bcd.ensemble $(ARGS)

report: env ## an ensemble's or a run's scores -> one HTML page, model card
	$(RUN) rsna_bcd.report $(ARGS)

# Of MEMBERS an ensemble is made, which takes seconds and comes out the same each time; NAME alone
# takes one that is there. ARGS are for the submission, `paths` for both.
submission: env ## MEMBERS=a,b or NAME=best: ensemble, test images -> submission.csv
	$(if $(MEMBERS),$(RUN) rsna_bcd.ensemble name=$(NAME) members=[$(MEMBERS)] $(filter paths%,$(ARGS)))
	$(RUN) rsna_bcd.submit $(if $(NAME),name=$(NAME)) $(ARGS)

kaggle: env ## NAME=best (or the demo): offline dataset and notebook, and their dry run
	$(RUN) rsna_bcd.submit $(BUNDLED)
	$(RUN) rsna_bcd.bundle $(BUNDLED)
	$(RUN) rsna_bcd.rehearse $(BUNDLED) interpreter=$(KAGGLE_PYTHON)

kaggle-push: env ## NAME=best ARGS='owner=me': send them to Kaggle; later PUSH=version as well
	$(RUN) rsna_bcd.bundle $(BUNDLED) push=$(PUSH)

# Without `env`, for a machine without a network: the Python of .venv if there is one.
gpu: ## PACK=folder: prove everything on a GPU, in 9 minutes, offline; small on a processor
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py $(if $(PACK),pack=$(PACK)) $(ARGS)

# The crops of DATA, the weights in WEIGHTS, missing packages and the source tree, for a machine
# without a network; ARGS as in benchmarks/gpu_pack.py.
gpu-pack: env ## DATA=data/rsna640 WEIGHTS=...: archives for a GPU without a network
	$(BIN)/python benchmarks/gpu_pack.py data=$(DATA) $(if $(OUT),output=$(OUT)) \
		$(if $(WEIGHTS),weights=$(WEIGHTS)) $(ARGS)

lock: env ## compile requirements.lock again from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra sweep --extra export --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --upgrade \
		-o requirements.lock

clean: ## delete what the demo and the tests made (neither your runs nor .venv)
	rm -rf output/demo .pytest_cache .mypy_cache .ruff_cache dist
