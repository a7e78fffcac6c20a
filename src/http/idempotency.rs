//! A request that is sent again is answered as before and not kept again, if it says that it is the same one.

use std::hash::{BuildHasher, RandomState};
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::header::HeaderName;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tokio::sync::Semaphore;

use super::refusal::Refusal;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The same for what can't set headers, such as `sendBeacon`.
const PARAMETER: &str = "idempotency_key";

/// The longest key, in bytes.
pub(super) const MAX_KEY_BYTES: usize = 255;

/// As many keys are remembered; beyond that, those that were used longest ago are forgotten before their time. A key
/// takes about 300 bytes.
const MAX_KEYS: u64 = 250_000;

/// Two hashes of a key, each seeded at random: nobody can make two keys that are taken for one.
pub(super) type Key = [u64; 2];

/// The requests that were kept of late, and how many reports each had.
#[derive(Debug)]
pub(super) struct Repeats {
    accepted: Cache<Key, usize>,
    hashers: [RandomState; 2],
    /// Places for requests that are being kept. As many as for connections: what is left behind by clients that went
    /// away has a bound, too.
    places: Arc<Semaphore>,
}

impl Repeats {
    /// Remembers a request for `window` after it was kept; no more than `max_connections` are kept at once.
    pub(super) fn new(window: Duration, max_connections: usize) -> Self {
        let accepted = Cache::builder()
            .max_capacity(MAX_KEYS)
            // Not by how often a key is asked for: nearly all are asked for once.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(window)
            .build();
        let hashers = [RandomState::new(), RandomState::new()];
        Self { accepted, hashers, places: Arc::new(Semaphore::new(max_connections)) }
    }

    /// The key of a request, if it has one.
    pub(super) fn key<B>(&self, request: &Request<B>) -> Result<Option<Key>, Refusal> {
        if let Some(value) = request.headers().get(HEADER) {
            let value = value.as_bytes();
            // A string of RFC 8941 has quotes, which the parameter will hardly have.
            let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            return self.hash(unquoted.unwrap_or(value)).map(Some);
        }
        let mut parameters = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        parameters.find(|(name, _)| name == PARAMETER).map(|(_, value)| self.hash(value.as_bytes())).transpose()
    }

    fn hash(&self, key: &[u8]) -> Result<Key, Refusal> {
        match key.len() {
            1..=MAX_KEY_BYTES => Ok([0, 1].map(|n| self.hashers[n].hash_one(key))),
            _ => Err(Refusal::IdempotencyKey),
        }
    }

