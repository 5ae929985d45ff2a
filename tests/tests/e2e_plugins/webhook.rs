//! `sink-webhook` in a daemon against receivers of every kind: nothing is lost,
//! nothing changes places, and what is left out is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Reply, WebhookReceiver, eventually, install};
use serde_json::Value;

use crate::{Pair, ask};

const SINK: &str = "sink-webhook";
/// Emits as many events as it is told to, and tells how many were taken.
const EMITTER: &str = "return { kind = 'service', port = 4200, serve = function(stream)
    local count, taken = tonumber(stream:read_line()), 0
    for n = 1, count do
      if emit('orders.received', { n = n, text = string.rep('x', 100) }) then taken = taken + 1 end
    end
    stream:write(tostring(taken))
  end }";

/// Lines for a daemon with the emitter and a sink that does not take its time.
fn lines(more: &str) -> String {
    format!(
        "scripts:\n  emitter:\n    limits: {{events: 100000}}\nplugins:\n  {SINK}:\n    \
         events: {{linger: 10ms, retry-min: 20ms, retry-max: 200ms{more}}}\n"
    )
}

/// Two daemons of which one emits, and posts to `url`.
async fn emitting(url: Option<&str>, more: &str) -> Result<Pair> {
    let mut lines = lines(more);
    if let Some(url) = url {
        lines = format!("webhook: {url}\n{lines}");
    } else {
        // It runs once it is told where to.
        lines = lines.replace("    events", "    enabled: false\n    events");
    }
    let pair = Pair::start_with(&lines).await?;
    let scripts = pair.serves.home.join("scripts");
    install(&scripts, "emitter.lua", EMITTER.as_bytes())?;
    pair.open(4200).await?;
    Ok(pair)
}

/// Emits events, and waits until the journal has numbered them all.
async fn emit(pair: &Pair, count: u32) -> Result<()> {
    let next = async || journal(pair).await.ok()?["next_event_id"].as_u64();
    let before = next().await.context("no journal")?;
    emit_unheard(pair, count).await?;
    eventually("numbers", async || next().await.filter(|n| *n >= before + u64::from(count)))
        .await
        .map(drop)
}

/// Emits events that nobody may wait for.
async fn emit_unheard(pair: &Pair, count: u32) -> Result<()> {
    let taken = ask(pair.open(4200).await?, format!("{count}\n").as_bytes()).await?;
    ensure!(taken == count.to_string().into_bytes(), "{}", String::from_utf8_lossy(&taken));
    Ok(())
}

/// How the daemon says the sink stands.
async fn sink(pair: &Pair) -> Option<Value> {
    let plugin = pair.serves.client().await.ok()?.plugin(SINK).await.ok()?;
    plugin["sink_status"].as_object()?.values().next().cloned()
}

/// How the daemon says its journal stands.
async fn journal(pair: &Pair) -> Result<Value> {
    Ok(pair.serves.info().await?["events"].clone())
}

/// Number of the last event that the daemon has written to its disk, once
/// nothing waits in memory.
async fn recorded(pair: &Pair) -> Result<u64> {
    eventually("everything to be on disk", async || {
        let journal = journal(pair).await.ok()?;
        let next = journal["next_event_id"].as_u64()?;
        (journal["in_memory"] == 0).then_some(next - 1)
    })
    .await
}

