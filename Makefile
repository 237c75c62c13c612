# Thin on purpose: what a target does stands in scripts/.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Handed on to the scripts by name; every other variable (ETCD_PORT, GATEWAY_PORT_BASE, CSV_FILE,
# ETCD_ENDPOINTS, ...) reaches them through the environment or the command line of make.
INSTANCES ?= 2
STREAMER_INSTANCES ?= $(INSTANCES)
COLLECTOR_INSTANCES ?= $(INSTANCES)
API_GW_INSTANCES ?= $(INSTANCES)

K8S_KNOBS = STREAMER_INSTANCES='$(STREAMER_INSTANCES)' COLLECTOR_INSTANCES='$(COLLECTOR_INSTANCES)' \
	API_GW_INSTANCES='$(API_GW_INSTANCES)'

.PHONY: help deps build-nexus setup-etcd stop-etcd etcd-status \
	run-nexus-streamer run-nexus-collector run-nexus-gateway demo demo-scaling verify \
	scale-local scale-streamers scale-collectors scale-gateways scale-status scale-logs scale-stop \
	test test-deploy test-api test-remote-write audit-graphql test-etcd35 churn lint fuzz deny bench bench-api bench-live bench-start \
	bench-peers bench-fleet bench-soak bench-scrape bench-write \
	generate-swagger lint-openapi dist clean docker-build-nexus docker-push-nexus k8s-deploy-nexus \
	k8s-status-nexus k8s-logs-nexus k8s-undeploy-nexus k8s-port-forward kind-deploy

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
	@scripts/test.sh
test-etcd35: ## All tests on etcd 3.5, fetched beside the installed one
	@dir=$$(scripts/get-etcd35.sh) && NEXUS_ETCD_BIN_DIR=$$dir cargo test --workspace
churn: ## Every fault there is on real programs and etcds, measured (minutes; nothing else should run)
	@scripts/churn.sh long
test-api: build-nexus ## Ask a gateway all that its document allows (schemathesis, from PyPI)
	@scripts/test-api.sh
test-remote-write: build-nexus ## Let the real Prometheus and vmagent (from Debian) send to gateways that are killed, and count
	@scripts/test-remote-write.sh
audit-graphql: ## Ask a running gateway what GraphQL over HTTP demands (graphql-http, from npm)
	@scripts/audit-graphql.sh
lint: ## Format, clippy and documentation, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
fuzz: ## FUZZ_SECONDS (60) for each of FUZZ_TARGETS (csv block samples key)
	@scripts/fuzz.sh
deny: ## Licences, sources, banned and duplicate crates; builds cargo-deny the first time
	@scripts/deny.sh
bench: build-nexus ## Measure throughput and latency
	@scripts/bench.sh
bench-peers: build-nexus ## Measure throughput beside VictoriaMetrics and InfluxDB (from Debian), in one run
	@scripts/bench-peers.sh
bench-api: build-nexus ## Measure answers a second, beside VictoriaMetrics (from Debian)
	@scripts/bench-api.sh
bench-live: ## Measure live streams: many subscribers, some that never read, a row's way to a client
	@scripts/bench-live.sh
bench-fleet: build-nexus ## Measure live fleets of 1,000, 4,000 and 10,000 GPUs, five minutes each
	@scripts/bench-fleet.sh
bench-soak: build-nexus ## Measure an hour of 10 million samples a minute under retention, with a plot
	@scripts/bench-fleet.sh soak
bench-scrape: build-nexus ## Measure scraping: 10,000 exporters, of whose streamers one is killed
	@scripts/bench-scrape.sh
bench-write: build-nexus ## Measure remote write into one gateway
	@scripts/bench-write.sh
bench-start: build-nexus ## Measure how soon a gateway is back before 50 million samples
	@scripts/bench-start.sh
generate-swagger: build-nexus ## Write docs/openapi.json, openapi.yaml and schema.graphql from the gateway
	@scripts/generate-swagger.sh
lint-openapi: ## Check docs/openapi.yaml by the rules of .redocly.yaml (redocly, from npm)
	@scripts/lint-openapi.sh
test-deploy: build-nexus ## Check deploy/ without a cluster: chart, images' recipe, units
	@scripts/test-deploy.sh
docker-stages: ## The image's build of ROLE without an engine, stage by stage in clean directories (root, minutes)
	@scripts/docker.sh stages
dist: ## Programs, man pages, completions, units and chart as a tarball, with checksums
	@scripts/dist.sh
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

##@ Containers and Kubernetes (DOCKER_REGISTRY, TAG, NAMESPACE=telemetry-system, and the instance knobs)
docker-build-nexus: ## Images of the three programs
	@scripts/docker.sh build
docker-push-nexus: ## Push them to DOCKER_REGISTRY
	@scripts/docker.sh push
k8s-deploy-nexus: ## Install or scale: STREAMER_INSTANCES, COLLECTOR_INSTANCES, API_GW_INSTANCES
	@$(K8S_KNOBS) scripts/k8s.sh deploy
k8s-status-nexus: ## Pods, services, volumes
	@scripts/k8s.sh status
k8s-logs-nexus: ## Follow the logs (NAME=collector)
	@NAME='$(NAME)' scripts/k8s.sh logs
k8s-undeploy-nexus: ## Uninstall; volumes stay
	@scripts/k8s.sh undeploy
k8s-port-forward: ## The API at 127.0.0.1:8080
	@scripts/k8s.sh port-forward
kind-deploy: ## A kind cluster with images built here
	@$(K8S_KNOBS) scripts/k8s.sh kind
