# Two commands on a fresh machine: `make demo` and `make test`. Both install what is missing, build
# once (the same profile, features and flags, so the second finds the first one's work) and run.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help bootstrap build demo test test-cluster test-long test-model test-neon test-split check fix deny simulate simulate-mutants simulate-determinism bench bench-failover bench-etcd bench-import bench-spread bench-spread-cluster bench-index bench-edges bench-gossip demo-data image compose-test

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Flags come from .cargo/config.toml. Others in the environment would rebuild all of it, RocksDB too.
unexport RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

# `--bins --examples` instead of nothing: with it cargo chooses the features that it also chooses
# for tests. A plain build leaves out those of dev-dependencies, and each switch would recompile.
SELECT := --workspace --locked
TESTS := --lib --bins --tests --examples

# Profile of the binary that goes into an image: dev is what demo and test build.
PROFILE ?= release
PROFILE_DIR = $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
TAG ?= latest

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

bootstrap: ## install what the build needs and this machine lacks (Debian, Ubuntu)
	@scripts/bootstrap.sh

build: bootstrap ## the binary, as demo and test use it
	@$(CARGO) build $(SELECT) --bins --examples

demo: build ## a cluster of three processes on this machine, real data, a guided tour (ARGS=--keep)
	@$(TARGET_DIR)/debug/engram demo $(ARGS)

test: bootstrap ## unit, property, model and cluster tests
	@$(CARGO) test $(SELECT) --doc --quiet
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run $(SELECT) $(TESTS) --no-tests=warn $(ARGS); \
	else \
	  echo "cargo-nextest is not installed: running the same tests with cargo test"; \
	  $(CARGO) test $(SELECT) $(TESTS) $(ARGS); \
	fi

# Without RocksDB, so that the optimised build is a matter of two minutes. Fifty times as many cases, and
# of whole replicas five hundred times: 100,000 for each property of edges.
LONG := $(CARGO) test --locked --profile simulation --lib
test-long: bootstrap ## tests that take minutes: properties on 100,000 cases, spreads whose nodes die, index topology, 100 nodes
	@ENGRAM_CASES_FACTOR=$${ENGRAM_CASES_FACTOR:-50} $(LONG) -p engram-core --no-default-features -- edges:: spread::tests::push spread::tests::partial
	@ENGRAM_CASES_FACTOR=$${ENGRAM_REPLICA_CASES_FACTOR:-500} $(LONG) -p engram-core --no-default-features -- partition::tests::converge
	@$(LONG) -p engram-core --no-default-features -- --ignored index::tests::product
	@$(LONG) -p engram-simulation --features planted -- --ignored

test-cluster: bootstrap ## tests with real processes only: kills, pauses, moves, growth, backups
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run $(SELECT) --test backup --test cluster --test faults --test moves --test kill --test purge $(ARGS); \
	else \
	  $(CARGO) test $(SELECT) --test backup --test cluster --test faults --test moves --test kill --test purge $(ARGS); \
	fi

test-neon: ## distance kernels and index topology on emulated aarch64; skipped where the tools are missing
	@scripts/test-neon.sh

test-model: bootstrap ## writer, workers and a reader of an index in orders that shuttle chooses
	@$(LONG) -p engram-core --no-default-features --features model -- index::tests::model

test-split: RUNS ?= 20
test-split: build ## split a cluster of real processes again and again, changing associations on both sides (RUNS=20)
	@$(TARGET_DIR)/debug/split --runs $(RUNS) $(ARGS)

check: bootstrap ## read-only: formatting, lints, licences and sources of dependencies
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy $(SELECT) --all-targets -- -D warnings
	@scripts/check_dependencies.py
	@scripts/deny.sh

fix: bootstrap ## formatting, and lints that can be fixed by themselves
	@$(CARGO) fmt --all
	@$(CARGO) clippy $(SELECT) --all-targets --fix --allow-dirty --allow-staged

deny: ## licences, bans, sources; advisories where their database can be reached
	@scripts/deny.sh

# One build serves all three: planted bugs are compiled in, and none is active unless it is named.
SIMULATE := $(CARGO) run --locked --quiet --profile simulation -p engram-simulation --features planted --
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

