//! Draws the charts of docs/PERFORMANCE.md; see `pilot_tests::plot`.

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    pilot_tests::plot::main(&args)
}
