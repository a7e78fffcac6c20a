//! The bytes behind a cursor. All of the unsafe code of this project is in this file.

#![allow(unsafe_code, reason = "several threads write to one piece of memory; the cursor keeps them apart")]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cursor::{Cursor, Passed};

/// A fixed piece of memory into which several threads append lines without a lock.
#[derive(Debug)]
pub(super) struct Segment {
    cursor: Cursor,
    /// When the first line was appended and when the last one, in [`Nanos`]. Beside the cursor, whose cache line an
    /// append takes anyway.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    bytes: Box<[UnsafeCell<MaybeUninit<u8>>]>,
}

/// Nanoseconds on the buffer's monotonic clock; 0 stands for never.
pub(super) type Nanos = u64;

// SAFETY: `bytes` is what stops this from being automatic. A byte is written only by the thread whose reservation
// holds it and read only once it is committed; the cursor keeps both rules, and its loom tests prove it.
unsafe impl Sync for Segment {}

impl Segment {
    /// An empty segment of `capacity` bytes. They are not touched before a line is appended: until then, the kernel
    /// need not find pages for them.
    pub(super) fn new(capacity: usize) -> Self {
        let bytes = Box::into_raw(Box::<[u8]>::new_uninit_slice(capacity));
        // SAFETY: the pointer is the box's own, given back at once, and an `UnsafeCell` has the layout of what it
        // holds.
        let bytes = unsafe { Box::from_raw(bytes as *mut [UnsafeCell<MaybeUninit<u8>>]) };
        Self { cursor: Cursor::new(), first_ns: AtomicU64::new(0), last_ns: AtomicU64::new(0), bytes }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Appends lines with the last one's line break, which `lines` lacks, and returns the offset behind it; `None` once
    /// the segment is sealed, which lines that do not fit do. Whoever reads sees all of them or none.
    pub(super) fn append(&self, lines: &[u8], now_ns: Nanos) -> Option<usize> {
        let len = lines.len() + 1;
        let start = self.cursor.reserve(len, self.capacity())?;
        debug_assert!(start + len <= self.capacity());
        // From here to the commit: no await, and nothing that can panic.

        // SAFETY: the cursor gave start..start + len, within capacity, to this call alone (`Cursor::reserve`), and no
        // reader looks there before the commit below. `lines` lie elsewhere: a reference to them could not exist beside
        // an uncommitted byte. The pointer is derived from the whole slice, so it is valid for all of the range.
        unsafe {
            let to = UnsafeCell::raw_get(self.bytes.as_ptr().add(start)).cast::<u8>();
            std::ptr::copy_nonoverlapping(lines.as_ptr(), to, lines.len());
            to.add(lines.len()).write(b'\n');
        }
        // Relaxed: both are read only after the commit, whose Release covers them.
        if start == 0 {
            self.first_ns.store(now_ns, Ordering::Relaxed);
        }
        self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        self.cursor.commit(len);
        Some(start + len)
    }

    /// Says that a writer was refused here and moves on within the batch.
    pub(super) fn pass(&self, passed: &Passed) {
        self.cursor.pass(passed);
    }

    /// Where this segment's lines belong among those of its batch; see [`Cursor::rank`].
    pub(super) fn rank(&self) -> usize {
        self.cursor.rank()
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.cursor.is_sealed()
    }

    /// Ends appends; one that is being copied may still finish.
    pub(super) fn seal(&self) {
        self.cursor.seal();
    }

    /// The lines appended so far, whole ones only; `None` while one is being copied.
    pub(super) fn lines(&self) -> Option<&[u8]> {
        let len = self.cursor.complete_len()?;
        debug_assert!(len <= self.capacity());
        // SAFETY: the bytes below a complete length are committed (`Cursor::complete_len`), so they have been written;
        // and they are never written again before `reset`, whose exclusive borrow this shared one rules out.
        Some(unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), len) })
    }

    /// When the first and the last line came; `None` before the first one, which may still be on its way.
    pub(super) fn times(&self) -> Option<(Nanos, Nanos)> {
        // Relaxed: whoever needs them exact has seen the lines through `lines`, and the commits with them.
        let first_ns = self.first_ns.load(Ordering::Relaxed);
        (first_ns != 0).then(|| (first_ns, self.last_ns.load(Ordering::Relaxed)))
    }

    /// Forgets all lines; the memory stays.
    pub(super) fn reset(&mut self) {
        self.cursor.reset();
        *self.first_ns.get_mut() = 0;
        *self.last_ns.get_mut() = 0;
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_went_in() {
        let segment = Segment::new(16);
        assert_eq!(segment.append(b"{\"a\":1}", 5), Some(8));
        assert_eq!(segment.append(b"{}", 9), Some(11));
        assert_eq!(segment.lines(), Some(&b"{\"a\":1}\n{}\n"[..]));
        assert_eq!(segment.times(), Some((5, 9)));
    }

    #[test]
    fn a_line_that_does_not_fit_ends_the_segment() {
        let segment = Segment::new(8);
        assert_eq!(segment.append(b"{}", 1), Some(3));
        assert_eq!(segment.append(b"{\"a\":1}", 2), None);
        assert_eq!(segment.append(b"{}", 3), None);
        assert_eq!(segment.lines(), Some(&b"{}\n"[..]));
    }

    #[test]
    fn threads_that_append_at_once_keep_their_lines_whole_and_in_order() {
        let lines = if cfg!(miri) { 20_u32 } else { 20_000 };
        let segment = Segment::new(4 * lines as usize * 16);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let segment = &segment;
                scope.spawn(move || {
                    for n in 0..lines {
                        segment.append(format!("{writer} {n}").as_bytes(), 1).unwrap();
                    }
                });
            }
        });
        let text = std::str::from_utf8(segment.lines().unwrap()).unwrap();
        let mut next = [0_u32; 4];
        for line in text.lines() {
            let (writer, n) = line.split_once(' ').unwrap();
            let next = &mut next[writer.parse::<usize>().unwrap()];
            assert_eq!(n.parse::<u32>().unwrap(), *next);
            *next += 1;
        }
        assert_eq!(next, [lines; 4]);
    }

    #[test]
    fn whoever_reads_while_others_append_sees_whole_lines() {
        let lines = if cfg!(miri) { 20 } else { 50_000 };
        let segment = Segment::new(2 * lines * 3);
        let read = || {
            let read = segment.lines().unwrap_or_default();
            // From the newest on: the oldest are whole by the time that they are looked at.
            assert!(read.rchunks(3).all(|line| line == b"11\n" || line == b"22\n"));
            read.len()
        };
        std::thread::scope(|scope| {
            let writers = [b"11", b"22"].map(|line| {
                let segment = &segment;
                scope.spawn(move || (0..lines).for_each(|_| assert!(segment.append(line, 1).is_some())))
            });
            while !writers.iter().all(|writer| writer.is_finished()) {
                read();
                std::thread::yield_now();
            }
        });
        assert_eq!(read(), segment.capacity());
    }
}
