//! Who may send reports, and how often: decided before anything of the body is read.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Request;

use super::client::Mask;
use super::rate_limit::{Rate, RateLimit};
use super::refusal::Refusal;
use super::write_keys::{WriteKey, WriteKeys};

/// What counts as one client. Everybody has a whole /64 of IPv6, and would have as many buckets as addresses.
pub(super) const CLIENT: Mask = Mask { v4: 32, v6: 64 };

/// What a request has to pass.
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

    /// Lets a request in that the client at the address has sent. One that is turned away for its key has used up a
    /// token of its address all the same: nobody tries keys faster than that.
    pub(super) fn admit<B>(&self, client: impl FnOnce() -> IpAddr, request: &Request<B>) -> Result<(), Refusal> {
        let too_many = |of| move |wait: Duration| Refusal::RateLimited { of, wait };
        if let Some(limit) = &self.by_address {
            limit.check(&CLIENT.apply(client())).map_err(too_many("RATE_LIMIT allows one address"))?;
        }
        let key = self.keys.admit(request)?;
        if let Some((limit, key)) = self.by_key.as_ref().zip(key) {
            limit.check(&key).map_err(too_many("KEY_RATE_LIMIT allows one key"))?;
        }
        Ok(())
    }
}
