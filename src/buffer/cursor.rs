//! The reservation protocol of a chunk: which thread may write where, and when the bytes may be read.
//!
//! This file contains no memory and no unsafe code. A [`Cursor`] only hands out offsets, so that loom can check it.
//!
//! ```text
//!   0              committed bytes        tail            capacity
//!   ├──────────────────────────────────────┼───────────────┤
//!   │ reserved: copied, or being copied    │ free          │
//! ```
//!
//! A writer reserves a range by advancing the tail, copies into the range, and commits its length. `committed` is a
//! count, not an offset: it says how many reserved bytes are copied, not which ones. The bytes below the tail are
//! complete when `committed` equals the tail.

use super::sync::{AtomicUsize, Ordering};

/// The bit of the tail that ends reservations. The other bits are the offset of the first free byte.
const SEALED: usize = 1 << (usize::BITS - 1);

/// The state of one chunk.
#[derive(Debug)]
pub(super) struct Cursor {
    tail: AtomicUsize,
    committed: AtomicUsize,
}

impl Cursor {
    pub(super) fn new() -> Self {
        Self { tail: AtomicUsize::new(0), committed: AtomicUsize::new(0) }
    }

    /// Reserves `len` bytes of `capacity` and returns the offset of the first one. The bytes belong to the caller,
    /// which must [`commit`](Self::commit) them.
    ///
    /// Returns `None` if the cursor is sealed. A reservation that does not fit seals the cursor, so that a batch with a
    /// full chunk counts as full in this chunk.
    pub(super) fn reserve(&self, len: usize, capacity: usize) -> Option<usize> {
        debug_assert!(capacity < SEALED);
        // Relaxed, three times: the tail only divides the offsets among writers. `committed` publishes the copied
        // bytes. The queue of free batches publishes that the memory may be written.
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if tail & SEALED != 0 {
                return None;
            }
            if len > capacity - tail {
                self.tail.fetch_or(SEALED, Ordering::Relaxed);
                return None;
            }
            match self.tail.compare_exchange_weak(tail, tail + len, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(start) => return Some(start),
                Err(actual) => tail = actual,
            }
        }
    }

    /// Whether reservations have ended.
    pub(super) fn is_sealed(&self) -> bool {
        // Relaxed: only a hint about how full the buffer is.
        self.tail.load(Ordering::Relaxed) & SEALED != 0
    }

    /// Marks `len` reserved bytes as copied.
    pub(super) fn commit(&self, len: usize) {
        // Release: pairs with the Acquire in `complete_len`, which makes the copied bytes visible to the reader. Each
        // commit is a read-modify-write, so it continues the release sequences of the commits before it.
        self.committed.fetch_add(len, Ordering::Release);
    }

    /// Ends reservations. Earlier reservations may still be copied and committed.
    pub(super) fn seal(&self) {
        // Relaxed: one atomic word has one modification order, so no reservation follows the bit.
        self.tail.fetch_or(SEALED, Ordering::Relaxed);
    }

    /// The number of bytes, from the start of the chunk, that are complete and may be read. `None` while a writer is
    /// copying.
    pub(super) fn complete_len(&self) -> Option<usize> {
        // `committed` is read before the tail. Both only grow, and `committed` never exceeds the tail. So if the older
        // count equals the newer tail, no reservation was open in between.
        // Acquire: pairs with the Release in `commit`, and keeps the load of the tail after this load.
        let committed = self.committed.load(Ordering::Acquire);
        // Relaxed: a thread that sees a commit also sees the reservation before it.
        let tail = self.tail.load(Ordering::Relaxed) & !SEALED;
        debug_assert!(committed <= tail);
        (committed == tail).then_some(tail)
    }

    /// Makes the chunk empty. The exclusive borrow proves that there is no writer or reader.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn reservations_follow_each_other_and_are_complete_once_committed() {
        let cursor = Cursor::new();
        assert_eq!(cursor.reserve(3, 10), Some(0));
        assert_eq!(cursor.reserve(4, 10), Some(3));
        assert_eq!(cursor.complete_len(), None);
        cursor.commit(4);
        assert_eq!(cursor.complete_len(), None, "the first range is still being copied");
        cursor.commit(3);
        assert_eq!(cursor.complete_len(), Some(7));
    }

    #[test]
    fn a_chunk_can_be_filled_to_its_last_byte() {
        let cursor = Cursor::new();
        assert_eq!(cursor.reserve(10, 10), Some(0));
        assert_eq!(cursor.reserve(1, 10), None);
    }

    #[test]
    fn a_reservation_that_does_not_fit_seals_the_cursor() {
        let cursor = Cursor::new();
        assert_eq!(cursor.reserve(6, 10), Some(0));
        assert_eq!(cursor.reserve(5, 10), None);
        assert_eq!(cursor.reserve(1, 10), None, "sealed for smaller ones as well");
        cursor.commit(6);
        assert_eq!(cursor.complete_len(), Some(6));
    }

    #[test]
    fn a_reset_cursor_starts_again() {
        let mut cursor = Cursor::new();
        cursor.reserve(6, 10);
        cursor.commit(6);
        cursor.seal();
        cursor.reset();
        assert_eq!(cursor.complete_len(), Some(0));
        assert_eq!(cursor.reserve(10, 10), Some(0));
    }
}

