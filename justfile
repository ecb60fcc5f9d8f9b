# Every habit of this project. `just` lists them.

_default:
    @just --list

# Build the program as users get it
build:
    cargo build --release

# Install what the tests need where it is missing, check formatting, lints and licences, run every test
test:
    cargo xtask test

# The quick half of `test`: no containers, no databases
test-quick:
    cargo test --workspace --lib

# Formatting, clippy with warnings denied, licences of dependencies
lint:
    cargo xtask lint

# Format everything
fmt:
    cargo fmt --all

# Long runs of what is short in CI: the planner's model and faults, and the store's losses of power
soak SEEDS="20000" DISTURBANCES="3" STORE_SEEDS="200" STORE_STATES="100":
    STATEFULD_SIM_SEEDS={{SEEDS}} STATEFULD_SIM_DISTURBANCES={{DISTURBANCES}} cargo test --release -p statefuld-sim -- --nocapture
    STATEFULD_STORE_SEEDS={{STORE_SEEDS}} STATEFULD_STORE_STATES={{STORE_STATES}} cargo test --release -p statefuld-store --lib power -- --nocapture
    just fuzz {{SEEDS}}

# Long fuzzing of the pure parts and of the HTTP surface: RUNS inputs for each test, from SEED on
fuzz RUNS="20000" SEED="0":
    STATEFULD_FUZZ_RUNS={{RUNS}} STATEFULD_FUZZ_SEED={{SEED}} cargo test --release -p statefuld-api --test fuzz
    STATEFULD_FUZZ_RUNS={{RUNS}} STATEFULD_FUZZ_SEED={{SEED}} cargo test --release -p statefuld-apiserver --test apiserver fuzz::

# Measure against the budgets
bench:
    cargo run --release -- bench start

# Writes, lists, watches, memory and start-up of the API; then the same writes and watches against etcd
bench-api:
    cargo run --release -- bench api
    cargo run --release -- bench etcd

# StatefulSets with simulated nodes: create to Ready, updates, deletes, and as pods grow. Takes long; --help names smaller ones
bench-sets:
    cargo run --release -- bench sets --parallel 100,500,5000 --update 50,500 --sets 10000 --grow 1000,10000,100000

# Pods with real containers, step by step; exec, logs, idle pods; beside runc and containerd where they are installed. Needs root
bench-pods:
    cargo run --release -- bench pods

# Durable writes per second of the embedded store
bench-store:
    cargo run --release -p statefuld-store --example store_bench

# End-to-end tests alone
e2e:
    cargo test -p statefuld --test e2e

# Databases that are written to go on while this version takes over from another (REV: any commit)
upgrade-test REV="HEAD^":
    rm -rf target/before && mkdir -p target/before && git archive {{REV}} | tar -x -C target/before
    cd target/before && CARGO_TARGET_DIR=target cargo build --quiet
    STATEFULD_PREVIOUS=$(ls -d "$PWD"/target/before/target/*/debug/statefuld) cargo test -p statefuld --test e2e another_version

# What clients of Kubernetes expect: cases whose names contain WORDS, against the built binary
conformance *WORDS:
    cargo test -p statefuld --test conformance -- {{WORDS}}

# Read the documentation of all crates
docs:
    cargo doc --workspace --no-deps --open

# The binary that is given to people: fat LTO
dist:
    cargo build --profile dist

# That binary as a Debian package, below target/
deb:
    cargo xtask deb
