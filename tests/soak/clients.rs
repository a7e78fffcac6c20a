//! Clients that send reports in all forms, and enter each outcome in the ledger.

use std::io::{self, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use serde_json::Value;

use crate::Soak;
use crate::common::{Client, Random, gzip};
use crate::ledger::{Id, report};
use crate::servers::Target;

/// Time that a client waits for an answer. Longer than any stall.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two requests of one client, on average.
const PACE_MS: u64 = 8;

/// Maximum number of reports in a batch.
const BATCH: u64 = 20;

/// Attempts with one idempotency key.
const ATTEMPTS: usize = 5;

/// A keyed request that takes less time cannot have failed with `not-durable` unnoticed, unless the disk had a fault.
const QUICK: Duration = Duration::from_millis(1500);

/// Concurrent requests on one HTTP/2 connection, and the requests after which the connection is closed.
const STREAMS: usize = 8;
const STREAM_REQUESTS: usize = 30;

/// What the client knows after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Acknowledged,
    /// Nothing was stored.
    Refused,
    /// The answer says that the reports may be stored.
    NotDurable,
    /// There was no answer.
    Broken,
}

/// The reports of one request.
struct Body {
    ids: Vec<Id>,
    bytes: Vec<u8>,
    encoding: Option<&'static str>,
}

impl Body {
    fn draw(soak: &Soak, client: usize, random: &mut Random) -> Self {
        let count = if random.below(2) == 0 { 1 } else { 1 + random.below(BATCH) };
        let ids: Vec<_> = (0..count).map(|_| soak.ledger.begin(client)).collect();
        let reports: Vec<_> = ids.iter().map(|id| report(*id)).collect();
        let text = match random.below(2) {
            0 if count > 1 => format!("[{}]", reports.join(",")),
            _ => reports.join("\n"),
        };
        let (encoding, bytes) = match random.below(6) {
            0 => (Some("gzip"), gzip(&text)),
            1 => (Some("zstd"), zstd::encode_all(text.as_bytes(), 1).unwrap()),
            2 => (Some("br"), brotli(text.as_bytes())),
            _ => (None, text.into_bytes()),
        };
        Self { ids, bytes, encoding }
    }

    fn finish(&self, soak: &Soak, min: u8, max: u8) {
        self.ids.iter().for_each(|id| soak.ledger.finish(*id, min, max));
    }

    /// Interprets an answer.
    fn outcome(&self, soak: &Soak, status: u16, body: &str) -> Outcome {
        let answer: Value = serde_json::from_str(body).unwrap_or_default();
        let problem = answer["type"].as_str().and_then(|name| name.rsplit(':').next()).unwrap_or_default();
        match (status, problem) {
            (200, _) if answer["accepted"] == self.ids.len() => Outcome::Acknowledged,
            (503, "not-durable") => Outcome::NotDurable,
            (503, "buffer-full" | "disk-full" | "too-many-in-flight" | "stopping") | (408, _) => Outcome::Refused,
            _ => {
                soak.ledger.violation(format!("unexpected answer to {} reports: {status} {body}", self.ids.len()));
                Outcome::Broken
            }
        }
    }
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let params = brotli::enc::BrotliEncoderParams { quality: 1, ..Default::default() };
    brotli::BrotliCompress(&mut &*bytes, &mut compressed, &params).unwrap();
    compressed
}

/// A connection to one server process.
struct Connection {
    client: Client,
    target: Target,
}

impl Connection {
    /// Connects to a random server, or to the same server as before.
    fn open(soak: &Soak, slot: usize) -> Option<Self> {
        let target = soak.slots[slot].target()?;
        let stream = TcpStream::connect_timeout(&target.address, PATIENCE).ok()?;
        let client = Client::from_stream(stream).ok()?;
        client.writer().set_read_timeout(Some(PATIENCE)).ok()?;
        client.writer().set_write_timeout(Some(PATIENCE)).ok()?;
        Some(Self { client, target })
    }

    /// Sends one request. Returns whether the connection can be used again.
    fn post(&mut self, soak: &Soak, body: &Body, key: Option<&str>, random: &mut Random) -> (Outcome, bool) {
        match self.try_post(soak, body, key, random) {
            Ok(result) => result,
            Err(_) => (Outcome::Broken, false),
        }
    }

