# make demo    train and try a generator on the embedded synthetic faces (CPU, some minutes)
# make test    lint, types and tests, the tutorial among them
# make docs    the documentation site, into site/ (make test builds it, too: a broken link fails)
# Both create the virtual environment first; PYTHON=python3.12 chooses its interpreter, VENV=... its place.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
LOCK := $(if $(shell command -v flock),flock .venv.lock)

.PHONY: demo test docs install install-dev clean

demo: install
	$(BIN)/python data_prep/prepare.py synthetic $(DEMO)/data --splits 0.65,0.1,0.25
	$(BIN)/python data_prep/demo_photos.py $(DEMO)/data $(DEMO)/photos
	$(BIN)/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		train.py --config configs/quickstart.yaml --data $(DEMO)/data --out $(DEMO)/run
	$(BIN)/python sample.py --faces $(DEMO)/photos --out $(DEMO)/masked --checkpoint $(DEMO)/run
	$(BIN)/python -m gan_mask.evaluation --data $(DEMO)/data --checkpoint $(DEMO)/run --out $(DEMO)/evaluation
	@echo
	@echo "Look at $(DEMO)/masked/overview.png (the masks), $(DEMO)/masked/results.csv (each face) and"
	@echo "$(DEMO)/evaluation/index.html (the rates above: dm is before, generator after)."

test: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --nbmake tests docs/tutorial.ipynb

docs: install-dev
	$(BIN)/mkdocs build --quiet

# Two makes at once must not install into one environment together, hence the lock.
install:
	@$(LOCK) $(MAKE) --no-print-directory $(VENV)/installed

install-dev:
	@$(LOCK) $(MAKE) --no-print-directory $(VENV)/installed-dev

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: gan_mask needs Python 3.10 or newer; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	$(BIN)/pip install --disable-pip-version-check --no-deps 'torchattacks>=3.5'  # why so: docs/dependencies.md
	@touch $@

clean:
	rm -rf $(VENV) .venv.lock $(DEMO)
