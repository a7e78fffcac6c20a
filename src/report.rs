//! From bytes to checked one-line reports.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// How deep arrays and objects may nest, the outermost one counted: as deep as serde_json will follow when it makes
/// values of them.
pub const MAX_DEPTH: usize = 127;

/// One JSON object on one line, without its line break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a>(Cow<'a, [u8]>);

/// A place in a body, for a person to find: both count from 1, the column in bytes. Within a string serde_json may name
/// the byte before the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line within the body.
    pub line: usize,
    /// The byte within the line.
    pub column: usize,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

/// Why a body is no report.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Nothing but white space.
    #[error("the body is empty")]
    Empty,
    /// Not UTF-8.
    #[error("the body is not UTF-8 from {0} on")]
    NotUtf8(Position),
    /// Not JSON as RFC 8259 has it.
    #[error("{reason} at {position}")]
    NotJson {
        /// What is wrong.
        reason: String,
        /// Where.
        position: Position,
    },
    /// JSON, but no object.
    #[error("the body is {found}, not an object, at {position}")]
    NotAnObject {
        /// What it is instead, with its article.
        found: &'static str,
        /// Where it begins.
        position: Position,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("arrays and objects nest deeper than {MAX_DEPTH} at {0}")]
    TooDeep(Position),
}

impl<'a> Report<'a> {
    /// Checks that `body` is one JSON object (RFC 8259, strictly) in UTF-8, nested no deeper than [`MAX_DEPTH`].
    ///
    /// White space around the object is left out and line breaks within it become spaces, one for one; otherwise the
    /// bytes stay as they are, numbers and duplicate names too. Without a line break nothing is copied.
    ///
    /// # Errors
    /// [`Invalid`], with the position of the first fault.
    pub fn check(body: &'a [u8]) -> Result<Self, Invalid> {
        let trimmed = trim(body);
        if trimmed.is_empty() {
            return Err(Invalid::Empty);
        }
        // serde_json checks the UTF-8 only of strings that somebody wants to have.
        if simdutf8::basic::from_utf8(body).is_err() {
            let valid = simdutf8::compat::from_utf8(body).map_or_else(|error| error.valid_up_to(), str::len);
            return Err(Invalid::NotUtf8(position(body, valid)));
        }
        serde_json::from_slice::<IgnoredAny>(body).map_err(|error| not_json(&error))?;
        if trimmed[0] != b'{' {
            let start = trimmed.as_ptr().addr() - body.as_ptr().addr();
            return Err(Invalid::NotAnObject { found: kind(trimmed[0]), position: position(body, start) });
        }
        if let Some(offset) = too_deep(body) {
            return Err(Invalid::TooDeep(position(body, offset)));
        }
        Ok(Self(fold(trimmed)))
    }

    /// The report's line, without a line break.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Without the white space of RFC 8259 at both ends.
fn trim(body: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = body.iter().position(|byte| !is_space(byte)).unwrap_or(body.len());
    let end = body.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &body[start..end]
}

/// Turns line breaks into spaces. Within valid JSON they stand only between tokens, where either is white space.
fn fold(json: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'\n', b'\r', json).is_none() {
        return Cow::Borrowed(json);
    }
    Cow::Owned(json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect())
}

/// The offset of the bracket that nests too deep in `json`, which is valid.
fn too_deep(json: &[u8]) -> Option<usize> {
    // Where nesting is too deep, more than MAX_DEPTH brackets have been opened before and as many are closed after.
    // Counting them, those within strings too, takes a vector instruction for many bytes and acquits most reports.
    let mut opened = 0;
    for (index, chunk) in json.chunks(CHUNK_BYTES).enumerate() {
        opened += count(chunk, b'{');
        if opened > MAX_DEPTH {
            let rest = &json[index * CHUNK_BYTES..];
            let closed: usize = rest.chunks(CHUNK_BYTES).map(|chunk| count(chunk, b'}')).sum();
            return if closed > MAX_DEPTH { first_too_deep(json) } else { None };
        }
    }
    None
}

/// As many bytes as can be counted in one byte.
const CHUNK_BYTES: usize = 255;

/// Counts a bracket, given as the curly one, and its square brother, which differs in one bit.
fn count(chunk: &[u8], bracket: u8) -> usize {
    usize::from(chunk.iter().map(|byte| u8::from(byte | 0x20 == bracket)).sum::<u8>())
}

