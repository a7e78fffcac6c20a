//! HTTP: connections, limits, routes and answers.
//!
//! A request passes through these modules:
//!
//! ```text
//!   conn  ──►  routes  ──►  admission, body  ──►  error
//! ```

mod admission;
mod app;
mod body;
mod conn;
mod drain;
mod error;
mod queries;
mod refusals;
mod response;
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

pub use self::app::App;
pub use self::conn::http1_builder;

/// Maximum number of report files that are sent at the same time. Each needs memory for a few pieces.
const MAX_DOWNLOADS: usize = 32;

/// Maximum number of clients that follow the state of the server.
const MAX_SUBSCRIBERS: usize = 64;

/// Serves one connection until the client closes it, a timeout ends it, or the server shuts down.
pub async fn serve(app: Arc<App>, stream: TcpStream, peer: SocketAddr) {
    conn::serve::<routes::Routes>(app, stream, peer).await;
}

/// Serves one connection to the listener of `ADMIN_LISTEN`.
pub async fn serve_admin(app: Arc<App>, stream: TcpStream, peer: SocketAddr) {
    conn::serve::<routes::AdminRoutes>(app, stream, peer).await;
}
