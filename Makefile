PYTHON ?= python3
VENV ?= .venv
ALGO ?= ppo_klpen
ENV ?= Pendulum-v1
LOGS ?= logs
# Number of timesteps; that of the hyperparameter file if empty
N ?=
ARGS ?=
BIN = $(VENV)/bin

.PHONY: train test lint format test-oldest compare docs clean

train: $(VENV)/installed
	$(BIN)/python -m rl_zoo3.train --algo $(ALGO) --env $(ENV) -f $(LOGS) $(if $(N),-n $(N)) --progress $(ARGS)
	@echo
	@echo "The model is in $$(ls -td $(LOGS)/$(ALGO)/$(ENV)_* | head -n 1). To watch it:"
	@echo "    $(BIN)/python -m rl_zoo3.enjoy --algo $(ALGO) --env $(ENV) -f $(LOGS)"

test: $(VENV)/installed-tests
	$(BIN)/python -m pytest -n logical --maxprocesses 8

lint: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The oldest stable-baselines3, sb3-contrib, rl-zoo3, gymnasium and pettingzoo that setup.py allows
test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -n logical --maxprocesses 8

compare: $(VENV)/installed-tests
	$(BIN)/python benchmarks/compare_sb3.py

# The site, in docs/_build/html
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs docs/_build/html

$(VENV)/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[mujoco]"
	touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[tests]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)-oldest/installed: setup.py pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet -c constraints-oldest.txt -e ".[tests]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info docs/_build
