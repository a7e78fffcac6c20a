//! What the requests of one connection share.

use std::net::IpAddr;
use std::sync::Arc;

use super::deadlines::Deadlines;
use crate::http::app::App;

/// What the requests of one connection share.
#[derive(Debug)]
pub(in crate::http) struct Connection {
    pub(in crate::http) app: Arc<App>,
    /// The address of the peer. If the peer is a proxy that sent a PROXY header, the address in that header.
    pub(in crate::http) peer: IpAddr,
    pub(super) deadlines: Deadlines,
}
