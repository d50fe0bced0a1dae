# Every target needs only `python3` (3.11 to 3.13) with `venv`; `make env` installs the rest.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
ARGS ?=
MEMBERS ?=
comma := ,
NAME ?= $(subst $(comma),+,$(MEMBERS))
# For Kaggle: a Python of its version; create or version the dataset; which ensemble (the demo's).
KAGGLE_PYTHON ?= python3.12
PUSH ?= create
BUNDLED = $(or $(strip $(if $(NAME),name=$(NAME)) $(ARGS)),paths=demo name=demo)
.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow lint types docs prepare train ensemble report submission kaggle \
	kaggle-push gpu gpu-pack lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo "ARGS has the settings of a command: make train ARGS='experiment=recommended trainer=gpu -m fold=0,1,2,3'"

env: .venv/.complete ## create or update .venv from requirements.lock

.venv/.complete: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: env ## synthetic competition of real DICOM files -> the whole pipeline -> output/demo
	@echo "1/7 synthesize: mammograms with planted cancers, as the DICOM files of a competition"
	@$(RUN) rsna_bcd.synthesize paths=demo
	@echo "2/7 prepare: decode the files, crop the breasts, split the patients into folds"
	@$(RUN) rsna_bcd.prepare paths=demo crop=demo
	@echo "3/7 train: a small network on each of two folds, from scratch"
	@$(RUN) rsna_bcd.train paths=demo experiment=demo -m fold=0,1
	@echo "4/7 ensemble: average the folds, choose the threshold on out-of-fold predictions"
	@$(RUN) rsna_bcd.ensemble paths=demo name=demo members=[demo]
	@echo "5/7 submit: predict the test images, write submission.csv"
	@$(RUN) rsna_bcd.submit paths=demo name=demo
	@echo "6/7 report: out-of-fold scores with intervals, subgroups, baselines, saliency maps"
	@$(RUN) rsna_bcd.report paths=demo name=demo 'baseline=[metadata,intensity]'
	@echo "7/7 evaluate: score the submission against the labels of the test set"
	@$(RUN) rsna_bcd.evaluate paths=demo name=demo
	@echo "Open output/demo/report/demo/index.html (scores out of fold) and"
	@echo "output/demo/prepared/rsna/demo/train_contact_sheet.png (crops)."

test: env lint types ## ruff, mypy and the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

test-slow: env ## the longer checks: simulations, kills, 5,000 damaged files, the demo
	$(BIN)/pytest -m slow $(ARGS)

lint: env ## ruff: style and format of the code
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: env ## mypy: types
	$(BIN)/mypy

docs: env ## build the documentation, with the API reference -> output/docs/index.html
	$(BIN)/python -m sphinx -b html -q -W --keep-going -d output/.doctrees docs output/docs

prepare: env ## DICOM files and tables -> crops, manifest, folds
	$(RUN) rsna_bcd.prepare $(ARGS)

train: env ## one fold of one experiment, or a sweep (-m fold=0,1,2,3)
	$(RUN) rsna_bcd.train $(ARGS)

ensemble: env ## out-of-fold predictions of runs -> blend, threshold, cross-fitted score
	$(RUN) rsna_bcd.ensemble $(ARGS)

report: env ## an ensemble or a run -> one HTML page and a model card
	$(RUN) rsna_bcd.report $(ARGS)

# With MEMBERS, fits their ensemble first, which takes seconds; with NAME alone, uses the existing one.
# ARGS are settings of submit; those of `paths` are given to both.
submission: env ## MEMBERS=a,b or NAME=best: test images -> submission.csv
	$(if $(MEMBERS),$(RUN) rsna_bcd.ensemble name=$(NAME) members=[$(MEMBERS)] $(filter paths%,$(ARGS)))
	$(RUN) rsna_bcd.submit $(if $(NAME),name=$(NAME)) $(ARGS)

kaggle: env ## NAME=best: offline dataset and notebook, rehearsed without a network
	$(RUN) rsna_bcd.submit $(BUNDLED)
	$(RUN) rsna_bcd.bundle $(BUNDLED)
	$(RUN) rsna_bcd.rehearse $(BUNDLED) interpreter=$(KAGGLE_PYTHON)

kaggle-push: env ## NAME=best ARGS='owner=me': upload them; PUSH=version from the second time on
	$(RUN) rsna_bcd.bundle $(BUNDLED) push=$(PUSH)

# Does not need `env`, for machines without a network: uses .venv if it exists, else $(PYTHON).
gpu: ## PACK=folder: checks and benchmarks on a GPU, 9 minutes, offline
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py $(if $(PACK),pack=$(PACK)) $(ARGS)

# The archives have the crops of DATA, the weights, missing packages and the source tree. ARGS are the
# settings at the top of benchmarks/gpu_pack.py.
gpu-pack: env ## DATA=folder WEIGHTS=file: archives for a GPU machine without a network
	$(BIN)/python benchmarks/gpu_pack.py data=$(DATA) $(if $(OUT),output=$(OUT)) \
		$(if $(WEIGHTS),weights=$(WEIGHTS)) $(ARGS)

lock: env ## upgrade requirements.lock to the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --extra sweep --extra export \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--upgrade -o requirements.lock

clean: ## delete the demo, the site and caches; keep your runs and .venv
	rm -rf output/demo output/docs output/.doctrees docs/api .pytest_cache .mypy_cache .ruff_cache dist
