//! The memory of bodies in flight: `INFLIGHT_BYTES`, shared fairly between clients.
//!
//! A body is charged for the memory that it occupies, not for the length that it announces. When memory is short, a
//! body that grows takes the memory of another body that does not:
//!
//! 1. If a client is beyond its share, its body that has not grown for the longest time is evicted. It must be idle if
//!    the growing body belongs to a client beyond its share, too.
//! 2. Otherwise, the idle body that has not grown for the longest time is evicted. A client beyond its share takes
//!    memory only from its own bodies.
//!
//! If there is no such body, the growing body is refused. So nothing ever waits for memory, and a share limits a client
//! only while memory is short: behind a load balancer, all clients may have one address.
//!
//! Each growth is at least a quarter of the body. So a client that holds memory must send bytes in proportion to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::http::error::ApiError;

/// How long a body must not have grown before it counts as idle. Longer than the pauses of a working connection.
const MIN_IDLE: Duration = Duration::from_millis(500);

/// The share of a client: a part of all memory, but at least a number of the longest bodies.
const SHARE_OF_MEMORY: usize = 4;
const MIN_SHARE_BODIES: usize = 2;

/// The memory of all bodies that arrive in several pieces, and of all decoded bodies.
#[derive(Debug)]
pub(in crate::http) struct Inflight {
    max_bytes: usize,
    share_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: usize,
    /// The number of growths, which orders the bodies.
    growths: u64,
    clients: HashMap<IpAddr, Client>,
    /// Bodies that can be evicted, by their latest growth.
    evictable: BTreeMap<u64, Evictable>,
}

/// What one client occupies.
#[derive(Debug, Default)]
struct Client {
    used_bytes: usize,
    /// Its bodies in `State::evictable`.
    evictable: BTreeSet<u64>,
}

#[derive(Debug)]
struct Evictable {
    client: IpAddr,
    bytes: usize,
    grown: Instant,
    memory: Arc<Memory>,
}

/// The bytes of a body that can be evicted at any time.
#[derive(Debug)]
pub(super) struct Memory {
    /// `None` after the eviction.
    bytes: Mutex<Option<Vec<u8>>>,
    evicted: Notify,
}

/// The memory that is charged for one body. Dropping it returns the memory.
#[derive(Debug)]
pub(super) struct Charge {
    inflight: Arc<Inflight>,
    client: IpAddr,
    bytes: usize,
    /// `None` if the body can't be evicted.
    memory: Option<Arc<Memory>>,
    /// The key in `State::evictable`, after the first growth.
    growth: Option<u64>,
}

impl Inflight {
    pub(in crate::http) fn new(max_bytes: usize, max_body_bytes: usize) -> Arc<Self> {
        let share_bytes = (max_bytes / SHARE_OF_MEMORY).max(max_body_bytes.saturating_mul(MIN_SHARE_BODIES));
        Arc::new(Self { max_bytes, share_bytes, state: Mutex::default() })
    }

    /// The charge for a body of `client`, without memory at first. The body can be evicted if it has `memory`.
    pub(super) fn charge(self: &Arc<Self>, client: IpAddr, memory: Option<Arc<Memory>>) -> Charge {
        Charge { inflight: Arc::clone(self), client, bytes: 0, memory, growth: None }
    }

    /// Held for a few map operations, and while evicted memory is freed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(all(test, not(netwatch_loom)))]
    pub(super) fn used_bytes(&self) -> usize {
        self.lock().used_bytes
    }
}

impl Charge {
    /// Charges `more` bytes at the time `now`. The caller allocates them afterwards.
    ///
    /// # Errors
    /// If there is not enough memory, or if the body itself was evicted.
    pub(super) fn grow(&mut self, more: usize, now: Instant) -> Result<(), ApiError> {
        if self.bytes + more == 0 {
            return Ok(());
        }
        let inflight = Arc::clone(&self.inflight);
        let mut state = inflight.lock();
        self.pin_in(&mut state)?;
        if !state.make_space(&inflight, self.client, more, now) {
            return Err(ApiError::TooManyInFlight);
        }
        state.used_bytes += more;
        state.clients.entry(self.client).or_default().used_bytes += more;
        self.bytes += more;
        if let Some(memory) = &self.memory {
            let memory = Arc::clone(memory);
            self.growth = Some(state.add(Evictable { client: self.client, bytes: self.bytes, grown: now, memory }));
        }
        Ok(())
    }

