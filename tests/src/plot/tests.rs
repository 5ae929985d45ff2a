//! What is drawn is XML, and values stand where they should.

use serde_json::json;

use super::*;

/// Reads the tags of a document: every one closed, in order, every attribute
/// quoted, every `&` the start of a known reference. Returns names of elements.
fn elements(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        references(&rest[..start]);
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in order");
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.chars().all(|c| c.is_ascii_alphabetic()), "{name}");
        let parts: Vec<&str> = attributes.split('"').collect();
        assert!(parts.len() % 2 == 1, "quotes in {tag}");
        for pair in parts.chunks_exact(2) {
            assert!(pair[0].ends_with('='), "{tag}");
            assert!(!pair[1].contains('<') && !pair[1].contains("NaN"), "{tag}");
            references(pair[1]);
        }
        names.push(name.to_owned());
        if !closed {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are open");
    assert_eq!(rest.trim(), "");
    names
}

fn references(text: &str) {
    for part in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
        assert!(known.iter().any(|k| part.starts_with(k)), "&{part}");
    }
}

fn bench() -> Bench {
    let run = |runs: [f64; 3]| json!({ "unit": "ratio", "runs": runs, "date": "2026-11-24" });
    let machine = json!({ "cores": 2, "cpu": "A & B <C>", "kernel": "6.1" });
    Bench {
        report: json!({
            "stream.oneway.vs_tcp": 0.5, "loss.1.20": 0.4,
            "peer.pilot.loss.0.100": 0.9, "peer.quinn.loss.0.100": 0.45,
            "machine": machine,
        }),
        runs: json!({
            "stream.oneway.vs_tcp": run([0.4, 0.5, 0.6]), "loss.1.20": run([0.3, 0.4, 0.5]),
            "peer.pilot.loss.0.100": run([0.9, 0.9, 0.9]),
            "peer.quinn.loss.0.100": run([0.4, 0.45, 0.5]),
        }),
        series: json!({
            "mtu.blackhole": {
                "span": 0.05, "date": "2026-11-25", "runs": [[90.0, 0.0], [80.0, 80.0], [1.0, 1.0]],
                "mark": { "at": 0.05, "what": "MTU < 1500" },
            },
            "peer.pilot.loss.0.100": { "span": 0.05, "runs": [vec![10.0; 600]] },
        }),
    }
}

#[test]
fn what_was_measured_is_drawn_as_xml() {
    let drawn = drawings(&bench());
    let names: Vec<&str> =
        drawn.iter().filter(|(_, d)| d.is_some()).map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["streams", "loss", "mtu.blackhole", "loss.0.100"]);
    for (name, drawing) in drawn.iter().filter_map(|(n, d)| Some((n, d.as_ref()?))) {
        let elements = elements(drawing);
        assert_eq!(elements[0], "svg", "{name}");
        assert!(elements.iter().any(|e| e == "text"), "{name}");
        assert!(drawing.contains("A &amp; B &lt;C&gt;"), "{name} has no machine");
    }
}

#[test]
fn nothing_measured_is_nothing_drawn() {
    let empty = || json!({});
    let bench = Bench { report: empty(), runs: empty(), series: empty() };
    assert!(drawings(&bench).iter().all(|(_, drawing)| drawing.is_none()));
}

#[test]
fn a_bar_is_as_long_as_its_value() {
    let drawing = streams(&bench()).unwrap();
    // From 190 to 690 pixels is the ratio from 0 to 1.
    assert!(drawing.contains("<rect x=\"190\" y=\"64\" width=\"250\" height=\"24\""), "{drawing}");
}

#[test]
fn the_middle_run_is_drawn() {
    let (span, values) = bench().curve("mtu.blackhole").unwrap();
    assert_eq!((span, values), (0.05, vec![90.0, 0.0]));
    let (span, values) = bench().curve("peer.pilot.loss.0.100").unwrap();
    assert_eq!(values.len(), 200);
    assert!((span - 0.15).abs() < 1e-9, "{span}");
}

#[test]
fn a_caption_has_date_and_machine() {
    let bench = bench();
    let caption = bench.caption(&["loss.1.20", "mtu.blackhole"]);
    assert!(caption.starts_with("2026-11-25; 2 cores, A & B <C>, Linux 6.1"), "{caption}");
}
