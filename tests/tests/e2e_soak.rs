//! A short soak. Whether memory stays flat is for `make soak` to say, which
//! runs long enough for it.

use std::time::Duration;

use pilot_tests::soak::{Plan, run};

#[tokio::test]
async fn connections_come_and_go_over_a_lossy_path() -> anyhow::Result<()> {
    let plan = Plan {
        length: Duration::from_secs(4),
        connections: 20,
        lifetime: Duration::from_secs(1),
        ..Plan::default()
    };
    let verdict = run(plan, |_| {}).await?;
    assert!(verdict.sound(), "{verdict}");
    assert!(verdict.whole >= 20 && verdict.abandoned > 0 && verdict.lost > 0, "{verdict}");
    Ok(())
}
