//! How many connections one client has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::admission::CLIENT;

/// The connections that are open, by client. Locked when one comes and when it goes.
#[derive(Debug)]
pub(super) struct PerAddress {
    max: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of a client's connections, for as long as it is held.
#[derive(Debug)]
pub(super) struct Counted<'a> {
    by: &'a PerAddress,
    client: IpAddr,
}

impl PerAddress {
    pub(super) fn new(max: usize) -> Self {
        Self { max, open: Mutex::default() }
    }

    /// Counts a connection of the client at this address; `None` when it has as many as it may have.
    pub(super) fn count(&self, address: IpAddr) -> Option<Counted<'_>> {
        let client = CLIENT.apply(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count == self.max {
            return None;
        }
        *count += 1;
        Some(Counted { by: self, client })
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut open = self.by.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = open.get_mut(&self.client) else { return };
        *count -= 1;
        if *count == 0 {
            open.remove(&self.client);
        }
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_as_many_as_it_may_and_gets_them_back() {
        let counts = PerAddress::new(2);
        let count = |address: &str| counts.count(address.parse().unwrap());
        let (first, second) = (count("192.0.2.1").unwrap(), count("192.0.2.1").unwrap());
        assert!(count("192.0.2.1").is_none());
        let _other = count("192.0.2.2").unwrap();
        drop(first);
        let third = count("192.0.2.1").unwrap();
        assert!(count("192.0.2.1").is_none());
        drop((second, third));
        assert_eq!(counts.open.lock().unwrap().len(), 1, "nothing is kept of who has none");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let counts = PerAddress::new(1);
        let count = |address: &str| counts.count(address.parse().unwrap());
        let _one = count("2001:db8:1:2::1").unwrap();
        assert!(count("2001:db8:1:2:ffff::1").is_none());
        assert!(count("2001:db8:1:3::1").is_some());
    }
}
