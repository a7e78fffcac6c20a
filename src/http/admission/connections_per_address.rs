//! The number of open connections per client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::CLIENT;

/// Open connections by client. Locked when a connection is opened and when it is closed.
#[derive(Debug)]
pub(in crate::http) struct ConnectionsPerAddress {
    max: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One counted connection. Dropping it ends the count.
#[derive(Debug)]
pub(in crate::http) struct Counted<'a> {
    by: &'a ConnectionsPerAddress,
    client: IpAddr,
}

impl ConnectionsPerAddress {
    pub(in crate::http) fn new(max: usize) -> Self {
        Self { max, open: Mutex::default() }
    }

    /// Counts a connection of the client with this address. `None` if the client has reached the limit.
    pub(in crate::http) fn count(&self, address: IpAddr) -> Option<Counted<'_>> {
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
    fn a_client_reaches_its_limit_and_can_reconnect_after_a_close() {
        let counts = ConnectionsPerAddress::new(2);
        let count = |address: &str| counts.count(address.parse().unwrap());
        let (first, second) = (count("192.0.2.1").unwrap(), count("192.0.2.1").unwrap());
        assert!(count("192.0.2.1").is_none());
        let _other = count("192.0.2.2").unwrap();
        drop(first);
        let third = count("192.0.2.1").unwrap();
        assert!(count("192.0.2.1").is_none());
        drop((second, third));
        assert_eq!(counts.open.lock().unwrap().len(), 1, "clients without connections are removed");
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let counts = ConnectionsPerAddress::new(1);
        let count = |address: &str| counts.count(address.parse().unwrap());
        let _one = count("2001:db8:1:2::1").unwrap();
        assert!(count("2001:db8:1:2:ffff::1").is_none());
        assert!(count("2001:db8:1:3::1").is_some());
    }
}
