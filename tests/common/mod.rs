//! Test support: a server process with its own port and data directory, and a client that reads raw HTTP answers.

#![allow(dead_code, reason = "each test file uses only some of these items")]

pub(crate) mod balancer;
pub(crate) mod file_system;

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::SockRef;
use tempfile::TempDir;

/// The time limit of each wait. Only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A command for the program under test, with an empty environment.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netwatch-server"));
    command.env_clear().current_dir(dir).stdin(Stdio::null());
    command
}

/// A command for a server with these settings on a free port.
pub(crate) fn server_command(data_dir: &Path, settings: &[(&str, &str)]) -> Command {
    with_settings(command(&std::env::temp_dir()), data_dir, settings)
}

fn with_settings(mut command: Command, data_dir: &Path, settings: &[(&str, &str)]) -> Command {
    command
        .env("CONFIG_FILE", "/dev/null")
        .env("HOST", "127.0.0.1")
        .env("PORT", "0")
        .env("LOG_FORMAT", "json")
        .env("DATA_DIR", data_dir)
        .envs(settings.iter().copied());
    command
}

pub(crate) struct Server {
    child: Child,
    log: Arc<Log>,
    pub(crate) address: SocketAddr,
    pub(crate) data_dir: PathBuf,
    _dir: Option<TempDir>,
}

impl Server {
    /// Starts a server with these settings in a new data directory, and waits until the server listens.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data/reports");
        let mut server = Self::start_in(&data_dir, settings);
        server._dir = Some(dir);
        server
    }

    /// Like `start`, but uses this data directory, which several servers can share.
    pub(crate) fn start_in(data_dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::spawn(data_dir, settings, None)
    }

    /// Like `start_in`, but closes the log pipe as soon as the server listens.
    pub(crate) fn start_unheard(data_dir: &Path, settings: &[(&str, &str)]) -> Self {
        let server = Self::spawn(data_dir, settings, Some("listening"));
        wait_until("the log is closed", || server.log.lines.lock().unwrap().1.then_some(()));
        server
    }

    fn spawn(data_dir: &Path, settings: &[(&str, &str)], last_message: Option<&'static str>) -> Self {
        Self::spawn_from(command(&std::env::temp_dir()), data_dir, settings, last_message)
    }

    /// Like `start_in`, but uses this command. Closes the log pipe after a line that contains `last_message`.
    pub(crate) fn spawn_from(
        command: Command,
        data_dir: &Path,
        settings: &[(&str, &str)],
        last_message: Option<&'static str>,
    ) -> Self {
        let mut command = with_settings(command, data_dir, settings);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::follow(child.stderr.take().unwrap(), last_message);
        let listening = log.wait("listening", |_| true);
        let address = listening["fields"]["address"].as_str().unwrap().parse().unwrap();
        Self { child, log, address, data_dir: data_dir.to_owned(), _dir: None }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::try_connect(self.address).unwrap()
    }

    /// Posts one body over a new connection.
    pub(crate) fn post(&self, body: impl AsRef<[u8]>) -> Answer {
        self.connect().post(body)
    }

    /// Like `post`, with additional headers. Each header ends with a line break.
    pub(crate) fn post_with(&self, headers: &str, body: impl AsRef<[u8]>) -> Answer {
        self.connect().post_with(headers, body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.connect().ask(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"), b"")
    }

    /// Waits for a log line that has this message and for which `wanted` returns true.
    pub(crate) fn wait_for_log(&self, message: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.log.wait(message, wanted)
    }

    /// The number of log lines with this message. If the server has exited, waits for the end of the log first.
    pub(crate) fn count_in_log(&mut self, message: &str) -> usize {
        if !self.is_running() {
            wait_until("the log ends", || self.log.lines.lock().unwrap().1.then_some(()));
        }
        self.log.count(message)
    }

    /// Waits until the server has closed its log, and returns the log.
    pub(crate) fn log(&self) -> String {
        wait_until("the log ends", || self.log.lines.lock().unwrap().1.then_some(()));
        self.log.text()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until("the server exits", || self.child.try_wait().unwrap())
    }

    pub(crate) fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Shuts the server down, checks that only report files are left, and returns all their lines.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log.text());
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
        let inner = ["journal", "tmp"].map(|dir| fs::read_dir(self.data_dir.join(dir)).into_iter().flatten());
        let is_file = |path: &PathBuf| path.is_file();
        let mut leftovers: Vec<_> = inner.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        let files = fs::read_dir(&self.data_dir).unwrap().map(|entry| entry.unwrap().path()).filter(is_file);
        leftovers.extend(files.filter(|path| path.extension() != Some("zst".as_ref())));
        assert!(leftovers.is_empty(), "{leftovers:?}");
        self.stored()
    }

    /// All lines of the report files that exist now.
    pub(crate) fn stored(&self) -> Vec<String> {
        stored(&self.data_dir)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_running() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("server log:\n{}", self.log.text());
        }
    }
}

