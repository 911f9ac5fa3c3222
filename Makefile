# The two commands of a newcomer: `make demo` and `make test`. Both set everything up first (once).
# DEVICE=gpu installs the GPU lock; PYTHON=... chooses the interpreter (3.11); VENV=... the environment's folder;
# WORKERS=N how many tests run at a time.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
DEVICE ?= cpu
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
READY := $(VENV)/.ready-$(DEVICE)
# Half of a test's time is waiting (for processes to start, mostly): two at a time, a file each, since its tests share engines.
WORKERS ?= 2

.PHONY: demo test test-slow lint setup lock protos reference docs wheel clean

demo: setup  ## The whole job on two cores: 20 minutes after the install.
	$(VENV)/bin/python -m learner.main

test: setup lint  ## The test suite.
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: setup  ## The long tests.
	$(VENV)/bin/python -m pytest -m slow

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

setup: $(READY)

$(READY): requirements/$(DEVICE).lock requirements/install.sh
	@bash requirements/install.sh "$(PYTHON)" "$(VENV)" "$(DEVICE)"
	@touch $@

lock:  ## Resolves requirements/$(DEVICE).in anew into requirements/$(DEVICE).lock.
	@bash requirements/lock.sh "$(PYTHON)" "$(DEVICE)"

protos: setup  ## Regenerates the stubs of protos/reward.proto.
	$(VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/reward.proto

reference: setup  ## Writes docs/reference/ from the typed configs and the commands' --help.
	@mkdir -p build
	$(VENV)/bin/python -m configs.reference > build/config.md && mv build/config.md docs/reference/config.md
	$(VENV)/bin/python docs/commands.py > build/commands.md && mv build/commands.md docs/reference/commands.md

docs: setup  ## The site, in build/site; a broken link or anchor, or a page that is not in the nav, is an error.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

wheel: setup  ## The package, in dist/; it runs outside of the checkout.
	rm -rf build/lib
	$(VENV)/bin/python -m build --wheel --no-isolation -C--global-option=--quiet

clean:  ## Removes the environment, the caches and the stamps (not outputs/).
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
