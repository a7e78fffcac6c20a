//! Follows the reports that arrive: each one once, soon after it is acknowledged.
//!
//! New reports are read from journals, which stay open until their batches are done. A batch whose journal was not seen
//! is read from its report file: its server has no journals (`ACK=memory`), or the batch was short-lived.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::batch_id::BatchId;
use super::data_dir::Store;
use super::journal;
use super::stored_batches::{OpenBatch, StoredBatch};

/// Time between two listings of the directories, without inotify and with it. Also with it, because another machine or
/// container may write to the directory without an event here.
const LIST_INTERVAL: Duration = Duration::from_secs(2);
const WATCHED_LIST_INTERVAL: Duration = Duration::from_secs(30);

/// Follows the reports of a data directory.
#[derive(Debug)]
pub struct Follow<'a> {
    store: &'a Store,
    inotify: Option<OwnedFd>,
    /// When the directories are listed again.
    next_listing: Instant,
    /// Batches that are followed, done, or older than this object.
    known: HashSet<BatchId>,
    /// Batches that are read, with the offset of the first unread line.
    followed: BTreeMap<BatchId, (OpenBatch, u64)>,
    /// Files that cannot be read.
    failed: Vec<String>,
}

impl Store {
    /// Follows the reports that arrive from now on. Also returns all batches that exist now, oldest first.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn follow(&self) -> io::Result<(Follow<'_>, Vec<StoredBatch>)> {
        let inotify = self.watch_batches().ok();
        let before = self.stored_batches(None)?;
        let known = before.iter().map(StoredBatch::id).collect();
        let mut follow = Follow {
            store: self,
            inotify,
            next_listing: Instant::now(),
            known,
            followed: BTreeMap::new(),
            failed: Vec::new(),
        };
        follow.plan_listing();
        for batch in before.iter().filter(|batch| !batch.is_published()) {
            let Some(open) = self.open_batch(batch)?.filter(|open| open.is_journal) else { continue };
            let mut lines = open.lines()?;
            let mut block = Vec::new();
            lines.next_lines(&mut block)?;
            while !block.is_empty() {
                lines.next_lines(&mut block)?;
            }
            let end = lines.offset();
            follow.followed.insert(batch.id(), (open, end));
        }
        Ok((follow, before))
    }

    fn watch_batches(&self) -> io::Result<OwnedFd> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let journals = journal::dir(&self.path);
        let watch = |path: &Path, flags| inotify::add_watch(&inotify, path, flags | WatchFlags::ONLYDIR);
        watch(&self.path, WatchFlags::MOVED_TO)?;
        // It is missing with `ACK=memory`.
        if journals.exists() {
            watch(&journals, WatchFlags::MOVED_TO | WatchFlags::MODIFY)?;
        }
        Ok(inotify)
    }
}

impl Follow<'_> {
    /// Waits until there may be new reports, or `output` is closed, but no longer than `limit`.
    ///
    /// # Errors
    /// `BrokenPipe` if nobody reads the output any more.
    pub fn wait(&mut self, limit: Duration, output: BorrowedFd<'_>) -> io::Result<()> {
        let limit = limit.min(self.next_listing.saturating_duration_since(Instant::now()));
        let timeout = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
        // Without events: the kernel tells of an error in any case.
        let mut waiting = vec![PollFd::from_borrowed_fd(output, PollFlags::empty())];
        waiting.extend(self.inotify.iter().map(|inotify| PollFd::from_borrowed_fd(inotify.as_fd(), PollFlags::IN)));
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match waiting[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    /// Passes all new lines to `each`, in blocks of complete lines.
    ///
    /// # Errors
    /// Errors of `each`, or if a directory cannot be listed. A file that cannot be read is skipped, and
    /// [`failures`](Self::failures) names it.
    pub fn read(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.find_batches()?;
        let mut block = Vec::new();
        let ids: Vec<BatchId> = self.followed.keys().copied().collect();
        for id in ids {
            let Some((open, offset)) = self.followed.get_mut(&id) else { continue };
            // Before the read: a journal that is removed has no more writes.
            let mut is_done = !open.is_journal || open.is_removed()?;
            let mut lines = if open.is_journal { open.lines_from(*offset)? } else { open.lines()? };
            loop {
                if let Err(error) = lines.next_lines(&mut block) {
                    self.failed.push(format!("{}: {error}", open.name));
                    is_done = true;
                    break;
                }
                if block.is_empty() {
                    break;
                }
                *offset = lines.offset();
                each(&block)?;
            }
            if is_done {
                self.followed.remove(&id);
            }
        }
        Ok(())
    }

    /// The files that could not be read since the last call, with the reason.
    pub fn failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.failed)
    }

    /// The journal of a batch that existed before, and how many bytes of it.
    #[must_use]
    pub fn existing(&self, id: BatchId) -> Option<(&OpenBatch, u64)> {
        self.followed.get(&id).map(|(open, end)| (open, *end))
    }

    fn plan_listing(&mut self) {
        let interval = if self.inotify.is_some() { WATCHED_LIST_INTERVAL } else { LIST_INTERVAL };
        self.next_listing = Instant::now() + interval;
    }

    fn find_batches(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        let (mut is_complete, mut is_watched) = (true, true);
        if let Some(inotify) = &self.inotify {
            let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
            let mut events = Reader::new(inotify, &mut buffer);
            loop {
                let event = match events.next() {
                    Ok(event) => event,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                let flags = event.events();
                is_complete &= !flags.contains(ReadFlags::QUEUE_OVERFLOW);
                is_watched &= !flags.contains(ReadFlags::IGNORED);
                let name = event.file_name().and_then(|name| name.to_str().ok()).unwrap_or_default();
                if flags.contains(ReadFlags::MOVED_TO)
                    && let Some(id) = BatchId::of_journal(name).or_else(|| BatchId::of_report_file(name))
                {
                    found.push(id);
                }
            }
        }
        if !is_watched {
            // A directory was removed. It may be there again.
            self.inotify = self.store.watch_batches().ok();
        }
        if !(is_complete && is_watched) || self.next_listing <= Instant::now() {
            self.plan_listing();
            found.extend(self.store.stored_batches(None)?.iter().map(StoredBatch::id));
        }
        for id in found {
            if self.known.insert(id)
                && let Some(open) = self.store.open_batch(&StoredBatch::unknown(id))?
            {
                self.followed.insert(id, (open, 0));
            }
        }
        Ok(())
    }
}
