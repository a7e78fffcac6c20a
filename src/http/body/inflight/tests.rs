use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const MAX_BYTES: usize = 1000;
const MAX_BODY_BYTES: usize = 100;
const SHARE_BYTES: usize = 250;

fn client(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n).into()
}

/// A body that can be evicted, as its owner sees it.
struct Body {
    memory: Arc<Memory>,
    charge: Charge,
}

impl Body {
    fn new(inflight: &Arc<Inflight>, n: u8) -> Self {
        let memory = Memory::new();
        Self { charge: inflight.charge(client(n), Some(Arc::clone(&memory))), memory }
    }

    fn grown(inflight: &Arc<Inflight>, n: u8, bytes: usize, now: Instant) -> Self {
        let mut body = Self::new(inflight, n);
        body.charge.grow(bytes, now).unwrap();
        body
    }

    fn is_evicted(&self) -> bool {
        self.memory.lock().is_none()
    }
}

fn inflight() -> Arc<Inflight> {
    Inflight::new(MAX_BYTES, MAX_BODY_BYTES)
}

#[test]
fn a_body_that_grows_takes_the_memory_of_the_body_that_was_idle_for_the_longest_time() {
    let (inflight, start) = (inflight(), Instant::now());
    let mut bodies: Vec<_> = (0..10).map(|_| Body::grown(&inflight, 1, 100, start)).collect();
    let mut growing = Body::new(&inflight, 1);
    // Nobody is idle.
    assert!(matches!(growing.charge.grow(1, start), Err(ApiError::TooManyInFlight)));
    bodies[0].charge.grow(0, start + MIN_IDLE / 2).unwrap();
    growing.charge.grow(100, start + MIN_IDLE).unwrap();
    let evicted: Vec<_> = bodies.iter().map(Body::is_evicted).collect();
    assert_eq!(evicted.iter().position(|evicted| *evicted), Some(1), "the first one has grown since");
    assert_eq!(evicted.iter().filter(|evicted| **evicted).count(), 1, "one is enough");
    assert_eq!(inflight.used_bytes(), MAX_BYTES);
    // The owner of the evicted body learns it, and has nothing to return.
    assert!(bodies[1].charge.grow(1, start + MIN_IDLE).is_err());
    drop(bodies);
    assert_eq!(inflight.used_bytes(), 100);
}

#[test]
fn the_task_of_an_evicted_body_is_woken() {
    let (inflight, start) = (inflight(), Instant::now());
    let idle = Body::grown(&inflight, 1, MAX_BYTES, start);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let memory = Arc::clone(&idle.memory);
        let owner = tokio::spawn(async move { memory.evicted().await });
        tokio::task::yield_now().await;
        assert!(!owner.is_finished());
        let _growing = Body::grown(&inflight, 1, 1, start + MIN_IDLE);
        tokio::time::timeout(Duration::from_secs(60), owner).await.expect("woken").unwrap();
    });
}

#[test]
fn a_client_beyond_its_share_loses_memory_at_once_and_others_do_not() {
    let (inflight, start) = (inflight(), Instant::now());
    let small: Vec<_> = (0..2).map(|_| Body::grown(&inflight, 2, 100, start)).collect();
    let greedy: Vec<_> = (0..8).map(|_| Body::grown(&inflight, 1, 100, start)).collect();
    let mut new = Body::grown(&inflight, 3, SHARE_BYTES, start);
    assert_eq!(greedy.iter().filter(|body| body.is_evicted()).count(), 3);
    // Beyond its own share, a client takes only idle bodies, and none of a client within its share.
    new.charge.grow(300, start + MIN_IDLE).unwrap();
    assert_eq!(greedy.iter().filter(|body| body.is_evicted()).count(), 6);
    new.charge.grow(50, start + MIN_IDLE).unwrap();
    assert!(new.charge.grow(1, start + MIN_IDLE).is_err());
    drop(new);
    assert!(!small.iter().any(Body::is_evicted));
    let refused = Body::grown(&inflight, 3, SHARE_BYTES, start).charge.grow(500, start);
    assert!(refused.is_err(), "nobody is idle");
}

#[test]
fn one_client_may_use_all_memory_while_no_other_wants_it() {
    let (inflight, start) = (inflight(), Instant::now());
    let mut bodies: Vec<_> = (0..10).map(|_| Body::grown(&inflight, 1, 100, start)).collect();
    assert_eq!(inflight.used_bytes(), MAX_BYTES);
    for n in 1..50 {
        bodies.push(Body::grown(&inflight, 1, 100, start + MIN_IDLE * n));
    }
    assert_eq!(inflight.used_bytes(), MAX_BYTES);
}

#[test]
fn a_pinned_body_is_not_evicted() {
    let (inflight, start) = (inflight(), Instant::now());
    let mut pinned = Body::grown(&inflight, 1, MAX_BYTES, start);
    pinned.charge.pin().unwrap();
    let mut other = Body::new(&inflight, 2);
    assert!(other.charge.grow(1, start + MIN_IDLE).is_err());
    drop(pinned);
    other.charge.grow(1, start + MIN_IDLE).unwrap();
    // A body without bytes is charged for nothing.
    let mut empty = Body::grown(&inflight, 3, 0, start);
    empty.charge.pin().unwrap();
    drop((other, empty));
    assert!(inflight.lock().clients.is_empty() && inflight.lock().evictable.is_empty());
}

