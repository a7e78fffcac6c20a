//! `GET /api/v1/files` and the report files over HTTP.

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{Answer, Client, PATIENCE, Server, report_files, wait_until};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::Signal;

const TOKEN: &str = "an-admin-token-of-a-test";

fn start(settings: &[(&str, &str)]) -> Server {
    Server::start(&[settings, &[("ADMIN_TOKEN", TOKEN)]].concat())
}

fn head(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n{headers}\r\n")
}

fn get(server: &Server, path: &str) -> Answer {
    server.connect().ask(&head("GET", path, ""), b"")
}

fn get_bytes(server: &Server, path: &str, headers: &str) -> (u16, HashMap<String, String>, Vec<u8>) {
    server.connect().ask_bytes(&head("GET", path, headers))
}

/// The names in the list of files.
fn names(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let files = answer.json()["files"].as_array().unwrap().clone();
    files.into_iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
}

/// Posts one report and waits for its file. Returns the path over HTTP and the content.
fn publish(server: &Server) -> (String, Vec<u8>) {
    let before = report_files(&server.data_dir);
    server.post("{\"n\":1}").assert_ok();
    let file = wait_until("the report is published", || {
        report_files(&server.data_dir).into_iter().find(|file| !before.contains(file))
    });
    (format!("/api/v1/files/{}", file.file_name().unwrap().to_str().unwrap()), fs::read(file).unwrap())
}

/// A file with the name of a report file of this second in 2026.
fn add_file(dir: &Path, second: u32, content: &[u8]) -> String {
    let name = format!("reports-20260101T0000{second:02}.000000000Z-0000000a.jsonl.zst");
    let mut file = File::create(dir.join(&name)).unwrap();
    file.write_all(content).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + u64::from(second) + 1)).unwrap();
    name
}

#[test]
fn the_list_has_the_files_of_a_time_range_in_either_order() {
    let dir = tempfile::tempdir().unwrap();
    let added: Vec<_> = (0..5).map(|n| add_file(dir.path(), 10 * n, b"x")).collect();
    let server = Server::start_in(dir.path(), &[("ADMIN_TOKEN", TOKEN)]);
    let list = |query: &str| names(&get(&server, &format!("/api/v1/files{query}")));
    let answer = wait_until("the list is loaded", || {
        Some(get(&server, "/api/v1/files")).filter(|answer| answer.headers["netwatch-status"] == "complete")
    });
    assert_eq!(names(&answer), added);
    assert_eq!(
        answer.json()["files"][1],
        serde_json::json!({ "name": added[1], "first": "2026-01-01T00:00:10Z", "last": "2026-01-01T00:00:11Z", "bytes": 1 })
    );
    assert_eq!(
        (answer.headers["cache-control"].as_str(), answer.headers["content-type"].as_str()),
        ("no-store", "application/json")
    );
    assert_eq!(list("?order=desc&limit=2"), [added[4].clone(), added[3].clone()]);
    assert_eq!(list("?order=asc&limit=2"), added[..2]);
    assert_eq!(list("?since=2026-01-01T00:00:11Z&until=2026-01-01T00:00:30Z"), added[1..4]);
    assert_eq!(list("?since=1s"), Vec::<String>::new());
    for wrong in
        ["limit=0", "limit=x", "limit=10001", "order=up", "since=yesterday", "name=x", "limit=1&limit=2", "since=%ff"]
    {
        get(&server, &format!("/api/v1/files?{wrong}")).assert_problem(400, "bad-query");
    }
}

