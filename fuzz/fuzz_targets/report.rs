//! Checks any bytes as the body of a request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netwatch_server::report::{Fault, Invalid, MAX_DEPTH, Position, Reports};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The errors of serde_json for valid JSON that it can't convert to values: numbers beyond the range of f64, and lone
/// surrogates. RFC 8259 allows both (sections 6 and 8.2).
const BEYOND_VALUES: [&str; 3] = ["number out of range", "lone leading surrogate", "unexpected end of hex escape"];

fuzz_target!(|body: &[u8]| {
    match Reports::check(body) {
        Ok(reports) => accepted(body, &reports),
        Err(invalid) => refused(body, &invalid),
    }
});

fn accepted(body: &[u8], reports: &Reports<'_>) {
    assert!(reports.as_bytes().len() <= body.len());
    let lines: Vec<_> = reports.as_bytes().split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), reports.count());
    let folded: Vec<_> = elements(body).iter().map(|element| element.replace(['\n', '\r'], " ").into_bytes()).collect();
    assert_eq!(lines, folded, "no other byte is touched");
    lines.into_iter().for_each(is_a_report);
    assert_eq!(Reports::check(reports.as_bytes()).as_ref(), Ok(reports), "the lines are a batch of the same reports");
}

/// The reports of an accepted body, found with methods that share little code with the check itself.
fn elements(body: &[u8]) -> Vec<&str> {
    let body = std::str::from_utf8(body).expect("UTF-8").trim_matches([' ', '\t', '\n', '\r']);
    if body.starts_with('[') {
        let array: Vec<&RawValue> = serde_json::from_str(body).expect("an array");
        return array.into_iter().map(RawValue::get).collect();
    }
    // Collects lines until they form one object.
    let (mut elements, mut start) = (Vec::new(), 0);
    let ends = body.match_indices('\n').map(|(at, _)| at).chain([body.len()]);
    for end in ends {
        let lines = body[start..end].trim_matches([' ', '\t', '\n', '\r']);
        if lines.is_empty() || is_json(lines.as_bytes()) {
            elements.extend((!lines.is_empty()).then_some(lines));
            start = end;
        }
    }
    assert_eq!(start, body.len(), "all of it is objects");
    elements
}

fn is_a_report(line: &[u8]) {
    match serde_json::from_slice::<Map<String, Value>>(line) {
        Ok(_) => {}
        Err(error) if BEYOND_VALUES.iter().any(|text| error.to_string().starts_with(text)) => {
            assert!(line.starts_with(b"{") && is_json(line));
        }
        Err(error) => panic!("no JSON object: {error}"),
    }
    assert!(first_too_deep(line).is_none(), "deeper than {MAX_DEPTH}");
    let one = Reports::check(line).expect("a line is a report");
    assert_eq!((one.as_bytes(), one.count()), (line, 1));
}

fn refused(body: &[u8], invalid: &Invalid) {
    let is_space = |byte: &u8| b" \t\n\r".contains(byte);
    let Some(position) = invalid.fault.position() else {
        let left: Vec<u8> = body.iter().copied().filter(|byte| !is_space(byte)).collect();
        assert!(left.is_empty() || left == b"[]");
        return;
    };
    let at = offset(body, position);
    assert!(at <= body.len(), "{position} is within the body");
    // The bytes before the fault are valid, although they may end within a batch.
    let rest = &body[at..];
    match &invalid.fault {
        Fault::Empty => unreachable!("it has no position"),
        Fault::NotUtf8(_) => {
            let error = std::str::from_utf8(body).expect_err("not UTF-8");
            assert_eq!(at, error.valid_up_to());
        }
        Fault::NotJson { .. } => {
            assert!(!is_json(body) && serde_json::from_slice::<Value>(body).is_err());
        }
        Fault::NotAnObject { .. } => {
            assert!(!is_space(&rest[0]) && rest[0] != b'{');
            assert!(first_value(rest).is_some(), "it is JSON all the same");
        }
        Fault::TooDeep(_) => {
            let element = (0..=at).rev().filter(|start| body[*start] == b'{').find_map(|start| {
                let value = first_value(&body[start..])?;
                (first_too_deep(value)? + start == at).then_some(value)
            });
            assert!(element.is_some(), "an object of which this is the first bracket too deep");
        }
    }
    match invalid.element {
        None => {}
        Some(element) => {
            // At least this many valid reports precede it, in an array or on lines. Their end is at the last byte.
            let before = &body[..(at + 1).min(body.len())];
            assert!(before.iter().filter(|byte| **byte == b'}').count() >= element, "{element} objects come before");
        }
    }
}

/// The JSON value at the start of `json`.
fn first_value(json: &[u8]) -> Option<&[u8]> {
    let mut values = serde_json::Deserializer::from_slice(json).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Some(&json[..values.byte_offset()]),
        // Tries every end, because any bytes may follow a number or a literal.
        _ => (1..json.len()).map(|end| &json[..end]).find(|value| is_json(value)),
    }
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

/// The offset of the first bracket in `json` that exceeds [`MAX_DEPTH`], found byte by byte.
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
