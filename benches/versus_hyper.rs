//! The whole server beside bare hyper: what does keeping a report cost on top of receiving it?
//!
//!     cargo bench --bench versus_hyper
//!     cargo bench --bench versus_hyper -- --connections 64 --size 1200 --rounds 9 --seconds 3
//!     cargo bench --bench versus_hyper -- --a '' --b ZSTD_LEVEL=3
//!     cargo bench --bench versus_hyper -- --a /tmp/netwatch-server-before --b '' --json result.json
//!
//! # What is measured
//!
//! Two sides, each a process of its own that is started afresh for every round:
//!
//! - **a**, bare hyper: our settings of hyper, our allocator, as many threads; it reads each body to its end, keeps
//!   nothing, and answers the same bytes as netwatch-server. No server built on hyper is likely to be cheaper.
//! - **b**, netwatch-server as users run it. What it acknowledged is counted in its report files after it has ended;
//!   one report more or less fails the benchmark.
//!
//! Either side may be another thing instead: see `--a` and `--b`.
//!
//! A case is a number of keep-alive connections and a size of reports. In each of its rounds both sides run, one after
//! the other, and they take turns at being the first. A row shows medians over the rounds with the least and the
//! greatest value; the row `b/a` shows those of the ratio within each round, which cancels much of what a shared
//! machine does to both.
//!
//! - **requests/s**: answered within the measured time, after a warm-up on the same connections.
//! - **CPU µs/request**: all the CPU time that the kernel charged the server's process, its finished threads
//!   included, from when it listened until it had ended, over all requests that it answered. So compressing and writing
//!   what was still in memory at the end is in it, and so are the warm-up, the accepts and the closes.
//! - **p50, p99, p99.9**: from just before a request is written until its answer has been read, by the client's clock.
//! - **peak RSS**: the most memory that was resident by the end of the load (VmHWM). For b that includes the batches.
//! - **cores busy**: CPU seconds per second in the measured time, of the server, of the client, and of everything else
//!   on the machine, with what a hypervisor takes away. Where that last row is not near 0, measure again in peace.
//!
//! # How to read it
//!
//! The client is one thread in this process, with one request in flight on each connection, and it shares the machine
//! with the server. Where their busy cores add up to all there are, requests/s depend on the client's appetite too, and
//! the ratio flatters the costlier side; CPU per request does not suffer from this, so trust that first. When the
//! client's share comes near to 1, the client is the limit and the table says so.
//!
//! How small a difference still means something, only the machine can tell: compare a thing with itself, as in
//! `--a bare --b bare`, and see how far from 1 the ratios get. More rounds help more than longer ones.
//!
//! A closed loop does not measure latency under a given load: with 512 connections the server is always saturated, and
//! the latency is that of a queue of 512, little else than 512 / (requests/s). With 1 connection it is the service time
//! and the wake-ups between two processes. Requests over loopback cost no network card, but the kernel's work of
//! delivering is charged to the sender: the server pays for the client's receiving, and the other way round.
//!
//! Every request in `client::POOL_BYTES` is another report. With a pool smaller than a batch, zstd would find each
//! report word by word in its window and seem ten times as fast as it is.
//!
//! Without `--bench`, which `cargo bench` passes and `cargo test` does not, one case runs for a moment, to show that
//! all of it works.

use std::error::Error;
use std::fs;
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

/// The allocator that netwatch-server uses, for bare hyper.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The whole answer to a report, from both sides.
const ANSWER: &str = r#"{"status":"ok","accepted":1}"#;

const WARM_UP: Duration = Duration::from_millis(300);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures netwatch-server beside bare hyper; benches/versus_hyper.rs tells how, and how to read the table.
#[derive(Parser)]
#[command(name = "versus_hyper", bin_name = "cargo bench --bench versus_hyper --")]
struct Args {
    /// Keep-alive connections, each with one request in flight
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,512", value_parser = at_least(1))]
    connections: Vec<usize>,

    /// Bytes of a report
    #[arg(long, value_delimiter = ',', default_value = "300,1200,6000", value_parser = at_least(290))]
    size: Vec<usize>,

    /// How often each case is measured on both sides
    #[arg(long, default_value = "8", value_parser = at_least(1))]
    rounds: usize,

    /// How long each side is measured in a round, after a warm-up
    #[arg(long, default_value = "1", value_parser = seconds)]
    seconds: Duration,

    /// "bare" for bare hyper, or else environment settings for netwatch-server, as in 'WORKERS=2 ZSTD_LEVEL=3';
    /// a word without '=' is the path of another build of it
    #[arg(long, default_value = "bare")]
    a: Side,

    /// The same for the other side
    #[arg(long, default_value = "")]
    b: Side,

    /// Where the servers keep their data while they run; a file system in memory makes fsync free
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,

    /// Also write the results, with those of each round, to this file
    #[arg(long)]
    json: Option<PathBuf>,

    /// What `cargo bench` passes to every benchmark
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
        _ => Err("it must be more than 0".into()),
    }
}

fn main() -> ExitCode {
    let outcome = if std::env::args().nth(1).as_deref() == Some(bare::COMMAND) {
        bare::serve()
    } else if std::env::args().any(|arg| arg == "--bench") {
        compare(&Args::parse())
    } else {
        println!("No --bench, so this is only a smoke run of one case. Its numbers mean nothing.");
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

/// Measures all cases, and prints each as soon as it is known.
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

/// One side of one round, from the start of its process to its end.
fn measure(side: &Side, connections: usize, requests: &mut Requests, args: &Args) -> Result<Round> {
    let mut server = Server::start(side, &args.dir)?;
    exercise(&mut server, connections, requests, args.seconds)
        .map_err(|error| format!("{error}\nThe server's log ends with\n{}", server.into_log()).into())
}

fn exercise(server: &mut Server, connections: usize, requests: &mut Requests, time: Duration) -> Result<Round> {
    let cpu_at_start = server.cpu_time()?;
    let mut client = Client::connect(server.address(), connections, requests)?;
    let warm_up = client.drive(WARM_UP)?;
    let (server_before, machine_before) = (server.cpu_time()?, machine_cpu_time()?);
    let load = client.drive(time)?;
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

/// What all processes and the kernel have used of all cores since boot, and what a hypervisor has taken away.
fn machine_cpu_time() -> Result<Duration> {
    // user nice system idle iowait irq softirq steal, in hundredths of a second
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let ticks = ticks.map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
    let idle = 3..5;
    let busy = ticks.iter().enumerate().filter(|(column, _)| !idle.contains(column)).map(|(_, ticks)| ticks);
    Ok(Duration::from_millis(10 * busy.sum::<u64>()))
}
