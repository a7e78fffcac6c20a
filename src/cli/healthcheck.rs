//! `netwatch-server healthcheck`: a health check for images without a shell or curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::CommandResult;
use crate::config::Config;

const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run() -> CommandResult {
    let config = Config::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(check(config.host, config.port))?;
    Ok(())
}

/// Asks the server on `host` and `port` whether it is alive. Otherwise returns the reason, in one line.
async fn check(host: IpAddr, port: u16) -> Result<(), String> {
    let address = SocketAddr::new(reachable(host), port);
    let failed = |error: &dyn std::fmt::Display| format!("http://{address}/livez: {error}");
    match timeout(TIMEOUT, ask(address)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(failed(&status)),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&format_args!("no answer within {TIMEOUT:?}"))),
    }
}

async fn ask(address: SocketAddr) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/livez").header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response?.status()),
        ended = connection => Err(ended.err().map_or("the connection was closed".into(), Into::into)),
    }
}

/// The address to connect to, given the address that the server listens on.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        // `::` includes IPv4, which also works on machines without IPv6.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        host => host,
    }
}
