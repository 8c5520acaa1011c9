# make demo: the whole path on a laptop.  make test: lint, arrows, types, tests.  make test-slow: the longer tests.
# make reproduce DATA=folder: the result tables.  make site: the documents in build/site.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= outputs
# One thread in each process: more than there are cores wait for each other. Modules are compiled once, not by each of
# the processes that Ray starts. Who runs what: tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=15

.PHONY: demo test test-slow test-pythons reproduce site install constraints clean
.DELETE_ON_ERROR:

# A name for it: the commas would divide the arguments of `call`.
DEMO_EXTRAS := .[offline,train,tracking]

# $(call install,WHAT): a virtual environment with the project and the extras named, at the versions of constraints.txt.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"conclugen needs Python 3.11 or later, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	@# An environment whose making was interrupted has a python and no pip: it is made again.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(1)" --config-settings editable_mode=compat
	@touch $@
endef

$(VENV)/installed: pyproject.toml constraints.txt
	$(call install,.[all])

$(VENV)/installed-demo: pyproject.toml constraints.txt
	$(call install,$(DEMO_EXTRAS))

$(VENV)/installed-test: pyproject.toml constraints.txt
	$(call install,.[test])

install: $(VENV)/installed

demo: $(VENV)/installed-demo
	$(BIN)/python -m ray_jobs.demo --output $(OUT)/demo

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers=2 conclugen shards ray_jobs tuning benchmarks
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow"

# What `make test` leaves out, but for the campaigns, which take hours (tests/README.md).
test-slow: $(VENV)/installed-test test-pythons
	$(PYTEST) -m "slow and not campaign"

# The tests without Ray and media on Python 3.12 and 3.13, where they are installed.
test-pythons:
	$(PYTHON) tests/other_pythons.py

# The documents, to be read in a browser: build/site/index.html. `make test` builds them too (tests/docs).
site: $(VENV)/installed-test
	$(BIN)/python -m docs.hooks
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reproduce: install
	$(BIN)/python -m benchmarks.reproduce --data $(DATA) --output $(OUT)/reproduce --results docs/results.md \
	    --seeds 211,223,227 --draw-seed 229

constraints: $(VENV)/installed-test
	(echo "# Every package of a tested installation, at its tested version. Refresh: make constraints"; $(BIN)/python -m pip freeze --exclude-editable) > constraints.txt

clean:
	rm -rf $(OUT) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