simulate: SEEDS ?= 200
simulate: bootstrap ## whole clusters in one process, seed by seed (SEEDS=200 ARGS="--first 1")
	@$(SIMULATE) run --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

simulate-determinism: SEEDS ?= 10
simulate-determinism: bootstrap ## the same seed twice must be the same run, event by event (SEEDS=10)
	@$(SIMULATE) determinism --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

simulate-mutants: SEEDS ?= 500
simulate-mutants: bootstrap ## planted bugs, each of which the simulation must find (ARGS="--name X")
	@$(SIMULATE) mutants --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

bench: bootstrap ## WordNet through three nodes: import, recall, spread (ENGRAM_DATA=directory that holds wordnet/)
	@$(CARGO) build $(SELECT) --bins --examples --profile $(PROFILE)
	@scripts/bench-cluster.sh $(TARGET_DIR)/$(PROFILE_DIR) wordnet $(ARGS)

bench-failover: bootstrap ## time without writes after kill -9 of a primary, over 20 kills (ARGS=--kills N)
	@$(CARGO) build $(SELECT) --bins --examples --profile $(PROFILE)
	@$(TARGET_DIR)/$(PROFILE_DIR)/failover --binary $(TARGET_DIR)/$(PROFILE_DIR)/engram $(ARGS)

bench-etcd: bootstrap ## replicated writes beside etcd's, in turns (needs etcd; Debian: etcd-server)
	@$(CARGO) build $(SELECT) --bins --examples --profile $(PROFILE)
	@$(TARGET_DIR)/$(PROFILE_DIR)/peer --binary $(TARGET_DIR)/$(PROFILE_DIR)/engram $(ARGS)

bench-import: bootstrap ## a graph without embeddings from JSONL into one node: docs/benchmarks/import.md (ARGS="--memories N --edges N")
	@$(CARGO) build $(SELECT) --bins --examples --profile $(PROFILE)
	@scripts/bench_import.py $(TARGET_DIR)/$(PROFILE_DIR) $(ARGS)

bench-spread: bootstrap ## a local spread beside a plain CSR loop, databases and graph libraries: docs/benchmarks/spread.md (ENGRAM_WORDNET=directory with its files)
	@$(CARGO) build --release --locked -p engram-benches --no-default-features --bin spread
	@scripts/bench_spread.py $(TARGET_DIR)/release/spread $(ARGS)

bench-spread-cluster: bootstrap ## spreads through three real nodes, and one: docs/benchmarks/spread-cluster.md (ENGRAM_DATA=directory that holds wordnet/)
	@$(CARGO) build $(SELECT) --bins --examples --profile $(PROFILE)
	@scripts/bench_spread_cluster.py $(TARGET_DIR)/$(PROFILE_DIR) $(ARGS)

bench-index: bootstrap ## the vector index beside hnswlib, usearch, faiss and hnsw_rs (ENGRAM_DATA=directory that holds wordnet/)
	@scripts/bench-index.sh $(ARGS)

bench-edges: bootstrap ## bytes of an association after many observations of it were folded
	@$(CARGO) run --locked --profile simulation -p engram-benches --no-default-features --bin edges -- $(ARGS)

bench-gossip: bootstrap ## clusters of 3 to 300 nodes in virtual time: convergence after a split, bytes of gossip; draws docs/benchmarks/gossip.svg
	@mkdir -p docs/benchmarks
	@$(CARGO) run --locked --profile simulation -p engram-simulation --features planted --bin gossip -- --svg docs/benchmarks/gossip.svg $(ARGS)

demo-data: ## draw the demo's sample again (ENGRAM_DATA=directory that holds wordnet/)
	@scripts/make_demo_data.py \
	  --wordnet "$${ENGRAM_DATA:?set it to the directory that holds wordnet/}/wordnet" \
	  --out engram-node/assets/wordnet

image: bootstrap ## a container image, engram:TAG (PROFILE=release|dev, BASE=image)
	@$(CARGO) build $(SELECT) --bins --examples --profile $(PROFILE)
	@deploy/build-image.sh --binary $(TARGET_DIR)/$(PROFILE_DIR)/engram --tag $(TAG)

compose-test: PROFILE = dev
compose-test: image ## start the compose cluster, use it, kill a container, check, take it down
	@TAG=$(TAG) deploy/try-compose.sh
