//! Rows that are no state, and what a node keeps beside its row.

use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy};

use super::super::*;
use super::{command, key, loaded, register, registration, report, rows, signer, three};

/// A state with a row in every table.
fn full() -> State {
    let mut state = three();
    let owned = Register { owner: "alice".into(), hostname: "one".into(), ..registration(1) };
    register(&mut state, owned).unwrap();
    report(&mut state, 1, 2);
    let by = || Actor::Node(signer(1, 1));
    let (name, join, broadcast) = ("lab".into(), JoinPolicy::of("open"), BroadcastRight::Owner);
    for op in [
        Op::RevokeTrust { by: signer(1, 1), peer: NodeId(2) },
        Op::RequestHandshake { by: signer(2, 2), to: NodeId(3), justification: "hi".into() },
        Op::CreateNetwork { by: by(), name, join, broadcast },
        Op::AddMember { by: by(), node: NodeId(2), network: 1 },
        Op::Invite {
            by: by(),
            network: 1,
            to: Invitee::Node(NodeId(3)),
            expires: 5000,
            tags: vec![],
            signature: None,
        },
        Op::CreateToken {
            by: by(),
            network: 1,
            id: "t".into(),
            salt: [1; 32],
            hash: [2; 32],
            uses: None,
            expires: Some(4000),
            tags: vec![],
        },
    ] {
        state.apply(&command(op)).unwrap();
    }
    state
}

#[test]
fn rows_come_back_in_any_order() {
    let state = full();
    let tables: std::collections::BTreeSet<_> = state.all_rows().map(|row| row.table).collect();
    assert_eq!(tables.len(), 9);
    let mut all = rows(&state);
    assert_eq!(rows(&loaded(all.clone()).unwrap()), all);
    all.reverse();
    assert_eq!(rows(&loaded(all.clone()).unwrap()), rows(&state));
    assert!(tables.iter().all(|table| Table::from_number(*table as u8) == Some(*table)));
    assert_eq!(Table::from_number(9), None);
}

#[test]
fn a_lost_or_doubled_row_is_found_whichever_it_is() {
    let all = rows(&full());
    for lost in 0..all.len() {
        let mut some = all.clone();
        let row = some.remove(lost);
        assert!(loaded(some).is_err(), "{row:?} is missed");
        // Where the state stands may be said again, if the same is said.
        if row.table != Table::Meta {
            let mut more = all.clone();
            more.push(row.clone());
            assert!(loaded(more).is_err(), "{row:?} stands twice");
        }
    }
}

#[test]
fn a_damaged_row_is_named() {
    let all = rows(&full());
    for damaged in 0..all.len() {
        for value in [None, Some(b"{\"node\":".to_vec()), Some(b"[]".to_vec())] {
            let mut spoiled = all.clone();
            spoiled[damaged].value = value;
            let error = loaded(spoiled).unwrap_err();
            let StateError::Unreadable { table, key, .. } = &error else { panic!("{error}") };
            assert_eq!(*table, all[damaged].table);
            assert_eq!(*key, hex::encode(&all[damaged].key));
        }
        let mut spoiled = all.clone();
        spoiled[damaged].key.extend([0xFF, 0xFE, 0xFD]);
        let error = loaded(spoiled).unwrap_err();
        assert!(matches!(error, StateError::Unreadable { .. }), "{error}");
    }
}

#[test]
fn contradictions_are_found() {
    let edit = |table: Table, from: &str, to: &str| {
        let mut all = rows(&full());
        let row = all.iter_mut().find(|row| row.table == table).unwrap();
        let text = String::from_utf8(row.value.take().unwrap()).unwrap();
        assert!(text.contains(from), "{text}");
        row.value = Some(text.replacen(from, to, 1).into_bytes());
        loaded(all).unwrap_err()
    };
    let newer = edit(Table::Meta, "\"version\":2", "\"version\":3");
    assert_eq!(newer, StateError::Version(3));
    for (table, from, to, says) in [
        (Table::Meta, "\"next_node\":4", "\"next_node\":3", "node 3, which was never assigned"),
        (Table::Meta, "\"members\":1", "\"members\":2", "rows are missing"),
        (Table::Meta, "\"next_invitation\":2", "\"next_invitation\":1", "was never made"),
        (Table::Key, "\"node\":1", "\"node\":2", "node 2 has two keys"),
        (Table::Key, "}", ",\"revoked\":true}", "registered with a revoked key"),
        (Table::Owner, "\"node\":1", "\"node\":40", "owner text recovers node 40"),
        (Table::Trust, "[2]", "[1]", "trust with itself"),
        (Table::Network, "\"owner\":1", "\"owner\":77", "network 1 belongs to node 77"),
        (Table::Invitation, "\"network\":1", "\"network\":2", "network 2, which there is not"),
    ] {
        let error = edit(table, from, to).to_string();
        assert!(error.contains(says), "{error}");
    }
    let mut all = rows(&full());
    let nodes = all.iter_mut().filter(|row| row.table == Table::Node);
    for row in nodes.take(2) {
        let mut record: NodeRecord = serde_json::from_slice(row.value.as_ref().unwrap()).unwrap();
        record.hostname = "same".into();
        row.value = Some(serde_json::to_vec(&record).unwrap());
    }
    let error = loaded(all).unwrap_err().to_string();
    assert!(error.contains("\"same\" belongs to two nodes"), "{error}");
}

