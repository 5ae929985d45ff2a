//! `make bench`; see `pilot_tests::bench`.

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    pilot_tests::bench::main(&args)
}
