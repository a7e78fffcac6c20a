//! Parses any string as the name of a file in the data directory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netwatch_server::store::Stem;

fuzz_target!(|name: &str| {
    if let Some(stem) = Stem::of_journal(name) {
        assert_eq!(stem.journal(), name, "no two names are taken for one journal");
        assert_eq!(Stem::of_report_file(name), None, "no journal is taken for a report file");
        assert_eq!(Stem::of_report_file(&stem.report_file()), Some(stem));
    }
    if let Some(stem) = Stem::of_report_file(name) {
        assert_eq!(stem.report_file(), name, "no two names are taken for one report file");
        assert_eq!(Stem::of_journal(name), None, "no report file is taken for a journal");
        assert_eq!(Stem::of_journal(&stem.journal()), Some(stem));
    }
});
