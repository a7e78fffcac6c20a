//! Sends bodies in any encoding and any pieces, and measures the processor time.
//!
//! The input is a beginning and a unit, which is repeated. So a few bytes become a body that is long enough to measure.

#![no_main]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netwatch_server::buffer::{Buffer, BufferLayout};
use netwatch_server::config::{Ack, Config};
use netwatch_server::http::{App, serve};
use netwatch_server::store::Store;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;

/// Length of the bodies.
const BODY_BYTES: usize = 64 * 1024;

/// Maximum processor time of a body, including the client. The limit is 6 ms for a server without instrumentation. With
/// instrumentation, and on a busy machine, 1-byte chunks take about 100 ms.
const MAX_CPU: Duration = Duration::from_millis(250);

/// A slow input is measured again, because other programs can disturb the caches.
const ATTEMPTS: usize = 5;

const ENCODINGS: [&str; 5] = ["identity", "gzip", "deflate", "zstd", "br"];

struct Server {
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    buffer: Arc<Buffer>,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let context = runtime.enter();
    let dir = std::env::temp_dir().join(format!("netwatch-fuzz-{}", std::process::id()));
    let store = Arc::new(Store::open(&dir, &Arc::default()).unwrap());
    let small = [("MAX_BODY_BYTES", "128KiB"), ("BATCH_BYTES", "1MiB"), ("BUFFER_BYTES", "2MiB"), ("WORKERS", "1")];
    let set: HashMap<_, _> = small.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let config = Config::from_values(&set).unwrap();
    let buffer = Arc::new(Buffer::new(BufferLayout::from(&config), Ack::Memory, None, 0, &Arc::default()));
    let app = Arc::new(App::new(&config, Arc::clone(&buffer), store));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    drop(context);
    Server { runtime, listener, address, app, buffer }
});

// Byte 0: the encoding, and whether the body is chunked. Byte 1: the length of a chunk. Byte 2: the length of the
// beginning. The beginning and the unit follow.
fuzz_target!(|bytes: &[u8]| {
    let [kind, chunk_bytes, start_bytes, rest @ ..] = bytes else { return };
    let (start, unit) = rest.split_at(rest.len().min(usize::from(*start_bytes)));
    if unit.is_empty() || start.len() > BODY_BYTES {
        return;
    }
    let body = [start, &unit.repeat((BODY_BYTES - start.len()) / unit.len())].concat();
    let encoding = ENCODINGS[usize::from(kind & 7) % ENCODINGS.len()];
    let head =
        format!("POST /api/v1/reports HTTP/1.1\r\nhost: a\r\ncontent-encoding: {encoding}\r\nconnection: close\r\n");
    let request = match kind & 8 {
        0 => [format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat(),
        _ => {
            let chunk = |chunk: &[u8]| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
            let chunks: Vec<_> = body.chunks(usize::from(*chunk_bytes).max(1)).flat_map(chunk).collect();
            [format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes(), &chunks, b"0\r\n\r\n"].concat()
        }
    };
    let fastest = (0..ATTEMPTS).map(|_| send(&request)).find(|cpu| *cpu <= MAX_CPU);
    assert!(fastest.is_some(), "a body of {} bytes takes more than {MAX_CPU:?}", body.len());
});

/// Sends a request and returns the processor time that it took.
fn send(request: &[u8]) -> Duration {
    let Server { runtime, listener, address, app, buffer } = &*SERVER;
    let before = clock_gettime(ClockId::ThreadCPUTime);
    let answer = runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        // Closes with a reset, so that the port does not stay in TIME_WAIT.
        socket.set_zero_linger().unwrap();
        let (client, accepted) = tokio::join!(socket.connect(*address), listener.accept());
        let (mut client, (stream, peer)) = (client.unwrap(), accepted.unwrap());
        let talk = async {
            let mut answer = Vec::new();
            let (mut reader, mut writer) = client.split();
            // The server may close the connection before it has read everything.
            let _ = tokio::join!(writer.write_all(request), reader.read_to_end(&mut answer));
            answer
        };
        tokio::join!(serve(Arc::clone(app), stream, peer), talk).1
    });
    let after = clock_gettime(ClockId::ThreadCPUTime);
    // A server that is reset before the client has read the answer leaves no answer.
    let status = answer.get(9..12);
    assert!(matches!(status, None | Some(b"200" | b"400" | b"413" | b"503")), "{}", String::from_utf8_lossy(&answer));
    buffer.rotate_if_due(Duration::ZERO);
    let mut stored = 0;
    while let Some(batch) = buffer.next_sealed() {
        stored += batch.lines().expect("nobody writes any more").concat().len();
    }
    assert!(status != Some(b"200") || stored > 0, "a report was acknowledged and not stored");
    Duration::try_from(after).unwrap() - Duration::try_from(before).unwrap()
}