/// Run by `make loom`: every interleaving of a few threads, and every value that each load may return. The bytes are
/// relaxed atomics, so loom returns a stale byte wherever the orderings of the cursor permit it.
#[cfg(all(test, netwatch_loom))]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU8;
    use loom::thread;

    use super::*;

    const CAPACITY: usize = 3;

    struct Chunk {
        cursor: Cursor,
        bytes: [AtomicU8; CAPACITY],
    }

    impl Chunk {
        fn new() -> Arc<Self> {
            Arc::new(Self { cursor: Cursor::new(), bytes: [0; CAPACITY].map(AtomicU8::new) })
        }

        /// Appends `value` `len` times. Returns whether it fit.
        fn append(&self, value: u8, len: usize) -> bool {
            let Some(start) = self.cursor.reserve(len, CAPACITY) else { return false };
            for byte in &self.bytes[start..start + len] {
                byte.store(value, Ordering::Relaxed);
            }
            self.cursor.commit(len);
            true
        }

        fn read(&self) -> Option<Vec<u8>> {
            let len = self.cursor.complete_len()?;
            Some(self.bytes[..len].iter().map(|byte| byte.load(Ordering::Relaxed)).collect())
        }
    }

    #[test]
    fn writers_never_share_a_byte_and_everything_that_fits_is_stored() {
        loom::model(|| {
            let chunk = Chunk::new();
            let writer = {
                let chunk = chunk.clone();
                thread::spawn(move || chunk.append(1, 1))
            };
            assert!(chunk.append(2, 2));
            assert!(writer.join().unwrap());
            let read = chunk.read().unwrap();
            assert!(read == [1, 2, 2] || read == [2, 2, 1], "{read:?}");
        });
    }

    #[test]
    fn a_reader_sees_whole_appends_or_waits() {
        loom::model(|| {
            let chunk = Chunk::new();
            let writers = [1, 2].map(|value| {
                let chunk = chunk.clone();
                thread::spawn(move || chunk.append(value, 1))
            });
            if let Some(read) = chunk.read() {
                assert!(read.iter().all(|byte| *byte != 0), "{read:?}");
            }
            for writer in writers {
                assert!(writer.join().unwrap());
            }
            assert_eq!(chunk.read().unwrap().len(), 2);
        });
    }

    #[test]
    fn a_batch_sealed_while_a_writer_is_late_loses_nothing() {
        loom::model(|| {
            let chunk = Chunk::new();
            let writer = {
                let chunk = chunk.clone();
                thread::spawn(move || chunk.append(1, 1))
            };
            chunk.cursor.seal();
            // The flush thread waits for a late writer in the same way.
            let read = loop {
                match chunk.read() {
                    Some(read) => break read,
                    None => thread::yield_now(),
                }
            };
            let appended = writer.join().unwrap();
            assert_eq!(read, if appended { vec![1] } else { vec![] });
            assert_eq!(chunk.read().unwrap(), read, "nothing follows a seal");
        });
    }

    #[test]
    fn one_of_two_writers_that_race_for_the_last_bytes_is_refused() {
        loom::model(|| {
            let chunk = Chunk::new();
            let writer = {
                let chunk = chunk.clone();
                thread::spawn(move || chunk.append(1, 2))
            };
            let mine = chunk.append(2, 2);
            let theirs = writer.join().unwrap();
            assert!(mine ^ theirs);
            assert_eq!(chunk.read().unwrap(), [if mine { 2 } else { 1 }; 2]);
            assert!(!chunk.append(3, 1), "the refusal sealed it");
        });
    }

    #[test]
    fn a_recycled_chunk_is_written_from_its_start() {
        loom::model(|| {
            let mut chunk = Chunk::new();
            let writer = {
                let chunk = chunk.clone();
                thread::spawn(move || {
                    chunk.append(1, 3);
                })
            };
            chunk.cursor.seal();
            // The last reference proves that there is no writer, however late.
            let mut last = loop {
                match Arc::try_unwrap(chunk) {
                    Ok(last) => break last,
                    Err(shared) => chunk = shared,
                }
                thread::yield_now();
            };
            last.cursor.reset();
            assert!(last.append(2, 3));
            assert_eq!(last.read().unwrap(), [2, 2, 2]);
            writer.join().unwrap();
        });
    }
}