#[test]
fn a_file_is_served_byte_for_byte_in_ranges_and_from_caches() {
    let server = start(&[("FLUSH_INTERVAL", "10ms")]);
    let (path, content) = publish(&server);
    let (status, headers, body) = get_bytes(&server, &path, "");
    assert_eq!((status, &body), (200, &content));
    assert_eq!(zstd::decode_all(&body[..]).unwrap(), b"{\"n\":1}\n");
    assert_eq!(headers["content-type"], "application/zstd");
    assert_eq!(headers["cache-control"], "private, max-age=31536000, immutable");
    assert_eq!(headers["accept-ranges"], "bytes");
    let name = path.rsplit('/').next().unwrap();
    assert_eq!(headers["content-disposition"], format!("attachment; filename=\"{name}\""));
    let etag = headers["etag"].clone();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "a strong one: {etag}");

    let (status, headers, body) = server.connect().ask_bytes(&head("HEAD", &path, ""));
    assert_eq!(
        (status, headers["content-length"].parse(), &headers["etag"], body.len()),
        (200, Ok(content.len()), &etag, 0)
    );

    let length = content.len();
    for (range, first, end) in [("0-3", 0, 4), ("4-", 4, length), ("-5", length - 5, length), ("-99999", 0, length)] {
        let (status, headers, body) = get_bytes(&server, &path, &format!("range: bytes={range}\r\n"));
        assert_eq!((status, &body[..]), (206, &content[first..end]), "{range}");
        assert_eq!(headers["content-range"], format!("bytes {first}-{}/{length}", end - 1));
    }
    let beyond = server.connect().ask(&head("GET", &path, "range: bytes=99999-\r\n"), b"");
    assert_eq!(beyond.headers["content-range"], format!("bytes */{length}"));
    beyond.assert_problem(416, "range-not-satisfiable");

    for (headers, expected) in [
        (format!("if-none-match: {etag}\r\n"), 304),
        (format!("if-none-match: \"x\", W/{etag}\r\n"), 304),
        ("if-none-match: *\r\n".to_owned(), 304),
        ("if-none-match: \"x\"\r\n".to_owned(), 200),
        (format!("range: bytes=0-0\r\nif-range: {etag}\r\n"), 206),
        ("range: bytes=0-0\r\nif-range: \"x\"\r\n".to_owned(), 200),
        (format!("range: bytes=0-0\r\nif-range: W/{etag}\r\n"), 200),
        ("if-modified-since: Fri, 01 Jan 2100 00:00:00 GMT\r\n".to_owned(), 304),
        ("range: bytes=0-1,3-4\r\n".to_owned(), 200),
    ] {
        let (status, _, body) = get_bytes(&server, &path, &headers);
        assert_eq!(status, expected, "{headers}");
        let length = match expected {
            304 => 0,
            206 => 1,
            _ => content.len(),
        };
        assert_eq!(body.len(), length, "{headers}");
    }
}

#[test]
fn hostile_names_reach_no_other_file() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    fs::create_dir(&data_dir).unwrap();
    let secret = add_file(dir.path(), 1, b"secret");
    let link = add_file(&data_dir, 2, b"");
    fs::remove_file(data_dir.join(&link)).unwrap();
    symlink(dir.path().join(&secret), data_dir.join(&link)).unwrap();
    let directory = add_file(&data_dir, 3, b"");
    fs::remove_file(data_dir.join(&directory)).unwrap();
    fs::create_dir(data_dir.join(&directory)).unwrap();
    let fifo = add_file(&data_dir, 4, b"");
    fs::remove_file(data_dir.join(&fifo)).unwrap();
    let fifo_path = data_dir.join(&fifo);
    rustix::fs::mknodat(CWD, fifo_path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let server = Server::start_in(&data_dir, &[("ADMIN_TOKEN", TOKEN)]);
    server.post("{}").assert_ok();
    let journal = fs::read_dir(data_dir.join("journal")).unwrap().map(|entry| entry.unwrap().file_name());
    let journal = journal.map(|name| name.into_string().unwrap()).find(|name| name.ends_with(".jsonl")).unwrap();
    let absolute = dir.path().join(&secret).to_str().unwrap().to_owned();
    for name in [
        "",
        "..",
        "../",
        &format!("../{secret}"),
        &format!("..%2f{secret}"),
        &format!("%2e%2e/{secret}"),
        &format!("..%5c{secret}"),
        &format!("./{secret}"),
        &absolute,
        &absolute.replace('/', "%2f"),
        &format!("{secret}/"),
        &format!("{secret}%00"),
        &format!("x/../{secret}"),
        &secret,
        &link,
        &directory,
        &fifo,
        &format!("journal/{journal}"),
        &format!("../journal/{journal}"),
        &journal,
        &journal.replace(".jsonl", ".jsonl.zst"),
        "journal",
        ".env",
        &"a".repeat(8000),
    ] {
        get(&server, &format!("/api/v1/files/{name}")).assert_problem(404, "not-found");
    }
    // And not without the token.
    server.get(&format!("/api/v1/files/{secret}")).assert_problem(401, "admin-token-missing");
}

