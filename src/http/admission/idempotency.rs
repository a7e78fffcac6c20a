//! Idempotency keys: a repeated request with the same key gets the same answer and is not stored again.

use std::hash::{BuildHasher, RandomState};
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::header::HeaderName;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tokio::sync::Semaphore;

use crate::http::error::ApiError;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The URL parameter for clients that cannot set headers, such as `sendBeacon`.
const PARAMETER: &str = "idempotency_key";

/// Maximum length of a key in bytes.
const MAX_KEY_BYTES: usize = 255;

/// Maximum number of remembered keys, of about 300 bytes each. Beyond it, the least recently used keys are forgotten
/// early.
const MAX_KEYS: u64 = 250_000;

/// Two hashes of a key with random seeds, so that clients cannot construct collisions.
pub(in crate::http) type Key = [u64; 2];

/// Recently stored requests, and the number of reports in each.
#[derive(Debug)]
pub(in crate::http) struct Repeats {
    accepted: Cache<Key, usize>,
    hashers: [RandomState; 2],
    /// Permits for requests in progress. They continue when their clients disconnect, so they need a limit of their
    /// own.
    permits: Arc<Semaphore>,
}

impl Repeats {
    /// Remembers a request for `window` after it was stored. At most `max_connections` requests are in progress at
    /// once.
    pub(in crate::http) fn new(window: Duration, max_connections: usize) -> Self {
        let accepted = Cache::builder()
            .max_capacity(MAX_KEYS)
            // Not by frequency of use: almost all keys are used once.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(window)
            .build();
        let hashers = [RandomState::new(), RandomState::new()];
        Self { accepted, hashers, permits: Arc::new(Semaphore::new(max_connections)) }
    }

    /// The key of a request, if it has one.
    pub(in crate::http) fn key<B>(&self, request: &Request<B>) -> Result<Option<Key>, ApiError> {
        if let Some(value) = request.headers().get(HEADER) {
            let value = value.as_bytes();
            // A string (RFC 8941) has quotation marks. The parameter usually has none.
            let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            return self.hash(unquoted.unwrap_or(value)).map(Some);
        }
        let mut parameters = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        parameters.find(|(name, _)| name == PARAMETER).map(|(_, value)| self.hash(value.as_bytes())).transpose()
    }

    fn hash(&self, key: &[u8]) -> Result<Key, ApiError> {
        match key.len() {
            1..=MAX_KEY_BYTES => Ok([0, 1].map(|n| self.hashers[n].hash_one(key))),
            _ => Err(ApiError::IdempotencyKey { max_bytes: MAX_KEY_BYTES }),
        }
    }

