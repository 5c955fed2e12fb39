# Every target sets up what it needs in a fresh clone: Python >= 3.11, make and the package index are enough.
# Nothing is written outside the clone and $(CACHE).
PYTHON ?= python3
CACHE  ?= $(HOME)/.cache/pidone
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export PIP_CACHE_DIR := $(CACHE)/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env demo test check format lock eureka clean

help:
	@echo "make demo    three pods, a repo and a Eureka on this machine, every step checked (KEEP=1 stays up)"
	@echo "make test    all tests that this machine can run; each skip says how to enable it"
	@echo "make check   ruff, mypy strict, import-linter"
	@echo "make env     the development environment in .venv"
	@echo "make eureka  the real Eureka server for demo and tests (needs Java 17 and Maven)"
	@echo "make lock    requirements.lock from the two pyproject.toml"

env: $(READY)

$(READY): requirements.lock pyproject.toml controller/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pidone needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . -e controller
	@touch $@

demo: $(READY)
	@$(BIN)/python -m tests.demo $(if $(KEEP),--keep)

test: $(READY)
	$(BIN)/python -m pytest -q $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

eureka: k3d/apps/discovery/target/discovery.jar

k3d/apps/discovery/target/discovery.jar: k3d/apps/discovery/pom.xml $(shell find k3d/apps/discovery/src -type f 2>/dev/null)
	mvn -B -q -f k3d/apps/discovery/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package

lock: $(READY)
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q uv
	build/lock/bin/uv --cache-dir $(CACHE)/uv pip compile -q --universal --generate-hashes --no-header \
	  --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
