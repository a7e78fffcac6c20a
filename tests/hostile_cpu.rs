//! No body costs much more processor time than its length justifies.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Answer, Server, cpu_time, wait_until};

/// Maximum processor time per MiB of a body, as sent. The limit for a debug build only finds what is far too slow: its code is
/// ten times slower, and more so on a busy machine.
const MAX_CPU: Duration = Duration::from_millis(if cfg!(debug_assertions) { 4000 } else { 100 });

const MIB: usize = 1 << 20;

/// Number of measurements. The smallest counts, because other programs can disturb the caches.
const ROUNDS: usize = if cfg!(debug_assertions) { 1 } else { 5 };

/// A whole HTTP/1 request, and the length of its body as sent.
struct Attack {
    name: &'static str,
    request: Vec<u8>,
    bytes: usize,
}

/// A body of one MiB with this encoding.
fn encoded(name: &'static str, encoding: &str, body: Vec<u8>) -> Attack {
    assert!((MIB / 2..=MIB).contains(&body.len()), "{name}: {}", body.len());
    let head = format!(
        "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Attack { name, bytes: body.len(), request: [head.as_bytes(), &body].concat() }
}

/// `body` in chunks of this size.
fn chunked(name: &'static str, chunk_bytes: usize, body: &[u8]) -> Attack {
    let chunk = |chunk: &[u8]| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
    let chunks: Vec<_> = body.chunks(chunk_bytes).flat_map(chunk).collect();
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
    Attack { name, bytes: body.len(), request: [head.as_bytes(), &chunks, b"0\r\n\r\n"].concat() }
}

/// An HTTP/2 request with as many DATA frames of this payload as fit into one MiB (RFC 9113).
fn frames(payload: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let path = b"/api/v1/reports";
    let headers = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &*frame(4, 0, 0, b""), &frame(1, 4, 1, &headers)].concat();
    repeated(&preface, &frame(0, 0, 1, payload), b"")
}

/// `unit` as often as it fits into one MiB, between `start` and `end`.
fn repeated(start: &[u8], unit: &[u8], end: &[u8]) -> Vec<u8> {
    let times = (MIB - start.len() - end.len()) / unit.len();
    [start, &unit.repeat(times), end].concat()
}

/// A gzip, deflate or zstd body that flushes its encoder after every `piece` of `text`, up to one MiB.
fn flushed<W: Write>(mut encoder: W, piece: &[u8], encoded_bytes: impl Fn(&W) -> usize) -> W {
    while encoded_bytes(&encoder) < MIB - 1024 {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder
}

/// Bits of a deflate stream, the lowest one first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    filled: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        for bit in 0..count {
            if self.filled.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= (((value >> bit) & 1) as u8) << (self.filled % 8);
            self.filled += 1;
        }
    }
}

/// Deflate blocks with dynamic Huffman codes and without content (RFC 1951, section 3.2.7). The decoder builds tables
/// for each block.
fn dynamic_blocks() -> Vec<u8> {
    let mut bits = Bits::default();
    while bits.bytes.len() < MIB - 16 {
        // Not the last block, dynamic codes, 257 literal codes, 1 distance code, 18 code length codes.
        [(0, 1), (2, 2), (0, 5), (0, 5), (14, 4)].iter().for_each(|(value, count)| bits.push(*value, *count));
        // In the order of the RFC: the codes 18 (a run of zeros) and 1 (a length of one) have one bit.
        (0..18).for_each(|index| bits.push(u32::from(index == 2 || index == 17), 3));
        // 138 and 118 literals without a code, then the end of the block and one distance with a code of one bit.
        [(1, 1), (127, 7), (1, 1), (107, 7), (0, 1), (0, 1)]
            .iter()
            .for_each(|(value, count)| bits.push(*value, *count));
        bits.push(0, 1);
    }
    bits.bytes
}

/// Deflate blocks with the fixed Huffman codes and without content: 10 bits for each.
fn fixed_blocks() -> Vec<u8> {
    let mut bits = Bits::default();
    while bits.bytes.len() < MIB - 16 {
        [(0, 1), (1, 2), (0, 7)].iter().for_each(|(value, count)| bits.push(*value, *count));
    }
    bits.bytes
}