/// The report files in a data directory, sorted by name. Panics if the directory contains an unexpected file.
pub(crate) fn report_files(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.retain(|name| !["journal", "tmp", "quarantine"].contains(&name.as_str()));
    names.sort();
    assert!(names.iter().all(|name| name.starts_with("reports-") && name.ends_with(".jsonl.zst")), "{names:?}");
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// All lines of all report files in a directory.
pub(crate) fn stored(dir: &Path) -> Vec<String> {
    let text = |file: &PathBuf| String::from_utf8(zstd::decode_all(fs::File::open(file).unwrap()).unwrap()).unwrap();
    let texts: Vec<_> = report_files(dir).iter().map(text).collect();
    assert!(texts.iter().all(|text| text.ends_with('\n')), "a report file does not end with a line break");
    texts.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

/// Calls `poll` until it returns a value. Panics after `PATIENCE`.
pub(crate) fn wait_until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a server uses no processor time, or has exited.
pub(crate) fn wait_until_idle(server: &mut Server) {
    let mut used = Duration::ZERO;
    wait_until("the server is idle", || {
        thread::sleep(Duration::from_millis(500)); // the time between two readings
        let before = std::mem::replace(&mut used, cpu_time(server.id()));
        (!server.is_running() || used.saturating_sub(before) < Duration::from_millis(10)).then_some(())
    });
}

/// The processor time that all threads of a process have used.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    // The clock of the process includes threads that have ended.
    let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(pid.cast_signed())).unwrap();
    clock.now().unwrap().into()
}

/// A SplitMix64 generator: the same seed gives the same numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// The memory limit of `deploy/compose.yaml` in bytes.
pub(crate) fn memory_limit_of_compose() -> u64 {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose.yaml");
    let text = fs::read_to_string(file).unwrap();
    let mib = text.lines().find_map(|line| line.trim().strip_prefix("mem_limit: ")?.strip_suffix('m')).unwrap();
    mib.parse::<u64>().unwrap() << 20
}

/// The number in an environment variable, if the variable is set.
pub(crate) fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A client with one connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Self::from_stream(TcpStream::connect(address)?)
    }

    pub(crate) fn from_stream(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// A second handle to the connection: one thread can send while another waits for the answer.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.get_ref().try_clone().unwrap()
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// When the client is dropped, resets the connection (RST) instead of closing it normally.
    pub(crate) fn reset_on_drop(&self) {
        SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub(crate) fn post(&mut self, body: impl AsRef<[u8]>) -> Answer {
        self.send(request(body.as_ref()));
        self.answer()
    }

    /// Posts until the answer is not `buffer-full`. The server stores nothing of a request that it refuses with
    /// `buffer-full`. A slow disk can fill the buffer for a second, which is not an error of the server.
    pub(crate) fn post_until_capacity(&mut self, body: impl AsRef<[u8]>) -> Answer {
        wait_until("the buffer has capacity", || Some(self.post(&body)).filter(|answer| !answer.is_full()))
    }

    pub(crate) fn post_with(&mut self, headers: &str, body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let path = "/api/v1/reports?x=1";
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {}\r\n\r\n", body.len());
        self.ask(&head, body)
    }

    pub(crate) fn ask(&mut self, head: &str, body: &[u8]) -> Answer {
        self.send([head.as_bytes(), body].concat());
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// Reads one answer and checks its headers. The error is `UnexpectedEof` if the connection is closed instead.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let answer = self.try_any_answer()?;
        let headers = &answer.headers;
        // All answers have this header, except those that hyper generates.
        let by_hyper = answer.status == 100 || (headers.get("content-length").is_some_and(|length| length == "0"));
        assert!(
            by_hyper || headers.get("x-content-type-options").is_some_and(|value| value == "nosniff"),
            "{headers:?}"
        );
        assert!(!headers.contains_key("server"), "{headers:?}");
        Ok(answer)
    }

    /// Like `try_answer`, but without the checks. It also reads the answers of a load balancer.
    pub(crate) fn try_any_answer(&mut self) -> io::Result<Answer> {
        let (status, headers) = self.try_head()?;
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, headers, body: String::from_utf8(body).unwrap() })
    }

    /// Sends a request without a body, and returns status, headers and body of the answer. The body may be any bytes.
    pub(crate) fn ask_bytes(&mut self, head: &str) -> (u16, HashMap<String, String>, Vec<u8>) {
        self.send(head);
        let (status, headers) = self.try_head().unwrap();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; if head.starts_with("HEAD ") { 0 } else { length }];
        self.stream.read_exact(&mut body).unwrap();
        (status, headers, body)
    }

    /// Reads the next bytes, whatever they are. Empty at the end of the connection.
    pub(crate) fn try_read(&mut self, max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; max];
        let read = self.stream.read(&mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Reads one chunk of a body. At the end of the body, returns the trailers.
    pub(crate) fn try_chunk(&mut self) -> io::Result<Result<Vec<u8>, String>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        if length == 0 {
            let mut trailers = String::new();
            while !trailers.ends_with("\r\n\r\n") && trailers != "\r\n" {
                if self.stream.read_line(&mut trailers)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            return Ok(Err(trailers.trim_end().to_owned()));
        }
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(length);
        Ok(Ok(chunk))
    }

    /// Reads the rest of a chunked body. Returns it with its trailers.
    pub(crate) fn try_chunks(&mut self) -> io::Result<(Vec<u8>, String)> {
        let mut body = Vec::new();
        loop {
            match self.try_chunk()? {
                Ok(chunk) => body.extend(chunk),
                Err(trailers) => return Ok((body, trailers)),
            }
        }
    }

    fn try_head(&mut self) -> io::Result<(u16, HashMap<String, String>)> {
        let mut line = || {
            let mut line = String::new();
            match self.stream.read_line(&mut line)? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(line.trim_end().to_owned()),
            }
        };
        // nginx answers an HTTP/0.9 request without a status line.
        let status = line()?.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let mut headers = HashMap::new();
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            let values: &mut String = headers.entry(name.to_ascii_lowercase()).or_default();
            *values += if values.is_empty() { "" } else { ", " };
            *values += value.trim();
        }
        Ok((status, headers))
    }

    pub(crate) fn ask_any(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request);
        self.try_any_answer().unwrap()
    }

    /// Waits until the server closes the connection. Panics if the server sends anything first.
    pub(crate) fn assert_closed(&mut self) {
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("not closed: {other:?}"),
        }
    }
}