    /// Protects the body against eviction from now on.
    ///
    /// # Errors
    /// If the body was evicted before.
    pub(super) fn pin(&mut self) -> Result<(), ApiError> {
        let inflight = Arc::clone(&self.inflight);
        let pinned = self.pin_in(&mut inflight.lock());
        self.memory = None;
        pinned
    }

    fn pin_in(&mut self, state: &mut State) -> Result<(), ApiError> {
        match self.growth.take() {
            Some(growth) if state.take(growth).is_none() => {
                // The eviction has returned the memory.
                self.bytes = 0;
                Err(ApiError::TooManyInFlight)
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.inflight.lock();
            let growth = self.growth.take();
            if growth.is_none_or(|growth| state.take(growth).is_some()) {
                state.release(self.client, self.bytes);
            }
        }
    }
}

impl State {
    /// Evicts bodies until `more` bytes are free. Returns whether there were enough of them.
    fn make_space(&mut self, limits: &Inflight, client: IpAddr, more: usize, now: Instant) -> bool {
        let used_bytes = self.clients.get(&client).map_or(0, |client| client.used_bytes);
        let is_within_share = used_bytes.saturating_add(more) <= limits.share_bytes;
        while self.used_bytes.saturating_add(more) > limits.max_bytes {
            let Some(victim) = self.victim(limits.share_bytes, client, is_within_share, now) else { return false };
            self.evict(victim);
        }
        true
    }

    /// The body to evict next.
    fn victim(&self, share_bytes: usize, client: IpAddr, is_within_share: bool, now: Instant) -> Option<u64> {
        let is_idle = |growth: &u64| now.saturating_duration_since(self.evictable[growth].grown) >= MIN_IDLE;
        let beyond_share = self.clients.values().filter(|other| other.used_bytes > share_bytes);
        // Of equal clients, one whose body can be evicted.
        let largest = beyond_share.max_by_key(|other| (other.used_bytes, other.evictable.first().map(Reverse)));
        let of_largest = largest.and_then(|largest| largest.evictable.first());
        let of_largest = of_largest.filter(|growth| is_within_share || is_idle(growth));
        let of_all = || match is_within_share {
            true => self.evictable.keys().next(),
            false => self.clients.get(&client).and_then(|client| client.evictable.first()),
        };
        of_largest.or_else(|| of_all().filter(|growth| is_idle(growth))).copied()
    }

    fn evict(&mut self, growth: u64) {
        let Evictable { client, bytes, memory, .. } = self.take(growth).expect("the victim is in the map");
        memory.evict();
        self.release(client, bytes);
    }

    /// Adds a body of a client that is charged for it. Returns its key.
    fn add(&mut self, body: Evictable) -> u64 {
        self.growths += 1;
        self.clients.get_mut(&body.client).expect("it has bodies").evictable.insert(self.growths);
        self.evictable.insert(self.growths, body);
        self.growths
    }

    /// Removes a body from the ones that can be evicted. `None` if it was evicted before.
    fn take(&mut self, growth: u64) -> Option<Evictable> {
        let taken = self.evictable.remove(&growth)?;
        self.clients.get_mut(&taken.client).expect("it has bodies").evictable.remove(&growth);
        Some(taken)
    }

    fn release(&mut self, client: IpAddr, bytes: usize) {
        self.used_bytes -= bytes;
        let of_client = self.clients.get_mut(&client).expect("it has bodies");
        of_client.used_bytes -= bytes;
        if of_client.used_bytes == 0 {
            self.clients.remove(&client);
        }
    }
}

impl Memory {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(Some(Vec::new())), evicted: Notify::new() })
    }

    /// The bytes. `None` after the eviction.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the eviction.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Frees the bytes at once, and wakes the task of the body.
    fn evict(&self) {
        *self.lock() = None;
        self.evicted.notify_one();
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests;
