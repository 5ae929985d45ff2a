//! Where messages go and how answers come together, case by case, and what no
//! sequence of them may do.

use pilot_wire::ipc::split_message;
use pilot_wire::{Address, NodeId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn body(command: &Command<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.encode(&mut bytes);
    bytes.split_off(LENGTH_LEN)
}

fn answer(event: &Event<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    event.encode(&mut bytes);
    bytes.split_off(LENGTH_LEN)
}

fn desk(client: u64, claims: &Rc<RefCell<Claims>>) -> Desk {
    Desk::new(client, Spread::over(2), Rc::clone(claims))
}

/// The tag of a request that goes out.
fn tag(step: &Step) -> u32 {
    let (Step::One(_, message) | Step::All(message)) = step else { panic!("{step:?}") };
    match Command::parse(&message[LENGTH_LEN..]) {
        Ok(Command::Request { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

fn dial(node: u32) -> Vec<u8> {
    body(&Command::Dial { to: Address::backbone(NodeId(node)).port(1) })
}

#[test]
fn messages_go_where_their_node_or_connection_belongs() {
    let claims = Rc::default();
    let (mut desk, mut out) = (desk(1, &claims), Vec::new());
    let to = Address::backbone(NodeId(5)).port(1);
    let passed = [
        (Command::Send { connection: 4, data: b"x" }, 0),
        (Command::Close { connection: 5 }, 1),
        (Command::Credit { connection: 7, bytes: 1 }, 1),
        (Command::Shutdown { connection: 6 }, 0),
        (Command::SendDatagram { to, data: b"x" }, 1),
    ];
    for (command, worker) in passed {
        assert_eq!(desk.command(&body(&command), &mut out), Step::Pass(worker), "{command:?}");
    }
    assert!(matches!(desk.command(&dial(3), &mut out), Step::One(1, _)));
    assert!(matches!(desk.command(&body(&Command::Deregister), &mut out), Step::One(0, _)));
    assert!(matches!(desk.command(&body(&Command::Info), &mut out), Step::All(_)));
    assert_eq!(desk.command(&[0x55], &mut out), Step::Pass(0));
    assert!(out.is_empty());
}

#[test]
fn dials_are_answered_in_the_order_they_were_asked() {
    let claims = Rc::default();
    let (mut desk, mut out) = (desk(1, &claims), Vec::new());
    let (first, second) =
        (tag(&desk.command(&dial(2), &mut out)), tag(&desk.command(&dial(3), &mut out)));
    desk.reply(1, second, &answer(&Event::DialOk { connection: 9 }), &mut out);
    assert!(out.is_empty(), "the first one's turn");
    let refused = Event::Error { code: ErrorCode::GENERAL, text: "dial timeout" };
    desk.reply(0, first, &answer(&refused), &mut out);
    let mut expected = Vec::new();
    refused.encode(&mut expected);
    Event::DialOk { connection: 9 }.encode(&mut expected);
    assert_eq!(out, expected);
}

#[test]
fn a_bind_is_answered_once_when_all_workers_have() {
    let claims = Rc::default();
    let (mut desk, mut out) = (desk(1, &claims), Vec::new());
    let id = tag(&desk.command(&body(&Command::Bind { port: 9 }), &mut out));
    let bound = answer(&Event::BindOk { port: 9 });
    desk.reply(1, id, &bound, &mut out);
    desk.reply(1, id, &bound, &mut out);
    assert!(out.is_empty() && desk.holds(1, 9) && !desk.holds(0, 9), "a worker counts once");
    desk.reply(0, id, &bound, &mut out);
    assert!(!desk.holds(0, 9) && !desk.holds(1, 9));
    assert_eq!(out[LENGTH_LEN..], bound);
    desk.reply(0, id, &bound, &mut out);
    assert_eq!(out.len(), LENGTH_LEN + bound.len(), "not again");
}

#[test]
fn a_port_is_one_clients_until_it_lets_go() {
    let claims = Rc::default();
    let (mut first, mut second) = (desk(1, &claims), desk(2, &claims));
    let bind = body(&Command::Bind { port: 9 });
    let mut out = Vec::new();
    let id = tag(&first.command(&bind, &mut out));
    assert_eq!(second.command(&bind, &mut out), Step::Done, "before the workers have answered");
    assert!(out.ends_with(b"port 9 already bound"));
    // A worker refuses: the port is free for others.
    let refusal = answer(&Event::Error { code: ErrorCode::GENERAL, text: "no" });
    first.reply(0, id, &refusal, &mut out);
    first.reply(1, id, &refusal, &mut out);
    let id = tag(&second.command(&bind, &mut out));
    for worker in 0..2 {
        second.reply(worker, id, &answer(&Event::BindOk { port: 9 }), &mut out);
    }
    assert_eq!(first.command(&bind, &mut out), Step::Done);
    drop(second);
    assert!(matches!(first.command(&bind, &mut out), Step::All(_)));
}

#[test]
fn requests_that_wait_are_bounded() {
    let claims = Rc::default();
    let (mut desk, mut out) = (desk(1, &claims), Vec::new());
    let mut sent = 0;
    while desk.command(&dial(2), &mut out) != Step::Done {
        sent += 1;
    }
    assert_eq!((sent, desk.pending.len()), (1024, 1024));
    assert!(out.ends_with(b"wait for an answer"));
}

#[test]
fn answers_that_are_held_are_bounded() {
    let claims = Rc::default();
    let (mut desk, mut out) = (desk(1, &claims), Vec::new());
    let info = body(&Command::Info);
    for _ in 0..MAX_INFOS {
        assert!(matches!(desk.command(&info, &mut out), Step::All(_)));
    }
    assert_eq!(desk.command(&info, &mut out), Step::Done);
    assert!(out.ends_with(b"wait for an answer"));
    assert!(matches!(desk.command(&dial(2), &mut out), Step::One(0, _)), "others still go");
}

#[test]
fn a_worker_that_ended_owes_no_answer() {
    let claims = Rc::default();
    let (mut desk, mut out) = (desk(1, &claims), Vec::new());
    let info = tag(&desk.command(&body(&Command::Info), &mut out));
    desk.command(&dial(3), &mut out);
    desk.gone(1, &mut out);
    assert!(out.ends_with(b"the daemon is shutting down"), "the dial");
    out.clear();
    let json = br#"{"node_id":1,"peers":2}"#;
    desk.reply(0, info, &answer(&Event::Json { code: json::INFO, body: json }), &mut out);
    let Ok(Event::Json { body, .. }) = Event::parse(&out[LENGTH_LEN..]) else { panic!() };
    let merged: Value = serde_json::from_slice(body).unwrap();
    assert_eq!((&merged["peers"], &merged["node_id"]), (&2.into(), &1.into()));
    assert_eq!(desk.command(&dial(3), &mut out), Step::Done);
}

proptest! {
    /// Whatever a client says and workers answer, every message has a worker
    /// that exists, and nothing is held beyond its bounds.
    #[test]
    fn no_message_and_no_answer_does_harm(
        steps in vec((any::<bool>(), 0..2usize, 1..40u32, 0..0x50u8, vec(any::<u8>(), 0..24)), 0..200)
    ) {
        let claims = Rc::default();
        let (mut desk, mut out) = (desk(1, &claims), Vec::new());
        for (says, worker, id, code, payload) in steps {
            let body = [&[code][..], &payload].concat();
            if says {
                match desk.command(&body, &mut out) {
                    Step::Pass(worker) | Step::One(worker, _) => prop_assert!(worker < 2),
                    Step::All(_) | Step::Done => {}
                }
            } else {
                desk.reply(worker, id, &body, &mut out);
            }
        }
        prop_assert!(desk.pending.len() <= 1024);
        prop_assert!(desk.pending.values().filter(|p| p.kind == Kind::Info).count() <= MAX_INFOS);
        desk.gone(0, &mut out);
        desk.gone(1, &mut out);
        prop_assert!(desk.pending.is_empty());
        // What came out are whole messages.
        let mut rest = &out[..];
        while let Ok(Some((_, used))) = split_message(rest) {
            rest = &rest[used..];
        }
        prop_assert!(rest.is_empty());
        drop(desk);
        prop_assert!(claims.borrow().0.is_empty(), "no port is left behind");
    }
}