    /// Does `keep`, which returns how many reports it has kept, unless it was done with this key before: then the
    /// answer is what it was. One that is under way is waited for. One that failed is forgotten; those that have waited
    /// for it fail the same way.
    pub(super) async fn once(
        &self,
        key: Key,
        keep: impl Future<Output = Result<usize, Refusal>> + Send + 'static,
    ) -> Result<usize, Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refusal::TooManyInFlight)?;
        let accepted = self.accepted.clone();
        // A task of its own goes on when the client goes away, so that a repeat finds out how it ends.
        let kept = tokio::spawn(async move {
            let kept = accepted.try_get_with(key, keep).await;
            drop(place);
            kept
        });
        match kept.await {
            Ok(kept) => kept.map_err(|refusal: Arc<Refusal>| match Arc::try_unwrap(refusal) {
                Ok(refusal) => refusal,
                Err(shared) => Refusal::AsTheFirst(shared),
            }),
            Err(failed) => panic::resume_unwind(failed.into_panic()),
        }
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key_of(repeats: &Repeats, uri: &str, header: Option<&str>) -> Result<Option<Key>, Refusal> {
        let request = Request::builder().uri(uri);
        let request = header.into_iter().fold(request, |request, value| request.header(HEADER, value));
        repeats.key(&request.body(()).unwrap())
    }

    /// Starts a request that is kept, as `done` has it, only when that comes; returns when it is under way.
    async fn under_way(repeats: &Arc<Repeats>, key: Key, done: oneshot::Receiver<Result<usize, Refusal>>) -> Waiting {
        let (begun, begins) = oneshot::channel();
        let first = Arc::clone(repeats);
        let waiting = tokio::spawn(async move {
            let keep = async move {
                begun.send(()).unwrap();
                done.await.unwrap()
            };
            first.once(key, keep).await
        });
        begins.await.unwrap();
        waiting
    }

    type Waiting = tokio::task::JoinHandle<Result<usize, Refusal>>;

    #[test]
    fn a_key_is_the_same_in_the_header_and_in_the_query() {
        let repeats = Repeats::new(HOUR, 8);
        let key = |uri, header| key_of(&repeats, uri, header).unwrap();
        let one = key("/", Some("a b"));
        assert!(one.is_some());
        assert_eq!(key("/", Some("\"a b\"")), one);
        assert_eq!(key("/?x=1&idempotency_key=a%20b&y", None), one);
        assert_eq!(key("/?idempotency_key=other", Some("a b")), one, "the header counts");
        assert_ne!(key("/", Some("a")), one);
        assert_eq!(key("/?x=1", None), None);
        assert_eq!(key("/", None), None);
    }

    #[test]
    fn a_key_is_bounded_in_length() {
        let repeats = Repeats::new(HOUR, 8);
        assert!(key_of(&repeats, "/", Some(&"x".repeat(MAX_KEY_BYTES))).is_ok());
        for (uri, header) in [
            ("/".to_owned(), Some("x".repeat(MAX_KEY_BYTES + 1))),
            ("/".to_owned(), Some(String::new())),
            (format!("/?idempotency_key={}", "x".repeat(MAX_KEY_BYTES + 1)), None),
            ("/?idempotency_key=".to_owned(), None),
        ] {
            let refused = key_of(&repeats, &uri, header.as_deref());
            assert!(matches!(refused, Err(Refusal::IdempotencyKey)), "{uri} {header:?}");
        }
    }

    #[tokio::test]
    async fn a_repeat_waits_for_the_first_even_if_its_client_has_gone_away() {
        let repeats = Arc::new(Repeats::new(HOUR, 8));
        let (done, is_done) = oneshot::channel();
        let first = under_way(&repeats, [1, 1], is_done).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let mut repeat = Box::pin(repeats.once([1, 1], async { panic!("kept twice") }));
        assert!(poll_for_a_while(&mut repeat).await.is_none(), "it waits");
        assert_eq!(repeats.once([2, 2], async { Ok(5) }).await.unwrap(), 5, "another key does not");
        done.send(Ok(3)).unwrap();
        assert_eq!(repeat.await.unwrap(), 3);
        assert_eq!(repeats.once([1, 1], async { panic!("kept twice") }).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_first_that_fails_leaves_the_key_free() {
        let repeats = Arc::new(Repeats::new(HOUR, 8));
        let (done, is_done) = oneshot::channel();
        let first = under_way(&repeats, [1, 1], is_done).await;
        let mut repeat = Box::pin(repeats.once([1, 1], async { panic!("kept beside the first") }));
        assert!(poll_for_a_while(&mut repeat).await.is_none(), "it waits");
        done.send(Err(Refusal::TooManyInFlight)).unwrap();
        for refused in [first.await.unwrap(), repeat.await] {
            assert!(refused.unwrap_err().to_string().contains("too many bodies"));
        }
        assert_eq!(repeats.once([1, 1], async { Ok(2) }).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn those_whose_clients_have_gone_away_are_bounded() {
        let repeats = Arc::new(Repeats::new(HOUR, 1));
        let (done, is_done) = oneshot::channel();
        let first = under_way(&repeats, [1, 1], is_done).await;
        first.abort();
        let refused = repeats.once([2, 2], async { panic!("there is no place for it") }).await;
        assert!(matches!(refused, Err(Refusal::TooManyInFlight)), "{refused:?}");
        done.send(Ok(1)).unwrap();
        while repeats.places.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(repeats.once([2, 2], async { Ok(2) }).await.unwrap(), 2);
    }

    /// Polls until all other tasks have had their turn.
    async fn poll_for_a_while<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        for _ in 0..100 {
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await;
            if let Poll::Ready(output) = polled {
                return Some(output);
            }
            tokio::task::yield_now().await;
        }
        None
    }
}
