# The two commands of the README are `make run` and `make test`; the rest are their parts.
#
#   make, make build   the binaries, side by side in $(BIN), where they look for each other
#   make run           two small images from busybox; IMAGE=debian: the same on a Debian root
#   make test          every test, on real mounts, in real containers and in a virtual machine: root needed
#   make test-unit, test-mount, test-container, test-long
#                      one tier of them: what each needs and may take is in .config/nextest.toml
#   make stress        200 containers by 20 clients, while processes of cowl are killed: root, minutes
#   make test-vm       tiers (TIERS_VM) on stock Debian 12 in a virtual machine without KVM: hours
#   make bench         times of cowl beside kernel overlayfs and fuse-overlayfs (PEERS: programs); BENCH: more options,
#                      BENCH=ops: what an operation costs the processes that serve a mount
#                      BENCH=start: starts of containers, beside the bare system calls and other runtimes
#   make bench-dedup   cowl dedup beside the disk and b3sum, and its memory on a million files: root, network, minutes, 5 GB
#   make bench-store   commands beside 1,000,000 objects and 1,000 images, and import beside tar x: root, minutes, 10 GB
#                      BENCH="--image FILE": an archive of an image beside tar x, umoci, skopeo and podman
#   make check-dedup   every figure of cowl dedup on six real Debian images, recomputed from their archives: root, network
#   make lint          formatting, clippy, licences and bans, the borders of the crates, and SPECIFICATION.md against the tests

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/bin
TOOLS := $(TARGET)/tools
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
IMAGE ?= busybox
PEERS ?=
PJDFSTEST_VERSION := 0.2.2
B3SUM_VERSION := 1.8.7

TIERS := unit mount container long
TIERS_VM ?= container mount unit
RUN_TESTS = PATH=$(TOOLS)/bin:$$PATH COWL_BIN_DIR=$(BIN) \
  COWL_PJDFSTEST=$(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION) fixtures/run-tests.sh

.PHONY: build run bench bench-dedup bench-store test $(TIERS:%=test-%) stress test-vm test-deps test-tools check-dedup lint clean

build:
	fixtures/install-deps.sh build
	cargo build --locked --release -p cowl -p cowl-mountd -p cowl-tools
	# The launcher runs inside foreign roots: static, and --target keeps the flag off build scripts.
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile runtime --target $(HOST) -p cowl-launch
	mkdir -p $(BIN)
	install -C -t $(BIN) $(addprefix $(TARGET)/release/,cowl cowl-mountd cowl-dedup cowl-bench) $(TARGET)/$(HOST)/runtime/cowl-runtime

run: build
	fixtures/install-deps.sh run $(IMAGE)
	fixtures/demo/run.sh $(BIN) $(IMAGE)

bench: build
	fixtures/install-deps.sh bench
	$(BIN)/cowl-bench $(addprefix --peer ,$(PEERS)) $(BENCH)

# Hashes beside us: built from crates.io once per version, as pjdfstest is.
$(TOOLS)/bin/b3sum-$(B3SUM_VERSION):
	cargo install --locked --quiet --root $(TOOLS) --target-dir $(TOOLS)/build b3sum --version =$(B3SUM_VERSION)
	ln -f $(TOOLS)/bin/b3sum $@

bench-dedup: check-dedup $(TOOLS)/bin/b3sum-$(B3SUM_VERSION)
	fixtures/bench/dedup.py $(BIN) $(TARGET)/dedup-images/*.image.tar --b3sum $(TOOLS)/bin/b3sum-$(B3SUM_VERSION)

bench-store: build
	fixtures/bench/store.py $(BIN) $(BENCH)

check-dedup: build
	fixtures/install-deps.sh run debian
	fixtures/check-dedup.sh $(BIN) $(TARGET)/dedup-images

# pjdfstest is an outside judge: built from crates.io, beside our own build, once per version.
$(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION):
	cargo install --locked --quiet --root $(TOOLS) --target-dir $(TOOLS)/build pjdfstest --version =$(PJDFSTEST_VERSION)
	ln -f $(TOOLS)/bin/pjdfstest $@

test-tools:
	fixtures/install-deps.sh tools
	fixtures/install-tools.sh $(TOOLS)

test-deps: build test-tools $(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION)
	fixtures/install-deps.sh test
	fixtures/install-tools.sh $(TOOLS) docker-py

test: test-deps
	$(RUN_TESTS) $(TIERS)

$(TIERS:%=test-%): test-%: test-deps
	$(RUN_TESTS) $*

stress: test-deps
	COWL_TEST_SCALE=5 $(RUN_TESTS) long -- -E 'binary(stress)'

test-vm: test-deps
	fixtures/install-deps.sh vm
	PATH=$(TOOLS)/bin:$$PATH COWL_BIN_DIR=$(BIN) COWL_PJDFSTEST=$(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION) \
	  fixtures/vm-tests.sh $(TARGET)/vm $(TIERS_VM)

lint: test-tools
	fixtures/install-deps.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	PATH=$(TOOLS)/bin:$$PATH fixtures/check-borders.sh
	PATH=$(TOOLS)/bin:$$PATH fixtures/check-spec.py

clean:
	cargo clean
