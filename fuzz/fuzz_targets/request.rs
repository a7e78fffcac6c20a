//! Sends any bytes over a connection and then closes it.

#![no_main]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netwatch_server::buffer::{Buffer, BufferLayout};
use netwatch_server::config::{Ack, Config};
use netwatch_server::http::{App, serve};
use netwatch_server::report::Reports;
use netwatch_server::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;

/// The start of the body of a 200, up to the number of reports. This text can't appear within a JSON string, because
/// quotes in a string have a backslash.
const ACCEPTED: &[u8] = br#"{"status":"ok","accepted":"#;

/// The settings of the servers: with all optional features off, and with them on. `DEDUP_WINDOW` is always off, because
/// a 200 could then be the answer to an earlier request.
const SETTINGS: [&[(&str, &str)]; 3] = [
    &[],
    &[("STAMP", "received_at,client_ip,user_agent,origin,header:x-tab"), ("CORS_ALLOW_ORIGINS", "https://*.a.example")],
    &[
        ("TRUSTED_PROXIES", "127.0.0.0/8"),
        ("PROXY_PROTOCOL", "on"),
        ("FORWARDED_HEADER", "forwarded"),
        ("STAMP", "client_ip"),
        ("WRITE_KEYS", "0123456789abcdef"),
        ("RATE_LIMIT", "1000000/s"),
        ("KEY_RATE_LIMIT", "1000000/s"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "1000"),
    ],
];

struct Server {
    app: Arc<App>,
    buffer: Arc<Buffer>,
}

struct Servers {
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
    servers: [Server; SETTINGS.len()],
}

static SERVERS: LazyLock<Servers> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    // `/readyz` reports its errors. The buffer never writes to it.
    let dir = std::env::temp_dir().join(format!("netwatch-fuzz-{}", std::process::id()));
    let store = Arc::new(Store::open(&dir, &Arc::default()).unwrap());
    let servers = SETTINGS.map(|settings| {
        let small = [("MAX_BODY_BYTES", "4KiB"), ("BATCH_BYTES", "64KiB"), ("BUFFER_BYTES", "128KiB"), ("WORKERS", "1")];
        let set: HashMap<_, _> =
            small.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = Config::from_values(&set).unwrap();
        let buffer = Arc::new(Buffer::new(BufferLayout::from(&config), Ack::Memory, None, 0, &Arc::default()));
        Server { app: Arc::new(App::new(&config, Arc::clone(&buffer), Arc::clone(&store))), buffer }
    });
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    drop(_context);
    Servers { runtime, listener, address, servers }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let Servers { runtime, listener, address, servers } = &*SERVERS;
    let Server { app, buffer } = &servers[usize::from(*choice) % servers.len()];
    let answers = runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        // Closes with a reset, so that the port does not stay in TIME_WAIT.
        socket.set_zero_linger().unwrap();
        let (client, accepted) = tokio::join!(socket.connect(*address), listener.accept());
        let (mut client, (stream, peer)) = (client.unwrap(), accepted.unwrap());
        let talk = async {
            let mut answers = Vec::new();
            // The server may already have closed the connection.
            if client.write_all(bytes).await.is_ok() && client.shutdown().await.is_ok() {
                let _ = client.read_to_end(&mut answers).await;
            }
            answers
        };
        tokio::join!(serve(Arc::clone(app), stream, peer), talk).1
    });
    assert!(stored(buffer) >= accepted(&answers), "{}", String::from_utf8_lossy(&answers));
});

/// The number of reports that the answers acknowledge.
fn accepted(answers: &[u8]) -> usize {
    let starts = (0..answers.len()).filter(|start| answers[*start..].starts_with(ACCEPTED));
    let digits = |start: usize| answers[start + ACCEPTED.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    starts.map(|start| digits(start).fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))).sum()
}

/// Removes all reports from the buffer and returns their number.
fn stored(buffer: &Buffer) -> usize {
    buffer.rotate_if_due(Duration::ZERO);
    let mut count = 0;
    while let Some(batch) = buffer.next_sealed() {
        for line in batch.lines().expect("nobody writes any more").concat().split_inclusive(|byte| *byte == b'\n') {
            assert_eq!(Reports::check(line).map(|reports| reports.count()), Ok(1), "{}", String::from_utf8_lossy(line));
            count += 1;
        }
    }
    count
}
