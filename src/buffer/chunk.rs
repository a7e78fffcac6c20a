//! The memory of a chunk. This file contains all unsafe code of the project.

#![allow(unsafe_code, reason = "several threads write to one allocation; the cursor keeps them apart")]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cursor::Cursor;

type Byte = UnsafeCell<MaybeUninit<u8>>;

/// A fixed amount of memory to which several threads append lines without a lock.
#[derive(Debug)]
pub(super) struct Chunk {
    cursor: Cursor,
    /// The times of the first and the last append. They share the cache line of the cursor, which an append writes
    /// anyway.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    /// The number of reports. It may be ahead of the committed bytes.
    reports: AtomicU64,
    bytes: Memory,
}

/// Nanoseconds on the buffer's monotonic clock. 0 means never.
pub(super) type Nanos = u64;

/// Memory that the kernel provides page by page when it is first written. An allocator would touch a part of it: with
/// huge pages, the header of each block costs 2 MiB.
#[derive(Debug)]
struct Memory(NonNull<[Byte]>);

impl Memory {
    #[cfg(not(miri))]
    fn reserve(bytes: usize) -> Self {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        assert!(bytes > 0);
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: without a fixed address, a new mapping does not overlap existing memory.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, flags) };
        let start = start.unwrap_or_else(|error| panic!("can't reserve {bytes} bytes for a batch: {error}"));
        // SAFETY: the range is the mapping from above, and the advice does not change its content.
        if let Err(error) = unsafe { madvise(start, bytes, Advice::LinuxHugepage) } {
            tracing::debug!(%error, "batches use pages of normal size");
        }
        let start = NonNull::new(start.cast::<Byte>()).expect("the kernel maps no memory at address 0");
        Self(NonNull::slice_from_raw_parts(start, bytes))
    }

    /// Miri has no `madvise`.
    #[cfg(miri)]
    fn reserve(bytes: usize) -> Self {
        let bytes: Box<[Byte]> = (0..bytes).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
        Self(NonNull::from(Box::leak(bytes)))
    }
}

impl Deref for Memory {
    type Target = [Byte];

