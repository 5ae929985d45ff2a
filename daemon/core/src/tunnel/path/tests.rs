//! Where datagrams go.

use super::*;

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 4000))
}

fn known() -> Path {
    let mut path = Path::default();
    path.offer_endpoint(address(1), at(0));
    path.heard_direct(address(1), true, || unreachable!("no probe"), at(0));
    path
}

#[test]
fn a_new_address_is_used_once_it_has_answered() {
    let mut path = known();
    assert_eq!(path.heard_direct(address(2), false, || 7, at(1)), None, "not the newest frame");
    assert_eq!(path.heard_direct(address(2), true, || 7, at(2)), Some(7));
    assert_eq!(path.heard_direct(address(2), true, || 8, at(3)), None, "asked already");
    assert!(!path.validated(address(2), 8, at(4)), "another token");
    assert!(!path.validated(address(3), 7, at(4)), "another address");
    assert_eq!(path.route(None), Some(Route::Direct(address(1))));
    assert!(path.validated(address(2), 7, at(5)));
    assert_eq!(path.route(None), Some(Route::Direct(address(2))));
    assert!(!path.validated(address(2), 7, at(6)), "a token counts once");
}

#[test]
fn an_offered_endpoint_replaces_only_a_silent_one() {
    let mut path = known();
    path.offer_endpoint(address(2), at(900));
    assert_eq!(path.endpoint, Some(address(1)));
    path.offer_endpoint(address(2), at(5000));
    assert_eq!(path.endpoint, Some(address(2)));
}

#[test]
fn relayed_frames_switch_a_silent_path_and_a_direct_answer_switches_back() {
    let beacon = Some(address(9));
    let mut path = known();
    assert!(!path.heard_relayed(at(1000)), "direct traffic is fresh");
    assert!(path.heard_relayed(at(10_000)));
    assert!(!path.heard_relayed(at(10_001)), "no change");
    assert_eq!(path.route(beacon), Some(Route::Relay(address(9))));
    assert_eq!(path.route(None), Some(Route::Direct(address(1))), "without a beacon");
    assert_eq!(path.retry_direct(|| 5, at(11_000)), None, "not yet");
    let due = path.direct_retry_at(at(11_000)).expect("it is tried again");
    assert_eq!(path.retry_direct(|| 5, due), Some((address(1), 5)));
    assert!(path.validated(address(1), 5, due));
    assert_eq!(path.route(beacon), Some(Route::Direct(address(1))));
}
