# Thin on purpose: every target is one or two commands that can be typed by hand.
.PHONY: demo test bench bench-peers plots fuzz soak doc

# Not release: linking that takes longer than everything else together.
demo:
	cargo build --locked --workspace
	cargo run --locked --quiet -p pilot-examples --bin demo

test:
	cargo build --locked --workspace
	cargo test --locked --workspace

bench:
	cargo build --locked --release --workspace
	cargo run --locked --release --quiet -p pilot-tests --bin bench

# Not --locked: its lock file pins what Pilot is compared with, and follows the
# product's for the rest.
bench-peers:
	cargo build --locked --release --workspace --exclude pilot-tests --exclude pilot-hostile-plugin
	cargo run --release --manifest-path tests/peers/Cargo.toml --target-dir target

plots:
	cargo run --locked --release --quiet -p pilot-tests --bin plot

fuzz:
	cargo run --locked --release -p pilot-tests --bin fuzz -- --seconds 10

soak:
	cargo build --locked --release --workspace --exclude pilot-tests --exclude pilot-hostile-plugin
	cargo run --locked --release -p pilot-tests --bin soak
	PILOT_RELOADS=600 cargo test --locked --release -p pilot-host --test reload -- --nocapture two_hundred
	PILOT_KILLS=200 cargo test --locked --release -p pilot-registry --test crash

doc:
	cargo doc --locked --workspace --no-deps
