# `make check` is what has to pass before a change goes in.

LOOM_TARGET ?= $(or $(CARGO_TARGET_DIR),target)/loom
NIGHTLY_TARGET ?= $(or $(CARGO_TARGET_DIR),target)
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: run build check fmt clippy test crash faults balancers browser contract loom asan tsan miri doc bench loadtest docker

run: ## Build, and serve on :8080 with files in ./data/reports
	cargo run --release

build:
	cargo build --release

check: fmt clippy test loom doc

fmt:
	cargo fmt --check

clippy:
	cargo clippy --all-targets -- -D warnings

test:
	cargo test

# A thousand rounds of kill -9; CRASH_SEED replays the rounds of a run.
crash:
	CRASH_ROUNDS=1000 cargo test --release --test crash -- --nocapture

# Pages in a real browser. It takes Chromium, Node.js 20 or newer and zstd.
browser: build
	cd tests/browser && npm ci && NETWATCH_SERVER=$(abspath $(or $(CARGO_TARGET_DIR),target))/release/netwatch-server node --test

# Answers as openapi.yaml has them, whatever is sent. It takes Python 3.10 or newer, with pip, for Schemathesis;
# CONTRACT_SEED and CONTRACT_EXAMPLES say what is sent, and how much.
contract: build
	NETWATCH_SERVER=$(abspath $(or $(CARGO_TARGET_DIR),target))/release/netwatch-server tests/contract/run.sh

# System calls that fail, or at which the server is killed. Needs strace.
faults:
	cargo test --test syscalls -- --ignored

# Two collectors behind HAProxy and nginx, as deploy/ sets them up. Needs both; BALANCER_ROUNDS is how many restarts.
balancers:
	PATH="$$PATH:/usr/sbin" cargo test --test balancers --test smuggling -- --ignored

# The lock-free protocol and the hand-over of the group commit under every interleaving, with a bound on preemptions
# where there are too many (LOOM_MAX_PREEMPTIONS). The flag reaches all crates, so they are built apart.
loom:
	CARGO_PROFILE_RELEASE_LTO=off RUSTFLAGS="--cfg netwatch_loom" cargo test --release --lib --target-dir $(LOOM_TARGET) model

# The buffer's unsafe code as its tests run it, in three ways that each see something else. They take a nightly toolchain
# with `rustup component add --toolchain nightly rust-src miri`.
#
# AddressSanitizer: bytes out of bounds, and memory used after its end. The standard library is not instrumented.
asan:
	RUSTFLAGS="-Zsanitizer=address" cargo +nightly test --lib --target $(HOST) --target-dir $(NIGHTLY_TARGET)/asan buffer

# ThreadSanitizer: accesses to the same bytes that nothing orders, in what the threads happened to do this time. The
# standard library is built along: the one that comes is not instrumented, which gives false alarms.
tsan:
	RUSTFLAGS="-Zsanitizer=thread" cargo +nightly test -Zbuild-std --lib --target $(HOST) \
		--target-dir $(NIGHTLY_TARGET)/tsan buffer

# Miri: both of that, and pointers and bytes that are not valid in any other way. It is slow, so it gets a little of each
# test, and none that need files.
miri:
	MIRIFLAGS="-Zmiri-disable-isolation" cargo +nightly miri test --lib --target-dir $(NIGHTLY_TARGET)/miri buffer

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

bench:
	cargo bench

loadtest: build
	loadtest/run.sh steady
	loadtest/run.sh burst

docker:
	docker build -t netwatch-server .
