//! The whole server, compared with bare hyper: what does storing a report cost in addition to receiving it?
//!
//!     cargo bench --bench versus_hyper
//!     cargo bench --bench versus_hyper -- --connections 64 --size 1200 --rounds 9 --seconds 3
//!     cargo bench --bench versus_hyper -- --a '' --b ZSTD_LEVEL=3
//!     cargo bench --bench versus_hyper -- --a /tmp/netwatch-server-before --b '' --json result.json
//!
//! # What is measured
//!
//! There are two sides. Each side is a separate process, which is started anew for every round:
//!
//! - **a**, bare hyper, with the same hyper settings, allocator and number of threads as netwatch-server. It reads each
//!   body to its end, stores nothing, and answers the same bytes as netwatch-server. No server built on hyper is likely
//!   to be cheaper.
//! - **b**, netwatch-server as users run it. After it has exited, the benchmark counts the reports in its files. The
//!   benchmark fails if their number differs from the number of acknowledged reports.
//!
//! `--a` and `--b` select other sides.
//!
//! A case is a number of keep-alive connections and a report size. In each round, both sides run one after the other,
//! in alternating order. A row shows the median over the rounds, with the minimum and the maximum. The column `b/a`
//! shows the same for the ratio within each round, which cancels most of the disturbances on a shared machine.
//!
//! - **requests/s**: requests answered within the measured time, after a warm-up on the same connections.
//! - **CPU µs/request**: the CPU time of the server process divided by the number of its answers. The CPU time counts
//!   from the moment the server listens until it has exited, and includes finished threads. So it includes the
//!   warm-up, accepting and closing connections, and the final flush of the reports in memory.
//! - **p50, p99, p99.9**: the time from just before the write of a request until its answer is read, measured by the
//!   client.
//! - **peak RSS**: the maximum resident memory by the end of the load (VmHWM). For b, this includes the batches.
//! - **cores busy**: CPU seconds per second in the measured time, for the server, the client, and everything else on
//!   the machine, including time taken by a hypervisor. If the last row is not near 0, measure again on an idle
//!   machine.
//!
//! # How to read the results
//!
//! The client is one thread in this process and shares the machine with the server. It has one request in flight on
//! each connection. If the server and the client together use all cores, requests/s depends on the client too, and the
//! ratio favors the more expensive side. CPU per request does not have this problem and is the most reliable figure.
//! If the client's share is near 1, the client is the bottleneck, and the table prints a warning.
//!
//! To find the smallest significant difference on a machine, compare a side with itself (`--a bare --b bare`) and see
//! how far the ratios are from 1. More rounds help more than longer rounds.
//!
//! A closed loop does not measure latency under a given load. With 512 connections the server is always saturated, and
//! the latency is that of a queue of 512 requests, about 512 / (requests/s). With 1 connection, the latency is the
//! service time plus the wake-ups of two processes. Loopback requests need no network card. But the kernel charges the
//! delivery to the sender: the server pays for the client's receiving, and the client for the server's.
//!
//! All requests within `client::POOL_BYTES` are different reports. If the pool were smaller than a batch, zstd would
//! find each whole report in its window and appear ten times as fast as it is.
//!
//! `cargo bench` passes `--bench`, and `cargo test` does not. Without `--bench`, only one case runs briefly, as a test
//! of the benchmark itself.

use std::error::Error;
use std::fs;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;

mod common;

#[path = "versus_hyper/bare.rs"]
mod bare;
#[path = "versus_hyper/client.rs"]
mod client;
#[path = "versus_hyper/server.rs"]
mod server;
#[path = "versus_hyper/table.rs"]
mod table;

use client::{Client, Requests};
use server::{Server, Side};
use table::{Case, Round, Table};

/// Bare hyper uses the same allocator as netwatch-server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The complete body of the answer to a report, for both sides.
const ANSWER: &str = "{\"status\":\"ok\",\"accepted\":1}\n";

const WARM_UP: Duration = Duration::from_millis(300);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Compares netwatch-server with bare hyper; benches/versus_hyper.rs explains the method and the table.
#[derive(Parser)]
#[command(name = "versus_hyper", bin_name = "cargo bench --bench versus_hyper --")]
struct Args {
    /// Number of keep-alive connections, each with one request in flight
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,512", value_parser = at_least(1))]
    connections: Vec<usize>,

    /// Size of a report in bytes
    #[arg(long, value_delimiter = ',', default_value = "300,1200,6000", value_parser = at_least(290))]
    size: Vec<usize>,

    /// Number of measurements of each case on both sides
    #[arg(long, default_value = "8", value_parser = at_least(1))]
    rounds: usize,

    /// Requests per second, at fixed times (open loop), instead of as many as possible. The latency counts from the time
    /// at which a request was due
    #[arg(long)]
    rate: Option<NonZero<u32>>,

