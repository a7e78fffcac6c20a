//! One server: wires the modules together, accepts connections, and on shutdown drains and flushes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::buffer::{Buffer, BufferLayout, MAX_SPILLED};
use crate::config::{Ack, Config};
use crate::flush::Flusher;
use crate::http::{self, App};
use crate::listen::raise_file_limit;
use crate::maintenance::Maintenance;
use crate::store::{Compression, Retention, Store};

/// Pause after a failed accept. Without file descriptors or memory, the next accept would fail as well.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// File descriptors that are neither connections nor journals of spilled batches.
const OTHER_FILES: u64 = 128 + ADMIN_CONNECTIONS as u64;

/// Time between two log lines that count refused requests.
const REFUSAL_SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of connections to `ADMIN_LISTEN`. They are apart from `MAX_CONNECTIONS`, so that an operator gets in
/// while clients use up those.
const ADMIN_CONNECTIONS: u32 = 64;

/// The listening sockets of one server.
#[derive(Debug)]
pub struct Listeners {
    /// For reports. Without `admin`, also for everything that is read.
    pub reports: std::net::TcpListener,
    /// The socket of `ADMIN_LISTEN`, for everything that is read.
    pub admin: Option<std::net::TcpListener>,
}

/// Serves until `shutdown` resolves. Then finishes the open requests, flushes all acknowledged reports, and returns.
///
/// # Errors
/// If a listener is not usable, or the first journals cannot be created, or no thread can be started. Nothing was
/// served then.
pub async fn run(
    config: Config,
    store: Store,
    Listeners { reports, admin }: Listeners,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let into_async = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listener = into_async(reports)?;
    let admin = admin.map(into_async).transpose()?;
    let store = Arc::new(store);
    let layout = BufferLayout::from(&config);
    let compression = Compression::from(&config);
    let journals = match config.ack {
        Ack::Memory => None,
        Ack::Journal | Ack::Disk => Some(store.journals(layout.batch_bytes())?),
    };
    let buffer = Arc::new(Buffer::new(layout, config.ack, journals, config.spill_bytes as u64, store.metrics()));
    let maintenance = Maintenance {
        buffer: Arc::clone(&buffer),
        store: Arc::clone(&store),
        min_free_bytes: config.min_free_bytes as u64,
        compression,
        retention: Retention::from(&config),
        prune_on_full: config.retention_on_full,
    };
    let maintenance_thread = maintenance.spawn()?;
    let flusher = Flusher::new(Arc::clone(&buffer), Arc::clone(&store), compression, config.flush_interval).spawn()?;
    buffer.spawn_committer()?;
    let app = Arc::new(App::new(&config, Arc::clone(&buffer), store));
    let connections = Connections::new(&config);
    let address = listener.local_addr()?;
    let url = format!("http://{}/api/v1/reports", reachable(address));
    tracing::info!(%address, url, max_connections = connections.max, "listening");
    if let Some(admin) = &admin {
        tracing::info!(address = %admin.local_addr()?, "listening for readers");
    }
    notify_systemd(NotifyState::Ready);

    let admin_connections = Connections::with_max(ADMIN_CONNECTIONS);
    let accept_readers = async {
        match &admin {
            None => std::future::pending().await,
            Some(admin) => admin_connections.accept(admin, &app, http::serve_admin).await,
        }
    };
    let stop = async {
        shutdown.await;
        tracing::info!("shutting down");
        notify_systemd(NotifyState::Stopping);
        app.announce_shutdown();
        tokio::time::sleep(config.shutdown_delay).await;
    };
    tokio::select! {
        () = connections.accept(&listener, &app, http::serve) => {}
        () = accept_readers => {}
        () = log_refusals(&app) => {}
        () = stop => {}
    }
    // From here on, an error must not end this function before the last flush.
    if let Err(error) = connections.accept_backlog(listener, &app) {
        tracing::warn!(%error, "can't accept the connections that wait");
    }
    app.drain();
    connections.closed(config.shutdown_timeout).await;
    app.log_refusals();
    buffer.close();
    // Without a time limit, because acknowledged reports must not be given up. A second signal ends the process.
    // On this thread, because the system may not be able to start another one.
    let flushed = tokio::task::block_in_place(move || {
        maintenance.publish_pending_after(|| flusher.join())?;
        maintenance_thread.thread().unpark();
        maintenance_thread.join()
    });
    match flushed {
        Ok(()) => tracing::info!("stopped; all reports are on disk"),
        Err(_) => return Err(io::Error::other("a background thread ended before all reports were on disk")),
    }
    Ok(())
}

