//! Reads report files and journals as blocks of complete lines, without ever holding a whole file in memory.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;

use super::journal_content::is_line;

/// Usual size of a block. A longer line gets a block of its size.
const BLOCK_BYTES: usize = 256 << 10;

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One or more zstd frames.
    Zstd,
    /// Lines, then preallocated zeros.
    Journal,
}

/// Reads complete lines.
pub struct LineReader<'a> {
    source: Source<'a>,
    /// The start of a line whose end was not read yet.
    rest: Vec<u8>,
    bytes: u64,
    corrupt_bytes: usize,
}

enum Source<'a> {
    Zstd(zstd::Decoder<'static, BufReader<&'a File>>),
    Journal { file: &'a File, offset: u64 },
}

impl<'a> LineReader<'a> {
    /// Reads this file from its start.
    ///
    /// # Errors
    /// If the file cannot be read from its start, or zstd cannot be initialized.
    pub fn new(file: &'a File, encoding: Encoding) -> io::Result<Self> {
        let source = match encoding {
            Encoding::Zstd => {
                // It may have been read before.
                let mut from = file;
                from.rewind()?;
                Source::Zstd(zstd::Decoder::new(file)?)
            }
            Encoding::Journal => Source::Journal { file, offset: 0 },
        };
        Ok(Self { source, rest: Vec::new(), bytes: 0, corrupt_bytes: 0 })
    }

    pub(super) fn skip_to(&mut self, start: u64) {
        if let Source::Journal { offset, .. } = &mut self.source {
            *offset = start;
        }
    }

    /// The offset in a journal up to which all lines were returned.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match &self.source {
            Source::Zstd(_) => self.bytes,
            Source::Journal { offset, .. } => *offset - self.rest.len() as u64,
        }
    }

    /// Bytes in lines of a journal that are not valid. They are not returned.
    #[must_use]
    pub fn corrupt_bytes(&self) -> usize {
        self.corrupt_bytes
    }

    /// Replaces the content of `block` by the next complete lines. It is empty at the end.
    ///
    /// A line at the end of a journal that has no line break is not returned: it is being written, or was never
    /// acknowledged.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what the server writes: corrupt, empty, or without a line break at its end.
    /// All lines that were returned before are valid.
    pub fn next_lines(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        block.clear();
        block.append(&mut self.rest);
        // All bytes before it have no line break.
        let mut searched = 0;
        loop {
            let is_end = self.fill(block)? == 0;
            match memchr::memrchr(b'\n', &block[searched..]) {
                Some(newline) => {
                    self.rest.extend_from_slice(&block[searched + newline + 1..]);
                    block.truncate(searched + newline + 1);
                    self.bytes += block.len() as u64;
                    self.check_journal(block);
                    if !block.is_empty() {
                        return Ok(());
                    }
                    searched = 0;
                    block.append(&mut self.rest);
                }
                None if is_end => {
                    let rest = std::mem::take(block);
                    return match &self.source {
                        Source::Zstd(_) if self.bytes == 0 && rest.is_empty() => Err(corrupt("the file is empty")),
                        Source::Zstd(_) if !rest.is_empty() => Err(corrupt("the last line has no line break")),
                        Source::Zstd(_) => Ok(()),
                        Source::Journal { .. } => {
                            self.rest = rest;
                            Ok(())
                        }
                    };
                }
                None => searched = block.len(),
            }
        }
    }

    /// Appends bytes to `block`. Returns their number, which is 0 at the end.
    fn fill(&mut self, block: &mut Vec<u8>) -> io::Result<usize> {
        let start = block.len();
        let space = BLOCK_BYTES.max(start);
        match &mut self.source {
            Source::Zstd(decoder) => decoder.by_ref().take(space as u64).read_to_end(block),
            Source::Journal { file, offset } => {
                block.resize(start + space, 0);
                let read = read_at(file, &mut block[start..], *offset)?;
                // The bytes after the first zero are not written yet.
                let written = memchr::memchr(0, &block[start..start + read]).unwrap_or(read);
                block.truncate(start + written);
                *offset += written as u64;
                Ok(written)
            }
        }
    }

    /// Removes the lines of a journal that are not valid. A power failure may leave such lines.
    fn check_journal(&mut self, block: &mut Vec<u8>) {
        if matches!(self.source, Source::Zstd(_)) {
            return;
        }
        let split = |block: &[u8]| memchr::memchr_iter(b'\n', block).map(|newline| newline + 1).collect::<Vec<_>>();
        let mut start = 0;
        let mut valid = Vec::new();
        for end in split(block) {
            match is_line(&block[start..end]) {
                true => valid.push(start..end),
                false => self.corrupt_bytes += end - start,
            }
            start = end;
        }
        let valid_bytes: usize = valid.iter().map(ExactSizeIterator::len).sum();
        if valid_bytes < block.len() {
            *block = valid.into_iter().flat_map(|line| block[line].to_vec()).collect();
        }
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn corrupt(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
