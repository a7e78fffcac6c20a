//! The reservation protocol: who may write where in a segment, and when its bytes may be read.
//!
//! No memory and no unsafe code here: a [`Cursor`] only hands out offsets, so that it can be model-checked as it is.
//!
//! ```text
//!   0              committed bytes        tail            capacity
//!   ├──────────────────────────────────────┼───────────────┤
//!   │ reserved: copied, or being copied    │ free          │
//! ```
//!
//! A writer reserves a range by moving the tail, copies into it and commits its length. `committed` is a count, not an
//! offset: it says how many of the reserved bytes are copied, not which. Only when it equals the tail are all of the
//! bytes below the tail complete.

#[cfg(netwatch_loom)]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(netwatch_loom))]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Set in the tail when no more may be reserved; the other bits are the offset of the first free byte.
const SEALED: usize = 1 << (usize::BITS - 1);

/// The rank of a cursor that no writer has passed by.
const UNRANKED: usize = usize::MAX;

/// The state of one segment: a tail, how much of what lies below it has been copied, and when writers left it behind.
#[derive(Debug)]
pub(super) struct Cursor {
    tail: AtomicUsize,
    committed: AtomicUsize,
    rank: AtomicUsize,
}

/// Counts the cursors of one batch that writers have passed by; the source of their ranks.
#[derive(Debug)]
pub(super) struct Passed(AtomicUsize);

impl Passed {
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }
}

impl Cursor {
    pub(super) fn new() -> Self {
        Self { tail: AtomicUsize::new(0), committed: AtomicUsize::new(0), rank: AtomicUsize::new(UNRANKED) }
    }

    /// Reserves `len` bytes of the `capacity` and returns the offset of the first, which is the caller's alone from
    /// then on; the caller must [`commit`](Self::commit) them.
    ///
    /// `None` once the cursor is sealed. A reservation that does not fit seals it, so that no writer comes back to a
    /// segment that it has passed by.
    pub(super) fn reserve(&self, len: usize, capacity: usize) -> Option<usize> {
        debug_assert!(capacity < SEALED);
        // For the bytes, Relaxed would do: the tail only divides up the offsets, `committed` makes known what was
        // copied, and the queue of free batches that the memory may be written at all. The orderings here are for
        // the ranks: a writer that is refused (Acquire, three times) pairs with all that were not (Release), and so
        // knows of every cursor that they passed by on their way here.
        let mut tail = self.tail.load(Ordering::Acquire);
        loop {
            if tail & SEALED != 0 {
                return None;
            }
            if len > capacity - tail {
                self.tail.fetch_or(SEALED, Ordering::Acquire);
                return None;
            }
            match self.tail.compare_exchange_weak(tail, tail + len, Ordering::Release, Ordering::Acquire) {
                Ok(start) => return Some(start),
                Err(actual) => tail = actual,
            }
        }
    }

