# Thin on purpose: what a target does stands in scripts/.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Handed on to the scripts by name; every other variable (ETCD_PORT, GATEWAY_PORT_BASE, CSV_FILE,
# ETCD_ENDPOINTS, ...) reaches them through the environment or the command line of make.
INSTANCES ?= 2
STREAMER_INSTANCES ?= $(INSTANCES)
COLLECTOR_INSTANCES ?= $(INSTANCES)
API_GW_INSTANCES ?= $(INSTANCES)

BIN := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help deps build-nexus setup-etcd stop-etcd etcd-status \
	run-nexus-streamer run-nexus-collector run-nexus-gateway demo demo-scaling verify \
	scale-local scale-streamers scale-collectors scale-gateways scale-status scale-logs scale-stop \
	test test-api lint bench bench-api bench-start generate-swagger clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 } /^##@ / { printf "\n%s\n", substr($$0, 5) }' $(MAKEFILE_LIST)

##@ Start here
demo: ## Install, build, start etcd and INSTANCES (2) of each role, stream a sample, count it
	@INSTANCES='$(INSTANCES)' scripts/demo.sh
demo-scaling: build-nexus ## Collectors 2 -> 5 -> 1 while a generated file flows, counted at the end
	@scripts/demo-scaling.sh
verify: ## Compare the sample with what is stored and served, record by record
	@scripts/verify-record-count.sh
	@scripts/test-time-queries.sh

##@ Build and check
deps: ## Install what is missing: protoc, etcd, curl, jq (asks nothing)
	@scripts/deps.sh
build-nexus: ## Build the three binaries, optimised
	cargo build --release --workspace --bins
test: ## All tests; installs etcd and protoc first when they are missing
	@scripts/deps.sh
	cargo test --workspace
	@scripts/check.sh
	@scripts/smoke.sh
test-api: build-nexus ## Ask a gateway all that its document allows (schemathesis, from PyPI)
	@scripts/test-api.sh
lint: ## Format, clippy and documentation, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
bench: build-nexus ## Measure throughput and latency
	@scripts/bench.sh
bench-api: build-nexus ## Measure answers a second, beside VictoriaMetrics (from Debian)
	@scripts/bench-api.sh
bench-start: build-nexus ## Measure how soon a gateway is back before 50 million samples
	@scripts/bench-start.sh
generate-swagger: build-nexus ## Write docs/openapi.json from the gateway's routes
	@$(BIN)/nexus-gateway openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json \
		|| { rm -f docs/openapi.json.new; exit 1; }
clean: ## Remove what was built and logged; never what etcd stores
	@scripts/clean.sh

##@ etcd (private, loopback, ETCD_PORT=12379; with ETCD_ENDPOINTS set that one is used)
setup-etcd: ## Start it
	@scripts/etcd.sh start
stop-etcd: ## Stop it; what it stores stays
	@scripts/etcd.sh stop
etcd-status: ## Whether it is healthy, where, how large
	@scripts/etcd.sh status

##@ One instance in the foreground
run-nexus-streamer: build-nexus ## A streamer of CSV_FILE (default: the sample)
	@scripts/run.sh streamer
run-nexus-collector: build-nexus ## A collector
	@scripts/run.sh collector
run-nexus-gateway: build-nexus ## A gateway on PORT (8080)
	@scripts/run.sh gateway

##@ Many instances in the background (again with another number: converges to it)
scale-local: build-nexus ## INSTANCES (2) of each role
	@scripts/scale.sh all '$(INSTANCES)'
scale-streamers: build-nexus ## STREAMER_INSTANCES
	@scripts/scale.sh streamer '$(STREAMER_INSTANCES)'
scale-collectors: build-nexus ## COLLECTOR_INSTANCES
	@scripts/scale.sh collector '$(COLLECTOR_INSTANCES)'
scale-gateways: build-nexus ## API_GW_INSTANCES, on GATEWAY_PORT_BASE (8080), 8081, ...
	@scripts/scale.sh gateway '$(API_GW_INSTANCES)'
scale-status: ## What runs, what it claims, how fast, how far behind
	@scripts/scale-status.sh
scale-logs: ## Follow the logs (NAME=collector, NAME=gateway-1, NAME=etcd)
	@scripts/logs.sh '$(NAME)'
scale-stop: ## Drain and stop every instance; etcd keeps running
	@scripts/scale.sh all 0
