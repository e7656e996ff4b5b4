# Everything happens in .venv; nothing needs root or Docker. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt
# Byte code is made when a module is first imported, for most are never, and kept even where the
# environment says no.
export PYTHONDONTWRITEBYTECODE :=
export HYPER_DATA_DIR ?= $(shell test -d ../shared/data && cd ../shared/data && pwd)

.PHONY: help demo test lint protos bench simulate faults fault-matrix protos-baseline fuzz compose-env compose-tls compose-test docker-test dashboards docs release constraints clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

.stamps/venv:
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv && mkdir -p .stamps && touch $@

.stamps/local: .stamps/venv pyproject.toml constraints.txt
	@echo "installing Hyper and what a local cluster needs into .venv (1-2 minutes, no torch)"
	@$(PIP) -e '.[local]' && touch $@

.stamps/dev: .stamps/venv pyproject.toml constraints.txt
	@echo "installing Hyper and all that its tests need into .venv (1-2 minutes)"
	@$(PIP) -e '.[dev]' && touch $@ .stamps/local

.stamps/libfuse: .stamps/dev
	@.venv/bin/python -m hyper.mount.libfuse --fetch || echo "no libfuse: the tests of the mount will be skipped"
	@touch $@

.stamps/etcd: .stamps/dev
	@.venv/bin/python -m scripts.fetch_etcd || echo "no etcd that survives being killed: its tests will be skipped"
	@touch $@

demo: .stamps/local      ## align a real stack on a local cluster; demo/report.html, demo/result.json
	@.venv/bin/python -m examples.align_stack --home demo/.hyper --out demo $(if $(KEEP),--keep) $(DEMO_ARGS)

test: .stamps/dev .stamps/libfuse .stamps/etcd ## all tests, against real etcd and a real S3 server
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: .stamps/dev        ## format, style, types, import rules, protos
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@cd protos && ../.venv/bin/buf lint
	@cd protos && ../.venv/bin/buf breaking --against baseline.binpb
	@for file in $(filter-out %kustomization.yaml %adapter-rules.yaml,$(wildcard deploy/kubernetes/*.yaml) deploy/kubernetes/machines/access.yaml deploy/kubernetes/machines/network.yaml); do \
	  .venv/bin/kubernetes-validate --quiet --strict $$file; done
	@if command -v promtool >/dev/null; then \
	  promtool check rules deploy/prometheus/rules/*.yml && promtool test rules deploy/prometheus/tests/*.yml; \
	else \
	  echo "NOT CHECKED: the alerts, for there is no promtool: apt-get install prometheus" >&2; test -z "$${CI:-}"; \
	fi

protos: .stamps/dev      ## regenerate protos/gen
	@.venv/bin/python protos/generate.py

bench: .stamps/dev       ## every benchmark, peers in the same run; renders docs/benchmarks.md
	@.venv/bin/python -m benchmarks

simulate: .stamps/dev    ## the scheduler under seeded faults: make simulate SEEDS=10000
	@SEEDS=$(or $(SEEDS),2000) .venv/bin/python -m pytest tests/simulation -q -n 2 --dist load --timeout 3600

faults: .stamps/dev .stamps/etcd ## kill, stop and cut off real processes: make faults REPEAT=20
	@FAULT_REPEAT=$(or $(REPEAT),20) .venv/bin/python -m pytest tests/faults -q -rP --show-capture=stdout $(PYTEST_ARGS)

fault-matrix: .stamps/dev .stamps/etcd ## every part x every fault, into docs/faults.md: make fault-matrix REPEAT=20
	@rm -f .stamps/faults.jsonl
	@HYPER_TEST_MATRIX=1 HYPER_FAULTS_RESULTS=$(CURDIR)/.stamps/faults.jsonl FAULT_REPEAT=$(REPEAT) \
	  .venv/bin/python -m pytest tests/faults/test_matrix.py -q -rP --show-capture=stdout -p no:randomly $(PYTEST_ARGS)
	@.venv/bin/python -m scripts.fault_table .stamps/faults.jsonl docs/faults.md

protos-baseline: .stamps/dev ## what the wire must stay compatible with, from HEAD: once a release
	@git diff --quiet HEAD -- protos/hyperapi || { echo "commit protos/hyperapi first"; exit 2; }
	@cd protos && ../.venv/bin/buf build --exclude-source-info -o baseline.binpb
	@git rev-parse HEAD > protos/BASELINE

fuzz: .stamps/dev .stamps/etcd ## hostile inputs to every RPC of real services, into docs/fuzz.md: make fuzz N=200
	@HYPER_FUZZ_EXAMPLES=$(or $(N),50) HYPER_FUZZ_REPORT=$(CURDIR)/docs/fuzz.md .venv/bin/python -m pytest \
	  tests/integration/test_access.py -q -n0 -rP --show-capture=stdout --timeout 3600 $(PYTEST_ARGS)

compose-env: .stamps/local ## .env of docker-compose.yml, with keys and passwords of its own
	@.venv/bin/python -m scripts.compose_env

compose-tls: compose-env   ## certificates in certs/, and docker-compose.tls.yml switched on in .env
	@.venv/bin/python -m scripts.compose_certs

compose-test: .stamps/dev ## docker-compose.yml for real: the demo, scaled, killed, cut off; needs a Docker daemon
	@HYPER_TEST_COMPOSE=1 .venv/bin/python -m pytest tests/compose -q -rP --show-capture=stdout -p no:randomly $(PYTEST_ARGS)

docker-test: .stamps/dev .stamps/etcd ## tasks and machines as containers; needs a Docker daemon and the image hyper/worker
	@HYPER_TEST_DOCKER=1 .venv/bin/python -m pytest -q -rs tests/integration/test_worker_containers.py \
	  tests/integration/test_docker_fleet.py tests/integration/test_worker_registry.py tests/contract/test_providers.py -k "docker or container or registry" $(PYTEST_ARGS)

dashboards: .stamps/dev  ## render deploy/grafana/dashboards from scripts/dashboards.py
	@.venv/bin/python -m scripts.dashboards

docs: .stamps/dev        ## docs/api.md and docs/cli.md, from the SDK's docstrings and the commands' help
	@.venv/bin/python -m scripts.api_docs
	@.venv/bin/python -m scripts.cli_docs

release: .stamps/dev .stamps/etcd ## dist/: sdist, the wheel made from it, their sums; tried in clean environments
	@rm -rf dist
	@.venv/bin/python -m build --no-isolation --outdir dist
	@HYPER_TEST_WHEEL=1 HYPER_DIST=$(CURDIR)/dist .venv/bin/python -m pytest tests/e2e/test_wheel.py -q -n0 -p no:randomly $(PYTEST_ARGS)
	@cd dist && sha256sum hyper_dl-* > SHA256SUMS && cat SHA256SUMS

constraints: .stamps/dev ## renew constraints.txt
	@.venv/bin/python scripts/constraints.py

clean:                   ## remove what make made
	rm -rf .venv .venv-protos .stamps demo
