# Everything is made in .venv; `make clean` takes it away again.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Set TORCH_INDEX to the package index of CPU builds that pytorch.org names, to be spared gigabytes of CUDA.
INSTALL_TORCH = $(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet torch==2.13.0 --index-url $(TORCH_INDEX),@true)
NODE_MODULES := grafana/pictures/node_modules
CHECKED := hatch_build.py hooks exporter grafana prometheus deploy examples tests benchmarks

.PHONY: help demo test test-slow test-gpu test-packages check packages lock audit bench faultbench scale dashboards dashboard-types pictures top-picture channels docs kubernetes tools newer-tools node-exporter systemd-analyze pushgateway compose-client clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 17

demo: $(VENV)/.example tools  ## a healthy and a sick training run, and the alert that arrives (three minutes)
	$(BIN)/python examples/demo/demo.py

test: $(VENV)/.test tools newer-tools node-exporter systemd-analyze pushgateway compose-client check  ## everything that a change has to pass
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not packages"

test-slow: $(VENV)/.test tools  ## what takes longer than a few minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.test  ## the hooks on this machine's GPU
	$(BIN)/python -m pytest -m gpu tests/hooks/test_gpu.py

test-packages: $(VENV)/.test  ## wheel and sdist in a clean environment of each Python that is there
	$(BIN)/python -m pytest -m packages tests/test_packages.py

check: $(VENV)/.test  ## ruff and mypy alone
	ruff check $(CHECKED)
	ruff format --check $(CHECKED)
	mypy hooks exporter grafana/build.py prometheus/alerts_page.py prometheus/alertmanager/build.py deploy/kubernetes/build.py examples/demo tests benchmarks
	MYPYPATH=examples mypy examples/voice_clone

bench: $(VENV)/.test $(VENV)/rivals  ## what hooks and scrapes cost, beside the budgets and others
	$(BIN)/python -m benchmarks.hooks
	$(BIN)/python -m benchmarks.rivals --traceml $(VENV)/rivals
	$(BIN)/python -m benchmarks.scrape --rivals $(VENV)/rivals

faultbench: $(VENV)/.test tools  ## faults and healthy runs through the whole stack: what is caught, what is a false alarm (40 minutes)
	$(BIN)/python -m benchmarks.faultbench --write docs/faultbench-results.md

scale: $(VENV)/.test tools  ## 40, 160 and 1,000 GPUs on one Prometheus: what it spends (40 minutes, 4 GiB)
	$(BIN)/python -m benchmarks.scale

dashboards: $(VENV)/.test  ## build grafana/dashboards from grafana/definitions
	$(BIN)/python grafana/build.py

channels: $(VENV)/.test  ## build prometheus/alertmanager from its folder source
	$(BIN)/python prometheus/alertmanager/build.py

# Both need Node 20 or newer with npm; the second one Chromium, too.
dashboard-types: $(NODE_MODULES)  ## check grafana/dashboards against Grafana's own types
	node grafana/pictures/check.mjs

pictures: $(VENV)/.test $(NODE_MODULES) tools  ## draw the dashboards into docs/images
	cd grafana/pictures && npx vite build --logLevel warn
	$(BIN)/python -m tests.dashboard_pictures

top-picture: $(VENV)/.test  ## draw trainvitals top into docs/images
	$(BIN)/python -m tests.top.draw_picture

$(NODE_MODULES): grafana/pictures/package-lock.json
	cd grafana/pictures && npm ci --no-audit --no-fund
	touch $@

docs: $(VENV)/.test  ## build docs/metrics.md from the catalogue, docs/alerts.md from the rules
	$(BIN)/trainvitals metrics --format markdown > docs/metrics.md
	$(BIN)/python prometheus/alerts_page.py

kubernetes: $(VENV)/.test  ## build the rules and dashboards of deploy/kubernetes
	$(BIN)/python deploy/kubernetes/build.py

# Debian and Ubuntu start these packages as services on their usual ports; nothing here uses or touches those.
# TRAINVITALS_TEST_WITHOUT="prometheus newer-tools docker-compose" tells that such a program cannot be had: its tests are named as not run.
APT_INSTALL = root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	if ! command -v apt-get >/dev/null || ! command -v $${root:-true} >/dev/null; then \
	  echo "$(1) cannot be installed from here: please put it on PATH" >&2; exit 1; \
	fi; \
	echo "installing $(2)"; \
	$$root apt-get -qq update; \
	$$root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(2) >/dev/null

packages: $(VENV)/.test  ## wheel and sdist into dist; the same commit gives the same bytes
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist

# The oldest Python names what all versions need; the environment's own torch is no dependency of ours.
lock: $(VENV)/.test  ## pin what trainvitals needs at run time, with hashes, in requirements.lock
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	  --extra top --extra push --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

audit: $(VENV)/.test  ## ask PyPI's database of vulnerabilities about requirements.lock
	$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

tools:
	@for tool in prometheus promtool amtool; do command -v $$tool >/dev/null || missing=yes; done; \
	command -v alertmanager >/dev/null || command -v prometheus-alertmanager >/dev/null || missing=yes; \
	[[ -n "$${missing:-}" && " $${TRAINVITALS_TEST_WITHOUT:-} " != *" prometheus "* ]] || exit 0; \
	$(call APT_INSTALL,Prometheus (with promtool) and Alertmanager (with amtool),prometheus prometheus-alertmanager)

# Beside the versions of the distribution: what is newer than they are is tested with these.
newer-tools: | $(BIN)/python
	@[[ " $${TRAINVITALS_TEST_WITHOUT:-} " != *" newer-tools "* ]] || exit 0; \
	$(BIN)/python -m tests.newer_tools $(VENV)/newer

node-exporter:
	@! command -v node_exporter >/dev/null && ! command -v prometheus-node-exporter >/dev/null || exit 0; \
	[[ " $${TRAINVITALS_TEST_WITHOUT:-} " != *" prometheus "* ]] || exit 0; \
	$(call APT_INSTALL,node_exporter,prometheus-node-exporter)

# Units are checked by it, and run with its lists of system calls and the library that puts them in force; it starts no service.
systemd-analyze:
	@! command -v systemd-analyze >/dev/null || exit 0; \
	[[ " $${TRAINVITALS_TEST_WITHOUT:-} " != *" systemd-analyze "* ]] || exit 0; \
	$(call APT_INSTALL,systemd-analyze,systemd libseccomp2)

pushgateway:
	@! command -v pushgateway >/dev/null && ! command -v prometheus-pushgateway >/dev/null || exit 0; \
	[[ " $${TRAINVITALS_TEST_WITHOUT:-} " != *" prometheus "* ]] || exit 0; \
	$(call APT_INSTALL,Pushgateway,prometheus-pushgateway)

compose-client:
	@! docker compose version >/dev/null 2>&1 || exit 0; ! command -v docker-compose >/dev/null || exit 0; \
	[[ " $${TRAINVITALS_TEST_WITHOUT:-} " != *" docker-compose "* ]] || exit 0; \
	$(call APT_INSTALL,docker compose,docker-compose)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.example: pyproject.toml | $(BIN)/python
	$(INSTALL_TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[example]' torch==2.13.0
	touch $@

$(VENV)/.test: pyproject.toml grafana/requirements.txt | $(BIN)/python
	$(INSTALL_TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[example,test]'
	$(BIN)/python -m pip install --quiet --no-deps -r grafana/requirements.txt
	touch $@ $(VENV)/.example

$(VENV)/rivals: benchmarks/requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ -r $<
	touch $@

clean:
	rm -rf $(VENV) $(NODE_MODULES) grafana/pictures/dist
