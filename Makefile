# What can be done here. CI (.ci/run) runs these very targets; `make help` lists them.
CARGO ?= cargo
# `--all-features` is the binary with `tenure dev`; the image, the kills and the benchmarks are built without it.
ALL := --workspace --all-features

.DEFAULT_GOAL := help
.PHONY: help run test walkthrough simulation model parity chart chart-server wrong-input hostile manifests image lint fmt docs crds crds-check as-library deny broken-check kills kills-broken bench full ci \
	cluster cluster-down cluster-smoke cluster-install cluster-prometheus cluster-versions e2e e2e-peers kind minikube

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Start it all on this machine, no cluster needed: sandbox, three replicas, example jobs
	@$(CARGO) run --all-features --bin tenure -- dev --state-dir target/dev

test: ## Run every test, documentation examples included; print run, failed, skipped
	@scripts/test.sh

simulation: ## Play TENURE_SIM_CHANGES (1000) leader changes under simulated clocks and seeded faults, judged from outside
	@TENURE_SIM_CHANGES=$${TENURE_SIM_CHANGES:-1000} $(CARGO) test --profile simulation --all-features --test it \
		simulation:: -- --nocapture --test-threads 1

model: ## Play TENURE_MODEL_SEEDS (500) hours of the election's model in each of its settings, and judge each loss of a leader
	@TENURE_MODEL_SEEDS=$${TENURE_MODEL_SEEDS:-500} $(CARGO) test --config profile.dev.package.tenure.opt-level=2 \
		--package tenure --all-features --lib election::model -- --nocapture

walkthrough: ## Run README's console blocks word for word, and compare what they print (needs kubectl)
	@$(CARGO) build --all-features --bin tenure
	@$(CARGO) build --package trials --bin walkthrough
	@PATH="$$(dirname "$$(sandbox/parity/kubectl.sh)"):$$PATH" target/debug/walkthrough README.md

parity: ## Compare the sandbox with a real API server (needs Go; the first time builds it)
	@sandbox/parity/run.sh

chart: ## Check chart, plain manifests, alerts and dashboard without a cluster (needs promtool; the first time builds helm)
	@scripts/chart.sh

chart-server: ## Install the chart on a real API server, upgrade it, and compare its rights with the audit log (needs Go)
	@log=$$(mktemp) && trap 'rm -f "$$log"' EXIT && \
		PARITY_AUTHORIZATION=RBAC PARITY_AUDIT=$$log sandbox/parity/run.sh tests/chart/server.sh

wrong-input: ## Give docs/wrong-input.md to replicas on a real API server: the same table as in `make test` (needs Go)
	@$(CARGO) test --all-features --test it --no-run
	@PARITY_AUTHORIZATION=RBAC sandbox/parity/run.sh tests/wrong-input.sh

hostile: ## Give a hostile tenant's objects to replicas on a real API server, and see that no other tenant feels it (needs Go)
	@PARITY_AUTHORIZATION=RBAC sandbox/parity/run.sh tests/hostile.sh

manifests: ## Write deploy/ and the chart's README and definitions from what they are generated from
	@scripts/manifests.sh

image: ## Build the image from a static binary, without a registry (needs buildah); print its size
	@scripts/image.sh

cluster: ## Boot a real Kubernetes of three nodes on this machine (root; needs Go; the first time builds it): tests/cluster
	@tests/cluster/up.sh

cluster-down: ## End what `make cluster` has started, also when that was cut off
	@tests/cluster/down.sh

cluster-smoke: ## Check the test cluster itself, every fault helper included
	@tests/cluster/smoke.sh

cluster-install: ## Install, upgrade, roll back and uninstall chart and plain manifests on the test cluster, with real pods
	@tests/cluster/install.sh

cluster-prometheus: ## Scrape the pods with a real Prometheus, see the alerts fire and resolve, run the dashboard's queries
	@tests/cluster/prometheus.sh

e2e: ## Strike pods, nodes and the control plane of a real cluster, judged from outside: the test cluster, or KUBECONFIG=...
	@tests/cluster/e2e.sh

e2e-peers: ## Strike Tenure and other electors by the same faults on the test cluster; Tenure and client-go on one Lease
	@tests/cluster/peers.sh

kind: ## Make a cluster with kind, load the image into it, and run the e2e suite there (needs Docker and kind)
	@scripts/local-cluster.sh kind

minikube: ## The same with minikube (needs Docker and minikube)
	@scripts/local-cluster.sh minikube

cluster-versions: ## Bring the go.mod files to the versions of tests/cluster/programs/versions
	@tests/cluster/programs/set-versions.sh

lint: docs crds-check as-library deny broken-check ## Check format, clippy (all, default, no features), docs, licenses, CRDs, library use, patches
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features --features k8s-openapi/v1_33 -- -D warnings

fmt: ## Format the code
	$(CARGO) fmt --all

docs: ## Build the documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(ALL) --no-deps

crds: ## Write deploy/crds from the types
	@scripts/crds.sh

crds-check: ## Check that deploy/crds is what the types say
	@scripts/crds.sh --check

as-library: ## Build a crate outside the workspace that uses Tenure as a library
	@scripts/as-library.sh

deny: ## Check licenses, sources and duplicates of the dependencies
	"$$(scripts/tool.sh cargo-deny)" --all-features --workspace check bans licenses sources

broken-check: ## Check that each patch of tests/broken still applies
	@scripts/broken.sh --check-only

kills: ## Kill, terminate and freeze the leader of the release binary at chosen points; judge what reached its targets
	@scripts/kills.sh

bench: ## Measure the release binary: start lateness, API requests, memory (5 runs of about 4 minutes)
	@scripts/bench.sh

kills-broken: ## Break each rule on purpose (tests/broken) and see its test go red
	@scripts/broken.sh

full: ## What CI runs a part of, in full: model, simulation, kills, broken rules, and the faults on a real cluster (hours)
	@$(MAKE) model TENURE_MODEL_SEEDS=10000
	@$(MAKE) simulation kills kills-broken cluster
	@$(MAKE) e2e e2e-peers FULL=1

ci: ## Everything CI runs
	.ci/run
