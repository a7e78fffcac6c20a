//! The memory that this process may use, and the limits that follow from it.
//!
//! Each use of memory has a bound. The number of connections and of compression threads is chosen so that the sum of the
//! bounds fits the memory.

use std::fs;
use std::path::Path;

use bytesize::ByteSize;

use super::Config;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The program, its threads, its log, and free memory that the allocator keeps.
const BASE_BYTES: u64 = 32 * MIB;

/// One decoder per worker. The largest window of brotli needs the most.
const DECODER_BYTES: u64 = 24 * MIB;

/// 250,000 idempotency keys.
const DEDUP_BYTES: u64 = 70 * MIB;

/// The rates of 100,000 client addresses.
const RATES_BYTES: u64 = 35 * MIB;

/// The worst case of one connection.
///
/// - HTTP/1: 67 KiB with a header of 16 kB that does not end, 76 KiB with 30 kB of a longer body, and 10 KiB in the
///   kernel. The first two are resident memory of the process per connection, without the memory of `INFLIGHT_BYTES`.
/// - HTTP/2: 33 KiB, and 8 KiB per open request. Each connection needs one of [`max_streams`], so only a quarter of the
///   connections can use HTTP/2. Their requests need 2 KiB per connection, and 9 KiB while their headers are long.
const CONNECTION_BYTES: u64 = 96 * KIB;

/// The most connections that the server chooses itself.
const MAX_CONNECTIONS: u64 = 16_384;

/// The fewest connections that the server chooses itself.
const MIN_CONNECTIONS: u64 = 256;

/// Enough for one HTTP/2 connection of a load balancer.
const MIN_STREAMS: usize = 100;

/// Memory of one zstd compressor in MiB, by level: `ZSTD_sizeof_CCtx` with input of 10 MiB.
const COMPRESSOR_MIB: [u64; 22] = [2, 3, 4, 5, 6, 7, 8, 11, 15, 25, 25, 38, 38, 70, 70, 70, 70, 70, 92, 176, 209, 274];

/// The same with longer input. Levels below 20 need no more than with 10 MiB.
const LARGE_COMPRESSOR_MIB: [u64; 3] = [200, 400, 840];

/// Several threads that compress one batch share buffers for input and output, of this many batches.
const SHARED_BATCHES: u64 = 4;

/// Maximum number of HTTP/2 streams of a server that may have this number of connections.
pub(super) fn max_streams(max_connections: usize) -> usize {
    (max_connections / 4).max(MIN_STREAMS).min(max_connections)
}

/// The largest number of compression threads that leaves half of the memory beside the fixed limits to connections, at
/// least 1 and at most `config.zstd_threads`.
pub(super) fn fitting_threads(config: &Config, available: u64) -> usize {
    let free = available.saturating_sub(fixed_limits(config).iter().map(|(_, bytes)| bytes).sum());
    let fits = |threads: &usize| compression_bytes(config, *threads) <= free / 2;
    (1..=config.zstd_threads).rev().find(fits).unwrap_or(1)
}

/// The largest number of connections that fits beside the other limits.
pub(super) fn fitting_connections(config: &Config, available: u64) -> usize {
    let others = fixed_limits(config).iter().map(|(_, bytes)| bytes).sum::<u64>();
    let free = available.saturating_sub(others.saturating_add(compression_bytes(config, config.zstd_threads)));
    (free / CONNECTION_BYTES).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS) as usize
}

/// A sentence about limits that do not fit the memory. It names the setting that needs the most.
pub(super) fn warning(config: &Config, available: u64) -> Option<String> {
    let mut limits = fixed_limits(config);
    limits.push(("MAX_CONNECTIONS", (config.max_connections as u64).saturating_mul(CONNECTION_BYTES)));
    let compression = match config.zstd_level {
        ..=9 => "BATCH_BYTES",
        _ => "ZSTD_LEVEL",
    };
    limits.push((compression, compression_bytes(config, config.zstd_threads)));
    let sum = limits.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let (name, bytes) = limits.iter().filter(|(name, _)| !name.is_empty()).max_by_key(|(_, bytes)| *bytes)?;
    (sum > available).then(|| {
        let [bytes, sum, available] = [*bytes, sum, available].map(ByteSize);
        format!(
            "{name} needs {bytes} and all limits together {sum}, but this process may use only {available} of memory"
        )
    })
}

/// The settings that limit memory, beside those of connections and compression, and the limits. The name of a limit
/// without a setting is empty.
fn fixed_limits(config: &Config) -> Vec<(&'static str, u64)> {
    vec![
        ("", BASE_BYTES),
        ("BUFFER_BYTES", config.buffer_bytes as u64),
        // Bodies, and copies of bodies that are arrays or contain line breaks.
        ("INFLIGHT_BYTES", (config.inflight_bytes as u64).saturating_mul(2)),
        ("WORKERS", config.workers as u64 * DECODER_BYTES),
        ("DEDUP_WINDOW", config.dedup_window.map_or(0, |_| DEDUP_BYTES)),
        ("RATE_LIMIT", config.rate_limit.map_or(0, |_| RATES_BYTES)),
    ]
}

/// The memory for compressing one batch and, at the same time, recovering journals.
fn compression_bytes(config: &Config, threads: usize) -> u64 {
    let (batch, threads) = (config.batch_bytes as u64, threads as u64);
    let level = config.zstd_level.clamp(1, 22) as usize;
    let compressor = match level {
        20.. if batch > 10 * MIB => LARGE_COMPRESSOR_MIB[level - 20] * MIB,
        _ => COMPRESSOR_MIB[level - 1] * MIB,
    };
    let shared = if threads > 1 { batch.saturating_mul(SHARED_BATCHES) } else { 0 };
    let compressors = compressor.saturating_mul(threads);
    // Either each thread recovers one journal, or all threads compress one journal.
    let journals = batch.saturating_mul(threads).max(batch.saturating_add(shared));
    compressors.saturating_mul(2).saturating_add(shared).saturating_add(journals)
}

