//! Admission: who may send, and how often. Decided before the body is read.

mod admin;
mod client_address;
mod connections_per_address;
pub(super) mod cors;
mod idempotency;
mod rate_limit;
pub(super) mod session;
mod write_keys;

use std::net::IpAddr;
use std::time::Duration;

use hyper::Request;

pub(super) use self::admin::Admin;
pub(super) use self::client_address::Proxies;
pub(super) use self::connections_per_address::ConnectionsPerAddress;
pub(super) use self::idempotency::{Key, Repeats};
use self::rate_limit::RateLimit;
use super::error::ApiError;
use crate::config::{Mask, Rate, WriteKey, WriteKeys};

/// The part of an address that identifies a client. One client usually has a whole /64 network of IPv6 addresses.
pub(super) const CLIENT: Mask = Mask { v4: 32, v6: 64 };

/// Write keys and rate limits.
#[derive(Debug)]
pub(super) struct Admission {
    keys: WriteKeys,
    by_address: Option<RateLimit<IpAddr>>,
    by_key: Option<RateLimit<WriteKey>>,
}

impl Admission {
    pub(super) fn new(keys: WriteKeys, by_address: Option<Rate>, by_key: Option<Rate>) -> Self {
        Self { keys, by_address: by_address.map(RateLimit::new), by_key: by_key.map(RateLimit::new) }
    }

    /// Admits a request of the client whose address `client` returns. A request with a wrong key also uses up a token
    /// of its address, which limits the guessing of keys.
    pub(super) fn admit<B>(&self, client: impl FnOnce() -> IpAddr, request: &Request<B>) -> Result<(), ApiError> {
        let exceeded = |limit| move |wait: Duration| ApiError::RateLimited { limit, wait };
        if let Some(limit) = &self.by_address {
            limit.check(&CLIENT.apply(client())).map_err(exceeded("RATE_LIMIT permits for one address"))?;
        }
        let key = write_keys::check(&self.keys, request)?;
        if let Some((limit, key)) = self.by_key.as_ref().zip(key) {
            limit.check(&key).map_err(exceeded("KEY_RATE_LIMIT permits for one key"))?;
        }
        Ok(())
    }
}
