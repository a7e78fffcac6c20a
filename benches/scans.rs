//! Does reading slow down writing? The latency of reports at a fixed rate, without and with clients that read everything.
//!
//!     cargo bench --bench scans -- --archive DIR --rate 10000 --seconds 10 --rounds 3
//!
//! `DIR` contains report files, which eight clients request all the time. The server writes to this directory, too. The
//! requests are due at fixed times (open loop), and the latency counts from the time when a request was due. In each round,
//! the phases with and without scans alternate.
//!
//! `cargo bench` passes `--bench`, and `cargo test` does not. Without `--bench`, the benchmark runs briefly, as a test of
//! itself.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Pid, Signal, kill_process};

mod common;

#[path = "versus_hyper/client.rs"]
mod client;

use client::{Client, Requests};

/// Clients that read.
const SCANS: usize = 8;

const TOKEN: &str = "an-admin-token-of-a-benchmark";
const REPORT_BYTES: usize = 1200;
const WARM_UP: Duration = Duration::from_secs(1);

const ANSWER: &str = "{\"status\":\"ok\",\"accepted\":1}\n";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Args {
    /// Directory with report files. The server adds files to it
    #[arg(long)]
    archive: Option<PathBuf>,

    /// Reports per second
    #[arg(long, default_value_t = 10_000)]
    rate: u32,

    /// Duration of each phase
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// Number of phases of each kind
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// `cargo bench` passes this flag to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(dir: &std::path::Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netwatch-server"));
        command.env_clear().current_dir(std::env::temp_dir()).envs([("HOST", "127.0.0.1"), ("PORT", "0")]);
        command.envs([("LOG_FORMAT", "json"), ("ADMIN_TOKEN", TOKEN)]).env("DATA_DIR", dir);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("\"listening\"") {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                return Err("the server has not started".into());
            }
        }
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let line: serde_json::Value = serde_json::from_str(&line)?;
        let address = line["fields"]["address"].as_str().ok_or("no address")?.parse()?;
        Ok(Self { child, address })
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        match self.child.wait()?.success() {
            true => Ok(()),
            false => Err("the server has failed".into()),
        }
    }
}

/// Requests all reports. Returns the number of bytes of the answer.
fn scan(address: SocketAddr) -> Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!(
        "GET /api/v1/reports HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scans: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Args) -> Result<()> {
    let own = tempfile::tempdir()?;
    if !args.bench {
        args = Args { archive: None, rate: 200, seconds: 1, rounds: 1, bench: false };
    }
    let server = Server::start(args.archive.as_deref().unwrap_or(own.path()))?;
    let mut requests = Requests::new(REPORT_BYTES);
    let time = Duration::from_secs(args.seconds);
    let (is_scanning, has_ended, scanned) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let measured = thread::scope(|scope| {
        for _ in 0..SCANS {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    match is_scanning.load(Ordering::Relaxed) {
                        // Most are refused: few queries run at the same time.
                        true => scanned.fetch_add(scan(server.address).unwrap_or(0), Ordering::Relaxed),
                        false => {
                            thread::sleep(Duration::from_millis(10));
                            0
                        }
                    };
                }
            });
        }
        let measured = measure(&args, server.address, &mut requests, time, &is_scanning);
        is_scanning.store(false, Ordering::Relaxed);
        has_ended.store(true, Ordering::Relaxed);
        measured
    });
    let ratios = measured?;
    println!("read by the scans: {} MiB", scanned.load(Ordering::Relaxed) >> 20);
    println!("p99 with scans / without: {:.2} (median of {} rounds)", median(ratios), args.rounds);
    server.stop()
}

/// Returns the ratio of the 99th percentiles for each round.
fn measure(
    args: &Args,
    address: SocketAddr,
    requests: &mut Requests,
    time: Duration,
    is_scanning: &AtomicBool,
) -> Result<Vec<f64>> {
    let mut client = Client::connect(address, 64, requests)?;
    let mut ratios = Vec::new();
    println!("{} reports/s for {} s, milliseconds", args.rate, args.seconds);
    for _ in 0..args.rounds {
        let mut p99 = [0.0; 2];
        for (index, name) in ["without scans", "with 8 scans"].into_iter().enumerate() {
            is_scanning.store(index == 1, Ordering::Relaxed);
            client.drive(WARM_UP, Some(args.rate))?;
            let load = client.drive(time, Some(args.rate))?;
            let at = |quantile| load.latency.value_at_quantile(quantile) as f64 / 1e6;
            let (answered, busy) = (load.answered, load.cpu_time.as_secs_f64() / load.wall_time.as_secs_f64());
            println!(
                "{name:14} p50 {:7.3}  p99 {:7.3}  p99.9 {:7.3}  max {:8.3}  {answered} of {} answered in time {}, client {busy:.2} cores",
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0),
                u64::from(args.rate) * args.seconds,
                load.answered_in_time,
            );
            p99[index] = at(0.99);
        }
        is_scanning.store(false, Ordering::Relaxed);
        ratios.push(p99[1] / p99[0]);
    }
    Ok(ratios)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