pub(crate) fn request(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub(crate) fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes.as_ref()).unwrap();
    encoder.finish().unwrap()
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn assert_ok(&self) {
        self.assert_accepted(1);
    }

    pub(crate) fn assert_accepted(&self, reports: usize) {
        let body = format!("{{\"status\":\"ok\",\"accepted\":{reports}}}\n");
        assert_eq!((self.status, &self.body), (200, &body));
    }

    pub(crate) fn assert_status(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
    }

    pub(crate) fn is_full(&self) -> bool {
        self.status == 503 && self.body.contains(":buffer-full")
    }

    /// Checks that this is an RFC 9457 problem of this type, and returns its detail.
    pub(crate) fn assert_problem(&self, status: u16, name: &str) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("tag:netwatch-server,2026:{name}"));
        assert!(!problem["title"].as_str().unwrap().is_empty());
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// The log of a server. A thread collects the lines.
struct Log {
    /// The lines so far, and whether the log has ended.
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    /// Reads lines until the end or until a line that contains `last_message`, and then closes `from`.
    fn follow(from: impl Read + Send + 'static, last_message: Option<&'static str>) -> Arc<Self> {
        let log = Arc::new(Self { lines: Mutex::default(), changed: Condvar::new() });
        let writer = Arc::clone(&log);
        thread::spawn(move || {
            let mut lines = BufReader::new(from).lines();
            while let Some(Ok(line)) = lines.next() {
                let is_last = last_message.is_some_and(|message| line.contains(message));
                writer.lines.lock().unwrap().0.push(line);
                writer.changed.notify_all();
                if is_last {
                    break;
                }
            }
            drop(lines);
            writer.lines.lock().unwrap().1 = true;
            writer.changed.notify_all();
        });
        log
    }

    fn count(&self, message: &str) -> usize {
        let lines = self.lines.lock().unwrap();
        let parsed = lines.0.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|line| line["fields"]["message"] == message).count()
    }

    fn wait(&self, message: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap();
        loop {
            let mut parsed = lines.0.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(found) = parsed.find(|line| line["fields"]["message"] == message && wanted(line)) {
                return found;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            assert!(!lines.1 && !remaining.is_zero(), "no log line {message:?} in:\n{}", lines.0.join("\n"));
            lines = self.changed.wait_timeout(lines, remaining).unwrap().0;
        }
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).0.join("\n")
    }
}