#[test]
fn what_is_not_tracked_is_not_dirty() {
    let mut state = full();
    assert_eq!(state.take_dirty_keys(), [RowKey::Meta]);
    state.track_dirty(true);
    report(&mut state, 3, 2);
    assert_eq!(
        state.take_dirty_keys(),
        [RowKey::Meta, RowKey::Trust(NodeId(2)), RowKey::Trust(NodeId(3))]
    );
    report(&mut state, 3, 2);
    assert_eq!(state.take_dirty_keys(), [RowKey::Meta], "nothing changed");
    let gone = Op::Deregister { by: signer(1, 1) };
    state.apply(&command(gone)).unwrap();
    let rows = state.take_dirty();
    assert_eq!((rows[1].table, &rows[1].value), (Table::Node, &None));
    let revoke = Op::RevokeTrust { by: signer(2, 2), peer: NodeId(3) };
    state.apply(&command(revoke)).unwrap();
    state.track_dirty(false);
    state.track_dirty(true);
    assert_eq!(state.take_dirty_keys(), [RowKey::Meta]);
}

#[test]
fn a_good_signature_is_known_until_the_key_is_another() {
    let mut state = three();
    let node = state.node(NodeId(1)).unwrap();
    let (good, other) = ([5; 64], [6; 64]);
    assert!(!node.knows_signature(Node::HEARTBEAT, &good));
    assert!(!node.knows_signature(Node::HEARTBEAT, &[0; 64]));
    node.remember_signature(Node::HEARTBEAT, &key(1), &good);
    assert!(node.knows_signature(Node::HEARTBEAT, &good));
    assert!(!node.knows_signature(Node::HEARTBEAT, &other));
    assert!(!node.knows_signature(Node::POLL_HANDSHAKES, &good), "another kind");
    node.remember_signature(Node::POLL_HANDSHAKES, &key(1), &other);
    assert!(node.knows_signature(Node::HEARTBEAT, &good));
    node.remember_signature(7, &key(1), &good);
    assert!(!node.knows_signature(7, &good), "there is no such kind");
    state.apply(&command(Op::RotateKey { by: signer(1, 1), new_key: key(9) })).unwrap();
    let node = state.node(NodeId(1)).unwrap();
    assert!(!node.knows_signature(Node::HEARTBEAT, &good));
    // Verified before the key was another, remembered after.
    node.remember_signature(Node::HEARTBEAT, &key(1), &good);
    assert!(!node.knows_signature(Node::HEARTBEAT, &good));
    assert!(std::mem::size_of::<Node>() <= std::mem::size_of::<NodeRecord>() + 128);
}

#[test]
fn silent_nodes_are_found_page_by_page() {
    let mut state = State::default();
    for n in 1..=200 {
        register(&mut state, registration(n)).unwrap();
    }
    for n in (1..=200).filter(|n| n % 3 == 0) {
        state.node(NodeId(n)).unwrap().touch(5000);
    }
    let mut after = Some(NodeId(0));
    let mut found = Vec::new();
    while let Some(from) = after {
        let (silent, next) = state.silent_among(from, 7, 2000);
        assert!(silent.len() <= 7);
        found.extend(silent);
        after = next;
    }
    assert_eq!(found, state.silent_since(2000));
    assert_eq!(found.len(), 200 - 66);
    assert_eq!(
        state.nodes_after(NodeId(198)).map(|n| n.record.id.0).collect::<Vec<_>>(),
        [199, 200]
    );
}
