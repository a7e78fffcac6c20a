//! Generated reports for the benchmarks: similar to those of real clients, and the same in every run.

use std::f64::consts::TAU;
use std::fmt::{self, Write};

/// The location of a client: country, city, latitude, longitude and network (autonomous system number).
const PLACES: [(&str, &str, f64, f64, u32); 12] = [
    ("DE", "Berlin", 52.5, 13.4, 3320),
    ("US", "New York", 40.7, -74.0, 7922),
    ("GB", "London", 51.5, -0.1, 2856),
    ("FR", "Paris", 48.9, 2.4, 3215),
    ("JP", "Tokyo", 35.7, 139.7, 2516),
    ("BR", "Brasilia", -15.8, -47.9, 27699),
    ("IN", "Mumbai", 19.1, 72.9, 55836),
    ("AU", "Sydney", -33.9, 151.2, 1221),
    ("ZA", "Durban", -29.9, 31.0, 3741),
    ("CA", "Toronto", 43.7, -79.4, 577),
    ("SE", "Malmo", 55.6, 13.0, 3301),
    ("SG", "Singapore", 1.4, 103.8, 4773),
];

/// The hosts that clients monitor: name, URL and median latency in milliseconds.
const HOSTS: [(&str, &str, f64); 10] = [
    ("API", "https://api.example.com/ping", 38.0),
    ("Auth", "https://auth.example.com/up", 45.0),
    ("CDN", "https://cdn.example.net/1x1.gif", 12.0),
    ("Search", "https://search.example.com/", 72.0),
    ("Images", "https://img.example.net/1.png", 18.0),
    ("Shop", "https://shop.example.org/up", 120.0),
    ("Live", "https://live.example.com/ws", 55.0),
    ("Maps", "https://maps.example.org/tile", 64.0),
    ("Status", "https://status.example.com/", 90.0),
    ("Files", "https://files.example.net/", 33.0),
];

/// The name of a client's network. A report uses a prefix of it that fills the report to the target size.
const NETWORK: &str = "Example Telecom International Carrier";

/// The standard deviation of the logarithm of a host's latencies.
const LATENCY_SIGMA: f64 = 0.6;

/// 2026-11-22T00:00:00Z in milliseconds since 1970. All reports are from this day.
const DAY_START_MS: u64 = 1_795_305_600_000;
const DAY_MS: u64 = 86_400_000;
const SAMPLE_INTERVAL_MS: u64 = 5_000;
const SAMPLES_PER_HOST: usize = 8;

/// The maximum size of an additional sample, and of an additional host with one sample.
const SAMPLE_BYTES: usize = 38;
const HOST_BYTES: usize = 130;
const END: &str = "]}]}";

/// An endless sequence of different reports. The seed determines the sequence.
///
/// The time advances between reports as at a busy collector. Client ids are random. Latencies have a log-normal
/// distribution, and one sample in fifty is a timeout.
pub(crate) struct Reports {
    random: SplitMix64,
    /// The time of the last report, in milliseconds since the start of the day.
    clock_ms: u64,
}

impl Reports {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: SplitMix64(seed), clock_ms: 12 * 3_600_000 }
    }

    /// The next report, as one line of JSON. Its length is exactly `target_bytes` if that is 320 or more, and within
    /// 5 % of it if that is 290 or more.
    pub(crate) fn report(&mut self, target_bytes: usize) -> Vec<u8> {
        self.clock_ms = (self.clock_ms + self.random.below(8)) % DAY_MS;
        let client_id = Uuid(self.random.next(), self.random.next());
        let timestamp = Timestamp(self.clock_ms);
        let (country, city, lat, lon, asn) = PLACES[self.random.index(PLACES.len())];
        let head = format!(
            r#"{{"clientId":"{client_id}","timestamp":"{timestamp}","geo":{{"country":"{country}","city":"{city}","lat":{lat:.1},"lon":{lon:.1},"asn":"AS{asn} "#
        );
        let mut json = String::with_capacity(target_bytes + HOST_BYTES);
        json.push_str(&head);
        let hosts = self.hosts(target_bytes.saturating_sub(head.len()));
        let missing_bytes = target_bytes.saturating_sub(head.len() + hosts.len());
        json.push_str(&NETWORK[..missing_bytes.min(NETWORK.len())]);
        json.push_str(&hosts);
        json.into_bytes()
    }

    /// The part after the name of the network: as many hosts and samples as fit into `room_bytes`, and at least one.
    fn hosts(&mut self, room_bytes: usize) -> String {
        let mut json = String::from(r#""},"hosts":["#);
        let mut host = self.random.index(HOSTS.len());
        let mut samples = 0;
        loop {
            let (name, url, median_ms) = HOSTS[host];
            if samples == 0 {
                push(&mut json, format_args!(r#"{{"name":"{name}","url":"{url}","status":"up","history":["#));
            }
            self.push_sample(&mut json, samples, median_ms);
            samples += 1;
            let room_bytes = room_bytes.saturating_sub(json.len() + END.len());
            if room_bytes < SAMPLE_BYTES {
                break;
            }
            if samples >= SAMPLES_PER_HOST && room_bytes >= HOST_BYTES {
                json.push_str("]},");
                host = (host + 1) % HOSTS.len();
                samples = 0;
            } else {
                json.push(',');
            }
        }
        json.push_str(END);
        json
    }

    /// Appends the sample from `age` intervals before the time of the report.
    fn push_sample(&mut self, json: &mut String, age: usize, median_ms: f64) {
        let t = DAY_START_MS + self.clock_ms - age as u64 * SAMPLE_INTERVAL_MS;
        if self.random.below(50) == 0 {
            push(json, format_args!(r#"{{"t":{t},"error":"timeout"}}"#));
        } else {
            let latency = median_ms * (LATENCY_SIGMA * self.random.normal()).exp();
            push(json, format_args!(r#"{{"t":{t},"latency":{:.1}}}"#, latency.min(9_999.9)));
        }
    }
}

fn push(json: &mut String, text: fmt::Arguments<'_>) {
    json.write_fmt(text).expect("writing to a String succeeds");
}

/// A random (version 4) UUID.
struct Uuid(u64, u64);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(high, low) = self;
        write!(f, "{:08x}-{:04x}-4{:03x}-", high >> 32, high >> 16 & 0xffff, high & 0xfff)?;
        write!(f, "{:04x}-{:012x}", low >> 48 & 0x3fff | 0x8000, low & 0xffff_ffff_ffff)
    }
}

/// Milliseconds since the start of the day, displayed as RFC 3339.
struct Timestamp(u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.0 / 1_000, self.0 % 1_000);
        let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        write!(f, "2026-11-22T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }
}

/// Sebastiano Vigna's SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`. Its bias is negligible for a benchmark.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `0.0..1.0`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number with a standard normal distribution (the Box–Muller method, using one of its two results).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}
