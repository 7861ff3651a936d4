# Each target sets up what it needs first: the versions of constraints.txt, with LATEST=1 the newest ones, with LOWEST=1
# the oldest ones that are supported. `make test PYTHON=/path/to/python` uses an environment of yours, as it is.
PYTHON ?=
RUN = $(or $(PYTHON),.venv/bin/python)
PINS = $(if $(PYTHON)$(LATEST)$(LOWEST),,-c constraints.txt)
OPTIONAL = densecrf,docs
VERSIONS = $(if $(LATEST),latest,$(if $(LOWEST),lowest,tested))
SETUP = $(or $(PYTHON),python3) tools/setup_env.py --python "$(PYTHON)" --versions $(VERSIONS)

.PHONY: help setup demo test lint bench gpu docs
help:
	@echo "make demo   set up, train TCL on the small world, compare with dense CLIPs (table and pictures)"
	@echo "make test   set up, run the tests; EVERY=1 brings DenseCRF, the site and label tools too, and fails if a check is skipped but for a GPU"
	@echo "make lint   set up, check the style, and the types of all public packages"
	@echo "make bench  set up, measure speed and memory against plain references (an hour)"
	@echo "make gpu    set up, check and measure everything on a GPU, write output/gpu.md; says so where there is none"
	@echo "make docs   set up, build the documentation as a site, output/site/index.html"
	@echo "PYTHON=...  use that interpreter's environment in place of .venv"
	@echo "LATEST=1    install the newest versions into .venv rather than the tested ones; LOWEST=1 the oldest"

setup:
	@$(SETUP)

demo: setup
	$(RUN) tools/shapes_demo.py

test: setup
	$(if $(EVERY),$(RUN) -m pip install -q $(PINS) -e '.[$(OPTIONAL)]')
	$(if $(EVERY),$(RUN) -m pip install -q --no-deps -r tools/label_tools.txt)
	$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(if $(EVERY),--every-check)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright --project pyproject.toml --pythonpath $(RUN)

bench: setup
	$(RUN) dev/benchmark.py

gpu: setup
	$(RUN) dev/gpu_report.py

docs: setup
	$(RUN) -m pip install -q $(PINS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
