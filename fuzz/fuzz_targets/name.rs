//! Parses any string as the name of a file in the data directory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netwatch_server::store::BatchId;

fuzz_target!(|name: &str| {
    if let Some(id) = BatchId::of_journal(name) {
        assert_eq!(id.journal(), name, "two names mean the same journal");
        assert_eq!(BatchId::of_report_file(name), None, "a journal counts as a report file");
        assert_eq!(BatchId::of_report_file(&id.report_file()), Some(id));
    }
    if let Some(id) = BatchId::of_report_file(name) {
        assert_eq!(id.report_file(), name, "two names mean the same report file");
        assert_eq!(BatchId::of_journal(name), None, "a report file counts as a journal");
        assert_eq!(BatchId::of_journal(&id.journal()), Some(id));
    }
});
