# Thin on purpose: every target is one or two commands that can be typed by hand.
.PHONY: demo test bench fuzz doc

demo:
	cargo build --locked --release --bins -p pilot-daemon -p pilot-registry -p pilot-beacon -p pilotctl -p pilot-examples
	cargo run --locked --release --quiet -p pilot-examples --bin demo

test:
	cargo build --locked --workspace --bins
	cargo test --locked --workspace

bench:
	cargo build --locked --release --bins -p pilot-daemon -p pilot-registry -p pilot-beacon -p pilot-tests
	cargo run --locked --release --quiet -p pilot-tests --bin bench

fuzz:
	cargo run --locked --release -p pilot-tests --bin fuzz -- --seconds 10

doc:
	cargo doc --locked --workspace --no-deps