    /// Runs `store`, which returns the number of stored reports, unless a request with this key was stored before: then
    /// returns its result. Waits for a request with this key that is in progress. A request that fails is forgotten,
    /// and requests that have waited for it fail in the same way.
    pub(in crate::http) async fn once(
        &self,
        key: Key,
        store: impl Future<Output = Result<usize, ApiError>> + Send + 'static,
    ) -> Result<usize, ApiError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| ApiError::TooManyInFlight)?;
        let accepted = self.accepted.clone();
        // A separate task continues if the client disconnects, so that a repeated request learns the result.
        let stored = tokio::spawn(async move {
            let stored = accepted.try_get_with(key, store).await;
            drop(permit);
            stored
        });
        match stored.await {
            Ok(stored) => stored.map_err(|error: Arc<ApiError>| match Arc::try_unwrap(error) {
                Ok(error) => error,
                Err(shared) => ApiError::SameAsFirst(shared),
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

    fn key_of(repeats: &Repeats, uri: &str, header: Option<&str>) -> Result<Option<Key>, ApiError> {
        let request = Request::builder().uri(uri);
        let request = header.into_iter().fold(request, |request, value| request.header(HEADER, value));
        repeats.key(&request.body(()).unwrap())
    }

    /// Starts a request that ends with the value of `done`. Returns when the request is in progress.
    async fn in_progress(
        repeats: &Arc<Repeats>,
        key: Key,
        done: oneshot::Receiver<Result<usize, ApiError>>,
    ) -> Waiting {
        let (begun, begins) = oneshot::channel();
        let first = Arc::clone(repeats);
        let waiting = tokio::spawn(async move {
            let store = async move {
                begun.send(()).unwrap();
                done.await.unwrap()
            };
            first.once(key, store).await
        });
        begins.await.unwrap();
        waiting
    }

    type Waiting = tokio::task::JoinHandle<Result<usize, ApiError>>;

    #[test]
    fn a_key_is_the_same_in_the_header_and_in_the_query() {
        let repeats = Repeats::new(HOUR, 8);
        let key = |uri, header| key_of(&repeats, uri, header).unwrap();
        let one = key("/", Some("a b"));
        assert!(one.is_some());
        assert_eq!(key("/", Some("\"a b\"")), one);
        assert_eq!(key("/?x=1&idempotency_key=a%20b&y", None), one);
        assert_eq!(key("/?idempotency_key=other", Some("a b")), one, "the header takes precedence");
        assert_ne!(key("/", Some("a")), one);
        assert_eq!(key("/?x=1", None), None);
        assert_eq!(key("/", None), None);
    }

    #[test]
    fn a_key_has_a_maximum_length() {
        let repeats = Repeats::new(HOUR, 8);
        assert!(key_of(&repeats, "/", Some(&"x".repeat(MAX_KEY_BYTES))).is_ok());
        for (uri, header) in [
            ("/".to_owned(), Some("x".repeat(MAX_KEY_BYTES + 1))),
            ("/".to_owned(), Some(String::new())),
            (format!("/?idempotency_key={}", "x".repeat(MAX_KEY_BYTES + 1)), None),
            ("/?idempotency_key=".to_owned(), None),
        ] {
            let refused = key_of(&repeats, &uri, header.as_deref());
            assert!(matches!(refused, Err(ApiError::IdempotencyKey { .. })), "{uri} {header:?}");
        }
    }

    #[tokio::test]
    async fn a_repeat_waits_for_the_first_request_even_if_that_client_disconnected() {
        let repeats = Arc::new(Repeats::new(HOUR, 8));
        let (done, is_done) = oneshot::channel();
        let first = in_progress(&repeats, [1, 1], is_done).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let mut repeat = Box::pin(repeats.once([1, 1], async { panic!("stored twice") }));
        assert!(poll_for_a_while(&mut repeat).await.is_none(), "it waits");
        assert_eq!(repeats.once([2, 2], async { Ok(5) }).await.unwrap(), 5, "another key does not");
        done.send(Ok(3)).unwrap();
        assert_eq!(repeat.await.unwrap(), 3);
        assert_eq!(repeats.once([1, 1], async { panic!("stored twice") }).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_failed_request_is_forgotten() {
        let repeats = Arc::new(Repeats::new(HOUR, 8));
        let (done, is_done) = oneshot::channel();
        let first = in_progress(&repeats, [1, 1], is_done).await;
        let mut repeat = Box::pin(repeats.once([1, 1], async { panic!("stored while the first is in progress") }));
        assert!(poll_for_a_while(&mut repeat).await.is_none(), "it waits");
        done.send(Err(ApiError::TooManyInFlight)).unwrap();
        for refused in [first.await.unwrap(), repeat.await] {
            assert!(refused.unwrap_err().to_string().contains("too many bodies"));
        }
        assert_eq!(repeats.once([1, 1], async { Ok(2) }).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn requests_of_disconnected_clients_are_limited() {
        let repeats = Arc::new(Repeats::new(HOUR, 1));
        let (done, is_done) = oneshot::channel();
        let first = in_progress(&repeats, [1, 1], is_done).await;
        first.abort();
        let refused = repeats.once([2, 2], async { panic!("there is no permit") }).await;
        assert!(matches!(refused, Err(ApiError::TooManyInFlight)), "{refused:?}");
        done.send(Ok(1)).unwrap();
        while repeats.permits.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(repeats.once([2, 2], async { Ok(2) }).await.unwrap(), 2);
    }

    /// Polls until all other tasks have run.
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
