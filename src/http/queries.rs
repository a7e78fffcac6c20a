//! Queries run in child processes: the program itself, with other arguments.
//!
//! ```text
//!   request ──permit──► child ──pipe──► relay ──► client
//! ```
//!
//! A query can use much processor time and memory, and a filter is a program of the client. So the child has limits, a
//! low priority and an environment without secrets. It sets the limits itself when it sees `--child`. It is
//! killed when the client goes away, at the time limit, and when the server shuts down. Its output waits in a pipe until
//! the client reads.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::conn::{Stopped, StreamWriter};
use super::error::ApiError;

/// The program of this process. The link leads to the running program even if its file was replaced or deleted.
const PROGRAM: &str = "/proc/self/exe";

/// Maximum number of tails. They run until their clients leave.
const MAX_TAILS: usize = 8;

/// How long a query waits for others to end.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the answer to a tail waits for the first output. An invalid filter shows within this time.
const TAIL_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that are read from a child at once.
const PIECE_BYTES: usize = 32 * 1024;

/// Bytes of the error messages of a child that are kept.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Maximum length of a reason in the trailer.
const MAX_REASON_CHARS: usize = 200;

/// The whole environment of a child. mimalloc reserves 32 MiB of address space at once instead of 1 GiB (the option is in
/// KiB), and the C library none for each thread. So the limit of the child's address space is near to the memory that it
/// can use.
const ENVIRONMENT: [(&str, &str); 2] = [("MIMALLOC_ARENA_RESERVE", "32768"), ("MALLOC_ARENA_MAX", "1")];

/// The exit code of a child that has skipped something.
const SKIPPED: i32 = 3;

/// The exit code of a child whose arguments are not valid.
const INVALID: i32 = 2;

const TOO_EXPENSIVE: &str = "it used more memory or processor time than the server permits";
const TOO_SLOW: &str = "it took longer than QUERY_TIMEOUT";

/// Starts children and limits their number.
#[derive(Debug)]
pub(super) struct Queries {
    program: PathBuf,
    data_dir: PathBuf,
    timeout: Duration,
    cores: u64,
    queries: Arc<Semaphore>,
    tails: Arc<Semaphore>,
    starter: Mutex<Option<mpsc::Sender<Start>>>,
}

/// A child to start.
#[derive(Debug)]
struct Start {
    command: Command,
    runtime: Handle,
    started: oneshot::Sender<io::Result<Child>>,
}

/// Which limit applies to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A query or statistics: one of `QUERY_MAX_CONCURRENT`, until `QUERY_TIMEOUT`.
    Query,
    /// A tail: one of [`MAX_TAILS`], without a time limit.
    Tail,
}

impl Queries {
    pub(super) fn new(data_dir: &Path, timeout: Duration, max_concurrent: usize) -> Self {
        Self {
            program: PROGRAM.into(),
            // The child has another working directory.
            data_dir: std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()),
            timeout,
            cores: thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            queries: Arc::new(Semaphore::new(max_concurrent)),
            tails: Arc::new(Semaphore::new(MAX_TAILS)),
            starter: Mutex::default(),
        }
    }

    /// Starts a child with these arguments after the name of its command.
    pub(super) async fn start(&self, kind: Kind, command: &str, arguments: Vec<OsString>) -> Result<Query, ApiError> {
        let permit = match kind {
            Kind::Query => {
                let permit = timeout(PERMIT_TIMEOUT, Arc::clone(&self.queries).acquire_owned()).await;
                let permit = permit.map_err(|_| ApiError::TooManyQueries { limit: "QUERY_MAX_CONCURRENT queries" })?;
                permit.expect("the semaphore is never closed")
            }
            Kind::Tail => {
                let permit = Arc::clone(&self.tails).try_acquire_owned();
                permit.map_err(|_| ApiError::TooManyQueries { limit: "8 tails" })?
            }
        };
        let mut dir = OsString::from("--dir=");
        dir.push(&self.data_dir);
        let limits = match kind {
            // Processor time of all threads. It ends a query even if this server cannot.
            Kind::Query => format!("--child={}", self.timeout.as_secs().saturating_add(1).saturating_mul(self.cores)),
            Kind::Tail => "--child".to_owned(),
        };
        let mut child = Command::new(&self.program);
        child.arg(command).args([OsString::from(limits), dir]).args(arguments);
        // No secrets. And the server's directory may contain a configuration file.
        child.env_clear().envs(ENVIRONMENT).current_dir("/");
        child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = self.spawn(child).await.map_err(ApiError::Internal)?;
        let output = child.stdout.take().expect("it is piped");
        let errors = child.stderr.take().expect("it is piped");
        let deadline = (kind == Kind::Query).then(|| Instant::now() + self.timeout);
        let data_dir = format!("{}/", self.data_dir.display());
        let messages = Messages { data_dir, collector: tokio::spawn(collect(errors)) };
        Ok(Query { child, output, messages, kind, deadline, buffer: BytesMut::new(), outcome: None, _permit: permit })
    }

    /// Starts a process on a thread that exists as long as the server. A request thread would wait for the disk that has
    /// the program. And the kernel kills a child when the thread that started it ends.
    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (started, child) = oneshot::channel();
        let start = Start { command, runtime: Handle::current(), started };
        let ended = || io::Error::other("the thread that starts processes has ended");
        self.starter()?.send(start).map_err(|_| ended())?;
        child.await.map_err(|_| ended())?
    }

    fn starter(&self) -> io::Result<mpsc::Sender<Start>> {
        let mut starter = self.starter.lock().unwrap_or_else(PoisonError::into_inner);
        if starter.is_none() {
            let (sender, starts) = mpsc::channel::<Start>();
            thread::Builder::new().name("queries".to_owned()).spawn(move || {
                for Start { mut command, runtime, started } in starts {
                    let _context = runtime.enter();
                    // A child that nobody waits for is killed by its drop.
                    drop(started.send(command.spawn()));
                }
            })?;
            *starter = Some(sender);
        }
        Ok(starter.clone().expect("just created"))
    }
}