fn attacks() -> Vec<Attack> {
    let empty_gzip = common::gzip("");
    let empty_zstd = zstd::encode_all(&b""[..], 1).unwrap();
    let gzip = |piece: &[u8]| {
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        flushed(encoder, piece, |encoder| encoder.get_ref().len()).finish().unwrap()
    };
    let zstd = |piece: &[u8]| {
        let encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        flushed(encoder, piece, |encoder| encoder.get_ref().len()).finish().unwrap()
    };
    let br = |piece: &[u8]| {
        let encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 1, 16);
        flushed(encoder, piece, |encoder| encoder.get_ref().len()).into_inner()
    };
    let text: String = (0..100_u32).map(|n| format!("{}", n.wrapping_mul(2_654_435_761) % 1000)).collect();
    let json = |name, start: &str, unit: &str, end: &str| {
        encoded(name, "identity", repeated(start.as_bytes(), unit.as_bytes(), end.as_bytes()))
    };
    let deep = format!("{}{},", "[".repeat(120), "]".repeat(120));
    let objects = format!("{}1{},", "{\"\":".repeat(120), "}".repeat(120));
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(MIB - 8));
    vec![
        encoded("gzip, empty members", "gzip", repeated(b"", &empty_gzip, b"")),
        encoded("gzip, a flush per byte", "gzip", gzip(b" ")),
        encoded("gzip, a flush per 250 bytes", "gzip", gzip(text.as_bytes())),
        encoded("deflate, empty stored blocks", "deflate", repeated(b"", &[0, 0, 0, 0xff, 0xff], b"")),
        encoded("deflate, empty fixed blocks", "deflate", fixed_blocks()),
        encoded("deflate, empty dynamic blocks", "deflate", dynamic_blocks()),
        encoded("zstd, empty frames", "zstd", repeated(b"", &empty_zstd, b"")),
        encoded("zstd, skippable frames", "zstd", repeated(b"", &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], b"")),
        // A frame with a window of 1 KiB, and blocks without content.
        encoded("zstd, empty blocks", "zstd", repeated(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0], &[0, 0, 0], b"")),
        encoded("zstd, a flush per byte", "zstd", zstd(b" ")),
        encoded("zstd, a flush per 250 bytes", "zstd", zstd(text.as_bytes())),
        // A window of 64 KiB, then metadata blocks without content (RFC 7932, section 9.2).
        encoded("br, empty metadata blocks", "br", repeated(&[0x0c], &[0x06], b"")),
        encoded("br, a flush per byte", "br", br(b" ")),
        encoded("br, a flush per 250 bytes", "br", br(text.as_bytes())),
        chunked("1-byte chunks", 1, long.as_bytes()),
        chunked("16-byte chunks", 16, long.as_bytes()),
        json("an array of {}", "[{}", ",{}", "]"),
        json("lines of {}", "{}", "\n{}", ""),
        json("an array of objects with line breaks", "[{}", ",{\n}", "]"),
        json("an object with line breaks", "{", "\n", "}"),
        json("empty names", "{\"\":0", ",\"\":0", "}"),
        json("escapes", "{\"a\":\"", "\\u0041", "\"}"),
        json("short escapes", "{\"a\":\"", "\\n", "\"}"),
        json("names with escapes", "{\"\":0", ",\"\\n\":0", "}"),
        json("nested arrays", "{\"a\":[", &deep, "0]}"),
        json("nested objects", "{\"a\":[", &objects, "0]}"),
        json("many deep reports", "[", &objects, "{}]"),
        json("an array that is nested too deep", "{\"a\":", "[", "0"),
        json("digits", "{\"a\":", "7", "}"),
        json("small numbers", "{\"a\":[0", ",0", "]}"),
        json("exponents", "{\"a\":[0", ",1e9", "]}"),
        json("white space", "", " ", "{}"),
        json("line breaks", "{}", "\n", ""),
        json("reports and an error at the end", "[{}", ",{}", ""),
        json("lines and an invalid byte at the end", "{}", "\n{}", "\n\u{fffd}"),
    ]
}

/// Sends a request, and waits until the server is idle again. The server may close the connection earlier.
fn attack(server: &Server, request: &[u8]) -> Answer {
    let mut client = server.connect();
    let mut writer = client.writer();
    let answer = thread::scope(|scope| {
        scope.spawn(move || drop(writer.write_all(request)));
        client.answer()
    });
    drop(client);
    wait_until_idle(server);
    answer
}

/// Like `attack` over HTTP/2. Returns whether the connection was closed with ENHANCE_YOUR_CALM, or the request was
/// refused with 400.
fn attack_http2(server: &Server, request: &[u8]) -> bool {
    let mut stream = TcpStream::connect(server.address).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let mut frames = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            // The server may close the connection earlier.
            drop(writer.write_all(request));
            drop(writer.shutdown(Shutdown::Write));
        });
        drop(stream.read_to_end(&mut frames));
    });
    wait_until_idle(server);
    // The h2 library limits the overhead of DATA frames that wait to be read. Otherwise the server counts them.
    let closed = frames.windows(20).any(|bytes| bytes == b"too_many_data_frames");
    // A HEADERS frame of stream 1 with `:status: 400`, which is entry 12 of the static table (RFC 7541).
    closed || frames.windows(7).any(|bytes| bytes[0] == 1 && bytes[2..] == [0, 0, 0, 1, 0x8c])
}

