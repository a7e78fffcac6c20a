//! Who may read: the admin token, and the user name and password for metrics.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::session;
use crate::config::{Access, AdminToken, Config};
use crate::http::error::{ApiError, Challenge};

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// How long a wrong token waits for its answer, and how many may wait. So at most 16 tokens per second can be tried.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
const FAILURES: usize = 16;

/// Who may read.
#[derive(Debug)]
pub(in crate::http) struct Admin {
    token: AdminToken,
    /// The user name and password for metrics, with a colon between them.
    metrics_login: Option<Secret>,
    /// Readers connect to an address that only programs on this machine can reach.
    is_on_loopback: bool,
    failures: Semaphore,
}

/// Text that debug output does not show.
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a request presents.
#[derive(Default)]
struct Credentials {
    /// The bearer token, or the password of Basic authentication.
    token: Option<Vec<u8>>,
    /// User name and password of Basic authentication.
    login: Option<Vec<u8>>,
}

impl Credentials {
    fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let Some(space) = value.iter().position(|byte| *byte == b' ') else { return Self::default() };
        let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
        if scheme.eq_ignore_ascii_case(b"Bearer") {
            return Self { token: Some(rest.to_vec()), login: None };
        }
        if !scheme.eq_ignore_ascii_case(b"Basic") {
            return Self::default();
        }
        let login = BASE64_STANDARD.decode(rest).unwrap_or_default();
        let password = login.iter().position(|byte| *byte == b':').map(|colon| login[colon + 1..].to_vec());
        Self { token: Some(password.unwrap_or_default()), login: Some(login) }
    }
}

impl Admin {
    pub(in crate::http) fn new(config: &Config) -> Self {
        let login = config.metrics_username.as_ref().zip(config.metrics_password.as_ref());
        Self {
            token: config.admin_token.clone(),
            metrics_login: login.map(|(name, password)| Secret(format!("{name}:{password}"))),
            is_on_loopback: config.admin_listen.is_some_and(|address| address.ip().is_loopback()),
            failures: Semaphore::new(FAILURES),
        }
    }

    /// Admits a request that reads metrics: with the admin token or a session, or with the user name and password for
    /// metrics.
    ///
    /// # Errors
    /// Why the request may not read.
    pub(in crate::http) async fn admit_to_metrics(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Credentials { token, login } = Credentials::of(headers);
        let has_login = |Secret(expected): &Secret| login.is_some_and(|login| expected.as_bytes().ct_eq(&login).into());
        let access = match &self.metrics_login {
            Some(expected) if has_login(expected) && !is_foreign(headers) => Access::Granted,
            Some(_) if self.token.is_closed() && token.is_none() => Access::Missing,
            Some(_) if self.token.is_closed() => Access::Wrong,
            _ => self.check(token.as_deref(), headers),
        };
        self.decide(access, Challenge::Password).await
    }

    /// Admits a request that reads: with the admin token or a session.
    ///
    /// # Errors
    /// Why the request may not read.
    pub(in crate::http) async fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let access = self.check(Credentials::of(headers).token.as_deref(), headers);
        self.decide(access, Challenge::Token).await
    }

    /// Begins a session for a client that presents this token. Returns the value of `Set-Cookie`, or `None` if everybody
    /// may read.
    ///
    /// # Errors
    /// Why the client may not read.
    pub(in crate::http) async fn log_in(&self, token: &[u8], is_https: bool) -> Result<Option<HeaderValue>, ApiError> {
        let presented = Some(token).filter(|token| !token.is_empty());
        self.decide(self.token.check(presented), Challenge::Token).await?;
        Ok(session::cookie(&self.token, is_https))
    }

    fn check(&self, token: Option<&[u8]>, headers: &HeaderMap) -> Access {
        // What a browser sends by itself proves nothing about the page that has caused the request.
        if is_foreign(headers) || self.token.is_open() && self.is_on_loopback && !has_local_host(headers) {
            return Access::Missing;
        }
        match self.token.check(token) {
            decided @ (Access::Granted | Access::Closed) => decided,
            // A browser may send an old password beside the cookie.
            refused => match session::check(&self.token, headers) {
                Access::Missing => refused,
                decided => decided,
            },
        }
    }

    async fn decide(&self, access: Access, challenge: Challenge) -> Result<(), ApiError> {
        match access {
            Access::Granted => Ok(()),
            Access::Closed => Err(ApiError::AdminClosed),
            Access::Missing => Err(ApiError::AdminTokenMissing(challenge)),
            Access::Wrong => {
                let limit = "the server checks wrong tokens";
                let Ok(_turn) = self.failures.try_acquire() else {
                    return Err(ApiError::RateLimited { limit, wait: FAILURE_DELAY });
                };
                sleep(FAILURE_DELAY).await;
                Err(ApiError::AdminTokenWrong(challenge))
            }
        }
    }
}

/// Whether a page of another origin has caused the request, and has not sent a token itself. Following a link is no such
/// request: the other page cannot read the answer.
fn is_foreign(headers: &HeaderMap) -> bool {
    let is_bearer = headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"Bearer ")));
    let is_navigation = headers.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate");
    session::is_cross_origin(headers) && !is_bearer && !is_navigation
}

