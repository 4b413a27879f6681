PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test lint bench
help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 8

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -c constraints.txt -e '.[train,eval,dev]'
	touch $@

demo: $(VENV)/.installed  ## train on sounds made by code, load the result as a stranger would, and use it
	$(RUN) train.py quickstart --output_dir runs/quickstart
	$(RUN) -m modeling_wavlink.evaluation --model runs/quickstart/best --benchmark synthetic --output runs/quickstart/scores.json
	$(RUN) examples/demo.py runs/quickstart/best

test: $(VENV)/.installed  ## the whole test suite, a file at a time on every core
	$(RUN) -m pytest -n logical --dist loadfile

lint: $(VENV)/.installed  ## ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(VENV)/.installed  ## speed of embedding and of training
	$(RUN) benchmarks/embed.py
	$(RUN) benchmarks/train_step.py