/// A running child. Dropping it kills the child.
#[derive(Debug)]
pub(super) struct Query {
    child: Child,
    output: ChildStdout,
    messages: Messages,
    kind: Kind,
    deadline: Option<Instant>,
    buffer: BytesMut,
    outcome: Option<Outcome>,
    _permit: OwnedSemaphorePermit,
}

/// What a child says on standard error.
#[derive(Debug)]
struct Messages {
    /// The path of the data directory, which clients need not know.
    data_dir: String,
    collector: JoinHandle<String>,
}

/// The result of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Complete,
    /// All output has arrived, but something was skipped.
    Skipped(String),
    /// The arguments are not valid.
    Invalid(String),
    /// The output ends early.
    Truncated(String),
}

/// How much of the output was sent.
#[derive(Debug)]
enum Sent {
    All,
    /// The time is over.
    UntilLate,
    UntilStopped(Stopped),
}

impl Query {
    /// Waits for the first output. An empty piece means that there is none.
    ///
    /// # Errors
    /// If the child ends with an error before its first output. Later errors are in the trailer.
    pub(super) async fn first(&mut self) -> Result<Bytes, ApiError> {
        let first = match self.within_time(Self::read).await {
            Some(Ok(first)) => first,
            Some(Err(error)) => return Err(ApiError::Internal(error)),
            None => return Err(ApiError::QueryFailed(TOO_SLOW.to_owned())),
        };
        if first.is_empty() {
            match self.outcome().await {
                Outcome::Invalid(reason) => return Err(ApiError::BadQuery(reason)),
                Outcome::Truncated(reason) => return Err(ApiError::QueryFailed(reason)),
                Outcome::Complete | Outcome::Skipped(_) => {}
            }
        }
        Ok(first)
    }

