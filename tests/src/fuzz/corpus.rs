//! Messages to start from, taken from the vectors.

use serde_json::Value;

macro_rules! vector {
    ($name:literal) => {
        parse(include_str!(concat!("../../vectors/", $name, ".json")))
    };
}

fn parse(text: &str) -> Value {
    // The vectors are part of this repository and checked by every test.
    serde_json::from_str(text).unwrap_or_default()
}

fn rows<'a>(vector: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    vector[list].as_array().into_iter().flatten()
}

fn hex_fields(vector: &Value, list: &str, field: &str) -> Vec<Vec<u8>> {
    rows(vector, list).filter_map(|row| hex::decode(row[field].as_str()?).ok()).collect()
}

fn texts(vector: &Value, list: &str, field: &str) -> Vec<Vec<u8>> {
    rows(vector, list).filter_map(|row| Some(row[field].as_str()?.as_bytes().to_vec())).collect()
}

pub(super) fn addresses() -> Vec<Vec<u8>> {
    let v = vector!("addresses");
    ["addr_valid", "addr_invalid", "socket_valid", "socket_invalid"]
        .iter()
        .flat_map(|list| texts(&v, list, "text"))
        .collect()
}

pub(super) fn packets() -> Vec<Vec<u8>> {
    let v = vector!("packets");
    let mut all = hex_fields(&v, "packets", "wire");
    all.extend(hex_fields(&v, "decode", "wire"));
    all
}

/// Whole datagrams of every capture, beacon messages included.
pub(super) fn datagrams() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for flow in [vector!("tunnel_flow"), vector!("relay_flow"), vector!("transport_flow")] {
        all.extend(hex_fields(&flow, "frames", "frame"));
    }
    all.extend(hex_fields(&vector!("tunnel_session"), "frames", "frame"));
    let v = vector!("tunnel");
    for name in ["pila_a", "pila_b", "pilk_a", "pilk_b", "pilp", "pilt_syn", "relay_1_to_2"] {
        all.extend(v[name].as_str().and_then(|frame| hex::decode(frame).ok()));
    }
    all.extend(beacon());
    // Many frames of a capture are equal; each counts once.
    all.sort_unstable();
    all.dedup();
    all
}

pub(super) fn beacon() -> Vec<Vec<u8>> {
    hex_fields(&vector!("beacon"), "messages", "frame")
}

pub(super) fn sack() -> Vec<Vec<u8>> {
    let v = vector!("sack");
    let mut all = hex_fields(&v, "decode", "payload");
    all.extend(hex_fields(&v, "encode", "payload"));
    all
}

/// Messages of the driver socket, length included, by direction.
pub(super) fn driver(direction: &str) -> Vec<Vec<u8>> {
    let v = vector!("ipc_live");
    let mut all: Vec<Vec<u8>> = rows(&v, "frames")
        .filter(|row| row["direction"] == direction)
        .filter_map(|row| hex::decode(row["frame"].as_str()?).ok())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(super) fn data_exchange() -> Vec<Vec<u8>> {
    let v = vector!("dataexchange");
    let mut all = hex_fields(&v, "frames", "wire");
    all.extend(hex_fields(&v, "decode", "wire"));
    all
}

pub(super) fn handshakes() -> Vec<Vec<u8>> {
    hex_fields(&vector!("signatures"), "handshake_messages", "payload_hex")
}

/// JSON bodies of the registry, both directions.
pub(super) fn registry_bodies() -> Vec<Vec<u8>> {
    let mut all = texts(&vector!("registry_live"), "frames", "json");
    for step in rows(&vector!("registry_requests"), "steps") {
        for side in ["request", "response"] {
            if step[side].is_object() {
                all.push(step[side].to_string().into_bytes());
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Runs of packets from node 1 to node 2, each behind its length (2): what an
/// authenticated peer sends.
pub(super) fn sessions() -> Vec<Vec<u8>> {
    let flow = vector!("transport_flow");
    let sent: Vec<Vec<u8>> = rows(&flow, "frames")
        .filter(|row| row["src"] == "a")
        .filter_map(|row| hex::decode(row["frame"].as_str()?).ok())
        .filter_map(|frame| frame.strip_prefix(b"PILT").map(<[u8]>::to_vec))
        .collect();
    let mut all = vec![script(&sent)];
    for len in 1..=4 {
        all.extend(sent.windows(len).map(script));
    }
    all.push(script(&packets()));
    all
}

fn script(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for packet in packets {
        out.extend(u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(packet);
    }
    out
}

/// Runs of datagrams, each behind its length (2).
pub(super) fn datagram_runs() -> Vec<Vec<u8>> {
    let all = datagrams();
    all.chunks(6).map(script).chain(all.iter().map(|d| script(std::slice::from_ref(d)))).collect()
}