    fn send(&mut self, body: &Body, key: Option<&str>, random: &mut Random) -> io::Result<()> {
        let mut head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\n".to_owned();
        if let Some(encoding) = body.encoding {
            head += &format!("content-encoding: {encoding}\r\n");
        }
        if let Some(key) = key {
            head += &format!("idempotency-key: {key}\r\n");
        }
        if random.below(8) > 0 {
            head += &format!("content-length: {}\r\n\r\n", body.bytes.len());
            return self.client.try_send([head.as_bytes(), &body.bytes].concat());
        }
        // A body that arrives slowly and in pieces.
        self.client.try_send(head + "transfer-encoding: chunked\r\n\r\n")?;
        for piece in body.bytes.chunks(body.bytes.len() / 3 + 1) {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            self.client.try_send(chunk)?;
            thread::sleep(Duration::from_millis(random.below(40))); // the pace of this client
        }
        self.client.try_send("0\r\n\r\n")
    }

    fn try_post(
        &mut self,
        soak: &Soak,
        body: &Body,
        key: Option<&str>,
        random: &mut Random,
    ) -> io::Result<(Outcome, bool)> {
        let sent = self.send(body, key, random);
        if key.is_some() && random.below(10) == 0 {
            // This client goes away without waiting for the answer.
            self.client.reset_on_drop();
            return Ok((Outcome::Broken, false));
        }
        // A server that refuses a request early may answer although the rest could not be sent.
        let answer = match self.client.try_any_answer() {
            Ok(answer) => answer,
            Err(error) => {
                if sent.is_ok() && error.kind() == io::ErrorKind::WouldBlock {
                    soak.ledger.violation(format!("no answer of server {:?} within {PATIENCE:?}", self.target));
                }
                return Err(error);
            }
        };
        let is_open = answer.headers.get("connection").is_none_or(|value| value != "close");
        Ok((body.outcome(soak, answer.status, &answer.body), is_open && sent.is_ok()))
    }
}

/// A client with HTTP/1, until the clients are stopped.
pub(crate) fn http1(soak: &Soak, number: usize) {
    let mut random = Random(soak.seed.wrapping_mul(1000) + number as u64);
    let mut connection: Option<Connection> = None;
    while soak.clients_run(|| connection = None) {
        let slot = random.below(2) as usize;
        if random.below(5) == 0 {
            repeat_until_acknowledged(soak, number, slot, &mut random);
        } else {
            let Some(open) = connection.take().or_else(|| Connection::open(soak, slot)) else {
                thread::sleep(Duration::from_millis(PACE_MS)); // the server is down
                continue;
            };
            connection = post_once(soak, number, open, &mut random).filter(|_| random.below(4) > 0);
        }
        thread::sleep(soak.pace(&mut random, 2 * PACE_MS)); // the pace of this client
    }
}

fn post_once(soak: &Soak, number: usize, mut connection: Connection, random: &mut Random) -> Option<Connection> {
    let body = Body::draw(soak, number, random);
    let (outcome, is_open) = connection.post(soak, &body, None, random);
    let (min, max) = match outcome {
        Outcome::Acknowledged => (1, 1),
        Outcome::Refused => (0, 0),
        Outcome::NotDurable | Outcome::Broken => (0, 1),
    };
    body.finish(soak, min, max);
    is_open.then_some(connection)
}

/// The attempts with one idempotency key at one server process.
#[derive(Debug)]
struct Group {
    target: Target,
    first: Instant,
    acknowledged: bool,
    not_durable: u8,
    broken: u8,
    /// No attempt can have failed with `not-durable` without an answer.
    is_quick: bool,
}

impl Group {
    fn bounds(&self) -> (u8, u8) {
        let acknowledged = u8::from(self.acknowledged);
        let unnoticed = match self.is_quick {
            true => u8::from(!self.acknowledged).min(self.broken),
            false => self.broken,
        };
        (acknowledged, acknowledged + self.not_durable + unnoticed)
    }
}