/// An address that clients on this machine can connect to.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port()),
        false => address,
    }
}

async fn log_refusals(app: &App) {
    let mut interval = interval(REFUSAL_SUMMARY_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        app.log_refusals();
    }
}

/// Tells systemd the state of the service, if systemd has started this process.
fn notify_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't notify systemd");
    }
}

/// Permits for open connections.
#[derive(Debug)]
struct Connections {
    permits: Arc<Semaphore>,
    max: u32,
}

impl Connections {
    fn new(config: &Config) -> Self {
        let wanted = config.max_connections as u64;
        let other = OTHER_FILES + (config.spill_bytes / config.batch_bytes).min(MAX_SPILLED) as u64;
        let max = raise_file_limit(wanted + other).saturating_sub(other).clamp(1, wanted);
        if max < wanted {
            tracing::warn!(max, wanted, "fewer connections than MAX_CONNECTIONS: the limit of open files is too low");
        }
        Self::with_max(u32::try_from(max).unwrap_or(u32::MAX))
    }

    fn with_max(max: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(max as usize)), max }
    }

    /// Accepts connections forever, while there are permits. Further clients wait in the backlog of the kernel.
    async fn accept<S: Future<Output = ()> + Send + 'static>(
        &self,
        listener: &TcpListener,
        app: &Arc<App>,
        serve: impl Fn(Arc<App>, TcpStream, SocketAddr) -> S,
    ) {
        let mut is_logged = false;
        loop {
            let permit = match Arc::clone(&self.permits).try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    // Logged once until half of the permits are free again. A client could cause a line per connection.
                    if !is_logged {
                        tracing::warn!(max = self.max, "MAX_CONNECTIONS reached; new connections wait");
                        is_logged = true;
                    }
                    Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed")
                }
            };
            is_logged &= self.permits.available_permits() < self.max as usize / 2;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            spawn(stream, peer, permit, |stream, peer| serve(Arc::clone(app), stream, peer));
        }
    }

    /// Accepts the connections in the backlog, while there are permits, and closes the socket. Otherwise the kernel
    /// would reset these connections.
    fn accept_backlog(&self, listener: TcpListener, app: &Arc<App>) -> io::Result<()> {
        // Not through the runtime, which may not know of them yet.
        let listener = listener.into_std()?;
        while let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
            && let Ok((stream, peer)) = listener.accept()
        {
            stream.set_nonblocking(true)?;
            spawn(TcpStream::from_std(stream)?, peer, permit, |stream, peer| {
                http::serve(Arc::clone(app), stream, peer)
            });
        }
        Ok(())
    }

    /// Waits until all connections are closed, but no longer than `limit`.
    async fn closed(&self, limit: Duration) {
        // A separate statement: the permits that the wait has collected are released before they are counted.
        let is_closed = timeout(limit, self.permits.acquire_many(self.max)).await.is_ok();
        if !is_closed {
            let open = self.max as usize - self.permits.available_permits();
            tracing::warn!(
                open,
                "some connections did not finish within SHUTDOWN_TIMEOUT; closing them without an answer"
            );
        }
    }
}

fn spawn<S: Future<Output = ()> + Send + 'static>(
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
    serve: impl FnOnce(TcpStream, SocketAddr) -> S,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "can't turn off Nagle's algorithm"); // the client is gone already
    }
    let serving = serve(stream, peer);
    tokio::spawn(async move {
        serving.await;
        drop(permit);
    });
}
