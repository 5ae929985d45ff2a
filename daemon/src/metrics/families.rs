//! Which metrics there are. Names keep their meaning; new ones may come.

use pilot_core::{Refusal, StreamInfo};
use pilot_host::PluginStatus;
use serde_json::Value;

use super::text::{Kind, Text, labels};
use crate::node::Snapshot;

use Kind::{Counter, Gauge};

/// A family of the streams' own series.
type StreamFamily = (&'static str, Kind, &'static str, fn(&StreamInfo) -> f64);

/// Series of each stream that is listed.
const STREAM: &[StreamFamily] = &[
    ("pilot_stream_sent_bytes_total", Counter, "Payload bytes sent, repetitions included", |s| {
        s.bytes_sent as f64
    }),
    ("pilot_stream_received_bytes_total", Counter, "Payload bytes received in order", |s| {
        s.bytes_recv as f64
    }),
    ("pilot_stream_sent_segments_total", Counter, "Segments sent", |s| s.segs_sent as f64),
    ("pilot_stream_received_segments_total", Counter, "Segments received", |s| s.segs_recv as f64),
    ("pilot_stream_retransmits_total", Counter, "Segments sent again", |s| s.retransmits as f64),
    ("pilot_stream_loss_episodes_total", Counter, "Losses found without a timeout", |s| {
        s.fast_retx as f64
    }),
    ("pilot_stream_timeouts_total", Counter, "Retransmission timeouts", |s| s.timeouts as f64),
    ("pilot_stream_spurious_total", Counter, "Needless retransmissions that were undone", |s| {
        s.spurious as f64
    }),
    ("pilot_stream_congestion_window_bytes", Gauge, "Bytes that may be in flight", |s| {
        s.cong_win as f64
    }),
    ("pilot_stream_in_flight_bytes", Gauge, "Bytes sent and not acknowledged", |s| {
        s.in_flight as f64
    }),
    ("pilot_stream_srtt_seconds", Gauge, "Smoothed round-trip time", |s| s.srtt.as_secs_f64()),
    ("pilot_stream_min_rtt_seconds", Gauge, "Shortest round-trip time", |s| {
        s.min_rtt.as_secs_f64()
    }),
    ("pilot_stream_rto_seconds", Gauge, "Retransmission timeout", |s| s.rto.as_secs_f64()),
    ("pilot_stream_delivery_rate_bytes", Gauge, "Payload bytes that arrive per second", |s| {
        s.delivery_rate as f64
    }),
    ("pilot_stream_pacing_rate_bytes", Gauge, "Payload bytes sent per second at most", |s| {
        s.pacing_rate as f64
    }),
    ("pilot_stream_path_mtu_bytes", Gauge, "UDP payload of the path", |s| s.path_mtu as f64),
    ("pilot_stream_mss_bytes", Gauge, "Payload of a full segment", |s| s.mss as f64),
    ("pilot_stream_gso_batch_segments", Gauge, "Segments per batch sent, on average", |s| {
        s.gso_batch
    }),
];

/// A family of the plugins' series.
type PluginFamily = (&'static str, Kind, &'static str, fn(&PluginStatus) -> f64);

/// Series of each plugin and script; a scrape has those of the first
/// [`MAX_PLUGINS`].
const PLUGIN: &[PluginFamily] = &[
    ("pilot_plugin_streams", Gauge, "Streams open", |p| p.streams as f64),
    ("pilot_plugin_streams_total", Counter, "Streams since the daemon started", |p| {
        p.streams_total as f64
    }),
    ("pilot_plugin_errors_total", Counter, "Streams, verdicts and batches that failed", |p| {
        p.errors as f64
    }),
    ("pilot_plugin_calls_total", Counter, "Calls into it", |p| p.calls as f64),
    ("pilot_plugin_cpu_seconds_total", Counter, "Processor time used", |p| {
        p.cpu_ms as f64 / 1000.0
    }),
    ("pilot_plugin_queue", Gauge, "Messages waiting for its thread", |p| p.queue as f64),
    ("pilot_plugin_generation", Gauge, "Generation that runs", |p| p.generation as f64),
];

/// Plugins and scripts with series of their own.
const MAX_PLUGINS: usize = 128;