/// Sends one request with an idempotency key until it is acknowledged, and then perhaps again.
fn repeat_until_acknowledged(soak: &Soak, number: usize, slot: usize, random: &mut Random) {
    let body = Body::draw(soak, number, random);
    let key = format!("{number}-{}", body.ids[0].number);
    let mut groups: Vec<Group> = Vec::new();
    for _ in 0..ATTEMPTS {
        let Some(mut connection) = Connection::open(soak, slot) else {
            thread::sleep(Duration::from_millis(50)); // the server is down
            continue;
        };
        let target = connection.target;
        if groups.last().is_none_or(|group| group.target != target) {
            let first = Instant::now();
            groups.push(Group { target, first, acknowledged: false, not_durable: 0, broken: 0, is_quick: true });
        }
        let group = groups.last_mut().unwrap();
        let (outcome, _) = connection.post(soak, &body, Some(&key), random);
        match outcome {
            Outcome::Acknowledged => group.acknowledged = true,
            Outcome::NotDurable => group.not_durable += 1,
            Outcome::Broken => group.broken += 1,
            Outcome::Refused => {}
        }
        group.is_quick &= group.first.elapsed() < QUICK && soak.is_calm_since(group.first);
        if outcome == Outcome::Acknowledged && random.below(2) == 0 {
            break;
        }
    }
    let (min, max) = groups.iter().map(Group::bounds).fold((0, 0), |sum, (min, max)| (sum.0 + min, sum.1 + max));
    body.finish(soak, min, max);
}

/// A client with HTTP/2, until the clients are stopped.
pub(crate) fn http2(soak: &Soak, number: usize) {
    let mut random = Random(soak.seed.wrapping_mul(1000) + number as u64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    while soak.clients_run(|| {}) {
        let Some(target) = soak.slots[random.below(2) as usize].target() else {
            thread::sleep(Duration::from_millis(PACE_MS)); // the server is down
            continue;
        };
        let seeds: Vec<_> = (0..STREAMS).map(|_| random.below(u64::MAX)).collect();
        runtime.block_on(async {
            let connect = async {
                let stream = tokio::net::TcpStream::connect(target.address).await.ok()?;
                h2::client::Builder::new().initial_max_send_streams(100).handshake::<_, Bytes>(stream).await.ok()
            };
            let Ok(Some((requests, connection))) = tokio::time::timeout(PATIENCE, connect).await else { return };
            let connection = tokio::spawn(connection);
            let streams = seeds.into_iter().map(|seed| stream(soak, number, requests.clone(), Random(seed)));
            join_all(streams.collect()).await;
            connection.abort();
        });
    }
}

/// Waits for all futures, on this task.
async fn join_all(futures: Vec<impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).map(Some).collect();
    std::future::poll_fn(|cx| {
        for slot in &mut futures {
            if slot.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready()) {
                *slot = None;
            }
        }
        match futures.iter().all(Option::is_none) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}

async fn stream(soak: &Soak, number: usize, requests: h2::client::SendRequest<Bytes>, mut random: Random) {
    for _ in 0..STREAM_REQUESTS {
        if soak.clients_must_wait() {
            return;
        }
        let body = Body::draw(soak, number, &mut random);
        let answer = tokio::time::timeout(PATIENCE, ask(requests.clone(), &body)).await;
        if answer.is_err() {
            soak.ledger.violation(format!("no answer over HTTP/2 within {PATIENCE:?}"));
        }
        let outcome = match answer {
            Ok(Ok((status, text))) => body.outcome(soak, status, &text),
            Ok(Err(_)) | Err(_) => Outcome::Broken,
        };
        let (min, max) = match outcome {
            Outcome::Acknowledged => (1, 1),
            Outcome::Refused => (0, 0),
            Outcome::NotDurable | Outcome::Broken => (0, 1),
        };
        body.finish(soak, min, max);
        if outcome == Outcome::Broken {
            return;
        }
        tokio::time::sleep(soak.pace(&mut random, 8 * PACE_MS)).await; // the pace of this stream
    }
}

async fn ask(requests: h2::client::SendRequest<Bytes>, body: &Body) -> Result<(u16, String), h2::Error> {
    let mut request = Request::post("http://test/api/v1/reports");
    if let Some(encoding) = body.encoding {
        request = request.header("content-encoding", encoding);
    }
    let mut requests = requests.ready().await?;
    let (response, mut sending) = requests.send_request(request.body(()).unwrap(), false)?;
    sending.send_data(Bytes::copy_from_slice(&body.bytes), true)?;
    let (head, mut incoming) = response.await?.into_parts();
    let mut text = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        text.write_all(&chunk).unwrap();
    }
    Ok((head.status.as_u16(), String::from_utf8_lossy(&text).into_owned()))
}
