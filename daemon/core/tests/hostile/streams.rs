//! What a trusted peer gone bad can do to streams: numbers out of window,
//! floods into a reader that does not read, endless SYNs.

use std::time::Duration;

use pilot_core::{CloseReason, Config, Event, Permission, Refusal, StreamId};
use pilot_wire::packet::{Flags, Protocol};

use crate::net::{Net, pattern};
use crate::villain::Villain;

fn trusted(config: &Config) -> (Net, Villain) {
    let mut net = Net::new(1, config);
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, Permission::Trusted);
    net.nodes[0].core.listen(1000).expect("free");
    villain.meet(&mut net, 0);
    (net, villain)
}

fn newest(net: &Net) -> StreamId {
    let newest = net.nodes[0].events.iter().rev().find_map(|e| match e {
        Event::Incoming { stream, .. } => Some(*stream),
        _ => None,
    });
    newest.expect("a stream was opened")
}

/// Weakness 19: numbers that cannot belong to the stream change nothing.
#[test]
fn numbers_out_of_window_are_ignored() {
    let (mut net, mut villain) = trusted(&Config::default());
    let mut hold = villain.open(&mut net, 0, 50_001, 1000, true);
    let stream = newest(&net);
    hold.data(&mut villain, &mut net, 0, b"before ");
    let good = hold.header;
    for far in [1u32 << 24, 1 << 28, 1 << 30, (1 << 31) - 1, 1 << 31, u32::MAX - 100_000] {
        let mut bad = good;
        bad.seq = good.seq.wrapping_add(far);
        for flags in [Flags::ACK, Flags::FIN | Flags::ACK] {
            bad.flags = flags;
            villain.send(&mut net, 0, &bad, b"");
            villain.send(&mut net, 0, &bad, b"out of window");
        }
        // A reset is taken within a window's reach only.
        if !(0..=1 << 26).contains(&far.cast_signed()) {
            bad.flags = Flags::RST;
            villain.send(&mut net, 0, &bad, b"");
        }
        let mut bad = good;
        bad.ack = good.ack.wrapping_add(far);
        villain.send(&mut net, 0, &bad, b"");
        bad.protocol = Protocol::StreamAck;
        villain.send(&mut net, 0, &bad, b"");
        villain.send(&mut net, 0, &bad, &[200; 300]);
    }
    assert!(net.refused(0, Refusal::OutOfState) > 5);
    hold.data(&mut villain, &mut net, 0, b"and after");
    assert_eq!(net.read_all((0, stream)), b"before and after");
    assert_eq!(net.closed((0, stream)), None);
    hold.header.flags = Flags::FIN | Flags::ACK;
    villain.send(&mut net, 0, &hold.header, b"");
    assert_eq!(net.nodes[0].core.read(stream, 10), pilot_core::Read::End);
}

/// A peer that acknowledges what was never sent gets nothing more than one
/// that keeps to the rules.
#[test]
fn an_acknowledgement_of_what_was_not_sent_frees_nothing() {
    for ours in [true, false] {
        let (mut net, mut villain) = trusted(&Config::default());
        let mut hold = villain.open(&mut net, 0, 50_001, 1000, ours);
        let stream = newest(&net);
        let limit = net.nodes[0].core.writable(stream);
        let data = bytes::Bytes::from(pattern(500_000, 1));
        net.nodes[0].core.write(stream, data, net.now).expect("open");
        net.drain(0);
        hold.header.ack = hold.header.ack.wrapping_add(450_000);
        hold.data(&mut villain, &mut net, 0, b"");
        assert_eq!(net.nodes[0].core.writable(stream), limit - 500_000);
    }
}

/// Weakness 23: what is not read is bounded, and other streams do not feel it.
#[test]
fn a_slow_reader_bounds_memory_and_stops_nobody_else() {
    for ours in [true, false] {
        let limit = 64 << 10;
        let config = Config { receive_buffer: limit, ..Config::default() };
        let (mut net, mut villain) = trusted(&config);
        let mut unread = villain.open(&mut net, 0, 50_001, 1000, ours);
        let slow = newest(&net);
        let mut read = villain.open(&mut net, 0, 50_002, 1000, ours);
        let quick = newest(&net);
        let segment = pattern(4096, 0);
        let mut delivered = 0;
        for n in 0..3000u32 {
            // Far beyond every window, in order and with gaps.
            unread.data(&mut villain, &mut net, 0, &segment);
            if n % 7 == 0 {
                unread.header.seq = unread.header.seq.wrapping_add(4096);
            }
            read.data(&mut villain, &mut net, 0, &segment);
            let got = net.read_all((0, quick));
            assert_eq!(got, segment, "the other stream goes on");
            delivered += got.len();
            net.pass(Duration::from_millis(2));
        }
        assert_eq!(delivered, 3000 * 4096);
        let held = net.read_all((0, slow)).len();
        assert!(held >= 4096 && held <= limit + (512 << 10) + 4096, "{held} bytes were held");
        let info = net.nodes[0].core.streams();
        let info = info.iter().find(|s| s.id == slow).expect("open");
        assert!(info.ooo_buf <= limit / 4096 + 129, "{} pieces out of order", info.ooo_buf);
    }
}

/// Tiny pieces out of order cost more than their bytes: their number has a
/// bound of its own.
#[test]
fn pieces_out_of_order_are_bounded_in_number() {
    let (mut net, mut villain) = trusted(&Config::default());
    let hold = villain.open(&mut net, 0, 50_001, 1000, true);
    let stream = newest(&net);
    for n in 0..20_000u32 {
        let mut header = hold.header;
        header.seq = header.seq.wrapping_add(1 + 2 * n);
        villain.send(&mut net, 0, &header, b"x");
    }
    let info = net.nodes[0].core.streams();
    let info = info.iter().find(|s| s.id == stream).expect("open");
    assert!(info.ooo_buf <= 4096, "{} pieces", info.ooo_buf);
}