    /// Duration of the measurement of each side in a round, after a warm-up
    #[arg(long, default_value = "1", value_parser = seconds)]
    seconds: Duration,

    /// "bare" for bare hyper, or settings for netwatch-server, such as 'WORKERS=2 ZSTD_LEVEL=3';
    /// a word without '=' is the path of another netwatch-server binary
    #[arg(long, default_value = "bare")]
    a: Side,

    /// The other side, in the same format
    #[arg(long, default_value = "")]
    b: Side,

    /// Directory for the servers' data; in a memory file system, fsync costs nothing
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,

    /// Also write all results, including those of each round, to this file
    #[arg(long)]
    json: Option<PathBuf>,

    /// `cargo bench` passes this flag to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=1 << 20)
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().map_err(|error| format!("{error}"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("must be greater than 0".into()),
    }
}

fn main() -> ExitCode {
    let outcome = if std::env::args().nth(1).as_deref() == Some(bare::COMMAND) {
        bare::serve()
    } else if std::env::args().any(|arg| arg == "--bench") {
        compare(&Args::parse())
    } else {
        println!("Without --bench, this is only a smoke test of one case. Its figures are meaningless.");
        compare(&Args::parse_from("versus_hyper --connections 16 --size 1200 --rounds 1 --seconds 0.2".split(' ')))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus_hyper: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all cases, and prints each case as soon as it is complete.
fn compare(args: &Args) -> Result<()> {
    let mut table = Table::new(args);
    for &report_bytes in &args.size {
        let mut requests = Requests::new(report_bytes);
        for &connections in &args.connections {
            let mut case = Case { connections, report_bytes, a: Vec::new(), b: Vec::new() };
            for round in 0..args.rounds {
                let mut sides = [(&args.a, &mut case.a), (&args.b, &mut case.b)];
                if round % 2 == 1 {
                    sides.reverse();
                }
                for (side, rounds) in sides {
                    let round = measure(side, connections, &mut requests, args);
                    rounds.push(round.map_err(|error| {
                        format!("{side}, {connections} connections, {report_bytes} bytes: {error}")
                    })?);
                }
            }
            table.add(case);
        }
    }
    if let Some(path) = &args.json {
        fs::write(path, table.to_json()?).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Measures one side of one round, from the start of its process to its exit.
fn measure(side: &Side, connections: usize, requests: &mut Requests, args: &Args) -> Result<Round> {
    let mut server = Server::start(side, &args.dir)?;
    exercise(&mut server, connections, requests, args)
        .map_err(|error| format!("{error}\nEnd of the server's log:\n{}", server.into_log()).into())
}

fn exercise(server: &mut Server, connections: usize, requests: &mut Requests, args: &Args) -> Result<Round> {
    let (time, rate) = (args.seconds, args.rate.map(NonZero::get));
    let cpu_at_start = server.cpu_time()?;
    let mut client = Client::connect(server.address(), connections, requests)?;
    let warm_up = client.drive(WARM_UP, rate)?;
    let (server_before, machine_before) = (server.cpu_time()?, machine_cpu_time()?);
    let load = client.drive(time, rate)?;
    let server_time = server.cpu_time()? - server_before;
    let other_time = (machine_cpu_time()? - machine_before).saturating_sub(server_time + load.cpu_time);
    let peak_rss_kib = server.peak_rss_kib()?;
    drop(client);
    let cpu_time = server.end()? - cpu_at_start;

    let answered = warm_up.answered + load.answered;
    if let Some(stored) = server.stored_reports()?
        && stored != answered
    {
        return Err(format!("{answered} reports were acknowledged, but {stored} are in the report files").into());
    }
    let latency_ms = |quantile| load.latency.value_at_quantile(quantile) as f64 / 1e6;
    Ok(Round {
        requests_per_second: load.answered_in_time as f64 / time.as_secs_f64(),
        cpu_us: cpu_time.as_secs_f64() * 1e6 / answered as f64,
        p50_ms: latency_ms(0.5),
        p99_ms: latency_ms(0.99),
        p999_ms: latency_ms(0.999),
        peak_rss_mib: peak_rss_kib as f64 / 1024.0,
        server_cores: server_time.div_duration_f64(load.wall_time),
        client_cores: load.cpu_time.div_duration_f64(load.wall_time),
        other_cores: other_time.div_duration_f64(load.wall_time),
    })
}

/// The busy time of all cores since boot: all processes, the kernel, and the time taken by a hypervisor.
fn machine_cpu_time() -> Result<Duration> {
    // The columns: user nice system idle iowait irq softirq steal, in hundredths of a second.
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let ticks = ticks.map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
    let idle = 3..5;
    let busy = ticks.iter().enumerate().filter(|(column, _)| !idle.contains(column)).map(|(_, ticks)| ticks);
    Ok(Duration::from_millis(10 * busy.sum::<u64>()))
}