#[test]
fn a_file_that_is_removed_during_its_download_arrives_completely() {
    let dir = tempfile::tempdir().unwrap();
    // More than all buffers between server and client.
    let content: Vec<_> = (0..16_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let name = add_file(dir.path(), 1, &content);
    let server = Server::start_in(dir.path(), &[("ADMIN_TOKEN", TOKEN)]);
    let mut client = server.connect();
    client.send(head("GET", &format!("/api/v1/files/{name}"), ""));
    let mut received = client.try_read(1).unwrap();
    fs::remove_file(dir.path().join(&name)).unwrap();
    get(&server, &format!("/api/v1/files/{name}")).assert_problem(404, "not-found");
    let complete =
        |received: &[u8]| received.windows(4).position(|end| end == b"\r\n\r\n").map(|end| received[end + 4..].len());
    while complete(&received[..received.len().min(2000)]).is_none()
        || received.len() - (received.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4) < content.len()
    {
        let more = client.try_read(1 << 20).unwrap();
        assert!(!more.is_empty(), "the transfer ends early");
        received.extend(more);
    }
    assert!(received.ends_with(&content));
}

#[test]
fn a_client_that_does_not_read_is_closed_and_one_that_reads_slowly_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let name = add_file(dir.path(), 1, &vec![b'x'; 32 << 20]);
    let server = Server::start_in(dir.path(), &[("ADMIN_TOKEN", TOKEN), ("KEEP_ALIVE_TIMEOUT", "500ms")]);
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // So that the server notices quickly that nobody reads.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        socket.connect(&server.address.into()).unwrap();
        let mut client = Client::from_stream(socket.into()).unwrap();
        client.send(head("GET", &format!("/api/v1/files/{name}"), ""));
        client
    };
    let (mut stalled, mut slow) = (connect(), connect());
    let started = std::time::Instant::now();
    let mut received = 0;
    while received < 32 << 20 {
        // The pauses make the transfer take several times KEEP_ALIVE_TIMEOUT.
        std::thread::sleep(Duration::from_millis(40));
        let mut more = 0;
        while more < 512 * 1024 && received + more < 32 << 20 {
            let read = slow.try_read(64 * 1024).unwrap().len();
            assert!(read > 0, "closed after {received} bytes and {:?}", started.elapsed());
            more += read;
        }
        received += more;
    }
    assert!(started.elapsed() > Duration::from_secs(1), "not slow: {:?}", started.elapsed());
    // The stalled client finds the end of the connection behind what was on the way.
    wait_until("the stalled client is closed", || (connections_of(&server, "timeout") >= 1.0).then_some(()));
    let mut stalled_bytes = 0;
    loop {
        match stalled.try_read(1 << 20) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => stalled_bytes += bytes.len(),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
        }
    }
    assert!(stalled_bytes < 32 << 20);
}

fn connections_of(server: &Server, outcome: &str) -> f64 {
    let metrics = get(server, "/metrics").body;
    let name = format!("netwatch_connections_total{{outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
}

#[test]
fn a_download_that_nobody_reads_does_not_delay_a_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let name = add_file(dir.path(), 1, &vec![b'x'; 64 << 20]);
    let settings = [("ADMIN_TOKEN", TOKEN), ("SHUTDOWN_TIMEOUT", "1h"), ("KEEP_ALIVE_TIMEOUT", "1h")];
    let mut server = Server::start_in(dir.path(), &settings);
    let mut client = server.connect();
    client.send(head("GET", &format!("/api/v1/files/{name}"), ""));
    assert_eq!(client.try_read(1).unwrap(), b"H");
    server.signal(Signal::TERM);
    let started = std::time::Instant::now();
    assert!(server.wait().success());
    assert!(started.elapsed() < PATIENCE / 4, "{:?}", started.elapsed());
}

#[test]
fn with_an_admin_listener_files_are_only_there() {
    let server = start(&[("ADMIN_LISTEN", "127.0.0.1:0"), ("FLUSH_INTERVAL", "10ms")]);
    let line = server.wait_for_log("listening for readers", |_| true);
    let admin: SocketAddr = line["fields"]["address"].as_str().unwrap().parse().unwrap();
    let (path, content) = publish(&server);
    let (_, _, body) = Client::try_connect(admin).unwrap().ask_bytes(&head("GET", &path, ""));
    assert_eq!(body, content);
    for path in ["/api/v1/reports/tail", "/api/v1/stats", "/api/v1/live", "/api/v1/files", &path] {
        get(&server, path).assert_problem(404, "not-found");
    }
    let refused = get(&server, "/api/v1/reports");
    assert_eq!(refused.headers["allow"], "POST");
    refused.assert_problem(405, "method-not-allowed");
    let mut client = Client::try_connect(admin).unwrap();
    client.ask(&head("POST", "/api/v1/reports", "content-length: 2\r\n"), b"{}").assert_problem(404, "not-found");
}
