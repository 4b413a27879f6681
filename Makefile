PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
MINIMUM := .venv-minimum
WHEEL := .venv-wheel
SPACE := .venv-space
COMMON := .common-tests

# What meets the libraries whose versions move: the model and its files, processor, the Hub, training, evaluation. Left
# out is what is numpy and torch alone (losses, metrics, pooling, sweeps), compilation, and the README's own commands.
AT_MINIMUM := $(patsubst %,tests/test_%.py,configuration modeling modeling_weights feature_extraction processing \
	shipped_files safety front_doors hub_doors hub_server data streaming train trainer trainer_folders regimes \
	run_folder embedding evaluation evaluate_modules audio containers downmix windows embedder vectors index_folder \
	sound_map hostile_files constraints cpu_kernels)

# The oldest matplotlib and plotly call what newer neighbours of theirs have deprecated.
OLD_WARNINGS := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

.PHONY: help demo space test test-minimum test-common test-wheel test-space lint bench
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -c constraints.txt -e '.[all]'
	touch $@

$(MINIMUM)/.installed: setup.cfg pyproject.toml constraints-minimum.txt
	$(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/python -m pip install -c constraints-minimum.txt -e '.[train,eval,search,map,dev]'
	touch $@

# gradio takes no pillow 13, which the rest may have taken: it lies above .venv, in an environment that sees through to
# that one and changes nothing in it.
$(SPACE)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(SPACE)
	$(RUN) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(SPACE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	$(SPACE)/bin/python -m pip install -c constraints.txt -e '.[browser]'
	touch $@

demo: $(VENV)/.installed  ## train on sounds made by code, load the result as a stranger would, and use it
	$(RUN) train.py quickstart --output_dir runs/quickstart
	$(RUN) examples/demo.py runs/quickstart/best
	$(RUN) -m modeling_wavlink.evaluation --model runs/quickstart/best --benchmark synthetic --output runs/quickstart/scores.json

space: $(SPACE)/.installed  ## the demo in a browser, of what `make demo` trained and sounds made by code
	[ -f runs/quickstart/best/config.json ] || $(MAKE) demo
	$(SPACE)/bin/python hub_cards/space/app.py --model runs/quickstart/best --index synthetic

test: $(VENV)/.installed  ## the whole test suite, a file at a time on every core
	$(RUN) -m pytest -n logical --dist loadfile

test-minimum: $(MINIMUM)/.installed  ## what depends on versions, on the oldest that setup.cfg allows
	$(MINIMUM)/bin/python -m pytest -n logical --dist loadfile $(OLD_WARNINGS) $(AT_MINIMUM)

test-common: $(VENV)/.installed  ## transformers' own common tests, out of the source package of the installed version
	folder=$$($(RUN) tests/common/sources.py $(COMMON)) && HF_HUB_OFFLINE=1 WAVLINK_COMMON_TESTS=$$folder \
		$(RUN) -m pytest -c tests/common/pytest.ini --rootdir . -n logical tests/common

test-wheel: $(VENV)/.installed  ## the wheel and its front doors, installed where no checkout can be imported
	rm -rf build dist $(WHEEL)
	$(RUN) -m pip wheel --no-deps --wheel-dir dist .
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install -c constraints.txt hypothesis pytest pytest-timeout sentence-transformers \
		"$$(echo dist/*.whl)[train,eval,search,space]"
	elsewhere=$$(mktemp -d) && cp -r tests setup.cfg $$elsewhere && cd $$elsewhere && \
		$(CURDIR)/$(WHEEL)/bin/python -m pytest $(patsubst %,tests/test_%.py,wheel front_doors cli); \
		status=$$?; rm -rf $$elsewhere; exit $$status

test-space: $(SPACE)/.installed  ## the demo with gradio, and where there is a chromium in a browser
	$(SPACE)/bin/python -m pytest tests/test_space.py tests/test_space_push.py tests/test_space_browser.py

lint: $(VENV)/.installed  ## ruff, and known vulnerabilities where their service can be reached
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) .ci/audit.py constraints.txt

bench: $(VENV)/.installed  ## speed of embedding and of training
	$(RUN) benchmarks/speed.py
	$(RUN) benchmarks/train_step.py
