//! The streams of all HTTP/2 connections.
//!
//! hyper allocates memory for a stream before the server sees its request. So an HTTP/2 connection reserves its streams
//! before hyper serves it, and advertises exactly that number in SETTINGS_MAX_CONCURRENT_STREAMS. Early connections
//! reserve more streams than later ones. If no stream is left, a new connection waits, and the connection with the most
//! streams is asked to leave: its client may connect again and then gets fewer streams.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Maximum number of streams of one connection, the minimum that RFC 9113 recommends.
const MAX_PER_CONNECTION: usize = 100;

/// A connection reserves at most this share of the streams that are left.
const SHARE: usize = 16;

/// The streams of all HTTP/2 connections.
#[derive(Debug)]
pub(in crate::http) struct Streams {
    permits: Arc<Semaphore>,
    connections: Mutex<Connections>,
}

/// All connections that have reserved streams. The lock is taken per connection, not per stream.
#[derive(Debug, Default)]
struct Connections {
    /// Those that were not asked to leave. The one with the most streams is first, then the oldest one.
    staying: BTreeMap<Rank, oneshot::Sender<()>>,
    opened: u64,
}

/// The number of streams, and the number of earlier connections.
type Rank = (Reverse<usize>, u64);

impl Streams {
    pub(in crate::http) fn new(count: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(count)), connections: Mutex::default() }
    }

    /// Reserves streams for a new connection, at least one. If there is none, asks one connection to leave, and waits.
    pub(super) async fn reserve(self: Arc<Self>) -> Reservation {
        let mut permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let heaviest = self.lock().staying.pop_first();
                // Fails if that connection has just ended, which returns its streams as well.
                let _: Option<Result<(), ()>> = heaviest.map(|(_, asked)| asked.send(()));
                Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed")
            }
        };
        let more = (self.permits.available_permits() / SHARE).min(MAX_PER_CONNECTION - 1);
        // Fails if another connection was faster. One stream is enough then.
        if let Ok(more) = Arc::clone(&self.permits).try_acquire_many_owned(more as u32) {
            permit.merge(more);
        }
        let (asked, leave) = oneshot::channel();
        let mut connections = self.lock();
        let rank = (Reverse(permit.num_permits()), connections.opened);
        connections.opened += 1;
        connections.staying.insert(rank, asked);
        drop(connections);
        Reservation { rank, leave: Some(leave), streams: self, _permit: permit }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Reservation {
    rank: Rank,
    /// Resolves when the connection is asked to leave. `None` after that.
    leave: Option<oneshot::Receiver<()>>,
    streams: Arc<Streams>,
    _permit: OwnedSemaphorePermit,
}

impl Reservation {
    /// Number of streams.
    pub(super) fn count(&self) -> u32 {
        self.rank.0.0 as u32
    }

    /// Resolves once, when the connection is asked to leave.
    pub(super) fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(leave) = &mut self.leave else { return Poll::Pending };
        let asked = Pin::new(leave).poll(cx).map(drop);
        if asked.is_ready() {
            self.leave = None;
        }
        asked
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.streams.lock().staying.remove(&self.rank);
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn reserve(streams: &Arc<Streams>) -> Reservation {
        match poll(pin!(Arc::clone(streams).reserve())) {
            Poll::Ready(reservation) => reservation,
            Poll::Pending => panic!("no stream is left"),
        }
    }

    fn is_asked_to_leave(reservation: &mut Reservation) -> bool {
        reservation.poll_leave(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn each_connection_gets_a_stream_until_all_are_reserved_and_early_ones_get_more() {
        let streams = Arc::new(Streams::new(4096));
        let first = reserve(&streams);
        assert_eq!(first.count() as usize, MAX_PER_CONNECTION);
        let mut counts = vec![first.count()];
        let mut reservations = vec![first];
        while streams.permits.available_permits() > 0 {
            reservations.push(reserve(&streams));
            counts.push(reservations.last().unwrap().count());
        }
        assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
        assert_eq!((counts.iter().sum::<u32>(), counts.last()), (4096, Some(&1)));
        drop(reservations);
        assert_eq!(streams.permits.available_permits(), 4096);
    }

    #[test]
    fn a_connection_that_waits_gets_the_streams_of_the_heaviest_connection() {
        let streams = Arc::new(Streams::new(20));
        let mut heavy = reserve(&streams);
        assert_eq!(heavy.count(), 2);
        let mut light = Vec::new();
        while streams.permits.available_permits() > 0 {
            light.push(reserve(&streams));
        }
        let mut first = Box::pin(Arc::clone(&streams).reserve());
        assert!(poll(first.as_mut()).is_pending());
        assert!(is_asked_to_leave(&mut heavy));
        assert!(!light.iter_mut().any(is_asked_to_leave));
        let mut second = Box::pin(Arc::clone(&streams).reserve());
        assert!(poll(second.as_mut()).is_pending());
        assert!(is_asked_to_leave(&mut light[0]), "the oldest of equal ones");
        assert!(!light.iter_mut().any(is_asked_to_leave));
        drop(heavy);
        assert!(poll(first.as_mut()).is_ready());
        assert!(poll(second.as_mut()).is_ready());
    }
}
