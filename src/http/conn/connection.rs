//! What the requests of one connection share.

use std::net::IpAddr;
use std::sync::Arc;

use super::deadlines::Deadlines;
use crate::http::app::App;
use crate::http::drain::Event;

/// What the requests of one connection share.
#[derive(Debug)]
pub(in crate::http) struct Connection {
    pub(in crate::http) app: Arc<App>,
    /// The address of the peer. If the peer is a proxy that sent a PROXY header, the address in that header.
    pub(in crate::http) peer: IpAddr,
    pub(super) deadlines: Deadlines,
    /// The connection accepts no further requests: the server shuts down, or the client was sent GOAWAY.
    pub(super) left: Event,
}

impl Connection {
    pub(super) fn new(app: Arc<App>, peer: IpAddr) -> Self {
        Self { peer, deadlines: Deadlines::new(app.limits), left: Event::default(), app }
    }

    /// Ends streamed answers.
    pub(super) fn leave(&self) {
        self.deadlines.leaving();
        self.left.set();
    }
}
