PYTHON ?= python3
VENV := .venv
BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
RUN := $(VENV)/$(BIN)/python
MINIMUM := .venv-minimum
WHEEL := .venv-wheel
SPACE := .venv-space
COMMON := .common-tests

# The files of tests by their names, in whatever folder.
test_files = $(foreach name,$(1),$(wildcard tests/*/test_$(name).py))

# What meets the libraries whose versions move: the model and its files, processor, the Hub, training, evaluation. Left
# out is what is numpy and torch alone (losses, metrics, pooling, sweeps), compilation, and the README's own commands.
AT_MINIMUM := $(call test_files,configuration modeling modeling_weights feature_extraction processing \
	shipped_files safety front_doors hub_doors hub_server data streaming train trainer trainer_folders regimes \
	run_folder embedding evaluation evaluate_modules audio containers downmix windows embedder scoring nearest table \
	sound_map hostile_files constraints torch_cpu)

# The oldest matplotlib and plotly call what newer neighbours of theirs have deprecated.
OLD_WARNINGS := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

# Of `make fuzz`: inputs of each kind of file, and what they are drawn from.
INPUTS ?= 2000
SEED ?= 0

# Of `make reproduce`: what all commands together may take.
HOURS ?= 3

# The two speeds of test: what CONTRIBUTING.md calls fast, and all else that runs without gigabytes of memory.
FAST := not (slow or real or browser or big)
SLOW := (slow or real or browser) and not big

.PHONY: help demo space test test-slow test-minimum test-common test-wheel test-space coverage lint fuzz bench docs tables reproduce
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

# The browser's driver lies above .venv, in an environment that sees through to that one and changes nothing in it.
$(SPACE)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(SPACE)
	$(RUN) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(SPACE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	$(SPACE)/bin/python -m pip install -c constraints.txt -e '.[browser]'
	touch $@

# What the demo needs alone, unless all is there.
$(VENV)/.demo: setup.cfg pyproject.toml constraints.txt
	[ -f $(VENV)/.installed ] || { $(PYTHON) -m venv $(VENV) && $(RUN) -m pip install -c constraints.txt -e '.[demo]'; }
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(RUN) -m pip install -c constraints.txt -e '.[docs]'
	touch $@

demo: $(VENV)/.demo  ## name and find real sounds, and teach a model new ones; MODEL=FOLDER takes yours
	$(RUN) examples/demo.py --out runs/demo $(if $(MODEL),--model $(MODEL))

space: $(VENV)/.installed  ## the demo in a browser, of a model that is trained first and sounds made by code
	[ -f runs/quickstart/best/config.json ] || $(RUN) train.py quickstart --output_dir runs/quickstart
	$(RUN) -m wavlink space --model runs/quickstart/best --index synthetic

# A worker a core: further threads, also of the processes that tests start, would only wait for each other.
test test-slow coverage: export OMP_NUM_THREADS = 1

test: $(VENV)/.installed  ## the fast tests, a file at a time on every core: 5 minutes on 2 cores
	$(RUN) -m pytest -n logical --dist loadfile -m '$(FAST)'

test-slow: $(VENV)/.installed  ## the other tests: whole commands, kills, several processes, real sounds where there are some
	$(RUN) -m pytest -n logical --dist loadfile -m '$(SLOW)'

coverage: $(VENV)/.installed  ## the fast tests, and the share of each file's lines that they run
	$(RUN) -m pytest -n logical --dist loadfile -m '$(FAST)' --cov --cov-report=term:skip-covered

test-minimum: $(MINIMUM)/.installed  ## what depends on versions, on the oldest that setup.cfg allows
	$(MINIMUM)/bin/python -m pytest -n logical --dist loadfile $(OLD_WARNINGS) $(AT_MINIMUM)

test-common: $(VENV)/.installed  ## transformers' own common tests, out of the source package of the installed version
	folder=$$($(RUN) tests/common/sources.py $(COMMON)) && HF_HUB_OFFLINE=1 WAVLINK_COMMON_TESTS=$$folder \
		$(RUN) -m pytest -c tests/common/pytest.ini --rootdir . -n logical tests/common

test-wheel: $(VENV)/.installed  ## the wheel, its front doors and the snippets of README and docs, where no checkout can be imported
	rm -rf build dist $(WHEEL)
	$(RUN) -m pip wheel --no-deps --wheel-dir dist .
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install -c constraints.txt hypothesis pytest pytest-timeout sentence-transformers \
		"$$(echo dist/*.whl)[train,eval,search,map,space]"
	elsewhere=$$(mktemp -d) && cp -r tests docs README.md setup.cfg $$elsewhere && cd $$elsewhere && \
		$(CURDIR)/$(WHEEL)/bin/python -m pytest $(call test_files,wheel front_doors cli public_api snippets); \
		status=$$?; rm -rf $$elsewhere; exit $$status

test-space: $(SPACE)/.installed  ## the demo with gradio, and where there is a chromium in a browser
	$(SPACE)/bin/python -m pytest tests/hub/test_space.py tests/hub/test_space_push.py tests/hub/test_space_browser.py

lint: $(VENV)/.installed  ## ruff, types of the public API, GitHub's files by their schemas, known vulnerabilities where their service can be reached
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(RUN) -m check_jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(RUN) -m check_jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(RUN) .ci/audit.py constraints.txt

fuzz: $(VENV)/.installed  ## damaged files, and property tests on new examples: SEED=1 INPUTS=2000
	$(RUN) benchmarks/fuzz.py --inputs $(INPUTS) --seed $(SEED) --failures runs/fuzz
	$(RUN) -m pytest --hypothesis-profile=search tests/model/test_properties.py tests/model/test_properties_losses.py

bench: $(VENV)/.installed  ## speed of embedding and of training
	$(RUN) benchmarks/speed.py
	$(RUN) benchmarks/train_step.py

docs: $(VENV)/.docs  ## the documentation, into site/; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

tables: $(VENV)/.installed  ## the tables and plots of README and docs, from benchmarks/results
	$(RUN) benchmarks/tables.py
	$(RUN) benchmarks/pictures.py

reproduce: $(VENV)/.installed  ## measure again what fits into 3 hours, and compare with benchmarks/results: SOUNDS=FOLDER HOURS=3
	$(RUN) benchmarks/reproduce.py --sounds "$(or $(SOUNDS),$(error name an audiofolder: make reproduce SOUNDS=FOLDER))" --hours $(HOURS)
