//! `connections`: the streams of this daemon, or everything about one.

use pilot_sdk::ConnectionInfo;
use serde_json::{Value, json};

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes, microseconds, or_dash, printable_line};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "connections",
    usage: "connections [conn_id]",
    about: "List the connections of this daemon, or show everything about one",
    returns: "connections (entries of info's conn_list), total; with conn_id: connection (the entry)",
    flags: &[],
    positionals: (0, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Columns that a terminal needs for the wide table.
const WIDE: u16 = 160;
/// A slow-start threshold above this is none yet.
const NO_THRESHOLD: u64 = 1 << 48;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let wanted: Option<u32> = args.get(0).map(|text| number("conn_id", text)).transpose()?;
    let mut info = cx.client().await?.info_json().await.map_err(|e| Failure::daemon("info", &e))?;
    let list = match info["conn_list"].take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    };
    if let Some(id) = wanted {
        let entry = list.into_iter().find(|c| c["id"] == id).ok_or_else(|| {
            Failure::not_found(format!("no connection {id}"))
                .hint("pilotctl connections lists what is open")
        })?;
        let typed = serde_json::from_value(entry.clone()).map_err(unreadable)?;
        let text = details(cx, &typed);
        return Ok(Answer::new(json!({ "connection": entry }), text));
    }
    let data = json!({"total": list.len(), "connections": list});
    let typed: Vec<ConnectionInfo> =
        serde_json::from_value(data["connections"].clone()).map_err(unreadable)?;
    let text = if typed.is_empty() { "no connections".to_owned() } else { table(cx, &typed) };
    Ok(Answer::new(data, text))
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::internal("the daemon's answer cannot be read").reason(error)
}

pub(super) fn table(cx: &Cx, list: &[ConnectionInfo]) -> String {
    let wide = cx.out.columns().is_some_and(|columns| columns >= WIDE);
    let mut header =
        vec!["CONNECTION", "PORT", "REMOTE", "STATE", "SENT", "RECEIVED", "RTT", "RETRANSMITTED"];
    if wide {
        header.extend(["TIMEOUTS", "WINDOW", "IN FLIGHT", "PATH MTU", "CONTROL", "DELIVERY"]);
    }
    let rows: Vec<_> = list
        .iter()
        .map(|c| {
            let mut row = vec![
                c.id.to_string(),
                c.local_port.to_string(),
                format!("{}:{}", printable_line(&c.remote_addr), c.remote_port),
                c.state.clone(),
                bytes(c.bytes_sent),
                bytes(c.bytes_recv),
                rtt(c),
                c.retransmits.to_string(),
            ];
            if wide {
                row.extend([
                    c.timeouts.to_string(),
                    bytes(c.cong_win),
                    bytes(c.in_flight),
                    if c.path_mtu > 0 { c.path_mtu.to_string() } else { "-".to_owned() },
                    or_dash(&c.congestion),
                    rate(c.delivery_rate),
                ]);
            }
            row
        })
        .collect();
    cx.out.table(&header, &rows)
}

/// Every figure of one connection, by what it is about; what this version does
/// not know comes last, as it is. Figures that are zero until they are known
/// are `-` until then.
fn details(cx: &Cx, c: &ConnectionInfo) -> String {
    let moved = |n: u64, segments: u64| format!("{} ({n} bytes) in {segments} segments", bytes(n));
    let known = |n: u64, text: String| if n > 0 { text } else { "-".to_owned() };
    let slow_start = if c.ssthresh > NO_THRESHOLD {
        "no loss so far".to_owned()
    } else {
        format!("slow start below {}", bytes(c.ssthresh))
    };
    let mut fields = vec![
        ("connection", c.id.to_string()),
        ("state", c.state.clone()),
        ("local port", c.local_port.to_string()),
        ("remote", format!("{}:{}", printable_line(&c.remote_addr), c.remote_port)),
        ("sent", moved(c.bytes_sent, c.segs_sent)),
        ("received", moved(c.bytes_recv, c.segs_recv)),
        ("congestion", or_dash(&c.congestion)),
        ("window", format!("{}, {slow_start}", bytes(c.cong_win))),
        ("in flight", format!("{} in {} segments", bytes(c.in_flight), c.unacked)),
        ("delivery rate", rate(c.delivery_rate)),
        ("pacing rate", rate(c.pacing_rate)),
        ("round trip", format!("{}, varies by {} ms", rtt(c), c.rttvar_ms)),
        ("shortest", known(c.min_rtt_us, microseconds(c.min_rtt_us))),
        ("timeout", known(c.rto_ms, format!("{} ms", c.rto_ms))),
        ("path MTU", known(c.path_mtu, format!("{} bytes", c.path_mtu))),
        ("segment", known(c.mss, format!("{} bytes of payload", c.mss))),
        ("batch", known(c.segs_sent, format!("{:.1} segments on average", c.gso_batch))),
        ("retransmitted", format!("{} segments, {} needlessly", c.retransmits, c.spurious)),
        ("losses", format!("{} found without a timeout, {} timeouts", c.fast_retx, c.timeouts)),
        ("recovering", if c.in_recovery { "yes" } else { "no" }.to_owned()),
        ("SACK blocks", format!("{} received, {} sent", c.sack_recv, c.sack_sent)),
        ("duplicate ACKs", c.dup_acks.to_string()),
        ("out of order", format!("{} pieces held", c.ooo_buf)),
        ("peer takes", format!("{} more", bytes(c.peer_recv_win))),
        ("we take", format!("{} more", bytes(c.recv_win))),
    ];
    fields.extend(
        c.extra.iter().map(|(key, value)| (key.as_str(), printable_line(&value.to_string()))),
    );
    cx.out.fields(&fields)
}

/// The smoothed round-trip time, as exactly as the daemon tells it.
fn rtt(c: &ConnectionInfo) -> String {
    if c.srtt_us > 0 { microseconds(c.srtt_us) } else { format!("{} ms", c.srtt_ms) }
}

fn rate(bytes_per_second: u64) -> String {
    if bytes_per_second > 0 { format!("{}/s", bytes(bytes_per_second)) } else { "-".to_owned() }
}
