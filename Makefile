# `make lab` and `make test` do everything; both make the environment in .venv first, or mend it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
# JupyterLab refuses to run as root unless told that this is meant, as in most containers.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

# Python is to keep what it compiles, even where the shell says otherwise: every lesson would compile all packages again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help lab test notebooks slides site wheelhouse lint environment clean

help:
	@echo "make lab        open the course in JupyterLab"
	@echo "make test       run everything that is checked"
	@echo "make notebooks  run all lessons and store their outputs"
	@echo "make slides     make lecture slides, in build/slides"
	@echo "make site       make a static site of the course, in build/site"
	@echo "make wheelhouse download all packages for rooms without network, into wheelhouse/"
	@echo "make lint       check the style of code and lessons"
	@echo "make clean      remove the environment and all caches"

lab: environment
	$(BIN)/jupyter lab $(ROOT_FLAG) notebooks/00_start_here.ipynb

# Two workers with one thread each: threads of two processes on two cores spend their time waiting for one another.
# Files in their order, lessons and the browser's tests first: else a long one comes last, and one worker waits for it.
test: environment lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env --nbval-cell-timeout 600

notebooks: environment
	$(BIN)/course execute

slides: environment
	$(BIN)/course slides

site: environment
	$(BIN)/course site

# Built, not only downloaded: packages that come as source need more to be built. setuptools is for the course itself.
wheelhouse: environment
	$(BIN)/python -m pip wheel --quiet --wheel-dir wheelhouse --constraint constraints.txt setuptools pip '.[site,test]'

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

environment.yml: pyproject.toml constraints.txt course_lib/environment.py | environment
	$(BIN)/python -m course_lib.environment

# A stamp newer than the lock and intact packages: nothing to do. Anything else is installed again, over what is there.
environment:
	@if [ $(STAMP) -nt pyproject.toml ] && [ $(STAMP) -nt constraints.txt ] \
	    && $(BIN)/python -m course_lib.cli doctor --packages 2>/dev/null; then :; \
	else $(MAKE) --no-print-directory $(STAMP) --always-make; fi

# --no-compile: Python compiles what is imported, when it is; compiling all packages here would take a minute more.
# The pip that old Pythons bring takes half as long again to install all this.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "The course needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version)."; \
	    echo "Install one and name it: make lab PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@rm -f $(STAMP)
	$(BIN)/python -m pip install --quiet 'pip>=25'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[site,test]'
	@$(BIN)/python -m course_lib.cli doctor --packages || { \
	    echo "The environment is damaged. Make it anew: make clean, then the same command."; exit 1; }
	@touch $(STAMP)

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