/// Bytes of memory that this process may use: the memory of the machine, or the limit of its cgroup if that is lower.
/// `None` if the kernel does not tell.
pub(super) fn available_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    // The fields are of different widths on different platforms.
    #[allow(clippy::useless_conversion, reason = "not the same type everywhere")]
    let machine = u64::from(info.totalram).checked_mul(u64::from(info.mem_unit)).filter(|bytes| *bytes > 0);
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    machine.into_iter().chain(cgroup_limits(&cgroups, Path::new("/sys/fs/cgroup"))).min()
}

/// The limits of this process's cgroups and of the cgroups above them. `cgroups` is the content of `/proc/self/cgroup`:
/// lines of the form `0::/PATH` (version 2) or `N:CONTROLLERS:/PATH` (version 1). Version 1 shows no limit as a number
/// that is larger than any memory.
fn cgroup_limits(cgroups: &str, mount: &Path) -> Vec<u64> {
    let limits = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
        let (mount, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        // In a container, only the last ancestor may exist: the mount itself.
        let limit = |dir: &Path| fs::read_to_string(mount.join(dir).join(file)).ok()?.trim().parse().ok();
        Some(Path::new(path).ancestors().filter_map(limit).collect::<Vec<u64>>())
    };
    cgroups.lines().filter_map(limits).flatten().collect()
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn config(values: &[(&str, &str)]) -> Config {
        let two_cores = [("WORKERS", "2"), ("ZSTD_THREADS", "2")];
        let values = two_cores.iter().chain(values).map(|(name, value)| (name.to_string(), value.to_string()));
        Config::from_values(&values.collect::<HashMap<_, _>>()).unwrap()
    }

    #[test]
    fn the_defaults_fit_half_a_gibibyte_and_more_memory_permits_more_connections() {
        let mut config = config(&[]);
        config.zstd_threads = fitting_threads(&config, 512 * MIB);
        assert_eq!(config.zstd_threads, 2);
        config.max_connections = fitting_connections(&config, 512 * MIB);
        assert!((1000..4000).contains(&config.max_connections), "{}", config.max_connections);
        assert_eq!(warning(&config, 512 * MIB), None);
        assert!(fitting_connections(&config, 1024 * MIB) > 2 * config.max_connections);
        assert_eq!(fitting_connections(&config, 1 << 40) as u64, MAX_CONNECTIONS);
    }

    #[test]
    fn limits_that_do_not_fit_are_a_warning_that_names_the_largest() {
        for (settings, largest) in [
            (&[][..], "INFLIGHT_BYTES"),
            (&[("MAX_CONNECTIONS", "1000000")][..], "MAX_CONNECTIONS"),
            (&[("BUFFER_BYTES", "1GiB")][..], "BUFFER_BYTES"),
            (&[("WORKERS", "100")][..], "WORKERS"),
            (&[("ZSTD_LEVEL", "22")][..], "ZSTD_LEVEL"),
        ] {
            let mut config = config(settings);
            if config.max_connections < 1_000_000 {
                config.max_connections = fitting_connections(&config, 128 * MIB);
                assert_eq!(config.max_connections as u64, MIN_CONNECTIONS);
            }
            let warning = warning(&config, 128 * MIB).unwrap();
            assert!(warning.starts_with(&format!("{largest} needs ")), "{warning}");
        }
    }

    #[test]
    fn high_levels_large_batches_and_little_memory_permit_fewer_threads() {
        let threads = |values: &[(&str, &str)], available| {
            let mut config = config(values);
            config.zstd_threads = 64;
            fitting_threads(&config, available)
        };
        let roomy = threads(&[], 2048 * MIB);
        assert!(roomy > 10, "{roomy}");
        for (values, available) in [
            (&[][..], 512 * MIB),
            (&[("ZSTD_LEVEL", "19")][..], 2048 * MIB),
            (&[("BATCH_BYTES", "100MiB"), ("BUFFER_BYTES", "200MiB")][..], 2048 * MIB),
        ] {
            let threads = threads(values, available);
            assert!((1..roomy / 2).contains(&threads), "{threads} {values:?}");
        }
    }

    #[test]
    fn the_lowest_limit_of_all_cgroups_of_both_versions_counts() {
        let mount = tempfile::tempdir().unwrap();
        let limit = |dir: &str, file: &str, text: &str| {
            fs::create_dir_all(mount.path().join(dir)).unwrap();
            fs::write(mount.path().join(dir).join(file), text).unwrap();
        };
        limit("memory/a/b", "memory.limit_in_bytes", "9223372036854771712\n");
        limit("memory/a", "memory.limit_in_bytes", "1000\n");
        limit("memory", "memory.limit_in_bytes", "9223372036854771712\n");
        limit("a", "memory.max", "500\n");
        limit("a/c", "memory.max", "max\n");
        let lowest = |cgroups| cgroup_limits(cgroups, mount.path()).into_iter().min();
        assert_eq!(lowest("5:cpu,memory:/a/b\n4:devices:/a\n0::/\n"), Some(1000));
        assert_eq!(lowest("4:memory:/docker/unknown\n"), Some(9223372036854771712));
        assert_eq!(lowest("4:devices:/a\n1:name=systemd:/a\n0::/a/c\n"), Some(500));
        assert_eq!(lowest("4:devices:/a\n"), None);
    }
}
