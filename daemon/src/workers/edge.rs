//! The edge of a worker: only datagrams of its own peers come in; others are
//! handed to the worker they belong to, and counted.

use std::net::SocketAddr;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::spread::Spread;

/// Datagrams handed over that wait for their worker, at most 64 KiB each;
/// beyond it they are dropped and counted, as a full socket does.
const WAITING: usize = 256;

/// A datagram on its way from the worker whose socket got it.
type Strayed = (SocketAddr, Vec<u8>);

/// What came to the wrong socket of this worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounters {
    /// Datagrams handed to their worker.
    pub strayed: u64,
    /// Those that its queue had no room for.
    pub strayed_dropped: u64,
}

/// One worker's edge.
#[derive(Debug)]
pub struct Edge {
    worker: usize,
    spread: Spread,
    /// By worker, this one included.
    all: Vec<mpsc::Sender<Strayed>>,
    inbox: mpsc::Receiver<Strayed>,
    counters: EdgeCounters,
}

/// The edges of all workers, in their order.
pub(crate) fn edges(spread: Spread) -> Vec<Edge> {
    let (all, inboxes): (Vec<_>, Vec<_>) =
        (0..spread.workers()).map(|_| mpsc::channel(WAITING)).unzip();
    let edge = |(worker, inbox)| Edge {
        worker,
        spread,
        all: all.clone(),
        inbox,
        counters: EdgeCounters::default(),
    };
    inboxes.into_iter().enumerate().map(edge).collect()
}

impl Edge {
    /// Which worker this is.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// What strayed so far.
    pub(crate) fn counters(&self) -> EdgeCounters {
        self.counters
    }

    /// Whether a datagram is for this worker; any other is handed over.
    pub(crate) fn keeps(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        let owner = self.spread.of_datagram(datagram);
        if owner == self.worker {
            return true;
        }
        self.counters.strayed += 1;
        let taken =
            self.all.get(owner).is_some_and(|o| o.try_send((from, datagram.to_vec())).is_ok());
        if !taken {
            self.counters.strayed_dropped += 1;
        }
        false
    }

    /// The next datagram that another worker handed over.
    pub(crate) fn poll_strayed(&mut self, cx: &mut Context<'_>) -> Poll<Strayed> {
        match self.inbox.poll_recv(cx) {
            Poll::Ready(Some(strayed)) => Poll::Ready(strayed),
            // This edge holds a sender of its own, so the queue never ends.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The same without waiting.
    pub(crate) fn take_strayed(&mut self) -> Option<Strayed> {
        self.inbox.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strayed_datagram_reaches_its_worker_and_is_counted() {
        let from = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut edges = edges(Spread::over(3));
        assert!(edges[2].keeps(from, b"PILS\0\0\0\x05..."));
        assert!(edges[2].keeps(from, b"\xC1\0\0\x04\0\0\0\x05..."));
        assert!(!edges[2].keeps(from, b"PILS\0\0\0\x04..."));
        assert!(!edges[2].keeps(from, b"\xC1\0\0\x05\0\0\0\x04..."));
        assert!(!edges[2].keeps(from, b"PILP"));
        assert_eq!(edges[1].take_strayed(), Some((from, b"PILS\0\0\0\x04...".to_vec())));
        let compact = b"\xC1\0\0\x05\0\0\0\x04...".to_vec();
        assert_eq!(edges[1].take_strayed(), Some((from, compact)));
        assert_eq!(edges[0].take_strayed(), Some((from, b"PILP".to_vec())));
        assert_eq!(edges[2].take_strayed(), None);
        assert_eq!(edges[2].counters(), EdgeCounters { strayed: 3, strayed_dropped: 0 });
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let from = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut edges = edges(Spread::over(2));
        for _ in 0..WAITING + 3 {
            assert!(!edges[0].keeps(from, b"PILS\0\0\0\x01"));
        }
        let counters = edges[0].counters();
        assert_eq!((counters.strayed, counters.strayed_dropped), (WAITING as u64 + 3, 3));
    }
}
