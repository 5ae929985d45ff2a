//! Two tunnels that exchange keys by hand, in every order.

use rand::SeedableRng;

use super::*;

struct End {
    node: NodeId,
    identity: SigningKey,
    rng: StdRng,
    tunnel: Tunnel,
}

fn ends() -> [End; 2] {
    [1u8, 2].map(|n| End {
        node: NodeId(u32::from(n)),
        identity: SigningKey::from_bytes(&[n; 32]),
        rng: StdRng::seed_from_u64(u64::from(n)),
        tunnel: Tunnel::default(),
    })
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn key(frame: [u8; AUTH_KEY_LEN]) -> X25519Public {
    frame[8..40].try_into().expect("32 bytes")
}

impl End {
    fn start(&mut self, now: Time) -> X25519Public {
        key(self.tunnel.start(self.node, &self.identity, &mut self.rng, now))
    }

    fn answer(&mut self, now: Time) -> X25519Public {
        key(self.tunnel.frame(self.node, &self.identity, &mut self.rng, now))
    }

    fn accept(&mut self, remote: X25519Public, now: Time) -> Accepted {
        self.tunnel.accept(remote, &mut self.rng, now)
    }

    fn seal(&mut self) -> Vec<u8> {
        let mut frame = vec![7; 20 + 40 + 16];
        self.tunnel.sending().expect("a session").seal(self.node, Shape::Published, &mut frame);
        frame
    }

    fn opens(&mut self, frame: &[u8]) -> bool {
        let mut body = frame[20..].to_vec();
        let counter = u64::from_be_bytes(frame[12..20].try_into().expect("8 bytes"));
        let nonce = Nonce { prefix: frame[8..12].try_into().expect("4 bytes"), counter };
        self.tunnel.open(nonce, Shape::Published, &mut body).is_ok()
    }
}

fn talk(a: &mut End, b: &mut End) {
    let frame = a.seal();
    assert!(b.opens(&frame));
    let frame = b.seal();
    assert!(a.opens(&frame));
}

#[test]
fn one_side_starts_and_the_other_answers() {
    let [mut a, mut b] = ends();
    let offer = a.start(at(0));
    assert_eq!(b.accept(offer, at(0)), Accepted::New { answer: true, rekeyed: false });
    let answer = b.answer(at(0));
    assert_eq!(a.accept(answer, at(0)), Accepted::New { answer: false, rekeyed: false });
    talk(&mut a, &mut b);
    // A repetition is answered, but not at once again.
    assert_eq!(b.accept(offer, at(0)), Accepted::Repeated { answer: false });
    assert_eq!(b.accept(offer, at(2)), Accepted::Repeated { answer: true });
    talk(&mut a, &mut b);
}

#[test]
fn both_sides_may_start_at_once() {
    let [mut a, mut b] = ends();
    let (from_a, from_b) = (a.start(at(0)), b.start(at(0)));
    assert_eq!(a.accept(from_b, at(0)), Accepted::New { answer: false, rekeyed: false });
    assert_eq!(b.accept(from_a, at(0)), Accepted::New { answer: false, rekeyed: false });
    talk(&mut a, &mut b);
}

/// While keys change, frames under the old one are still opened, and the
/// answering side keeps to it until a frame under the new one has come.
#[test]
fn frames_under_the_old_key_open_while_keys_change() {
    let [mut a, mut b] = ends();
    let offer = a.start(at(0));
    b.accept(offer, at(0));
    let answer = b.answer(at(0));
    a.accept(answer, at(0));
    talk(&mut a, &mut b);
    for round in 1..10 {
        let now = at(round * 100);
        let late = a.seal();
        let offer = a.start(now);
        assert_eq!(b.accept(offer, now), Accepted::New { answer: true, rekeyed: true });
        assert!(b.opens(&late), "sent before the change");
        let early = b.seal();
        assert!(a.opens(&early), "the answer may be lost: still under the old key");
        let answer = b.answer(now);
        assert_eq!(a.accept(answer, now), Accepted::New { answer: false, rekeyed: true });
        talk(&mut a, &mut b);
    }
}

#[test]
fn retired_keys_are_refused_and_the_session_in_use_stays() {
    let [mut a, mut b] = ends();
    let offer = a.start(at(0));
    b.accept(offer, at(0));
    let answer = b.answer(at(0));
    a.accept(answer, at(0));
    talk(&mut a, &mut b);
    let mut offers = Vec::new();
    for n in 0..20 {
        let [mut other, _] = ends();
        other.rng = StdRng::seed_from_u64(1000 + n);
        let recorded = other.start(at(n));
        b.accept(recorded, at(n));
        offers.push(recorded);
        assert!(b.tunnel.sessions.len() <= MAX_SESSIONS);
        talk(&mut a, &mut b);
    }
    assert_eq!(b.accept(offers[0], at(30)), Accepted::Refused);
    talk(&mut a, &mut b);
}

/// However many keys come and go, no pair of keys makes a session twice.
#[test]
fn no_pair_of_keys_is_used_again() {
    let [_, mut b] = ends();
    let mut pairs = std::collections::BTreeSet::new();
    let recorded: Vec<_> = (0..50u64)
        .map(|n| {
            let [mut other, _] = ends();
            other.rng = StdRng::seed_from_u64(1000 + n);
            other.start(at(0))
        })
        .collect();
    for round in 0..6 {
        for key in &recorded {
            if matches!(b.accept(*key, at(round)), Accepted::New { .. }) {
                let newest = &b.tunnel.sessions[0];
                assert!(pairs.insert((newest.local, newest.remote)), "round {round}");
            }
        }
    }
    assert!(pairs.len() >= 100, "the list of retired keys has forgotten some");
}

#[test]
fn an_unanswered_exchange_is_repeated_less_and_less_often() {
    let [mut a, _] = ends();
    let mut now = Time::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        a.start(now);
        assert!(!a.tunnel.may_start(now));
        let next = a.tunnel.retry_at().expect("outstanding");
        pauses.push(next.since(now));
        now = next;
        assert!(a.tunnel.may_start(now));
    }
    assert!(pauses.is_sorted());
    assert_eq!(pauses.first(), Some(&RETRY_FIRST));
    assert_eq!(pauses.last(), Some(&RETRY_MAX));
    a.tunnel.abandon();
    assert_eq!(a.tunnel.retry_at(), None);
}
