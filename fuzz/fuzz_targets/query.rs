//! Filters, paths and times from users: each is valid or an error, and never a panic.
//!
//! The input is a text and a report, separated by a zero. A filter also runs on the report, unless it could run for ever.

#![no_main]

use std::ops::ControlFlow;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use netwatch_server::query::{Filter, Path, parse_time};
use netwatch_server::report::Reports;

/// The only words of filters that run. Without others, there is no recursion and no loop.
const HARMLESS: [&str; 8] = ["", "and", "or", "not", "true", "false", "null", "select"];

/// Outputs of one filter. Nested `[]` and `,` multiply.
const MAX_OUTPUTS: usize = 1000;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(text), report) = (parts.next(), parts.next().unwrap_or(b"{}")) else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(path) = text.parse::<Path>() {
        assert_eq!(path.to_string().parse(), Ok(path), "{text:?}");
    }
    let now = Timestamp::from_second(1_795_000_000).unwrap();
    if let Ok(time) = parse_time(text, now) {
        assert_eq!(parse_time(&time.to_string(), now), Ok(time), "{text:?}");
    }
    let Ok(filter) = Filter::parse(text) else { return };
    let Ok(reports) = Reports::check(report) else { return };
    let words = text.split(|letter: char| !letter.is_ascii_alphabetic());
    let is_harmless = words.into_iter().all(|word| word.len() == 1 || HARMLESS.contains(&word));
    if is_harmless && !text.contains("..") && text.len() < 200 {
        let line = reports.as_bytes().split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut outputs = 0;
        let _ = filter.evaluator().run(line, |_| {
            outputs += 1;
            if outputs < MAX_OUTPUTS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
});
