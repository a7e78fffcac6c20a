//! Parses the bytes of a journal: valid lines, preallocated zeros, and corrupt bytes.

use crate::report::Reports;

/// The content of a journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct JournalContent<'a> {
    /// Runs of complete, valid lines.
    pub lines: Vec<&'a [u8]>,
    /// All other bytes that are not preallocated zeros, with their offsets.
    pub corrupt: Vec<(usize, &'a [u8])>,
}

impl<'a> JournalContent<'a> {
    /// Parses `bytes`. Every byte is in a valid line, corrupt, or zero.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        let mut content = Self::default();
        let mut offset = 0;
        // The start of the run of valid lines that ends at `offset`.
        let mut run = 0;
        while offset < bytes.len() {
            let left = &bytes[offset..];
            let end = memchr::memchr(b'\n', left).map(|newline| newline + 1);
            let valid = end.filter(|end| is_line(&left[..*end]));
            if let Some(len) = valid {
                offset += len;
                continue;
            }
            content.lines.extend((run < offset).then(|| &bytes[run..offset]));
            // Skip zeros. A line may follow them.
            let zeros = left.iter().take_while(|byte| **byte == 0).count();
            let bad = if zeros > 0 { 0 } else { end.unwrap_or_else(|| torn_len(left)) };
            content.corrupt.extend((bad > 0).then(|| (offset, &left[..bad])));
            offset += bad.max(zeros);
            run = offset;
        }
        content.lines.extend((run < offset).then(|| &bytes[run..offset]));
        content
    }

    /// The number of valid lines.
    #[must_use]
    pub fn reports(&self) -> usize {
        self.lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum()
    }
}

/// The length of a line without a line break, up to the zeros at the end of the journal.
fn torn_len(left: &[u8]) -> usize {
    left.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Whether `line`, which ends with a line break, is a line as the server writes it.
pub(super) fn is_line(line: &[u8]) -> bool {
    let text = &line[..line.len() - 1];
    Reports::check(text).is_ok_and(|reports| reports.as_bytes() == text)
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_valid_journal_contains_only_lines_and_zeros() {
        let bytes = b"{\"a\":1}\n{}\n\0\0\0\0";
        assert_eq!(JournalContent::of(bytes), JournalContent { lines: vec![&bytes[..11]], corrupt: vec![] });
        assert_eq!(JournalContent::of(b""), JournalContent::default());
        assert_eq!(JournalContent::of(b"\0\0"), JournalContent::default());
    }

    #[test]
    fn a_torn_line_ends_before_the_zeros() {
        let bytes = b"{\"a\":1}\n{\"b\":\0\0";
        assert_eq!(
            JournalContent::of(bytes),
            JournalContent { lines: vec![&bytes[..8]], corrupt: vec![(8, &bytes[8..13])] }
        );
    }

    #[test]
    fn lines_after_a_corrupt_line_are_valid() {
        let bytes = b"{}\n{\"a\":\x01}\n{}\nno\n";
        let content = JournalContent {
            lines: vec![&bytes[..3], &bytes[11..14]],
            corrupt: vec![(3, &bytes[3..11]), (14, &bytes[14..])],
        };
        assert_eq!(JournalContent::of(bytes), content);
    }

    #[test]
    fn a_journal_cut_anywhere_yields_exactly_its_complete_lines() {
        let bytes = b"{\"a\":1}\n{\"b\":[1,2]}\n{\"c\":\"x\"}\n";
        for cut in 0..bytes.len() {
            for zeros in [0, 5] {
                let mut journal = bytes[..cut].to_vec();
                journal.resize(cut + zeros, 0);
                let whole = memchr::memrchr(b'\n', &bytes[..cut]).map_or(0, |newline| newline + 1);
                let content = JournalContent::of(&journal);
                assert_eq!(content.lines.concat(), &bytes[..whole]);
                let corrupt: Vec<u8> = content.corrupt.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
                assert_eq!(corrupt, &bytes[whole..cut]);
            }
        }
    }
}
