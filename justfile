# Everything here is optional: `.ci/run` needs nothing but cargo.

# The gate.
verify:
    .ci/run

# Rewrite what can be rewritten.
fix:
    cargo fmt --all
    cargo clippy --fix --allow-dirty --workspace --all-targets --all-features

# Whole clusters in virtual time, more seeds than the gate runs. `SEED=n` in the environment: one, with its log.
sim SEEDS="20000":
    SEEDS={{SEEDS}} cargo test --release -p stead --test cluster_sim -- --nocapture

# The handoff and the takeover, state by state: so many states of each scenario.
model STATES="300000":
    STATES={{STATES}} cargo test --release --test model -- --nocapture --test-threads=1

# The placement table for every size and factor.
placement:
    cargo run --release --example placement_table

# The membership table for all sizes.
membership:
    cargo run --release --example membership_table -- 5 20 50 100 200

# Micro-benchmarks.
bench:
    cargo bench --bench placement --bench link

# The router beside HAProxy: CPU per request, everything on one core. Debian: wrk, haproxy.
proxy *ARGS:
    benches/proxy/run {{ARGS}}

# A counter in a session beside one in Redis: CPU per request, everything on one core. Debian: wrk,
# nginx-light, redis-server.
redis *ARGS:
    benches/redis/run {{ARGS}}

# Live moves under a judge, at the size and with the bounds they are measured by. SCENARIO: join,
# drain, restart, target, source_paused, source_frozen, cut (root, benches/setup) or all; none runs
# every one.
judge SCENARIO="":
    JUDGE=full cargo test --release --test processes live::{{SCENARIO}} -- --nocapture --test-threads=1

# What a session and an empty cluster cost in memory: real processes, a million sessions.
memory *ARGS:
    cargo build --release --bin stead
    benches/memory.py {{ARGS}}

# How fast a shard is copied, beside framing, checksumming and inserting the same records.
copy *ARGS:
    cargo run --release --example copy_shard -- {{ARGS}}

# What `+disk` costs beside the database under it, and how long a million sessions take to be read
# back: [DIR [WRITERS [SECONDS [ROUNDS [SESSIONS]]]]].
disk *ARGS:
    cargo run --release --example disk_writers -- {{ARGS}}

# How long a node takes that starts with a million sessions on disk.
restart *ARGS:
    cargo build --release --bin stead
    benches/restart.py {{ARGS}}

# How long sessions pause when their shard moves under load, and what a move costs in memory.
pause *ARGS:
    cargo run --release --example handoff_pause -- {{ARGS}}

# A fourth node joins three with SESSIONS sessions of 1 KiB, under load; BUDGET per source, 0 for none.
million SESSIONS="1000000" BUDGET="0":
    cargo build --release --bin stead
    cargo run --release --example join_million -- target/release/stead {{SESSIONS}} {{BUDGET}}

# A node of three with SESSIONS sessions of BYTES bytes is killed: how soon its shards are served, and copied again.
takeover SESSIONS="1000000" BYTES="100":
    cargo build --release --bin stead
    cargo run --release --example takeover_million -- target/release/stead {{SESSIONS}} {{BYTES}}

# One fuzz target for some seconds (needs cargo-fuzz and a nightly toolchain).
fuzz TARGET SECONDS="60":
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}