/// What happens to one of the bodies.
#[derive(Debug, Clone)]
enum Step {
    Begin { client: u8, is_evictable: bool },
    Grow { body: usize, more: usize },
    Pin { body: usize },
    Drop { body: usize },
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4_u8, prop::bool::weighted(0.8)).prop_map(|(client, is_evictable)| Step::Begin { client, is_evictable }),
        8 => (0..20_usize, 0..150_usize).prop_map(|(body, more)| Step::Grow { body, more }),
        1 => (0..20_usize).prop_map(|body| Step::Pin { body }),
        2 => (0..20_usize).prop_map(|body| Step::Drop { body }),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 0..150)
}

/// The rules of the module, without indexes. The list is sorted by the latest growth.
#[derive(Debug, Default)]
struct Model(Vec<Modelled>);

#[derive(Debug, Clone)]
struct Modelled {
    id: usize,
    client: u8,
    bytes: usize,
    grown: Instant,
    is_evictable: bool,
}

impl Model {
    fn used(&self, client: u8) -> usize {
        self.0.iter().filter(|body| body.client == client).map(|body| body.bytes).sum()
    }

    fn total(&self) -> usize {
        self.0.iter().map(|body| body.bytes).sum()
    }

    fn victim(&self, body: &Modelled, is_greedy: bool) -> Option<usize> {
        let is_idle = |other: &&Modelled| body.grown - other.grown >= MIN_IDLE;
        let mut evictable = self.0.iter().filter(|other| other.is_evictable && other.bytes > 0);
        let largest = (0..4).map(|client| self.used(client)).max().unwrap();
        let of_largest = |other: &&Modelled| largest > SHARE_BYTES && self.used(other.client) == largest;
        let of_largest = evictable.clone().find(of_largest).filter(|other| !is_greedy || is_idle(other));
        let idle = || evictable.find(|other| !is_greedy || other.client == body.client).filter(is_idle);
        of_largest.or_else(idle).map(|other| other.id)
    }

    /// Whether the body of this `id` gets `more` bytes. Evicts others for it.
    fn grow(&mut self, id: usize, more: usize, now: Instant) -> bool {
        let Some(index) = self.0.iter().position(|body| body.id == id) else { return false };
        let mut body = self.0.remove(index);
        (body.grown, body.bytes) = (now, body.bytes + more);
        let is_greedy = self.used(body.client) + body.bytes > SHARE_BYTES;
        while self.total() + body.bytes > MAX_BYTES {
            // Its own bytes so far count for its client.
            let mut before = body.clone();
            (before.bytes, before.is_evictable) = (body.bytes - more, false);
            self.0.push(before);
            let victim = self.victim(&body, is_greedy);
            self.0.pop();
            let Some(victim) = victim else { return false };
            self.0.retain(|other| other.id != victim);
        }
        self.0.push(body);
        true
    }
}

proptest! {
    #[test]
    fn memory_is_granted_and_taken_as_the_rules_say(steps in steps()) {
        let (inflight, mut now) = (inflight(), Instant::now());
        let (mut model, mut bodies) = (Model::default(), HashMap::new());
        for (id, step) in steps.into_iter().enumerate() {
            let pick = |bodies: &HashMap<usize, Body>, n: usize| {
                let mut ids: Vec<_> = bodies.keys().copied().collect();
                ids.sort_unstable();
                ids.get(n % ids.len().max(1)).copied()
            };
            match step {
                Step::Begin { client: n, is_evictable } => {
                    let mut body = Body::new(&inflight, n);
                    if !is_evictable {
                        body.charge.pin().unwrap();
                    }
                    bodies.insert(id, body);
                    model.0.push(Modelled { id, client: n, bytes: 0, grown: now, is_evictable });
                }
                Step::Grow { body, more } => {
                    let Some(id) = pick(&bodies, body) else { continue };
                    let granted = bodies.get_mut(&id).unwrap().charge.grow(more, now).is_ok();
                    prop_assert_eq!(granted, model.grow(id, more, now), "{} {}", id, more);
                    if !granted {
                        bodies.remove(&id);
                    }
                }
                Step::Pin { body } => {
                    let Some(id) = pick(&bodies, body) else { continue };
                    let pinned = bodies.get_mut(&id).unwrap().charge.pin().is_ok();
                    let modelled = model.0.iter_mut().find(|body| body.id == id);
                    prop_assert_eq!(pinned, modelled.is_some());
                    match modelled {
                        Some(body) => body.is_evictable = false,
                        None => drop(bodies.remove(&id)),
                    }
                }
                Step::Drop { body } => {
                    let Some(id) = pick(&bodies, body) else { continue };
                    bodies.remove(&id);
                    model.0.retain(|body| body.id != id);
                }
                Step::Wait => now += MIN_IDLE / 2,
            }
            prop_assert_eq!(inflight.used_bytes(), model.total());
            prop_assert!(inflight.used_bytes() <= MAX_BYTES);
            for (id, body) in &bodies {
                prop_assert_eq!(body.is_evicted(), !model.0.iter().any(|body| body.id == *id), "{}", id);
            }
        }
        drop(bodies);
        prop_assert!(inflight.lock().clients.is_empty() && inflight.lock().evictable.is_empty());
    }
}
