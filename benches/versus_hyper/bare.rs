//! Bare hyper: reads each report, discards it, and answers like netwatch-server.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use netwatch_server::http::http1_builder;
use netwatch_server::listen::listen;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::{ANSWER, Result};

/// The benchmark starts itself with this first argument to run as this server.
pub(crate) const COMMAND: &str = "serve-bare";

/// Serves on a free port of 127.0.0.1 until SIGTERM. Logs the address to stderr in the format of netwatch-server.
pub(crate) fn serve() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let listener = TcpListener::from_std(listen(Ipv4Addr::LOCALHOST.into(), 0, false)?)?;
        let address = listener.local_addr()?;
        eprintln!(r#"{{"fields":{{"message":"listening","address":"{address}"}}}}"#);
        let accepting = tokio::spawn(accept(listener));
        tokio::select! {
            _ = terminated.recv() => Ok(()),
            ended = accepting => Ok(ended??),
        }
    })
}

async fn accept(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream));
    }
}

async fn connection(stream: TcpStream) {
    let served = http1_builder().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
    if let Err(error) = served {
        eprintln!("{error}");
    }
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let mut body = request.into_body();
    let mut status = StatusCode::OK;
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            status = StatusCode::BAD_REQUEST;
        }
    }
    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
