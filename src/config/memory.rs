//! The memory that this process may use.

use std::fs;
use std::path::Path;

/// Enough for one HTTP/2 connection of a load balancer.
const MIN_STREAMS: usize = 100;

/// Bytes of memory that this process may use: the memory of the machine, or the limit of its cgroup (version 2) if that
/// is lower. `None` if the kernel does not tell.
pub(super) fn available_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    // The fields are of different widths on different platforms.
    #[allow(clippy::useless_conversion, reason = "not the same type everywhere")]
    let machine = u64::from(info.totalram).checked_mul(u64::from(info.mem_unit)).filter(|bytes| *bytes > 0);
    machine.into_iter().chain(cgroup_limits()).min()
}

/// The limits of this process's cgroup and of the cgroups above it.
fn cgroup_limits() -> Vec<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let limit = |dir: &Path| fs::read_to_string(Path::new("/sys/fs/cgroup").join(dir).join("memory.max")).ok();
    Path::new(path).ancestors().filter_map(limit).filter_map(|text| text.trim().parse().ok()).collect()
}

/// Maximum number of HTTP/2 streams of a server that may have this number of connections.
pub(super) fn max_streams(max_connections: usize) -> usize {
    (max_connections / 4).max(MIN_STREAMS).min(max_connections)
}
