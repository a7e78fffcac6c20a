//! Reads report files and journals as blocks of complete lines, without ever holding a whole file in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::journal_content::is_line;

/// Usual size of a block. A longer line gets a block of its size.
const BLOCK_BYTES: usize = 256 << 10;

/// Compressed bytes that are read at once.
const INPUT_BYTES: usize = 64 << 10;

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
    Zstd(ZstdSource<'a>),
    Journal { file: &'a File, offset: u64 },
}

/// Decompresses directly into a block. `zstd::Decoder` would have to fill each block with zeros before.
struct ZstdSource<'a> {
    file: &'a File,
    offset: u64,
    decoder: Decoder<'static>,
    /// Compressed bytes, and how many of them are decompressed.
    input: Vec<u8>,
    used: usize,
    is_between_frames: bool,
}

impl ZstdSource<'_> {
    /// Appends at least one byte to `block`, but not more than its capacity. Appends nothing at the end of the file.
    fn fill(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        let start = block.len();
        loop {
            if self.used == self.input.len() {
                self.input.resize(INPUT_BYTES, 0);
                let read = read_at(self.file, &mut self.input, self.offset)?;
                self.input.truncate(read);
                self.offset += read as u64;
                self.used = 0;
            }
            let is_end = self.input.is_empty();
            if is_end && self.is_between_frames {
                return Ok(());
            }
            let mut input = InBuffer::around(&self.input[self.used..]);
            let mut output = OutBuffer::around_pos(block, start);
            let hint = self.decoder.run(&mut input, &mut output)?;
            self.used += input.pos();
            // zstd begins a new frame with the next call.
            self.is_between_frames = hint == 0;
            if block.len() > start {
                return Ok(());
            }
            if is_end && !self.is_between_frames {
                return Err(corrupt("the file is incomplete"));
            }
        }
    }
}

impl<'a> LineReader<'a> {
    /// Reads this file from its start.
    ///
    /// # Errors
    /// If zstd cannot be initialized.
    pub fn new(file: &'a File, encoding: Encoding) -> io::Result<Self> {
        let source = match encoding {
            Encoding::Zstd => Source::Zstd(ZstdSource {
                file,
                offset: 0,
                decoder: Decoder::new()?,
                input: Vec::new(),
                used: 0,
                is_between_frames: true,
            }),
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
        // A long line makes a block twice as long.
        let space = BLOCK_BYTES.max(start);
        match &mut self.source {
            Source::Zstd(source) => {
                block.reserve(space);
                while block.len() < start + space {
                    let before = block.len();
                    source.fill(block)?;
                    if block.len() == before {
                        break;
                    }
                }
                Ok(block.len() - start)
            }
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