/// Everything a scrape has.
pub(super) fn write(snapshot: &Snapshot, plugins: &[PluginStatus], events: &Value) -> String {
    let mut text = Text::default();
    daemon(&mut text, snapshot);
    udp(&mut text, snapshot);
    streams(&mut text, snapshot);
    each_stream(&mut text, &snapshot.busiest);
    each_plugin(&mut text, plugins);
    journal(&mut text, events);
    text.finish()
}

fn daemon(text: &mut Text, s: &Snapshot) {
    text.family("pilot_build_info", Gauge, "Always 1; the label says which version runs");
    text.sample("pilot_build_info", &labels(&[("version", &env!("CARGO_PKG_VERSION"))]), 1);
    let uptime = s.uptime.as_secs_f64();
    text.single("pilot_uptime_seconds", Gauge, "Since the daemon started", uptime);
    let up = u8::from(s.registry_up);
    text.single("pilot_registry_up", Gauge, "Whether the registry answers", up);
    let [known, encrypted, relayed] = s.peers;
    text.family("pilot_peers", Gauge, "Peers by kind; each kind is part of the one before");
    for (kind, count) in [("known", known), ("encrypted", encrypted), ("relayed", relayed)] {
        text.sample("pilot_peers", &labels(&[("kind", &kind)]), count);
    }
    text.single("pilot_ports", Gauge, "Ports listened on", s.ports);
    text.single("pilot_clients", Gauge, "Clients of the driver socket", s.clients);
    let c = &s.counters;
    let sent = "Bytes sent in tunnels";
    text.single("pilot_tunnel_sent_bytes_total", Counter, sent, c.bytes_sent);
    let received = "Bytes received in tunnels";
    text.single("pilot_tunnel_received_bytes_total", Counter, received, c.bytes_recv);
    let sent = "Packets sent in tunnels";
    text.single("pilot_tunnel_sent_packets_total", Counter, sent, c.pkts_sent);
    let received = "Packets received in tunnels";
    text.single("pilot_tunnel_received_packets_total", Counter, received, c.pkts_recv);
    text.family("pilot_refused_packets_total", Counter, "Packets refused, by the rule");
    for rule in Refusal::ALL {
        let label = labels(&[("rule", &rule.name())]);
        text.sample("pilot_refused_packets_total", &label, c.refused(rule));
    }
    let dropped = "Datagrams dropped because a client did not read";
    text.single("pilot_datagrams_dropped_total", Counter, dropped, s.datagrams_dropped);
}

fn udp(text: &mut Text, s: &Snapshot) {
    let (c, buffers) = (&s.udp.counters, &s.udp.buffers);
    let totals = [
        ("pilot_udp_send_calls_total", "Send calls that the system took", c.sends),
        ("pilot_udp_sent_datagrams_total", "Datagrams in these calls", c.segments),
        ("pilot_udp_too_large_total", "Datagrams too large for the path", c.too_large),
        ("pilot_udp_send_errors_total", "Datagrams not sent for another reason", c.send_errors),
        ("pilot_udp_receive_errors_total", "Receive calls that failed", c.receive_errors),
        (
            "pilot_udp_offload_refused_total",
            "Batches that had to be sent as single datagrams",
            c.offload_refused,
        ),
    ];
    for (name, help, value) in totals {
        text.single(name, Counter, help, value);
    }
    let wanted = "Kernel buffer asked for in each direction";
    text.single("pilot_udp_buffer_wanted_bytes", Gauge, wanted, buffers.wanted);
    text.family("pilot_udp_buffer_granted_bytes", Gauge, "Kernel buffer granted");
    for (direction, granted) in [("receive", buffers.receive), ("send", buffers.send)] {
        let label = labels(&[("direction", &direction)]);
        text.sample("pilot_udp_buffer_granted_bytes", &label, granted);
    }
}

