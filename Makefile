# The two commands of the README are `make run` and `make test`; the rest are their parts.
#
#   make, make build   the binaries, side by side in $(BIN), where they look for each other
#   make run           two small images from busybox; IMAGE=debian: the same on a Debian root
#   make test          every test, on real mounts and in real containers: root needed
#   make test-long     the same, with every step of what `make test` samples
#   make bench         times of cowl beside kernel overlayfs and fuse-overlayfs (PEERS: programs); BENCH: more options
#   make lint          formatting, clippy, and the borders that Cargo.toml alone cannot hold

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/bin
TOOLS := $(TARGET)/tools
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
IMAGE ?= busybox
PEERS ?= fuse-overlayfs
PJDFSTEST_VERSION := 0.2.2

.PHONY: build run bench test test-long test-deps lint clean

build:
	fixtures/install-deps.sh build
	cargo build --locked --release -p cowl -p cowl-mountd -p cowl-tools
	# The launcher runs inside foreign roots: static, and --target keeps the flag off build scripts.
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile runtime --target $(HOST) -p cowl-launch
	mkdir -p $(BIN)
	install -C -t $(BIN) $(addprefix $(TARGET)/release/,cowl cowl-mountd cowl-dedup) $(TARGET)/$(HOST)/runtime/cowl-runtime

run: build
	fixtures/install-deps.sh run $(IMAGE)
	fixtures/demo/run.sh $(BIN) $(IMAGE)

bench: build
	fixtures/install-deps.sh run
	fixtures/bench/run.py $(BIN) $(addprefix --peer ,$(PEERS)) $(BENCH)

# pjdfstest is an outside judge: built from crates.io, beside our own build, once per version.
$(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION):
	cargo install --locked --quiet --root $(TOOLS) --target-dir $(TOOLS)/build pjdfstest --version =$(PJDFSTEST_VERSION)
	ln -f $(TOOLS)/bin/pjdfstest $@

test-deps: build $(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION)
	fixtures/install-deps.sh test

test: test-deps
	COWL_BIN_DIR=$(BIN) COWL_PJDFSTEST=$(TOOLS)/bin/pjdfstest-$(PJDFSTEST_VERSION) fixtures/run-tests.sh

test-long: export COWL_TEST_LONG = 1
test-long: test

lint:
	fixtures/install-deps.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	fixtures/check-borders.sh

clean:
	cargo clean
