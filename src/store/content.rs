//! What the bytes of a journal are: lines, preallocated zeros, and what is neither.

use crate::report::Reports;

/// A journal's bytes, told apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content<'a> {
    /// Runs of complete, valid lines.
    pub lines: Vec<&'a [u8]>,
    /// What is neither that nor preallocated, with its offset.
    pub rest: Vec<(usize, &'a [u8])>,
}

impl<'a> Content<'a> {
    /// Tells apart what `bytes` hold: every one of them is in a line, in the rest, or zero.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        let mut content = Self::default();
        let mut offset = 0;
        // Where the run of valid lines that ends at `offset` began.
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
            // Zeros to the end, or to the next line that may be one.
            let zeros = left.iter().take_while(|byte| **byte == 0).count();
            let bad = if zeros > 0 { 0 } else { end.unwrap_or_else(|| torn_len(left)) };
            content.rest.extend((bad > 0).then(|| (offset, &left[..bad])));
            offset += bad.max(zeros);
            run = offset;
        }
        content.lines.extend((run < offset).then(|| &bytes[run..offset]));
        content
    }

    /// How many lines there are.
    #[must_use]
    pub fn reports(&self) -> usize {
        self.lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum()
    }
}

/// The length of a line that has no end: up to the zeros that follow it, if only those do.
fn torn_len(left: &[u8]) -> usize {
    left.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Whether these bytes, with their line break, are a line as the server writes them.
fn is_line(line: &[u8]) -> bool {
    let text = &line[..line.len() - 1];
    Reports::check(text).is_ok_and(|reports| reports.as_bytes() == text)
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn lines_and_zeros_are_all_that_a_sound_journal_holds() {
        let bytes = b"{\"a\":1}\n{}\n\0\0\0\0";
        assert_eq!(Content::of(bytes), Content { lines: vec![&bytes[..11]], rest: vec![] });
        assert_eq!(Content::of(b""), Content::default());
        assert_eq!(Content::of(b"\0\0"), Content::default());
    }

    #[test]
    fn a_torn_tail_is_told_from_the_zeros_behind_it() {
        let bytes = b"{\"a\":1}\n{\"b\":\0\0";
        assert_eq!(Content::of(bytes), Content { lines: vec![&bytes[..8]], rest: vec![(8, &bytes[8..13])] });
    }

    #[test]
    fn what_follows_a_line_that_is_none_is_kept() {
        let bytes = b"{}\n{\"a\":\x01}\n{}\nno\n";
        let content =
            Content { lines: vec![&bytes[..3], &bytes[11..14]], rest: vec![(3, &bytes[3..11]), (14, &bytes[14..])] };
        assert_eq!(Content::of(bytes), content);
    }

    #[test]
    fn a_journal_cut_anywhere_gives_its_whole_lines_and_no_others() {
        let bytes = b"{\"a\":1}\n{\"b\":[1,2]}\n{\"c\":\"x\"}\n";
        for cut in 0..bytes.len() {
            for zeros in [0, 5] {
                let mut journal = bytes[..cut].to_vec();
                journal.resize(cut + zeros, 0);
                let whole = memchr::memrchr(b'\n', &bytes[..cut]).map_or(0, |newline| newline + 1);
                let content = Content::of(&journal);
                assert_eq!(content.lines.concat(), &bytes[..whole]);
                let rest: Vec<u8> = content.rest.iter().flat_map(|(_, rest)| rest.to_vec()).collect();
                assert_eq!(rest, &bytes[whole..cut]);
            }
        }
    }
}
