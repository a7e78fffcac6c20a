//! Answers that are streamed over HTTP/2: their time limits and their ends.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{PATIENCE, Server, wait_until};
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

const TOKEN: &str = "an-admin-token-of-a-test";
const FILE: &str = "reports-20260101T000000.000000000Z-0000000a.jsonl.zst";
const FILE_BYTES: usize = 2 << 20;

struct Client {
    runtime: Runtime,
    requests: SendRequest<bytes::Bytes>,
}

impl Client {
    fn connect(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let requests = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            // Enough for several answers that are not read: they share the window of the connection.
            let mut client = h2::client::Builder::new();
            let client = client.initial_connection_window_size(1 << 20);
            let (requests, connection) = client.handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self { runtime, requests }
    }

    /// The body of an answer with status 200.
    fn get(&self, path: &str) -> RecvStream {
        let uri = format!("http://test{path}");
        let request = Request::get(uri).header("authorization", format!("Bearer {TOKEN}")).body(()).unwrap();
        self.runtime.block_on(async {
            let mut requests = self.requests.clone().ready().await.unwrap();
            let response = requests.send_request(request, true).unwrap().0;
            let response = timeout(PATIENCE, response).await.expect("the answer arrives in time").unwrap();
            assert_eq!(response.status(), 200, "{response:?}");
            response.into_body()
        })
    }
}

/// A server with a report file that is longer than all buffers.
fn start(settings: &[(&str, &str)]) -> Server {
    let server = Server::start(&[settings, &[("ADMIN_TOKEN", TOKEN)]].concat());
    fs::write(server.data_dir.join(FILE), vec![b'x'; FILE_BYTES]).unwrap();
    server.post("{}").assert_ok();
    server
}

async fn next(body: &mut RecvStream) -> Option<Result<bytes::Bytes, h2::Error>> {
    timeout(PATIENCE, body.data()).await.expect("the next piece arrives in time")
}

/// Reads a body to its end, with a pause before each piece.
async fn read(body: &mut RecvStream, pause: Duration) -> Result<(usize, Option<HeaderMap>), h2::Error> {
    let mut bytes = 0;
    while let Some(piece) = next(body).await {
        let piece = piece?;
        sleep(pause).await;
        body.flow_control().release_capacity(piece.len())?;
        bytes += piece.len();
    }
    Ok((bytes, body.trailers().await?))
}

fn file() -> String {
    format!("/api/v1/files/{FILE}")
}

#[test]
fn answers_that_are_read_may_last_longer_than_the_time_limit() {
    let server = start(&[("KEEP_ALIVE_TIMEOUT", "500ms")]);
    let client = Client::connect(&server);
    let (mut one, mut two) = (client.get(&file()), client.get(&file()));
    let started = Instant::now();
    client.runtime.block_on(async {
        // At each time, one of them waits for the client.
        let pause = Duration::from_millis(5);
        let (one, two) = tokio::join!(read(&mut one, pause), read(&mut two, pause));
        assert_eq!((one.unwrap().0, two.unwrap().0), (FILE_BYTES, FILE_BYTES));
    });
    assert!(started.elapsed() > Duration::from_millis(1500), "several time limits: {:?}", started.elapsed());
}

#[test]
fn a_stream_without_news_stays_open_and_one_that_is_not_read_ends_its_connection() {
    let server = start(&[("KEEP_ALIVE_TIMEOUT", "300ms")]);
    let idle = Client::connect(&server);
    let mut tail = idle.get("/api/v1/reports/tail");
    let stalled = Client::connect(&server);
    let mut unread = stalled.get(&file());
    // The client does not announce capacity. What was on the way arrives, and then the connection ends.
    let ended = stalled.runtime.block_on(async {
        timeout(PATIENCE, async {
            let mut bytes = 0;
            loop {
                match unread.data().await {
                    Some(Ok(piece)) => bytes += piece.len(),
                    Some(Err(_)) => return bytes,
                    None => panic!("complete after {bytes} bytes"),
                }
            }
        })
        .await
    });
    assert!(ended.unwrap() < FILE_BYTES);
    idle.runtime.block_on(async {
        assert_eq!(next(&mut tail).await.unwrap().unwrap(), "data: {}\n\n");
        server.post("{\"n\":2}").assert_ok();
        assert_eq!(next(&mut tail).await.unwrap().unwrap(), "data: {\"n\":2}\n\n");
    });
}

/// The number of child processes that have not ended.
fn children(server: &Server) -> usize {
    let processes = fs::read_dir("/proc").unwrap();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok());
    let parent = server.id().to_string();
    stats.filter(|stat| stat.rsplit(')').next().unwrap().split_whitespace().nth(1) == Some(&*parent)).count()
}

#[test]
fn a_reset_ends_the_query_and_other_requests_continue() {
    let server = start(&[("QUERY_TIMEOUT", "1h")]);
    let client = Client::connect(&server);
    let flood = "/api/v1/reports?filter=repeat(%22xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx%22)";
    let body = client.get(flood);
    wait_until("the query runs", || (children(&server) == 1).then_some(()));
    drop(body);
    wait_until("the query has ended", || (children(&server) == 0).then_some(()));
    // Before its first output, too.
    let request = Request::get("http://test/api/v1/reports?filter=def%20f:%20f;%20f");
    let request = request.header("authorization", format!("Bearer {TOKEN}")).body(()).unwrap();
    client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, mut sending) = requests.send_request(request, true).unwrap();
        wait_until("the query runs", || (children(&server) == 1).then_some(()));
        sending.send_reset(Reason::CANCEL);
        drop(response);
        wait_until("the query has ended", || (children(&server) == 0).then_some(()));
    });
    let mut all = client.get("/api/v1/reports");
    let (bytes, trailers) = client.runtime.block_on(read(&mut all, Duration::ZERO)).unwrap();
    // The long file is no report file.
    let status = trailers.unwrap()["netwatch-status"].to_str().unwrap().to_owned();
    assert!(bytes == 3 && status.starts_with(&format!("incomplete; {FILE}: ")), "{status}");
}

#[test]
fn streams_end_at_a_shutdown_and_one_that_is_not_read_does_not_delay_it() {
    let mut server = start(&[("SHUTDOWN_TIMEOUT", "1h"), ("QUERY_TIMEOUT", "1h"), ("KEEP_ALIVE_TIMEOUT", "1h")]);
    let client = Client::connect(&server);
    let (mut tail, mut live) = (client.get("/api/v1/reports/tail"), client.get("/api/v1/live"));
    let _unread = client.get(&file());
    client.runtime.block_on(async {
        for body in [&mut tail, &mut live] {
            next(body).await.unwrap().unwrap();
        }
    });
    server.signal(Signal::TERM);
    let started = Instant::now();
    client.runtime.block_on(async {
        for body in [&mut tail, &mut live] {
            let (_, trailers) = read(body, Duration::ZERO).await.unwrap();
            assert!(trailers.is_none());
        }
    });
    assert!(server.wait().success());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}
