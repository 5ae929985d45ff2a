//! A daemon whose echo is compiled in, to compare the plugin with.

fn main() -> anyhow::Result<()> {
    let native = pilot_daemon::run::Native { echo: true };
    pilot_daemon::run::run_with(std::env::args().skip(1), |name| std::env::var(name).ok(), native)
}