#[test]
fn syns_are_limited_per_node_per_port_and_in_all() {
    let config = Config {
        syn_rate: 50,
        syn_rate_per_node: 20,
        max_streams: 30,
        max_streams_per_port: 25,
        ..Config::default()
    };
    let (mut net, mut villain) = trusted(&config);
    net.nodes[0].core.listen(1001).expect("free");
    let flood = |net: &mut Net, villain: &mut Villain, port: u16, first: u16| {
        for source in first..first + 100 {
            let mut syn = villain.header(1, port);
            syn.flags = Flags::SYN;
            syn.source.port = source;
            villain.send(net, 0, &syn, b"");
        }
    };
    flood(&mut net, &mut villain, 1000, 10_000);
    assert_eq!(net.nodes[0].core.open_streams(), 20, "the node's rate");
    assert_eq!(net.refused(0, Refusal::SynRate), 80);
    net.pass(Duration::from_secs(1));
    flood(&mut net, &mut villain, 1000, 20_000);
    assert_eq!(net.nodes[0].core.open_streams(), 25, "the port's limit");
    net.pass(Duration::from_secs(1));
    flood(&mut net, &mut villain, 1001, 30_000);
    assert_eq!(net.nodes[0].core.open_streams(), 30, "the limit of all");
    assert!(net.refused(0, Refusal::StreamLimit) > 0);
}

/// Streams that a peer opens and ends as fast as it may leave a bounded trace,
/// even when it keeps asking for every one of them.
#[test]
fn what_is_left_of_ended_streams_goes_away() {
    let (mut net, mut villain) = trusted(&Config::default());
    for n in 0..200u16 {
        let mut hold = villain.open(&mut net, 0, 10_000 + n, 1000, true);
        let stream = newest(&net);
        hold.header.flags = Flags::FIN | Flags::ACK;
        villain.send(&mut net, 0, &hold.header, b"");
        net.nodes[0].core.close(stream, net.now);
        net.drain(0);
        let fin = villain.answers(&mut net);
        let fin = fin.iter().find(|(h, _)| h.flags.contains(Flags::FIN)).expect("its FIN").0;
        hold.header.flags = Flags::ACK;
        hold.header.seq = hold.header.seq.wrapping_add(1);
        hold.header.ack = fin.seq.wrapping_add(1);
        villain.send(&mut net, 0, &hold.header, b"");
        assert_eq!(net.closed((0, stream)), Some(CloseReason::Finished));
        net.pass(Duration::from_millis(50));
    }
    assert_eq!(net.nodes[0].core.open_streams(), 0);
    net.pass(Duration::from_secs(60));
    villain.mail(&mut net);
    let events = net.log.len();
    net.pass(Duration::from_secs(3600));
    assert_eq!(net.log.len(), events, "and nothing is sent for them any more");
}

/// Both sides finish at once: silence must follow.
#[test]
fn two_ended_streams_do_not_answer_each_other() {
    let mut net = Net::new(2, &Config::default());
    let pair = net.connect(1, 0, 1000);
    net.converse(&pair, 30_000, |_| {});
    for end in pair.ends {
        let now = net.now;
        net.nodes[end.0].core.shutdown(end.1, now);
    }
    net.pass(Duration::from_secs(1));
    for end in pair.ends {
        assert_eq!(net.nodes[end.0].core.read(end.1, 1), pilot_core::Read::End);
    }
    net.pass(Duration::from_secs(1));
    for end in pair.ends {
        assert_eq!(net.closed(end), Some(CloseReason::Finished));
    }
    assert_eq!(net.nodes[0].core.open_streams() + net.nodes[1].core.open_streams(), 0);
    let quiet = net.log.len();
    net.pass(Duration::from_secs(5));
    assert_eq!(net.log.len(), quiet);
}

/// A late packet for an ended stream is answered; a packet that carries no
/// more than an acknowledgement is not, or two ended streams would talk for
/// ever.
#[test]
fn an_ended_stream_answers_data_but_no_bare_acknowledgement() {
    let (mut net, mut villain) = trusted(&Config::default());
    let mut hold = villain.open(&mut net, 0, 50_001, 1000, true);
    let stream = newest(&net);
    // The core closes first, so that it is the one that waits.
    net.nodes[0].core.shutdown(stream, net.now);
    net.drain(0);
    let fin = villain.answers(&mut net);
    let fin = fin.iter().find(|(h, _)| h.flags.contains(Flags::FIN)).expect("its FIN").0;
    hold.data(&mut villain, &mut net, 0, b"late");
    let before_fin = hold.header;
    hold.header.ack = fin.seq.wrapping_add(1);
    hold.header.flags = Flags::FIN | Flags::ACK;
    villain.send(&mut net, 0, &hold.header, b"");
    assert_eq!(net.read_all((0, stream)), b"late");
    net.drain(0);
    assert_eq!(net.closed((0, stream)), Some(CloseReason::Finished));
    villain.mail(&mut net);
    // Its own last acknowledgement, as if the network had kept it.
    let mut late = hold.header;
    late.flags = Flags::ACK;
    late.seq = late.seq.wrapping_add(1);
    villain.send(&mut net, 0, &late, b"");
    assert_eq!(villain.answers(&mut net), [], "a bare acknowledgement");
    villain.send(&mut net, 0, &hold.header, b"");
    assert_eq!(villain.answers(&mut net).len(), 1, "a repeated FIN");
    let mut again = before_fin;
    again.seq = again.seq.wrapping_sub(4);
    villain.send(&mut net, 0, &again, b"late");
    assert_eq!(villain.answers(&mut net).len(), 1, "repeated data");
}
