# `make check` must pass before a change is merged. `make test` is for daily work.

LOOM_TARGET ?= $(or $(CARGO_TARGET_DIR),target)/loom
NIGHTLY_TARGET ?= $(or $(CARGO_TARGET_DIR),target)
SERVER = $(abspath $(or $(CARGO_TARGET_DIR),target))/release/netwatch-server
# Not HOST: make would override the environment variable HOST, which is a setting of the server.
RUST_HOST = $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: run build check fmt clippy deny test test-all crash faults memory hostile disks soak soak-faults balancers \
	prometheus browser contract interop loom mutants asan tsan miri doc bench bench-query man loadtest docker

run: ## Build, and serve on port 8080 with files in ./data/reports
	cargo run --release

build:
	cargo build --release

# About 7 minutes and 3.7 GB of disk space on 2 cores, from nothing.
check: fmt clippy deny test-all loom doc

fmt:
	cargo fmt --check

clippy:
	cargo clippy --all-targets -- -D warnings

# Licenses and sources of all dependencies. Requires cargo-deny: cargo install --locked cargo-deny
deny:
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; \
	else echo "skipped: cargo-deny is not installed"; fi

# Unit tests, and the tests of the real server that take seconds.
test:
	cargo test --lib --test admission --test command_line --test cors --test docs --test idempotency --test ingest \
		--test openapi --test proxies --test refusals --test shutdown

test-all:
	cargo test

# 1,000 rounds of kill -9. CRASH_SEED repeats the rounds of a run.
crash:
	CRASH_ROUNDS=1000 cargo test --release --test crash -- --nocapture

# Pages that send reports, and the web page, in a real browser. `node tests/browser/mock.mjs 8099` serves the page with
# generated data while you work on it. SCREENSHOTS=DIR keeps pictures. Requires Chromium, Node.js 20 or newer, and zstd.
browser: build
	cd tests/browser && npm ci && NETWATCH_SERVER=$(SERVER) node --test

# Compares the answers to many generated requests with openapi.yaml. Requires Python 3.10 or newer, with venv and pip,
# for Schemathesis. CONTRACT_SEED and CONTRACT_EXAMPLES control the requests.
contract: build
	NETWATCH_SERVER=$(SERVER) tests/contract/run.sh

# Every recipe of docs/reading.md, on files with hostile reports. Requires Python 3.11 or newer, with venv and pip,
# curl, jq and zstd.
interop: build
	NETWATCH_SERVER=$(SERVER) tests/interop/run.sh

# System calls fail, or the server is killed at them. Requires strace.
faults:
	cargo test --test syscalls -- --ignored

# The worst cases in a cgroup with the memory limit of deploy/. Requires root.
memory:
	cargo test --test memory -- --ignored --test-threads=1

# Attacks by clients, and very many report files, in release mode: prints the figures. Requires about 6,000 file
# descriptors.
hostile:
	cargo test --release --test http2 --test limits --test resets --test unread_log --test many_files \
		-- --nocapture --include-ignored
	cargo test --release --test hostile --test hostile_cpu -- --nocapture --include-ignored --test-threads=1

# A disk that hangs, kinds of file systems, and retention on a full disk and with a million files. Requires root, a kernel with loop devices and FUSE, util-linux,
# e2fsprogs, xfsprogs, btrfs-progs, bindfs, fuse2fs and rclone.
disks:
	PATH="$$PATH:/usr/sbin:/sbin" cargo test --release --no-fail-fast --test stalled_disk --test file_systems \
		-- --nocapture --include-ignored
	cargo test --release --test retention -- --ignored --test-threads 1

# Retention and the metrics under load, with restarts and a disk that fills: 10 minutes, or SOAK_SECONDS. SOAK_SEED
# repeats the requests of a run. Requires root, a kernel with loop devices, util-linux and e2fsprogs.
soak:
	PATH="$$PATH:/usr/sbin:/sbin" cargo test --release --test soak_retention -- --nocapture --include-ignored

# Two servers on one disk under load, with random faults: 30 minutes, or SOAK_SECONDS. SOAK_SEED repeats the faults of a
# run, and SOAK_TRACE=1 prints them. Requires root, a kernel with loop devices, util-linux and e2fsprogs.
soak-faults:
	PATH="$$PATH:/usr/sbin:/sbin" cargo test --release --test soak -- --nocapture --include-ignored

# Two collectors behind HAProxy and nginx, with the configurations of deploy/. Requires both. BALANCER_ROUNDS is the
# number of restarts.
balancers:
	PATH="$$PATH:/usr/sbin" cargo test --test balancers --test smuggling -- --ignored

# The dashboard and the alerts: Prometheus scrapes a server in both formats. Requires Debian's package prometheus.
prometheus:
	cargo test --test prometheus -- --include-ignored

# The lock-free protocols under every interleaving. LOOM_MAX_PREEMPTIONS overrides the limit of preemptions where there
# are too many interleavings. The flag applies to all crates, so they are built in a directory of their own.
loom:
	CARGO_PROFILE_RELEASE_LTO=off RUSTFLAGS="--cfg netwatch_loom" cargo test --release --lib --target-dir $(LOOM_TARGET) model

# Each change to the core must make a test fail: .cargo/mutants.toml. A change takes about a minute, so the changes are
# divided into shards of at most an hour: MUTANTS_SHARD is 0/16 to 15/16. Requires cargo-mutants.
MUTANTS_SHARD ?= 0/16
mutants:
	cargo mutants --no-shuffle --shard $(MUTANTS_SHARD) --baseline=skip

# The buffer's unsafe code under three tools that find different faults. They require a nightly toolchain with
# `rustup component add --toolchain nightly rust-src miri`.
#
# AddressSanitizer: accesses out of bounds or after a free. The standard library is not instrumented.
asan:
	RUSTFLAGS="-Zsanitizer=address" cargo +nightly test --lib --target $(RUST_HOST) --target-dir $(NIGHTLY_TARGET)/asan buffer

# ThreadSanitizer: data races in the interleavings that happen in this run. The standard library is built, too, because
# the precompiled one is not instrumented and causes false alarms.
tsan:
	RUSTFLAGS="-Zsanitizer=thread" cargo +nightly test -Zbuild-std --lib --target $(RUST_HOST) \
		--target-dir $(NIGHTLY_TARGET)/tsan buffer

# Miri: both of these, and all other undefined behaviour. It is slow, so it runs a small part of each test, and no tests
# that need files.
miri:
	MIRIFLAGS="-Zmiri-disable-isolation" cargo +nightly miri test --lib --target-dir $(NIGHTLY_TARGET)/miri buffer

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

bench:
	cargo bench

# Queries and statistics compared with zstdcat, jq, DuckDB and chdb on the same files. Requires Python 3.11 or newer, with
# venv and pip, jq and zstd. SIZE_MIB is the size of the reports.
bench-query: build
	NETWATCH_SERVER=$(SERVER) benches/query/run.sh

man: build ## Manual pages, in target/man
	mkdir -p $(dir $(SERVER))../man
	$(SERVER) man $(dir $(SERVER))../man

loadtest: build
	loadtest/run.sh steady
	loadtest/run.sh burst

docker:
	docker build -t netwatch-server .
