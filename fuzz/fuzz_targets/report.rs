//! Any bytes as the body of a request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netwatch_server::report::{Invalid, MAX_DEPTH, Position, Report};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// What serde_json says of JSON that it can't make values of: numbers that no f64 holds and lone surrogates. RFC 8259
/// allows both (sections 6 and 8.2).
const BEYOND_VALUES: [&str; 3] = ["number out of range", "lone leading surrogate", "unexpected end of hex escape"];

fuzz_target!(|body: &[u8]| {
    match Report::check(body) {
        Ok(report) => accepted(body, report.as_bytes()),
        Err(invalid) => refused(body, &invalid),
    }
});

fn accepted(body: &[u8], line: &[u8]) {
    let without_outer_space = std::str::from_utf8(body).expect("UTF-8").trim_matches([' ', '\t', '\n', '\r']);
    assert_eq!(line, without_outer_space.replace(['\n', '\r'], " ").as_bytes(), "no other byte is touched");

    // A way through serde_json that shares little with how reports are checked.
    match serde_json::from_slice::<Map<String, Value>>(line) {
        Ok(_) => {}
        Err(error) if BEYOND_VALUES.iter().any(|text| error.to_string().starts_with(text)) => {
            assert!(line.starts_with(b"{") && is_json(line));
        }
        Err(error) => panic!("no JSON object: {error}"),
    }
    assert!(first_too_deep(line).is_none(), "deeper than {MAX_DEPTH}");
    assert_eq!(Report::check(line).expect("a line is a report").as_bytes(), line);
}

fn refused(body: &[u8], invalid: &Invalid) {
    let is_space = |byte: &u8| b" \t\n\r".contains(byte);
    match invalid {
        Invalid::Empty => assert!(body.iter().all(is_space)),
        Invalid::NotUtf8(position) => {
            let error = std::str::from_utf8(body).expect_err("not UTF-8");
            assert_eq!(offset(body, *position), error.valid_up_to());
        }
        Invalid::NotJson { position, .. } => {
            assert!(!is_json(body) && serde_json::from_slice::<Value>(body).is_err());
            assert!(offset(body, *position) <= body.len(), "{position} is within the body");
        }
        Invalid::NotAnObject { position, .. } => {
            assert!(is_json(body));
            let first = body.iter().position(|byte| !is_space(byte)).expect("JSON is more than white space");
            assert_ne!(body[first], b'{');
            assert_eq!(offset(body, *position), first);
        }
        Invalid::TooDeep(position) => {
            assert!(is_json(body));
            assert_eq!(Some(offset(body, *position)), first_too_deep(body));
        }
    }
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

/// Where the first bracket stands in `json` that nests deeper than [`MAX_DEPTH`], counted one byte after the other.
fn first_too_deep(json: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    for (offset, byte) in json.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Some(offset);
        }
    }
    None
}

fn offset(body: &[u8], position: Position) -> usize {
    let lines_before = body.split_inclusive(|byte| *byte == b'\n').take(position.line - 1);
    lines_before.map(<[u8]>::len).sum::<usize>() + position.column - 1
}