/// Waits until an event with this number or a later one was taken.
async fn until_taken(pair: &Pair, receiver: &WebhookReceiver, number: u64) -> Result<()> {
    let waited =
        eventually("all events to arrive", async || (receiver.last_id() >= number).then_some(()));
    let waited = waited.await;
    let stands = sink(pair).await;
    waited.with_context(|| format!("{} of {number}: {stands:?}", receiver.last_id()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_receiver_gets_everything_in_order() -> Result<()> {
    let mut receiver = WebhookReceiver::start().await?;
    let pair = emitting(Some(&receiver.url()), "").await?;
    emit(&pair, 50).await?;
    until_taken(&pair, &receiver, recorded(&pair).await?).await?;

    // What it answers, and what the daemon says of it.
    for (reply, says) in [
        (Reply::Refuse("500 Internal Server Error", ""), "answered 500"),
        (Reply::Refuse("429 Too Many Requests", "retry-after: 1\r\n"), "answered 429"),
        (
            Reply::Refuse("301 Moved Permanently", "location: http://127.0.0.1:1/\r\n"),
            "answered 301",
        ),
        (Reply::CloseInRequest(40), ""),
    ] {
        receiver.answer(reply.clone());
        let (before, taken) = (receiver.requests(), receiver.taken().len());
        emit(&pair, 30).await?;
        eventually("a failed attempt", async || {
            let tried = receiver.requests() >= before + 2;
            let error = sink(&pair).await?["last_error"].as_str()?.contains(says);
            (tried && error).then_some(())
        })
        .await
        .with_context(|| format!("{reply:?}"))?;
        ensure!(receiver.taken().len() == taken, "{reply:?}: taken all the same");
        receiver.answer(Reply::Take);
        until_taken(&pair, &receiver, recorded(&pair).await?).await?;
    }
    receiver.answer(Reply::TakeAfter(Duration::from_millis(10)));
    emit(&pair, 50).await?;
    until_taken(&pair, &receiver, recorded(&pair).await?).await?;
    receiver.answer(Reply::Take);

    // Away: refused connections, and a connection that ends.
    receiver.down().await;
    emit(&pair, 200).await?;
    let last = recorded(&pair).await?;
    eventually("a failed attempt", async || {
        let sink = sink(&pair).await?;
        (sink["attempts"].as_u64()? > 0 && sink["waiting"].as_u64()? >= 200).then_some(())
    })
    .await?;
    receiver.up().await?;
    until_taken(&pair, &receiver, last).await?;
    let (_, _, dropped) = receiver.check(false)?;
    ensure!(dropped == 0, "{dropped} were dropped");

    // The last thing: the answer breaks off, so that events may come twice.
    receiver.answer(Reply::CloseInAnswer);
    let before = receiver.requests();
    emit(&pair, 10).await?;
    eventually("two attempts", async || (receiver.requests() >= before + 2).then_some(())).await?;
    receiver.answer(Reply::Take);
    until_taken(&pair, &receiver, recorded(&pair).await?).await?;
    receiver.check(true)?;
    let stands = sink(&pair).await.context("no sink")?;
    ensure!(stands["rejected"] == 0 && stands["dropped"] == 0, "{stands}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_loses_no_recorded_event() -> Result<()> {
    let mut receiver = WebhookReceiver::start().await?;
    let mut pair = emitting(Some(&receiver.url()), "").await?;
    emit(&pair, 20).await?;
    until_taken(&pair, &receiver, recorded(&pair).await?).await?;
    for _ in 0..2 {
        receiver.down().await;
        emit(&pair, 2000).await?;
        let last = recorded(&pair).await?;
        let waiting = sink(&pair).await.context("no sink")?["waiting"].as_u64();
        ensure!(waiting >= Some(2000), "{waiting:?}");
        pair.serves.process.kill();
        pair.serves.start_again()?;
        pair.serves.joined().await?;
        // Numbers go on behind those that were given.
        ensure!(recorded(&pair).await? > last, "numbers begin anew");
        receiver.up().await?;
        emit(&pair, 20).await?;
        until_taken(&pair, &receiver, recorded(&pair).await?.max(last + 20)).await?;
    }
    // None was taken twice either: it was down when the daemon was killed.
    let (_, _, dropped) = receiver.check(false)?;
    ensure!(dropped == 0, "{dropped} were dropped");
    let orders = receiver.taken();
    let orders = orders.iter().filter(|e| e["event"] == "orders.received").count();
    ensure!(orders == 20 + 2 * 2020, "{orders} orders");
    let started = receiver.taken();
    let started = started.iter().filter(|e| e["event"] == "daemon.started").count();
    ensure!(started >= 2, "{started} starts");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_queue_drops_is_told() -> Result<()> {
    let mut receiver = WebhookReceiver::start().await?;
    receiver.down().await;
    let mut pair = emitting(Some(&receiver.url()), ", queue-bytes: 100K, batch-bytes: 50K").await?;
    emit(&pair, 3000).await?;
    let last = recorded(&pair).await?;
    let full = eventually("drops", async || {
        sink(&pair).await.filter(|sink| sink["dropped"].as_u64() > Some(1000))
    });
    let full = full.await?;
    ensure!(full["waiting_bytes"].as_u64() <= Some(200 << 10), "{full}");
    // The queue is full, and stays what it is.
    pair.serves.process.kill();
    pair.serves.start_again()?;
    pair.serves.joined().await?;
    receiver.up().await?;
    until_taken(&pair, &receiver, last + 1).await?;
    let (first, taken_to, dropped) = receiver.check(false)?;
    ensure!(dropped > 1000, "only {dropped} were told to be dropped");
    ensure!(first <= last && taken_to > last, "{first} to {taken_to}");
    let taken = receiver.taken();
    let orders = taken.iter().filter(|e| e["event"] == "orders.received").count();
    ensure!((100..2000).contains(&orders), "{orders} orders");
    // The newest are those that are kept.
    ensure!(taken.iter().any(|e| e["data"]["n"] == 3000), "the last order is gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_set_changed_and_cleared_while_the_daemon_runs() -> Result<()> {
    let (one, other) = (WebhookReceiver::start().await?, WebhookReceiver::start().await?);
    let pair = emitting(None, "").await?;
    let got = |receiver: &WebhookReceiver| {
        receiver.taken().iter().filter(|e| e["event"] == "orders.received").count()
    };
    let until = async |receiver: &WebhookReceiver, count: usize| {
        eventually("the orders", async || (got(receiver) >= count).then_some(())).await
    };
    emit_unheard(&pair, 3).await?;
    let set = pair.serves.pilotctl(&["set-webhook", &one.url()])?;
    ensure!(set["applied"] == true, "{set}");
    emit(&pair, 5).await?;
    until(&one, 5).await?;
    pair.serves.pilotctl(&["set-webhook", &other.url()])?;
    emit(&pair, 7).await?;
    until(&other, 7).await?;
    ensure!(got(&one) == 5 && got(&other) == 7, "{} and {}", got(&one), got(&other));

    // A URL that cannot be is refused, and changes nothing.
    let error = pair.serves.pilotctl_error(&["set-webhook", "http://"])?;
    ensure!(error["code"] == "invalid_argument", "{error}");
    emit(&pair, 1).await?;
    until(&other, 8).await?;

    let cleared = pair.serves.pilotctl(&["clear-webhook"])?;
    ensure!(cleared["applied"] == true && cleared["webhook"] == "", "{cleared}");
    pair.serves.until_state(SINK, "off").await?;
    emit_unheard(&pair, 100).await?;
    // What happened meanwhile is for nobody.
    pair.serves.pilotctl(&["set-webhook", &one.url()])?;
    emit(&pair, 2).await?;
    until(&one, 7).await?;
    ensure!(got(&one) == 7 && got(&other) == 8, "{} and {}", got(&one), got(&other));
    Ok(())
}