    fn deref(&self) -> &[Byte] {
        // SAFETY: `reserve` returned this range, which stays valid until `drop`. Its bytes need no initialization, and
        // the
        // `UnsafeCell` permits writes through shared references.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Memory {
    #[cfg(not(miri))]
    fn drop(&mut self) {
        // SAFETY: `reserve` created exactly this mapping. The exclusive borrow proves that there are no references to
        // it.
        let unmapped = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), self.0.len()) };
        debug_assert!(unmapped.is_ok());
    }

    #[cfg(miri)]
    fn drop(&mut self) {
        // SAFETY: `reserve` leaked exactly this box. The exclusive borrow proves that there are no references to it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: `Memory` owns its mapping, like a box, and any thread may unmap it.
unsafe impl Send for Memory {}

// SAFETY: only `bytes` prevents an automatic implementation. A byte is written only by the thread that reserved it, and
// read only after it was committed. The cursor maintains both rules, and its loom tests prove them.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// An empty chunk of `capacity` bytes. This does not touch the bytes.
    ///
    /// # Panics
    /// If the kernel has no address space left.
    pub(super) fn new(capacity: usize) -> Self {
        let bytes = Memory::reserve(capacity);
        let [first_ns, last_ns, reports] = [(); 3].map(|()| AtomicU64::new(0));
        Self { cursor: Cursor::new(), first_ns, last_ns, reports, bytes }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Appends `lines`, which are this number of reports, and a line break, and returns the offset after it. Returns `None` if the chunk is sealed. Lines
    /// that do not fit seal the chunk. Readers see all of the lines or none.
    pub(super) fn append(&self, lines: &[u8], reports: usize, now_ns: Nanos) -> Option<usize> {
        let len = lines.len() + 1;
        let start = self.cursor.reserve(len, self.capacity())?;
        debug_assert!(start + len <= self.capacity());
        // Nothing from here to the commit may await or panic: an open reservation would block all readers.

        // SAFETY: `Cursor::reserve` gave start..start + len, which is within capacity, to this call alone. No reader
        // accesses it before the commit below. `lines` cannot overlap it, because no reference to an uncommitted byte
        // exists. The pointer is derived from the whole slice, so it is valid for the whole range.
        unsafe {
            let to = UnsafeCell::raw_get(self.bytes.as_ptr().add(start)).cast::<u8>();
            std::ptr::copy_nonoverlapping(lines.as_ptr(), to, lines.len());
            to.add(lines.len()).write(b'\n');
        }
        // Relaxed: exact readers read both after the commit, whose Release publishes them.
        if start == 0 {
            self.first_ns.store(now_ns, Ordering::Relaxed);
        }
        self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        self.reports.fetch_add(reports as u64, Ordering::Relaxed);
        self.cursor.commit(len);
        Some(start + len)
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.cursor.is_sealed()
    }

    /// Ends appends. An append that is being copied may still finish.
    pub(super) fn seal(&self) {
        self.cursor.seal();
    }

    /// The lines appended so far. `None` while a writer is copying.
    pub(super) fn lines(&self) -> Option<&[u8]> {
        let len = self.cursor.complete_len()?;
        debug_assert!(len <= self.capacity());
        // SAFETY: the bytes below a complete length are committed (`Cursor::complete_len`), so they are initialized.
        // They are not written again before `reset`, which needs an exclusive borrow.
        Some(unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), len) })
    }

    /// The number of complete bytes. `None` while a writer is copying.
    pub(super) fn complete_len(&self) -> Option<usize> {
        self.cursor.complete_len()
    }

    /// The number of reports, exact when no writer is copying.
    pub(super) fn reports(&self) -> u64 {
        // Relaxed: as for the times.
        self.reports.load(Ordering::Relaxed)
    }

    /// The times of the first and the last line. `None` before the first line.
    pub(super) fn times(&self) -> Option<(Nanos, Nanos)> {
        // Relaxed: callers that need exact times have called `lines` before, which acquires the commits.
        let first_ns = self.first_ns.load(Ordering::Relaxed);
        (first_ns != 0).then(|| (first_ns, self.last_ns.load(Ordering::Relaxed)))
    }

    /// Removes all lines. The memory stays allocated.
    pub(super) fn reset(&mut self) {
        self.cursor.reset();
        *self.first_ns.get_mut() = 0;
        *self.last_ns.get_mut() = 0;
        *self.reports.get_mut() = 0;
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_appended() {
        let chunk = Chunk::new(16);
        assert_eq!(chunk.append(b"{\"a\":1}", 1, 5), Some(8));
        assert_eq!(chunk.append(b"{}", 1, 9), Some(11));
        assert_eq!(chunk.lines(), Some(&b"{\"a\":1}\n{}\n"[..]));
        assert_eq!(chunk.times(), Some((5, 9)));
    }

    #[test]
    fn a_line_that_does_not_fit_seals_the_chunk() {
        let chunk = Chunk::new(8);
        assert_eq!(chunk.append(b"{}", 1, 1), Some(3));
        assert_eq!(chunk.append(b"{\"a\":1}", 1, 2), None);
        assert_eq!(chunk.append(b"{}", 1, 3), None);
        assert_eq!(chunk.lines(), Some(&b"{}\n"[..]));
    }

    #[test]
    fn concurrent_appends_leave_whole_lines_in_the_order_of_each_thread() {
        let lines = if cfg!(miri) { 20_u32 } else { 20_000 };
        let chunk = Chunk::new(4 * lines as usize * 16);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let chunk = &chunk;
                scope.spawn(move || {
                    for n in 0..lines {
                        chunk.append(format!("{writer} {n}").as_bytes(), 1, 1).unwrap();
                    }
                });
            }
        });
        let text = std::str::from_utf8(chunk.lines().unwrap()).unwrap();
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
    fn a_reader_during_appends_sees_whole_lines() {
        let lines = if cfg!(miri) { 20 } else { 50_000 };
        let chunk = Chunk::new(2 * lines * 3);
        let read = || {
            let read = chunk.lines().unwrap_or_default();
            // Newest first: by the time the loop reaches the oldest lines, they would be complete in any case.
            assert!(read.rchunks(3).all(|line| line == b"11\n" || line == b"22\n"));
            read.len()
        };
        std::thread::scope(|scope| {
            let writers = [b"11", b"22"].map(|line| {
                let chunk = &chunk;
                scope.spawn(move || (0..lines).for_each(|_| assert!(chunk.append(line, 1, 1).is_some())))
            });
            while !writers.iter().all(|writer| writer.is_finished()) {
                read();
                std::thread::yield_now();
            }
        });
        assert_eq!(read(), chunk.capacity());
    }
}
