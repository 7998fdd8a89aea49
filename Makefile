# Everything runs in .venv, installed from the lock files. PYTHON picks the interpreter (3.10 to 3.12).
PYTHON ?= python3
BIN := .venv/bin
NEXT := printf '%s\n' 'Everything is in .venv. Next:' '    . $(BIN)/activate' \
	'    drafthouse doctor    \# what works on this machine' '    make demo            \# the whole journey, 10 to 25 minutes'
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-outside check lock setup setup-dev kernel clean

demo: .venv/.run  ## the whole journey on one CPU: model, engine, real Triton, load sweep, report
	$(BIN)/drafthouse demo deployments/smollm2-anpd.yaml --beside deployments/smollm2-eagle3-lookup.yaml

test: kernel .venv/.dev  ## all tests but the heavy outside clients
	$(BIN)/python -m pytest -n 2 --max-worker-restart=0 -m "not outside"

test-outside: kernel .venv/.dev  ## outside clients and engines, Docker Compose, Prometheus, Kubernetes: each fetched into a place of its own
	$(BIN)/python -m pytest -m outside -rs --timeout=1200

check: .venv/.dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

setup: kernel  ## what serving and measuring need
	@$(NEXT)

setup-dev: kernel .venv/.dev  ## what training and the tests need, too: PyTorch
	@$(NEXT)

kernel: .venv/.run  ## the attention kernel, where there is a C++ compiler; without one OpenVINO's serves
	$(BIN)/python -m engine.native.build

# --no-deps: the lock is complete, and nvidia-pytriton's own pins (see requirements/overrides.txt) would refuse it.
.venv/.run: requirements/run.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"Python 3.10, 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing some 100 packages into .venv: a minute with a fast connection"
	$(PIP) --no-deps -r requirements/run.lock
	$(PIP) --no-deps -e .
	touch $@

.venv/.dev: .venv/.run requirements/dev.lock
	@echo "installing PyTorch and the tools of the tests into .venv: some minutes"
	$(PIP) --no-deps -r requirements/dev.lock
	$(PIP) --no-deps torch==2.13.0
	touch $@

lock:  ## resolve again; needs uv
	uv pip compile pyproject.toml --universal --python-version 3.10 --override requirements/overrides.txt \
		--no-annotate --custom-compile-command "make lock" -o requirements/run.lock
	uv pip compile pyproject.toml requirements/torch.in --extra dev --universal --python-version 3.10 \
		--override requirements/overrides.txt -c requirements/run.lock \
		--no-annotate --custom-compile-command "make lock" -o requirements/dev.lock

clean:  ## what can be made again; reports, checkpoints and training data in runs/ stay
	rm -rf .venv runs/engines runs/model_repo
