//! Reads any bytes as the journal of a crashed server.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netwatch_server::report::Reports;
use netwatch_server::store::JournalContent;

fuzz_target!(|bytes: &[u8]| {
    let (expected, content) = (Expected::of(bytes), JournalContent::of(bytes));
    assert_eq!(content.lines.concat(), expected.published);
    assert_eq!(content.reports(), expected.published.iter().filter(|byte| **byte == b'\n').count());
    let corrupt: Vec<u8> = content.corrupt.iter().flat_map(|(_, corrupt)| corrupt.iter().copied()).collect();
    assert_eq!(corrupt, expected.quarantined);
    for (offset, corrupt) in content.corrupt {
        assert_eq!(&bytes[offset..offset + corrupt.len()], corrupt, "the offset is wrong");
    }
    assert_eq!(JournalContent::of(&expected.published).corrupt, [], "published lines are valid");
});

/// The expected result of recovering a journal, computed line by line.
#[derive(Default)]
struct Expected {
    published: Vec<u8>,
    quarantined: Vec<u8>,
}

impl Expected {
    fn of(bytes: &[u8]) -> Self {
        let mut expected = Self::default();
        let mut zeros = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = &piece[piece.iter().take_while(|byte| **byte == 0).count()..];
            // Preallocated zeros can precede a line, and follow a line that was cut short.
            let torn = if line.ends_with(b"\n") { 0 } else { line.iter().rev().take_while(|byte| **byte == 0).count() };
            let line = &line[..line.len() - torn];
            zeros += piece.len() - line.len();
            let to = if is_line(line) { &mut expected.published } else { &mut expected.quarantined };
            to.extend_from_slice(line);
        }
        assert_eq!(expected.published.len() + expected.quarantined.len() + zeros, bytes.len(), "no byte is lost");
        expected
    }
}

fn is_line(bytes: &[u8]) -> bool {
    bytes.strip_suffix(b"\n").is_some_and(|text| Reports::check(text).is_ok_and(|report| report.as_bytes() == text))
}