    /// Waits for a moment, in which a tail finds out whether its filter is valid. `None`: it is, or seems so, and there
    /// is no output yet.
    ///
    /// # Errors
    /// As [`first`](Self::first).
    pub(super) async fn first_of_tail(&mut self) -> Result<Option<Bytes>, ApiError> {
        match timeout(TAIL_CHECK_TIMEOUT, self.first()).await {
            Ok(first) => first.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Sends the output to the client until its end. `has_trailers` says whether the client reads trailers. Others see
    /// an output that ends early as a broken transfer.
    pub(super) async fn relay(mut self, first: Option<Bytes>, writer: StreamWriter, has_trailers: bool) {
        let sent = tokio::select! {
            biased;
            stopped = writer.stopped() => Sent::UntilStopped(stopped),
            sent = self.send(first, &writer) => sent,
        };
        let outcome = match sent {
            Sent::All => self.outcome().await,
            Sent::UntilLate => Outcome::Truncated(TOO_SLOW.to_owned()),
            Sent::UntilStopped(Stopped::Gone) => return self.kill().await,
            Sent::UntilStopped(Stopped::Leaving) => Outcome::Truncated("the server is shutting down".to_owned()),
        };
        let is_tail = self.kind == Kind::Tail;
        self.kill().await;
        let status = match outcome {
            // A tail has no end. Its client connects again.
            Outcome::Truncated(_) if is_tail => None,
            Outcome::Truncated(_) | Outcome::Invalid(_) if !has_trailers => return,
            Outcome::Complete => Some(HeaderValue::from_static("complete")),
            Outcome::Skipped(reason) | Outcome::Truncated(reason) | Outcome::Invalid(reason) => {
                Some(incomplete(&reason))
            }
        };
        writer.finish(status.filter(|_| !is_tail)).await;
    }

    async fn send(&mut self, first: Option<Bytes>, writer: &StreamWriter) -> Sent {
        let mut next = first.map(Ok);
        loop {
            let piece = match next.take() {
                Some(piece) => Some(piece),
                None => self.within_time(Self::read).await,
            };
            let piece = match piece {
                None => return Sent::UntilLate,
                // The state of the child says whether this is the end of the output.
                Some(Ok(piece)) if piece.is_empty() => return Sent::All,
                Some(Err(_)) => return Sent::All,
                Some(Ok(piece)) => piece,
            };
            let deadline = self.deadline;
            let sent = tokio::select! {
                biased;
                sent = writer.send(piece) => sent,
                () = until(deadline) => return Sent::UntilLate,
            };
            if let Err(stopped) = sent {
                return Sent::UntilStopped(stopped);
            }
        }
    }

    async fn read(&mut self) -> io::Result<Bytes> {
        self.buffer.reserve(PIECE_BYTES);
        self.output.read_buf(&mut self.buffer).await?;
        Ok(self.buffer.split().freeze())
    }

    /// `None` at the time limit.
    async fn within_time<'a, T, F: Future<Output = T>>(
        &'a mut self,
        work: impl FnOnce(&'a mut Self) -> F,
    ) -> Option<T> {
        let deadline = self.deadline;
        tokio::select! {
            biased;
            done = work(self) => Some(done),
            () = until(deadline) => None,
        }
    }

    /// Waits for the end of the child, after its output has ended.
    async fn outcome(&mut self) -> Outcome {
        if self.outcome.is_none() {
            self.outcome = Some(self.wait().await);
        }
        self.outcome.clone().expect("just set")
    }

    async fn wait(&mut self) -> Outcome {
        let Some(status) = self.within_time(|query| query.child.wait()).await else {
            return Outcome::Truncated(TOO_SLOW.to_owned());
        };
        let Ok(status) = status else { return Outcome::Truncated("the server lost the query".to_owned()) };
        // Only after the child: a process that it has started could hold standard error open.
        let text = match self.within_time(|query| &mut query.messages.collector).await {
            Some(Ok(text)) => text,
            _ => String::new(),
        };
        outcome_of(status, &message(&text, &self.messages.data_dir))
    }

    /// Kills the child, if it runs, and reaps it.
    async fn kill(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::error!(%error, "can't end a query");
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn outcome_of(status: ExitStatus, message: &str) -> Outcome {
    match status.code() {
        Some(0) => Outcome::Complete,
        Some(SKIPPED) => Outcome::Skipped(message.to_owned()),
        Some(INVALID) => Outcome::Invalid(message.to_owned()),
        // A panic has another code, and a limit of the kernel a signal.
        Some(_) => Outcome::Truncated("it failed".to_owned()),
        None => Outcome::Truncated(TOO_EXPENSIVE.to_owned()),
    }
}

/// Collects the error messages of a child, and discards what is too long.
async fn collect(mut errors: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = errors.read(&mut piece).await {
        let more = (MAX_MESSAGE_BYTES - kept.len()).min(read);
        kept.extend_from_slice(&piece[..more]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The first paragraph of error messages, without what only the command line needs.
fn message(text: &str, data_dir: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default().replace(data_dir, "");
    let lines = paragraph.lines().map(|line| {
        let line = line.strip_prefix("netwatch-server: ").or_else(|| line.strip_prefix("error: ")).unwrap_or(line);
        line.trim_end()
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    text.chars().map(|char| if char.is_control() && char != '\n' { ' ' } else { char }).collect()
}

/// The value of the trailer for an incomplete answer: one line of printable ASCII.
fn incomplete(reason: &str) -> HeaderValue {
    let line = reason.lines().next().unwrap_or_default();
    let ascii = line.chars().take(MAX_REASON_CHARS).map(|char| if matches!(char, ' '..='~') { char } else { '?' });
    let text: String = "incomplete; ".chars().chain(ascii).collect();
    HeaderValue::try_from(text.trim_end()).expect("it is printable ASCII")
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    /// Children are this shell script.
    fn script(text: &str, timeout: Duration, max_concurrent: usize) -> (TempDir, Queries) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let queries = Queries { program, ..Queries::new(dir.path(), timeout, max_concurrent) };
        (dir, queries)
    }

    const LONG: Duration = Duration::from_secs(60);

    async fn first(text: &str) -> Result<Bytes, ApiError> {
        let (_dir, queries) = script(text, LONG, 1);
        queries.start(Kind::Query, "query", vec!["--".into(), ".a b".into()]).await?.first().await
    }

    #[tokio::test]
    async fn a_child_gets_its_arguments_and_neither_environment_nor_input() {
        let output = first("echo $#: \"$1 $2 $4 $5\"; /usr/bin/env; pwd; cat").await.unwrap();
        let output = String::from_utf8(output.to_vec()).unwrap();
        let lines: Vec<_> = output.lines().collect();
        assert!(lines[0].starts_with("5: query --child=") && lines[0].ends_with(" -- .a b"), "{}", lines[0]);
        // The shell sets these itself.
        let lines: Vec<_> = lines.into_iter().filter(|line| !line.contains("_ARENA_")).collect();
        assert!(
            lines[1..].iter().all(|line| ["PWD=/", "SHLVL=0", "_=/usr/bin/env", "OLDPWD=/", "/"].contains(line)),
            "{lines:?}"
        );
    }

    #[tokio::test]
    async fn errors_before_the_first_output_are_answers() {
        let Err(ApiError::BadQuery(reason)) = first("echo 'error: no such filter\n\nUsage: x' >&2; exit 2").await
        else {
            panic!("not refused")
        };
        assert_eq!(reason, "no such filter");
        assert!(matches!(first("kill -KILL $$").await, Err(ApiError::QueryFailed(reason)) if reason == TOO_EXPENSIVE));
        assert!(matches!(first("exit 101").await, Err(ApiError::QueryFailed(_))));
        assert!(matches!(first("exit 1").await, Err(ApiError::QueryFailed(_))));
        assert_eq!(first("exit 3").await.unwrap(), "");
        let (_dir, queries) = script("exec sleep 1000", Duration::from_millis(50), 1);
        let mut query = queries.start(Kind::Query, "query", vec![]).await.unwrap();
        assert!(matches!(query.first().await, Err(ApiError::QueryFailed(reason)) if reason == TOO_SLOW));
    }

    #[tokio::test]
    async fn further_queries_wait_for_a_moment_and_tails_do_not() {
        let (_dir, queries) = script("exec sleep 1000", LONG, 2);
        let one = queries.start(Kind::Query, "query", vec![]).await.unwrap();
        let two = queries.start(Kind::Query, "query", vec![]).await.unwrap();
        let third = queries.start(Kind::Query, "query", vec![]);
        let (third, ()) = tokio::join!(third, async { drop(one) });
        assert!(matches!(queries.start(Kind::Query, "query", vec![]).await, Err(ApiError::TooManyQueries { .. })));
        drop((two, third));
        let mut tails = Vec::new();
        for _ in 0..MAX_TAILS {
            tails.push(queries.start(Kind::Tail, "tail", vec![]).await.unwrap());
        }
        assert!(matches!(queries.start(Kind::Tail, "tail", vec![]).await, Err(ApiError::TooManyQueries { .. })));
    }

    #[test]
    fn a_reason_is_one_short_line_without_paths() {
        let text = "netwatch-server: /data/reports-x.jsonl.zst: corrupt\u{1b}[1m é\nmore\n\nUsage";
        let message = message(text, "/data/");
        assert_eq!(message, "reports-x.jsonl.zst: corrupt [1m é\nmore");
        assert_eq!(incomplete(&message), "incomplete; reports-x.jsonl.zst: corrupt [1m ?");
        assert_eq!(incomplete(""), "incomplete;");
        assert_eq!(incomplete(&"x".repeat(1000)).len(), "incomplete; ".len() + MAX_REASON_CHARS);
    }

    #[tokio::test]
    async fn only_the_beginning_of_error_messages_is_kept() {
        let text = "x".repeat(10 * MAX_MESSAGE_BYTES);
        assert_eq!(collect(text.as_bytes()).await.len(), MAX_MESSAGE_BYTES);
    }
}
