//! Wires the rooms together: listens, accepts, and on a stop drains and flushes.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::buffer::{Ack, Buffer};
use crate::config::Config;
use crate::flush::Flusher;
use crate::http::{self, App};
use crate::store::Store;
use crate::upkeep::Upkeep;

/// Connections that the kernel completes before they are accepted: thousands of browsers come within one second. The
/// kernel lowers it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 8192;

/// Pause after a failed accept: without file descriptors or memory, the next try would fail as well.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// File descriptors for all that is not a connection.
const OTHER_FILES: u64 = 128;

/// The listening socket that systemd has opened for this process (`LISTEN_FDS`), if there is one.
///
/// # Errors
/// When what was handed over is no TCP socket that listens.
pub fn inherited() -> io::Result<Option<std::net::TcpListener>> {
    ListenFd::from_env().take_tcp_listener(0)
}

/// Opens a listening socket; with `reuse_port`, beside others that were opened so.
///
/// # Errors
/// Whatever the system says, such as that the port is in use.
pub fn listen(host: IpAddr, port: u16, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the connections of the last run to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    match bind(SocketAddr::new(host, port)) {
        // A machine without IPv6: all interfaces are those of IPv4.
        Err(error) if host.is_ipv6() && host.is_unspecified() && no_ipv6(&error) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        bound => bound,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Serves until `shutdown` resolves, then lets the requests in flight finish, flushes all that was acknowledged, and
/// returns.
///
/// # Errors
/// When `listener` is not a usable socket or no thread can be started; nothing was served then.
pub async fn run(
    config: Config,
    store: Store,
    listener: std::net::TcpListener,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let store = Arc::new(store);
    let shape = config.shape();
    let journals = match config.ack {
        Ack::Memory => None,
        Ack::Journal | Ack::Disk => Some(store.journals(shape.shards * shape.segment_bytes).map_err(io::Error::other)?),
    };
    let buffer = Arc::new(Buffer::new(shape, config.ack, journals, config.spill_bytes as u64));
    let upkeep = Upkeep {
        buffer: Arc::clone(&buffer),
        store: Arc::clone(&store),
        min_free_bytes: config.min_free_bytes as u64,
        compression: config.compression(),
    };
    let keeper = upkeep.spawn()?;
    let flusher = Flusher {
        buffer: Arc::clone(&buffer),
        store,
        compression: config.compression(),
        interval: config.flush_interval,
    }
    .spawn()?;
    // The thread that syncs journals. tokio panics when it can't start one and there is none.
    tokio::task::spawn_blocking(|| {}).await.map_err(io::Error::other)?;
    let app = Arc::new(App::new(&config, Arc::clone(&buffer)));
    let connections = Connections::new(&config);
    tracing::info!(address = %listener.local_addr()?, "listening");
    tell_systemd(NotifyState::Ready);

    let stop = async {
        shutdown.await;
        tracing::info!("stopping");
        tell_systemd(NotifyState::Stopping);
        app.leave();
        tokio::time::sleep(config.shutdown_delay).await;
    };
    tokio::select! {
        () = connections.accept(&listener, &app) => {}
        () = stop => {}
    }
    connections.accept_rest(listener, &app)?;
    app.drain();
    connections.closed(config.shutdown_timeout).await;
    buffer.close();
    // Without a bound: what was acknowledged is not given up. A second signal ends the process all the same.
    // On this thread: the system may have no other to give.
    let flushed = tokio::task::block_in_place(move || {
        upkeep.recover_spilled_after(|| flusher.join())?;
        keeper.thread().unpark();
        keeper.join()
    });
    match flushed {
        Ok(()) => tracing::info!("stopped; all reports are on disk"),
        Err(_) => return Err(io::Error::other("the flush task ended before all reports were on disk")),
    }
    Ok(())
}

/// Tells systemd, if it has started this process, how far it has got.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't notify systemd");
    }
}

/// The places for open connections.
#[derive(Debug)]
struct Connections {
    free: Arc<Semaphore>,
    max: u32,
}

impl Connections {
    fn new(config: &Config) -> Self {
        let wanted = config.max_connections as u64;
        let max = raise_file_limit(wanted + OTHER_FILES).saturating_sub(OTHER_FILES).clamp(1, wanted);
        if max < wanted {
            tracing::warn!(max, wanted, "fewer connections than MAX_CONNECTIONS: the limit of open files is too low");
        }
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(max as usize)), max }
    }

    /// Accepts for ever, as long as there are places. Beyond that, clients wait in the backlog.
    async fn accept(&self, listener: &TcpListener, app: &Arc<App>) {
        let mut told = false;
        loop {
            let place = match Arc::clone(&self.free).try_acquire_owned() {
                Ok(place) => place,
                Err(_) => {
                    // Once: whoever holds all of them could make it a line for each connection that comes and goes.
                    if !told {
                        tracing::warn!(max = self.max, "all connections are taken; new ones wait from now on");
                        told = true;
                    }
                    Arc::clone(&self.free).acquire_owned().await.expect("never closed")
                }
            };
            told &= self.free.available_permits() < self.max as usize / 2;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            serve(app, stream, peer, place);
        }
    }

    /// Accepts what the kernel has completed already, as far as there are places, and closes the socket: a client that
    /// is in the backlog by then would be reset.
    fn accept_rest(&self, listener: TcpListener, app: &Arc<App>) -> io::Result<()> {
        // Not through the runtime: it may not have heard of them yet.
        let listener = listener.into_std()?;
        while let Ok(place) = Arc::clone(&self.free).try_acquire_owned()
            && let Ok((stream, peer)) = listener.accept()
        {
            stream.set_nonblocking(true)?;
            serve(app, TcpStream::from_std(stream)?, peer, place);
        }
        Ok(())
    }

    /// Waits until no connection is left, `within` at the most.
    async fn closed(&self, within: Duration) {
        // The wait must be over, and have given back the places it had, before they are counted.
        let closed = timeout(within, self.free.acquire_many(self.max)).await.is_ok();
        if !closed {
            let open = self.max as usize - self.free.available_permits();
            tracing::warn!(open, "some connections did not end in time; their requests are not answered");
        }
    }
}

fn serve(app: &Arc<App>, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "can't turn off Nagle's algorithm"); // already gone
    }
    let serving = http::serve(Arc::clone(app), stream, peer);
    tokio::spawn(async move {
        serving.await;
        drop(place);
    });
}

/// Raises the limit of open files to `wanted` if it is lower and may be raised; returns what holds then.
fn raise_file_limit(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if raised <= current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(_) => current,
    }
}