/// Whether the browser, if it is one, knows the server by its address. A name of a foreign domain may resolve to it (DNS
/// rebinding), and would be the same origin for the browser. Requests without a `Host` are not from browsers.
fn has_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let host = host.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    async fn admit(settings: &[(&str, &str)], authorization: Option<&str>) -> &'static str {
        let settings: HashMap<_, _> =
            settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let admin = Admin::new(&Config::from_values(&settings).unwrap());
        let mut headers = HeaderMap::new();
        headers.extend(authorization.map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap())));
        match admin.admit_to_metrics(&headers).await {
            Ok(()) => "granted",
            Err(ApiError::AdminClosed) => "closed",
            Err(ApiError::AdminTokenMissing(_)) => "missing",
            Err(ApiError::AdminTokenWrong(_)) => "wrong",
            Err(error) => panic!("{error:?}"),
        }
    }

    fn basic(login: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(login))
    }

    #[tokio::test(start_paused = true)]
    async fn the_token_is_accepted_as_bearer_and_as_the_password_of_any_user() {
        let token = [("ADMIN_TOKEN", TOKEN)];
        assert_eq!(admit(&token, Some(&format!("Bearer {TOKEN}"))).await, "granted");
        assert_eq!(admit(&token, Some(&format!("bearer  {TOKEN} "))).await, "granted");
        assert_eq!(admit(&token, Some(&basic(&format!("admin:{TOKEN}")))).await, "granted");
        assert_eq!(admit(&token, Some(&basic(&format!(":{TOKEN}")))).await, "granted");
        for wrong in ["Bearer x", "Bearer ", "Basic !", &basic(TOKEN), &basic(&format!("{TOKEN}:x"))] {
            assert_eq!(admit(&token, Some(wrong)).await, "wrong", "{wrong}");
        }
        for missing in [None, Some("Bearer"), Some(TOKEN), Some("Digest x")] {
            assert_eq!(admit(&token, missing).await, "missing", "{missing:?}");
        }
        assert_eq!(admit(&[], Some(&format!("Bearer {TOKEN}"))).await, "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_user_name_and_password_for_metrics_are_accepted_with_and_without_a_token() {
        let login = [("METRICS_USERNAME", "prometheus"), ("METRICS_PASSWORD", "p:w")];
        let both = [&login[..], &[("ADMIN_TOKEN", TOKEN)]].concat();
        for settings in [&login[..], &both] {
            assert_eq!(admit(settings, Some(&basic("prometheus:p:w"))).await, "granted");
            assert_eq!(admit(settings, Some(&basic("prometheus:p"))).await, "wrong");
            assert_eq!(admit(settings, Some(&basic("other:p:w"))).await, "wrong");
            assert_eq!(admit(settings, Some("Bearer p:w")).await, "wrong");
            assert_eq!(admit(settings, None).await, "missing");
        }
        assert_eq!(admit(&both, Some(&format!("Bearer {TOKEN}"))).await, "granted");
    }

    #[tokio::test(start_paused = true)]
    async fn pages_of_other_origins_cannot_use_what_a_browser_sends_by_itself() {
        let read = async |settings: &[(&str, &str)], headers: &[(&'static str, String)]| {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let admin = Admin::new(&Config::from_values(&settings).unwrap());
            let headers = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
            admin.admit(&headers.collect()).await.is_ok()
        };
        let (token, open) = ([("ADMIN_TOKEN", TOKEN)], [("ADMIN_TOKEN", "none"), ("ADMIN_LISTEN", "127.0.0.1:9090")]);
        let site = |site: &str| ("sec-fetch-site", site.to_owned());
        let password = ("authorization", basic(&format!("a:{TOKEN}")));
        assert!(read(&token, &[password.clone(), site("same-origin")]).await);
        assert!(!read(&token, &[password.clone(), site("cross-site")]).await);
        assert!(!read(&token, &[password.clone(), site("same-site")]).await);
        assert!(read(&token, &[password, site("cross-site"), ("sec-fetch-mode", "navigate".to_owned())]).await);
        assert!(read(&token, &[("authorization", format!("Bearer {TOKEN}")), site("cross-site")]).await);
        let host = |host: &str| ("host", host.to_owned());
        assert!(read(&open, &[]).await);
        for local in ["127.0.0.1:9090", "localhost", "LOCALHOST:9090", "[::1]:9090", "192.0.2.7"] {
            assert!(read(&open, &[host(local)]).await, "{local}");
            assert!(!read(&open, &[host(local), site("cross-site")]).await, "{local}");
        }
        for foreign in ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "a b"]
        {
            assert!(!read(&open, &[host(foreign)]).await, "{foreign}");
        }
        let service = [("ADMIN_TOKEN", "none"), ("ADMIN_LISTEN", "0.0.0.0:9090")];
        assert!(read(&service, &[host("collector:9090")]).await, "a name of a service");
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_are_slowed_down_and_do_not_slow_down_the_right_one() {
        let settings = HashMap::from([("ADMIN_TOKEN".to_owned(), TOKEN.to_owned())]);
        let admin = Admin::new(&Config::from_values(&settings).unwrap());
        let headers = |token: &str| {
            HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap())])
        };
        let (wrong, right) = (headers("wrong"), headers(TOKEN));
        let started = tokio::time::Instant::now();
        let attempts: Vec<_> = (0..FAILURES).map(|_| Box::pin(admin.admit_to_metrics(&wrong))).collect();
        let mut attempts = attempts;
        for attempt in &mut attempts {
            assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(attempt.as_mut().poll(cx).is_pending())).await);
        }
        assert!(matches!(admin.admit_to_metrics(&wrong).await, Err(ApiError::RateLimited { .. })));
        admin.admit_to_metrics(&right).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        for attempt in attempts {
            assert!(matches!(attempt.await, Err(ApiError::AdminTokenWrong(_))));
        }
        assert_eq!(started.elapsed().as_secs(), FAILURE_DELAY.as_secs());
    }
}