fn wait_until_idle(server: &Server) {
    wait_until("the server is idle", || {
        let before = cpu_time(server.id());
        thread::sleep(Duration::from_millis(10)); // samples the processor time
        (cpu_time(server.id()) - before < Duration::from_micros(500)).then_some(())
    });
}

fn measure(settings: &[(&str, &str)], attacks: Vec<Attack>) -> Vec<String> {
    let mut expensive = Vec::new();
    let settings = [
        settings,
        &[("ACK", "memory"), ("BUFFER_BYTES", "1GiB"), ("BATCH_BYTES", "256MiB"), ("INFLIGHT_BYTES", "1GiB")],
    ]
    .concat();
    let server = Server::start(&settings);
    for Attack { name, request, bytes } in attacks {
        let mut costs = Vec::new();
        let mut status = 0;
        for _ in 0..ROUNDS {
            let before = cpu_time(server.id());
            status = attack(&server, &request).status;
            costs.push((cpu_time(server.id()) - before).mul_f64(MIB as f64 / bytes as f64));
        }
        let cost = *costs.iter().min().unwrap();
        println!("{name:40} {status} {:7.1} ms/MiB", cost.as_secs_f64() * 1000.0);
        if cost > MAX_CPU {
            expensive.push(format!("{name}: {cost:?}"));
        }
    }
    expensive
}

#[test]
fn no_hostile_body_costs_more_than_a_tenth_of_a_second_per_mib() {
    let expensive = measure(&[], attacks());
    assert!(expensive.is_empty(), "{expensive:#?}");
}

#[test]
fn no_hostile_body_costs_more_with_stamps() {
    // Stamps make short reports many times longer. Decoding costs as much as without stamps.
    let is_json =
        |attack: &Attack| attack.request.windows(26).take(200).any(|part| part == b"content-encoding: identity");
    let attacks = attacks().into_iter().filter(is_json).collect();
    let expensive = measure(&[("STAMP", "client_ip,received_at"), ("MAX_BODY_BYTES", "4MiB")], attacks);
    assert!(expensive.is_empty(), "{expensive:#?}");
}

#[test]
fn no_body_in_tiny_http_2_frames_costs_more() {
    let server = Server::start(&[]);
    for (name, payload) in [("HTTP/2, 1-byte frames", &b" "[..]), ("HTTP/2, empty frames", b"")] {
        let request = frames(payload);
        let costs = (0..ROUNDS).map(|_| {
            let before = cpu_time(server.id());
            assert!(attack_http2(&server, &request), "{name}: not refused");
            cpu_time(server.id()) - before
        });
        let cost = costs.min().unwrap();
        println!("{name:40} 400 {:7.1} ms/MiB", cost.as_secs_f64() * 1000.0);
        assert!(cost <= MAX_CPU, "{name}: {cost:?}");
    }
    server.post("{}").assert_ok();
}

/// Number of hostile clients at the same time.
const HOSTILE_CLIENTS: usize = 8;

/// The 99th percentile of the response times of short requests on one connection.
fn p99(server: &Server) -> Duration {
    let mut client = server.connect();
    let mut times: Vec<_> = (0..500)
        .map(|_| {
            let started = Instant::now();
            client.post("{}").assert_ok();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() * 99 / 100]
}

/// The hostile clients use the processors of the server, so a request waits for parts of their work: one millisecond of
/// decoding, or the check of one body. Only run it in release mode and on a quiet machine: `make hostile`.
#[test]
#[ignore = "measures time"]
fn hostile_bodies_delay_other_requests_only_by_parts_of_their_work() {
    let server = &Server::start(&[("ACK", "memory"), ("BUFFER_BYTES", "1GiB")]);
    let attacks = &attacks();
    let stop = &AtomicBool::new(false);
    let median = |mut samples: Vec<Duration>| {
        samples.sort();
        samples[samples.len() / 2]
    };
    p99(server); // warm-up
    let quiet = median((0..5).map(|_| p99(server)).collect());
    let attacked = thread::scope(|scope| {
        for n in 0..HOSTILE_CLIENTS {
            scope.spawn(move || {
                for Attack { request, .. } in attacks.iter().cycle().skip(n * 5) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut client = server.connect();
                    let mut writer = client.writer();
                    thread::scope(|scope| {
                        scope.spawn(move || drop(writer.write_all(request)));
                        drop(client.try_answer());
                    });
                }
            });
        }
        let attacked = std::panic::catch_unwind(|| median((0..5).map(|_| p99(server)).collect()));
        stop.store(true, Ordering::Relaxed);
        attacked.unwrap()
    });
    println!("p99 {quiet:?} without hostile clients, {attacked:?} with {HOSTILE_CLIENTS}");
    assert!(attacked <= quiet * 2 + Duration::from_millis(20), "{attacked:?}");
}
