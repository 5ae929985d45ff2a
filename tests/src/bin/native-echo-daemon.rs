//! A daemon whose echo is compiled in, to compare the plugin with.

fn main() -> anyhow::Result<()> {
    let native = pilot_daemon::Native { echo: true, ..pilot_daemon::Native::default() };
    pilot_daemon::run_with(std::env::args().skip(1), |name| std::env::var(name).ok(), native)
}