    /// Says that a writer was refused here and moves on to another cursor of the same batch. The first to say so
    /// gives this one its rank.
    pub(super) fn pass(&self, passed: &Passed) {
        // Acquire: pairs with the Release below. Whoever finds a rank also knows of the count that it came from, and
        // takes that knowledge along to the next cursor.
        if self.rank.load(Ordering::Acquire) == UNRANKED {
            // Relaxed: what orders two counts is the path of a writer from one cursor to the other. (loom runs all
            // read-modify-writes in the order of execution: it tests that path, not the orderings along it.)
            let rank = passed.0.fetch_add(1, Ordering::Relaxed);
            // Another thread's rank is as good: it was taken after the seal as well.
            // AcqRel and Acquire: as above, on both sides.
            let _ranked = self.rank.compare_exchange(UNRANKED, rank, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Where this cursor's bytes belong among those of its batch: a writer that moved from one cursor to another left
    /// the lower rank behind. Cursors that nobody passed by come last, in any order.
    pub(super) fn rank(&self) -> usize {
        // Relaxed: read for a batch whose writers are known to be done, through `complete_len`.
        self.rank.load(Ordering::Relaxed)
    }

    /// Whether reservations have ended.
    pub(super) fn is_sealed(&self) -> bool {
        // Relaxed: a hint, for saying how full the buffer is.
        self.tail.load(Ordering::Relaxed) & SEALED != 0
    }

    /// Says that `len` reserved bytes have been copied.
    pub(super) fn commit(&self, len: usize) {
        // Release: pairs with the Acquire in `complete_len`, which makes the copied bytes visible to the reader. Each
        // commit is a read-modify-write, so it carries on the release sequence of those before it.
        self.committed.fetch_add(len, Ordering::Release);
    }

    /// Ends reservations. Those made before may still be copied and committed.
    pub(super) fn seal(&self) {
        // Relaxed: one atomic word has one order of changes, so no reservation follows the bit.
        self.tail.fetch_or(SEALED, Ordering::Relaxed);
    }

    /// Bytes from the start of the segment that are complete and may be read; `None` while a writer is copying.
    pub(super) fn complete_len(&self) -> Option<usize> {
        // Committed first, then the tail. Both only grow and committed never passes the tail, so when this older
        // count equals that newer tail, no reservation was open in between.
        // Acquire: pairs with the Release in `commit`, and keeps the load of the tail behind this one.
        let committed = self.committed.load(Ordering::Acquire);
        // Relaxed: having seen a commit, this thread sees the reservation before it.
        let tail = self.tail.load(Ordering::Relaxed) & !SEALED;
        debug_assert!(committed <= tail);
        (committed == tail).then_some(tail)
    }

    /// Starts again from nothing. Exclusive access proves that no writer or reader is left.
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
        assert_eq!(cursor.complete_len(), None, "the first is still being copied");
        cursor.commit(3);
        assert_eq!(cursor.complete_len(), Some(7));
    }

    #[test]
    fn a_segment_can_be_filled_to_its_last_byte() {
        let cursor = Cursor::new();
        assert_eq!(cursor.reserve(10, 10), Some(0));
        assert_eq!(cursor.reserve(1, 10), None);
    }

    #[test]
    fn a_reservation_that_does_not_fit_seals_the_cursor() {
        let cursor = Cursor::new();
        assert_eq!(cursor.reserve(6, 10), Some(0));
        assert_eq!(cursor.reserve(5, 10), None);
        assert_eq!(cursor.reserve(1, 10), None, "a smaller one may not overtake it");
        cursor.commit(6);
        assert_eq!(cursor.complete_len(), Some(6));
    }

    #[test]
    fn cursors_are_ranked_in_the_order_in_which_they_were_passed_by() {
        let (passed, cursors) = (Passed::new(), [Cursor::new(), Cursor::new(), Cursor::new()]);
        cursors[2].pass(&passed);
        cursors[0].pass(&passed);
        cursors[2].pass(&passed);
        assert!(cursors[2].rank() < cursors[0].rank());
        assert!(cursors[0].rank() < cursors[1].rank(), "never passed by: last");
    }

    #[test]
    fn a_reset_cursor_starts_again() {
        let mut cursor = Cursor::new();
        cursor.pass(&Passed::new());
        cursor.reserve(6, 10);
        cursor.commit(6);
        cursor.seal();
        cursor.reset();
        assert_eq!(cursor.complete_len(), Some(0));
        assert_eq!(cursor.rank(), UNRANKED);
        assert_eq!(cursor.reserve(10, 10), Some(0));
    }
}

/// Run by `make loom`: every interleaving of a few threads, and every value that each of their loads may see. The bytes
/// are relaxed atomics, so loom shows a stale one wherever the cursor's orderings would let a reader have it.
#[cfg(all(test, netwatch_loom))]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU8;
    use loom::thread;

    use super::*;

    const CAPACITY: usize = 3;

    struct Segment {
        cursor: Cursor,
        bytes: [AtomicU8; CAPACITY],
    }

    impl Segment {
        fn new() -> Arc<Self> {
            Arc::new(Self { cursor: Cursor::new(), bytes: [0; CAPACITY].map(AtomicU8::new) })
        }

        /// Writes `len` times `value`; says whether there was room.
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
    fn writers_never_share_a_byte_and_all_that_fits_is_kept() {
        loom::model(|| {
            let segment = Segment::new();
            let writer = {
                let segment = segment.clone();
                thread::spawn(move || segment.append(1, 1))
            };
            assert!(segment.append(2, 2));
            assert!(writer.join().unwrap());
            let read = segment.read().unwrap();
            assert!(read == [1, 2, 2] || read == [2, 2, 1], "{read:?}");
        });
    }

    #[test]
    fn a_reader_sees_whole_appends_or_waits() {
        loom::model(|| {
            let segment = Segment::new();
            let writers = [1, 2].map(|value| {
                let segment = segment.clone();
                thread::spawn(move || segment.append(value, 1))
            });
            if let Some(read) = segment.read() {
                assert!(read.iter().all(|byte| *byte != 0), "{read:?}");
            }
            for writer in writers {
                assert!(writer.join().unwrap());
            }
            assert_eq!(segment.read().unwrap().len(), 2);
        });
    }

    #[test]
    fn a_batch_sealed_while_a_writer_is_late_loses_nothing() {
        loom::model(|| {
            let segment = Segment::new();
            let writer = {
                let segment = segment.clone();
                thread::spawn(move || segment.append(1, 1))
            };
            segment.cursor.seal();
            // The flush thread waits for the late writer just so.
            let read = loop {
                match segment.read() {
                    Some(read) => break read,
                    None => thread::yield_now(),
                }
            };
            let appended = writer.join().unwrap();
            assert_eq!(read, if appended { vec![1] } else { vec![] });
            assert_eq!(segment.read().unwrap(), read, "nothing follows a seal");
        });
    }

    #[test]
    fn of_two_writers_that_race_for_the_last_room_one_is_refused() {
        loom::model(|| {
            let segment = Segment::new();
            let writer = {
                let segment = segment.clone();
                thread::spawn(move || segment.append(1, 2))
            };
            let mine = segment.append(2, 2);
            let theirs = writer.join().unwrap();
            assert!(mine ^ theirs);
            assert_eq!(segment.read().unwrap(), [if mine { 2 } else { 1 }; 2]);
            assert!(!segment.append(3, 1), "the refusal sealed it");
        });
    }

    #[test]
    fn a_writer_that_moves_on_leaves_the_lower_rank_behind() {
        loom::model(|| {
            let batch = Arc::new((Passed::new(), [Segment::new(), Segment::new()]));
            // The segments are full but for two bytes of the second one. Each writer starts at its own segment and
            // tells which one it left for the other. Another one sealed the first segment and is late in saying so.
            assert!(batch.1[0].append(9, 3));
            assert!(batch.1[1].append(9, 1));
            assert!(!batch.1[0].append(9, 1));
            let writer = |own: usize, len: usize, batch: &(Passed, [Arc<Segment>; 2])| {
                let (passed, segments) = batch;
                if segments[own].append(1, len) {
                    return None;
                }
                segments[own].cursor.pass(passed);
                if segments[1 - own].append(1, len) {
                    return Some(own);
                }
                segments[1 - own].cursor.pass(passed);
                None
            };
            let other = {
                let batch = batch.clone();
                thread::spawn(move || writer(1, 2, &batch))
            };
            let moves = [writer(0, 1, &batch), other.join().unwrap()];
            batch.1[0].cursor.pass(&batch.0);
            for left in moves.into_iter().flatten() {
                let rank = |index: usize| batch.1[index].cursor.rank();
                assert!(rank(left) < rank(1 - left));
            }
        });
    }

    #[test]
    fn a_recycled_segment_is_written_afresh() {
        loom::model(|| {
            let mut segment = Segment::new();
            let writer = {
                let segment = segment.clone();
                thread::spawn(move || {
                    segment.append(1, 3);
                })
            };
            segment.cursor.seal();
            // That this is the last reference proves that no writer is left, however late it was.
            let mut last = loop {
                match Arc::try_unwrap(segment) {
                    Ok(last) => break last,
                    Err(shared) => segment = shared,
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