fn streams(text: &mut Text, s: &Snapshot) {
    let totals = &s.streams;
    text.family("pilot_streams", Gauge, "Streams by state");
    for (state, count) in &totals.states {
        text.sample("pilot_streams", &labels(&[("state", state)]), count);
    }
    // They fall when streams end, so they are no counters.
    let sums = [
        ("pilot_streams_in_flight_bytes", "Bytes in flight of all streams", totals.in_flight),
        ("pilot_streams_congestion_window_bytes", "Congestion windows in all", totals.cong_win),
        (
            "pilot_streams_retransmits",
            "Segments sent again, of all open streams",
            totals.retransmits,
        ),
        ("pilot_streams_timeouts", "Timeouts of all open streams", totals.timeouts),
    ];
    for (name, help, value) in sums {
        text.single(name, Gauge, help, value);
    }
    if let Some(srtt) = totals.srtt() {
        let help = "Smoothed round-trip time that this share of streams does not exceed";
        text.family("pilot_streams_srtt_seconds", Gauge, help);
        for (share, time) in ["0.5", "0.9", "0.99", "1"].iter().zip(srtt) {
            let label = labels(&[("quantile", share)]);
            text.sample("pilot_streams_srtt_seconds", &label, time.as_secs_f64());
        }
    }
}

fn each_stream(text: &mut Text, list: &[StreamInfo]) {
    if list.is_empty() {
        return;
    }
    let named = |s: &StreamInfo, more: &[(&str, &dyn std::fmt::Display)]| {
        let (id, peer, port) = (s.id.0, s.remote.address, s.remote.port);
        let mut pairs: Vec<(&str, &dyn std::fmt::Display)> = vec![
            ("id", &id),
            ("peer", &peer),
            ("local_port", &s.local_port),
            ("remote_port", &port),
        ];
        pairs.extend_from_slice(more);
        labels(&pairs)
    };
    text.family("pilot_stream_info", Gauge, "Always 1; the labels describe the stream");
    for s in list {
        let label = named(s, &[("state", &s.state), ("congestion", &s.congestion)]);
        text.sample("pilot_stream_info", &label, 1);
    }
    let names: Vec<String> = list.iter().map(|s| named(s, &[])).collect();
    for (name, kind, help, value) in STREAM {
        text.family(name, *kind, help);
        for (stream, label) in list.iter().zip(&names) {
            text.sample(name, label, value(stream));
        }
    }
}

fn each_plugin(text: &mut Text, list: &[PluginStatus]) {
    if list.is_empty() {
        return;
    }
    let list = &list[..list.len().min(MAX_PLUGINS)];
    text.family("pilot_plugin_state", Gauge, "Always 1; the label says how the plugin stands");
    for p in list {
        let state = state(p);
        text.sample("pilot_plugin_state", &labels(&[("plugin", &p.name), ("state", &state)]), 1);
    }
    for (name, kind, help, value) in PLUGIN {
        text.family(name, *kind, help);
        for p in list {
            text.sample(name, &labels(&[("plugin", &p.name)]), value(p));
        }
    }
}

/// The name of its state, as in JSON.
fn state(plugin: &PluginStatus) -> String {
    match serde_json::to_value(plugin.state) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// What a sink's status has, by the name of its key.
const SINK: &[(&str, Kind, &str, &str)] = &[
    ("pilot_sink_waiting", Gauge, "Events not yet delivered", "waiting"),
    ("pilot_sink_waiting_bytes", Gauge, "Their bytes", "waiting_bytes"),
    ("pilot_sink_delivered_total", Counter, "Events that the sink took", "delivered"),
    ("pilot_sink_dropped_total", Counter, "Events dropped for lack of space", "dropped"),
    ("pilot_sink_rejected_total", Counter, "Events that the sink refused", "rejected"),
];

fn journal(text: &mut Text, events: &Value) {
    let totals = [
        ("pilot_events_emitted_total", "Events that happened", "emitted"),
        ("pilot_events_lost_total", "Events that found no room in memory", "lost"),
    ];
    for (name, help, key) in totals {
        if let Some(value) = events[key].as_u64() {
            text.single(name, Counter, help, value);
        }
    }
    let sinks: &[Value] = events["sinks"].as_array().map_or(&[], Vec::as_slice);
    let sinks = &sinks[..sinks.len().min(MAX_PLUGINS)];
    if sinks.is_empty() {
        return;
    }
    for (name, kind, help, key) in SINK {
        text.family(name, *kind, help);
        for sink in sinks {
            let name_of = sink["sink"].as_str().unwrap_or_default();
            let value = sink[key].as_u64().unwrap_or_default();
            text.sample(name, &labels(&[("sink", &name_of)]), value);
        }
    }
}
