//! A client that takes as little of the machine as it can: one thread, two system calls a request.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::memmem;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::time::ClockId;

use crate::common::Reports;
use crate::{ANSWER, Result};

/// More than a batch of netwatch-server, so that no batch holds a report twice.
const POOL_BYTES: usize = 16 << 20;

/// Longer than any answer. A read that does not fill it has emptied the socket.
const READ_BYTES: usize = 16 << 10;

const HEAD_END: &[u8] = b"\r\n\r\n";

/// No answer on any connection for so long means that the server hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests made ready to be sent, used one after the other and then again from the first.
pub(crate) struct Requests {
    bytes: Vec<u8>,
    /// Where each request ends.
    ends: Vec<usize>,
    next: usize,
}

impl Requests {
    pub(crate) fn new(report_bytes: usize) -> Self {
        let mut reports = Reports::new(report_bytes as u64);
        let mut requests = Self { bytes: Vec::with_capacity(POOL_BYTES), ends: Vec::new(), next: 0 };
        while requests.bytes.len() < POOL_BYTES {
            let report = reports.report(report_bytes);
            let head = format!(
                "POST /api/v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n",
                report.len()
            );
            requests.bytes.extend(head.as_bytes());
            requests.bytes.extend(report);
            requests.ends.push(requests.bytes.len());
        }
        requests
    }

    fn next(&mut self) -> Range<usize> {
        let start = self.next.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        let end = self.ends[self.next];
        self.next = (self.next + 1) % self.ends.len();
        start..end
    }
}

/// What came of driving a server for some time.
pub(crate) struct Load {
    /// All requests; each of them was answered with 200.
    pub(crate) answered: u64,
    /// Those whose answer came before the time was over: all but the last one of each connection.
    pub(crate) answered_in_time: u64,
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// From the first request to the last answer.
    pub(crate) wall_time: Duration,
    /// What the client took of the CPU in that time.
    pub(crate) cpu_time: Duration,
}

/// Keep-alive connections, each with no more than one request in flight.
pub(crate) struct Client<'a> {
    poll: Poll,
    connections: Vec<Connection>,
    requests: &'a mut Requests,
}

impl<'a> Client<'a> {
    pub(crate) fn connect(address: SocketAddr, connections: usize, requests: &'a mut Requests) -> Result<Self> {
        let poll = Poll::new()?;
        let connections = (0..connections)
            .map(|index| {
                let stream = std::net::TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let mut stream = TcpStream::from_std(stream);
                poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
                Ok(Connection { stream, sent_at: Instant::now(), unsent: 0..0, received: Vec::new() })
            })
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|error| format!("connecting to {address}: {error}"))?;
        Ok(Self { poll, connections, requests })
    }

    /// Sends request after request on every connection for this long, then awaits the answers that are still missing.
    ///
    /// # Errors
    ///
    /// Whatever is not a complete answer with status 200 and the expected body ends the run.
    pub(crate) fn drive(&mut self, time: Duration) -> Result<Load> {
        let Self { poll, connections, requests } = self;
        let mut events = Events::with_capacity(1024);
        let mut scratch = [0; READ_BYTES];
        let mut latency = Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?;
        let (mut answered, mut answered_in_time) = (0, 0);
        let (start, cpu_start) = (Instant::now(), thread_cpu_time()?);
        let deadline = start + time;

        for connection in connections.iter_mut() {
            connection.send(requests, Instant::now())?;
        }
        let mut in_flight = connections.len();
        while in_flight > 0 {
            match poll.poll(&mut events, Some(PATIENCE)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            if events.is_empty() {
                return Err(format!("{in_flight} requests had no answer after {PATIENCE:?}").into());
            }
            for event in &events {
                let connection = &mut connections[event.token().0];
                if !connection.progress(event, &requests.bytes, &mut scratch)? {
                    continue;
                }
                let now = Instant::now();
                latency.saturating_record((now - connection.sent_at).as_nanos() as u64);
                answered += 1;
                if now < deadline {
                    answered_in_time += 1;
                    connection.send(requests, now)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        let cpu_time = thread_cpu_time()? - cpu_start;
        Ok(Load { answered, answered_in_time, latency, wall_time: start.elapsed(), cpu_time })
    }
}

fn thread_cpu_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

struct Connection {
    stream: TcpStream,
    sent_at: Instant,
    /// The part of the pool that the socket has not taken yet.
    unsent: Range<usize>,
    /// The beginning of an answer that came in pieces.
    received: Vec<u8>,
}

impl Connection {
    fn send(&mut self, requests: &mut Requests, now: Instant) -> Result<()> {
        self.sent_at = now;
        self.unsent = requests.next();
        self.write(&requests.bytes)
    }

    /// One write, as a rule. What the socket has no room for is sent when it is writable.
    fn write(&mut self, pool: &[u8]) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&pool[self.unsent.clone()]) {
                Ok(written_bytes) => self.unsent.start += written_bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("sending a request: {error}").into()),
            }
        }
        Ok(())
    }

    /// Does what the event allows, and tells whether the request has now been answered.
    fn progress(&mut self, event: &Event, pool: &[u8], scratch: &mut [u8; READ_BYTES]) -> Result<bool> {
        self.write(pool)?;
        Ok(event.is_readable() && self.read(scratch)?)
    }

    /// One read. A second one, to see that the socket is empty, would tell nothing: the first was shorter than its
    /// buffer, and whatever comes later is another event.
    fn read(&mut self, scratch: &mut [u8; READ_BYTES]) -> Result<bool> {
        let read_bytes = match self.stream.read(scratch) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(read_bytes) => read_bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(format!("reading an answer: {error}").into()),
        };
        let piece = &scratch[..read_bytes];
        if self.received.is_empty() && is_whole(piece)? {
            return Ok(true);
        }
        self.received.extend(piece);
        let whole = is_whole(&self.received)?;
        if whole {
            self.received.clear();
        }
        Ok(whole)
    }
}

/// Whether this is all of an answer, and not just its beginning.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(head_bytes) = memmem::find(answer, HEAD_END) else {
        return Ok(false);
    };
    let (head, body) = (&answer[..head_bytes], &answer[head_bytes + HEAD_END.len()..]);
    if head.starts_with(b"HTTP/1.1 200 ")
        && content_length(head) == Some(ANSWER.len())
        && ANSWER.as_bytes().starts_with(body)
    {
        Ok(body.len() == ANSWER.len())
    } else {
        Err(format!("a report was answered with\n{}", String::from_utf8_lossy(answer)).into())
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let value = head.split(|&byte| byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    })?;
    str::from_utf8(value).ok()?.trim().parse().ok()
}
