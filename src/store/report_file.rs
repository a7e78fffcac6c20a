//! The content of report files: one zstd frame with content size and checksum, and in it one report per line.
//!
//! A persisted format: changing it is a breaking change. No dictionary and no skippable frames, because some readers
//! stop after the first frame.

use std::fs::File;
use std::io::{self, Write};

use zstd::stream::raw::CParameter;

use crate::config::Config;

/// Minimum number of bytes per compression thread. Also zstd's minimum job size (`ZSTDMT_JOBSIZE_MIN`).
const MIN_JOB_BYTES: usize = 512 * 1024;

/// Decompresses a report file and checks its checksum.
///
/// # Errors
/// If the file cannot be read, or is corrupt or empty. The server never writes an empty report file.
pub fn decode(file: File) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    decode_to(file, &mut lines)?;
    Ok(lines)
}

/// The number of lines in a report file. Does not store its content.
///
/// # Errors
/// As [`decode`].
pub(super) fn count(file: File) -> io::Result<usize> {
    struct Lines(usize);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += memchr::memchr_iter(b'\n', bytes).count();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut lines = Lines(0);
    decode_to(file, &mut lines)?;
    Ok(lines.0)
}

fn decode_to(file: File, mut to: impl Write) -> io::Result<()> {
    match io::copy(&mut zstd::Decoder::new(file)?, &mut to)? {
        // zstd accepts an empty file.
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty")),
        _ => Ok(()),
    }
}

/// How report files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The zstd level, 1 to 22.
    pub level: i32,
    /// Maximum number of threads that compress one file. Small files use fewer.
    pub threads: usize,
}

impl From<&Config> for Compression {
    fn from(config: &Config) -> Self {
        Self { level: config.zstd_level, threads: config.zstd_threads }
    }
}

/// Compresses `parts`, one after the other, into one zstd frame.
///
/// # Errors
/// Errors of `to`.
pub fn compress(parts: &[&[u8]], compression: Compression, to: impl Write) -> io::Result<()> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let mut encoder = zstd::Encoder::new(to, compression.level)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(bytes as u64))?;
    let threads = compression.threads.min(bytes / MIN_JOB_BYTES);
    if threads > 1 {
        encoder.multithread(u32::try_from(threads).unwrap_or(u32::MAX))?;
        // At higher levels, zstd's own job size exceeds a batch, and only one thread would work.
        let job_bytes = bytes.div_ceil(threads).max(MIN_JOB_BYTES);
        encoder.set_parameter(CParameter::JobSize(u32::try_from(job_bytes).unwrap_or(u32::MAX)))?;
    }
    for part in parts {
        encoder.write_all(part)?;
    }
    encoder.finish()?;
    Ok(())
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_frame_with_content_size_and_checksum_whatever_the_threads() {
        let lines = b"{\"clientId\":\"a\",\"hosts\":[]}\n".repeat(100_000);
        let parts = [&lines[..1_000_000], &lines[1_000_000..]];
        for threads in [1, 2, 5] {
            let mut frame = Vec::new();
            compress(&parts, Compression { level: 1, threads }, &mut frame).unwrap();
            // RFC 8878, 3.1.1.1: the frame header descriptor follows the magic number.
            assert_eq!(frame[..4], [0x28, 0xb5, 0x2f, 0xfd]);
            assert_ne!(frame[4] & 0b100, 0, "content checksum flag");
            assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), Some(lines.len() as u64));
            assert_eq!(zstd::zstd_safe::find_frame_compressed_size(&frame).unwrap(), frame.len(), "one frame");
            assert_eq!(zstd::decode_all(&frame[..]).unwrap(), lines);
        }
    }

    #[test]
    fn errors_of_the_file_are_returned() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = compress(&[b"{}\n"], Compression { level: 1, threads: 1 }, Full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