/// The same as [`too_deep`], from one bracket to the next.
fn first_too_deep(json: &[u8]) -> Option<usize> {
    let (mut depth, mut offset) = (0_usize, 0);
    while offset < json.len() {
        match json[offset] {
            b'"' => offset += string_bytes(&json[offset + 1..]),
            b'{' | b'[' if depth == MAX_DEPTH => return Some(offset),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        offset += 1;
    }
    None
}

/// The length of a string in valid JSON that begins behind its first quotation mark, with its last one.
fn string_bytes(json: &[u8]) -> usize {
    let mut offset = 0;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &json[offset..]) {
        offset += found + 1;
        if json[offset - 1] == b'"' {
            break;
        }
        offset += 1; // what is escaped
    }
    offset
}

/// What a valid JSON text is that begins with `first`.
fn kind(first: u8) -> &'static str {
    match first {
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}

fn not_json(error: &serde_json::Error) -> Invalid {
    let text = error.to_string();
    // The position has fields of its own here.
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    // serde_json puts the end of an empty line at column 0.
    let position = Position { line: error.line(), column: error.column().max(1) };
    Invalid::NotJson { reason: reason.to_owned(), position }
}

fn position(body: &[u8], offset: usize) -> Position {
    let before = &body[..offset];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    Position { line: memchr::memchr_iter(b'\n', before).count() + 1, column: offset - line_start + 1 }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn at(line: usize, column: usize) -> Position {
        Position { line, column }
    }

    #[test]
    fn an_object_is_kept_byte_for_byte() {
        for body in [
            r"{}",
            r#"{"a":1,"a":2}"#,
            r#"{ "n" : [ 1e999, -0.0, 12345678901234567890123 ] , "s":"\u0000\ud800 é 💡"}"#,
            "{\"separators that are no line breaks\":\"\u{2028}\u{2029}\u{85}\"}",
        ] {
            let report = Report::check(body.as_bytes()).unwrap();
            assert_eq!(report.as_bytes(), body.as_bytes());
            assert!(matches!(report.0, Cow::Borrowed(_)));
        }
    }

    #[test]
    fn white_space_around_goes_and_line_breaks_within_become_spaces() {
        let report = Report::check(b"\r\n {\r\n\t\"a\": [1,\n2],\r\"b\":\"\\n\"\n} \t\n").unwrap();
        assert_eq!(report.as_bytes(), b"{  \t\"a\": [1, 2], \"b\":\"\\n\" }");
    }

    #[test]
    fn a_body_without_anything_is_empty() {
        assert_eq!(Report::check(b""), Err(Invalid::Empty));
        assert_eq!(Report::check(b" \r\n\t"), Err(Invalid::Empty));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_found_wherever_they_are() {
        assert_eq!(Report::check(b"{\"a\":\"\xff\"}"), Err(Invalid::NotUtf8(at(1, 7))));
        assert_eq!(Report::check(b"{\n\"\xc3\"}"), Err(Invalid::NotUtf8(at(2, 2))));
        // CESU-8 surrogates and overlong forms
        assert!(matches!(Report::check(b"{\"a\":\"\xed\xa0\x80\"}"), Err(Invalid::NotUtf8(_))));
        assert!(matches!(Report::check(b"{\"a\":\"\xc0\xaf\"}"), Err(Invalid::NotUtf8(_))));
    }

    #[test]
    fn what_is_not_json_is_refused_with_the_position_of_the_fault() {
        for (body, line, column) in [
            (&b"hello"[..], 1, 1),
            (b"{\"a\":1", 1, 6),
            (b"{\"a\":}", 1, 6),
            (b"{\"a\":1,}", 1, 8),
            (b"{'a':1}", 1, 2),
            (b"{\"a\":01}", 1, 7),
            (b"{\"a\":1.}", 1, 8),
            (b"{\"a\":+1}", 1, 6),
            (b"{\"a\":NaN}", 1, 6),
            (b"{\n\"a\": tru}", 2, 9),
            (b"{} {}", 1, 4),
            (b"{}\n{}", 2, 1),
            (b"{\"a\":\"\t\"}", 1, 6),
            (b"{\"a\":\"\\x\"}", 1, 8),
            (b"{\"a\":\"\\u12\"}", 1, 12),
            (b"// c\n{}", 1, 1),
            (b"\xef\xbb\xbf{}", 1, 1),
            (b"{}\0", 1, 3),
            (b"\x0c{}", 1, 1),
            (b"{\n", 2, 1),
        ] {
            match Report::check(body) {
                Err(Invalid::NotJson { reason, position }) => {
                    assert_eq!(position, at(line, column), "{:?}: {reason}", body.escape_ascii().to_string());
                    assert!(!reason.is_empty() && !reason.contains("column"), "{reason}");
                }
                other => panic!("{:?}: {other:?}", body.escape_ascii().to_string()),
            }
        }
    }

    #[test]
    fn json_that_is_no_object_is_told_what_it_is() {
        for (body, found) in [
            (&b"[{}]"[..], "an array"),
            (b"\"{}\"", "a string"),
            (b"true", "a boolean"),
            (b"null", "null"),
            (b"-12.5", "a number"),
        ] {
            assert_eq!(Report::check(body), Err(Invalid::NotAnObject { found, position: at(1, 1) }));
        }
        assert_eq!(Report::check(b"\n 1"), Err(Invalid::NotAnObject { found: "a number", position: at(2, 2) }));
    }

    #[test]
    fn depth_is_bounded_and_brackets_within_strings_do_not_count() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Report::check(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH)).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH + 1)).is_err());
        assert_eq!(
            Report::check(nested(MAX_DEPTH + 1).as_bytes()),
            Err(Invalid::TooDeep(at(1, "{\"a\":".len() + MAX_DEPTH)))
        );
        let late = format!("{{\"wide\":[{}0],\"a\":{}}}", "[],".repeat(1_000), nested(MAX_DEPTH));
        assert!(matches!(Report::check(late.as_bytes()), Err(Invalid::TooDeep(at)) if at.column > 3_000));
        let wide = format!("{{\"a\":[{}0]}}", "[],{},".repeat(1_000));
        assert!(Report::check(wide.as_bytes()).is_ok());
        let strings = format!("{{\"a\":\"\\\"{}\\\\\",\"b\":[]}}", "[{".repeat(1_000));
        assert!(Report::check(strings.as_bytes()).is_ok());
    }

    /// The depth of a value, and with it what [`too_deep`] should say, found another way.
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
            Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn very_deep_nesting_does_not_exhaust_the_stack() {
        let body = format!("{{\"a\":{}{}}}", "[".repeat(500_000), "]".repeat(500_000));
        assert!(matches!(Report::check(body.as_bytes()), Err(Invalid::TooDeep(_))));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                proptest::collection::btree_map(".*", inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_object_is_accepted_and_means_the_same_on_one_line(
            map in proptest::collection::btree_map(".*", json(), 0..8),
            pretty in any::<bool>(),
        ) {
            let value = Value::Object(map.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let report = Report::check(text.as_bytes()).unwrap();
            prop_assert!(!report.as_bytes().contains(&b'\n') && !report.as_bytes().contains(&b'\r'));
            prop_assert_eq!(report.as_bytes().len(), text.len());
            let folded: Value = serde_json::from_slice(report.as_bytes()).unwrap();
            let sent: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(folded, sent);
        }

        #[test]
        fn no_bytes_whatever_make_a_report_that_is_not_one_line_of_json(body in "[\\[\\]{}\",:0-9a-z\\\\ \n\r\t]{0,40}") {
            if let Ok(report) = Report::check(body.as_bytes()) {
                let value: Value = serde_json::from_slice(report.as_bytes()).unwrap();
                prop_assert!(value.is_object());
                prop_assert!(!report.as_bytes().contains(&b'\n') && !report.as_bytes().contains(&b'\r'));
            }
        }
    }

    proptest! {
        // Each case is some kilobytes.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_depth_that_is_found_is_the_depth(
            below in proptest::collection::vec((json(), any::<bool>(), 0..4_usize), 100..160),
        ) {
            // Each level holds the next one between brackets that go no deeper.
            let deep = below.into_iter().fold(Value::Null, |inner, (beside, object, wide)| {
                let beside = if wide == 0 && depth(&beside) < 3 { beside } else { "]}[{\\\"".repeat(wide).into() };
                if object { serde_json::json!({ "beside": beside, "inner": inner }) } else { serde_json::json!([beside, inner]) }
            });
            let value = serde_json::json!({ "a": deep });
            let found = Report::check(value.to_string().as_bytes()).map(|_| ());
            prop_assert_eq!(found.is_ok(), depth(&value) <= MAX_DEPTH, "{:?}", found);
        }
    }
}
