# make run | make test: the two commands a newcomer needs. The environment lives in .venv and is made on first use.
PYTHON ?=
ARGS ?=
BIN := .venv/bin/python
export GRADIO_ANALYTICS_ENABLED := False

# environment(app|tests): nothing to do when .venv is as pinned, else the first suitable Python installs it.
define environment
@$(BIN) .ci/environment.py ready $(1) 2>/dev/null || { \
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			exec $$python .ci/environment.py install $(1); \
		fi; \
	done; \
	echo 'No Python 3.11 or newer with venv found: install one (Debian: apt-get install python3 python3-venv;' \
		'others: https://www.python.org/downloads) or name it: make run PYTHON=/path/to/python3' >&2; \
	exit 1; }
endef

help:
	@echo 'make run       the app on localhost           (ARGS="--port 8000" passes flags)'
	@echo 'make test      lint and tests                 (ARGS="-k audio" passes flags to pytest)'
	@echo 'make lint      ruff'
	@echo 'make bench     speed and memory, as ratios measured in one run'
	@echo 'make load      fifty clients at once against the server (ARGS="--clients 100 --seconds 20")'
	@echo 'make fuzz      thousands of damaged files, decoded and asked about (ARGS="--seed 1")'
	@echo 'make bench-train  the same of a training step (ARGS="--data DIR")'
	@echo 'make train     train a network                (ARGS="--data DIR ...")'
	@echo 'make evaluate  its accuracy on a fold         (ARGS="--model FILE --data DIR --fold 5")'
	@echo 'make crossval  all folds, with a report       (ARGS="--recipe best-16k --data DIR")'
	@echo 'make space     this repository as a Hugging Face Space  (REPO=OWNER/NAME)'
	@echo 'make clean     remove .venv and caches'
	@echo 'TORCH_INDEX=https://download.pytorch.org/whl/cpu make run   chooses the small CPU builds of torch'

run:
	$(call environment,app)
	@echo 'Starting the app; Ctrl-C ends it.'
	@$(BIN) app.py $(ARGS)

test: chromium curl
	$(call environment,tests)
	@$(BIN) -m ruff check
	@$(BIN) -m pytest -q $(ARGS)

chromium:
	@command -v "$${CHROMIUM:-/usr/bin/chromium}" >/dev/null || { \
		echo 'The browser tests need Chromium: apt-get install chromium, or CHROMIUM=/path/to/chrome make test' >&2; \
		exit 1; }

curl:
	@command -v curl >/dev/null || { echo "The README's calls are tested with curl: apt-get install curl" >&2; exit 1; }

lint:
	$(call environment,tests)
	@$(BIN) -m ruff check

bench:
	$(call environment,tests)
	@$(BIN) -m tests.bench $(ARGS)

load:
	$(call environment,tests)
	@$(BIN) -m tests.load $(ARGS)

fuzz:
	$(call environment,tests)
	@$(BIN) -m tests.fuzz $(ARGS)

bench-train:
	$(call environment,tests)
	@$(BIN) -m tests.bench_train $(ARGS)

train:
	$(call environment,tests)
	@$(BIN) -m training.train $(ARGS)

evaluate:
	$(call environment,tests)
	@$(BIN) -m training.evaluate $(ARGS)

crossval:
	$(call environment,tests)
	@$(BIN) -m training.crossval $(ARGS)

space:
	@test -n "$(REPO)" || { echo 'Which Space? make space REPO=OWNER/NAME, logged in with hf auth login' >&2; exit 1; }
	$(call environment,app)
	@$(BIN) -m cnn.serve.space $(REPO) $(ARGS)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .gradio
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help run test chromium curl lint bench load fuzz bench-train train evaluate crossval space clean
