# The front door. `make demo` and `make test` install what they need into .venv, once.

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint type habits bench docs changelog clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
CORES ?= 2
QUICK := tests/core tests/ir tests/vocabulary tests/test_architecture.py tests/test_public_api.py
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

help: ## what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-9s %s\n", $$1, $$2 }'

demo: $(READY) ## fuse, prune, compile and run the embedded RepVGG; accuracy and milliseconds at each step
	$(BIN)/python -m reparam_compiler.prune --ratio 0.3

# Python and pytest keep what they compiled, also where the environment says not to: every process that a test starts, and every
# worker, would otherwise compile the package and the tests again.
test quick: export PYTHONDONTWRITEBYTECODE :=

test: lint type ## lint, types and every test, the slow ones too
	$(BIN)/python -m pytest -m "" -n $(CORES) --dist worksteal

quick: lint ## lint and the fast tests, under two minutes; ROOM=frontends/onnx for those of one room alone
	$(BIN)/python -m pytest -m "not slow and not tvm" -n $(CORES) --dist worksteal $(if $(ROOM),tests/$(ROOM),$(QUICK))

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY) ## mypy --strict
	$(BIN)/mypy

habits: $(READY) ## every verb on every habit of code in every kind of model: docs/habits.md, in an hour or two of one core
	$(BIN)/python -m tests.habits

bench: $(READY) ## the ladder: training form, fused, pruned, compiled, against PyTorch and ONNX Runtime
	$(BIN)/python -m benchmarks.ladder

docs: $(READY) ## draw the figures of docs/ anew, and build the site into build/site; its warnings are errors
	@for script in docs/draw_*.py; do if [ -e "$$script" ]; then echo "$$script"; $(BIN)/python "$$script" || exit; fi; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

changelog: $(READY) ## put what is in changes/ into CHANGELOG.md, for a release
	$(PIP_INSTALL) towncrier
	$(BIN)/towncrier build --yes --version next  # the title stands there already

clean: ## remove caches and build outputs; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch goes first and by its exact version, then torchvision (timm needs it): a range would let pip take newer builds with
# gigabytes of GPU libraries.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV), once: a few minutes"
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP_INSTALL) "torch==2.13.0"
	$(PIP_INSTALL) "torchvision==0.28.0"
	$(PIP_INSTALL) -e ".[onnx,tvm,test,docs,zoo]"
	touch $@
