//! From bytes to checked one-line reports.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer as _, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// How deep arrays and objects may nest, the outermost one counted: as deep as serde_json will follow when it makes
/// values of them.
pub const MAX_DEPTH: usize = 127;

/// The reports of one request: JSON objects, each on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reports<'a> {
    lines: Cow<'a, [u8]>,
    count: usize,
}

/// A place in a body, for a person to find: both count from 1, the column in bytes. Within a string serde_json may name
/// the byte before the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line within the body.
    pub line: usize,
    /// The byte within the line.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

/// Why a body holds no reports: its first fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}{}", element.map_or_else(String::new, |element| format!(", in element {element} of the batch")))]
pub struct Invalid {
    /// What is wrong.
    pub fault: Fault,
    /// Which element of a batch it is in, the first being 0; `None` if the body is no batch, or not known for one.
    pub element: Option<usize>,
}

/// What may be wrong with a body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing but white space, or an empty array.
    #[error("there is no report in the body")]
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
    #[error("{found} is no object, at {position}")]
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

impl Fault {
    /// Where it is; `None` for a body without anything.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Empty => None,
            Self::NotUtf8(position) | Self::TooDeep(position) => Some(*position),
            Self::NotJson { position, .. } | Self::NotAnObject { position, .. } => Some(*position),
        }
    }
}

impl<'a> Reports<'a> {
    /// Checks that `body` holds JSON objects (RFC 8259, strictly) in UTF-8, each nested no deeper than [`MAX_DEPTH`]:
    /// one, several of which each begins on a new line, or an array of them. All of them are sound, or it is refused.
    ///
    /// White space around objects is left out and line breaks within them become spaces, one for one; otherwise the
    /// bytes stay as they are, numbers and duplicate names too. What comes out is never longer than `body`. If it is a
    /// piece of it, nothing is copied: one object without a line break is, and many with just one line break between
    /// them.
    ///
    /// # Errors
    /// [`Invalid`], for the first fault.
    pub fn check(body: &'a [u8]) -> Result<Self, Invalid> {
        // serde_json checks the UTF-8 only of strings that somebody wants to have.
        let text = simdutf8::basic::from_utf8(body).map_err(|_| not_utf8(body))?;
        let mut reports = Self { lines: Cow::Borrowed(&[]), count: 0 };
        let mut kept = 0..0;
        each(text, |element| {
            let report = &body[element.clone()];
            if report[0] != b'{' {
                let position = position(body, element.start);
                return Err(Fault::NotAnObject { found: kind(report[0]), position });
            }
            if let Some(offset) = too_deep(report) {
                return Err(Fault::TooDeep(position(body, element.start + offset)));
            }
            reports.push(body, &mut kept, element);
            Ok(())
        })?;
        match reports.count {
            0 => Err(Invalid { fault: Fault::Empty, element: None }),
            _ => Ok(reports),
        }
    }

    /// The same reports with other members, one on each line still.
    pub(crate) fn stamped(lines: Vec<u8>, count: usize) -> Self {
        Self { lines: Cow::Owned(lines), count }
    }

    /// The lines, without the last one's line break.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.lines
    }

    /// How many there are, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds the report that stands at `element` in `body`. `kept` is the piece of `body` that the lines are so far, as
    /// long as they are one.
    fn push(&mut self, body: &'a [u8], kept: &mut Range<usize>, element: Range<usize>) {
        let report = &body[element.clone()];
        let is_one_line = memchr::memchr2(b'\n', b'\r', report).is_none();
        let is_next = self.count == 0 || (element.start == kept.end + 1 && body[kept.end] == b'\n');
        self.count += 1;
        match &mut self.lines {
            Cow::Borrowed(lines) if is_one_line && is_next => {
                let start = if self.count == 1 { element.start } else { kept.start };
                *kept = start..element.end;
                *lines = &body[kept.clone()];
            }
            lines => {
                if let Cow::Borrowed(before) = lines {
                    // No more than this is to come: each line break takes the place of at least one byte.
                    let mut copy = Vec::with_capacity(before.len() + 1 + body.len() - element.start);
                    copy.extend_from_slice(before);
                    *lines = Cow::Owned(copy);
                }
                let lines = lines.to_mut();
                if self.count > 1 {
                    lines.push(b'\n');
                }
                lines.extend(report.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
            }
        }
    }
}

/// Walks over the elements of a body, objects or not: each is handed to `take` by its place. Stops at the first fault.
fn each(text: &str, take: impl FnMut(Range<usize>) -> Result<(), Fault>) -> Result<(), Invalid> {
    match text[blank_bytes(text)..].starts_with('[') {
        true => each_of_array(text, take),
        false => each_of_lines(text, take),
    }
}

/// [`each`] for values of which each begins on a new line. There may be one only.
fn each_of_lines(text: &str, mut take: impl FnMut(Range<usize>) -> Result<(), Fault>) -> Result<(), Invalid> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    for index in 0.. {
        let end = values.byte_offset();
        let start = end + blank_bytes(&text[end..]);
        if start == text.len() {
            break;
        }
        // One line with several values is a mistake rather than a batch.
        if index > 0 && !text[end..start].contains('\n') {
            let fault =
                Fault::NotJson { reason: "trailing characters".to_owned(), position: position(text.as_bytes(), start) };
            return Err(Invalid { fault, element: (index > 1).then_some(index - 1) });
        }
        if let Some(Err(error)) = values.next() {
            return Err(Invalid { fault: not_json(&error), element: (index > 0).then_some(index) });
        }
        let end = values.byte_offset();
        take(start..end).map_err(|fault| {
            let is_batch = index > 0 || end + blank_bytes(&text[end..]) < text.len();
            Invalid { fault, element: is_batch.then_some(index) }
        })?;
    }
    Ok(())
}

/// [`each`] for one array.
fn each_of_array(text: &str, take: impl FnMut(Range<usize>) -> Result<(), Fault>) -> Result<(), Invalid> {
    struct Elements<'a, F> {
        text: &'a str,
        take: F,
        taken: usize,
        fault: Option<Fault>,
    }

    impl<'de, F: FnMut(Range<usize>) -> Result<(), Fault>> Visitor<'de> for &mut Elements<'de, F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
            while let Some(element) = array.next_element::<&RawValue>()? {
                let start = element.get().as_ptr().addr() - self.text.as_ptr().addr();
                (self.take)(start..start + element.get().len()).map_err(|fault| {
                    self.fault = Some(fault);
                    A::Error::custom("the array is of no use")
                })?;
                self.taken += 1;
            }
            Ok(())
        }
    }

    let mut elements = Elements { text, take, taken: 0, fault: None };
    let mut array = serde_json::Deserializer::from_str(text);
    if let Err(error) = array.deserialize_seq(&mut elements) {
        let fault = elements.fault.unwrap_or_else(|| not_json(&error));
        return Err(Invalid { fault, element: Some(elements.taken) });
    }
    array.end().map_err(|error| Invalid { fault: not_json(&error), element: None })
}

/// The length of the white space of RFC 8259 that `text` begins with.
fn blank_bytes(text: &str) -> usize {
    text.bytes().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(text.len())
}

/// What is wrong with a body that is not UTF-8: that, unless there is another fault before.
fn not_utf8(body: &[u8]) -> Invalid {
    let valid_bytes = simdutf8::compat::from_utf8(body).map_or_else(|error| error.valid_up_to(), str::len);
    let fault = Fault::NotUtf8(position(body, valid_bytes));
    // The body breaks off there, which is a fault of its own, found at the last byte or behind it.
    let before = &body[..valid_bytes];
    let last = position(before, valid_bytes.saturating_sub(1));
    match Reports::check(before) {
        Err(earlier) if earlier.fault.position().is_some_and(|position| position < last) => earlier,
        Err(Invalid { element, .. }) => Invalid { fault, element },
        Ok(reports) => Invalid { fault, element: Some(reports.count) },
    }
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

fn not_json(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    // The position has fields of its own here.
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    // serde_json puts the end of an empty line at column 0.
    let position = Position { line: error.line(), column: error.column().max(1) };
    Fault::NotJson { reason: reason.to_owned(), position }
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

    /// The lines, and whether they are the body's own bytes.
    fn lines(body: &str) -> (Vec<String>, bool) {
        let reports = Reports::check(body.as_bytes()).unwrap_or_else(|invalid| panic!("{body:?}: {invalid}"));
        let lines: Vec<_> = std::str::from_utf8(reports.as_bytes()).unwrap().split('\n').map(str::to_owned).collect();
        assert_eq!(lines.len(), reports.count());
        (lines, matches!(reports.lines, Cow::Borrowed(_)))
    }

    /// The fault of a body that is no batch.
    fn fault(body: &[u8]) -> Fault {
        let invalid = Reports::check(body).unwrap_err();
        assert_eq!(invalid.element, None, "{invalid}");
        invalid.fault
    }

    #[test]
    fn an_object_is_kept_byte_for_byte() {
        for body in [
            r"{}",
            r#"{"a":1,"a":2}"#,
            r#"{ "n" : [ 1e999, -0.0, 12345678901234567890123 ] , "s":"\u0000\ud800 é 💡"}"#,
            "{\"separators that are no line breaks\":\"\u{2028}\u{2029}\u{85}\"}",
        ] {
            let report = Reports::check(body.as_bytes()).unwrap();
            assert_eq!(report.as_bytes(), body.as_bytes());
            assert!(matches!(report.lines, Cow::Borrowed(_)));
            assert_eq!(report.count(), 1);
        }
    }

    #[test]
    fn white_space_around_goes_and_line_breaks_within_become_spaces() {
        let report = Reports::check(b"\r\n {\r\n\t\"a\": [1,\n2],\r\"b\":\"\\n\"\n} \t\n").unwrap();
        assert_eq!(report.as_bytes(), b"{  \t\"a\": [1, 2], \"b\":\"\\n\" }");
    }

    #[test]
    fn a_body_without_anything_is_empty() {
        assert_eq!(fault(b""), Fault::Empty);
        assert_eq!(fault(b" \r\n\t"), Fault::Empty);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_found_wherever_they_are() {
        assert_eq!(fault(b"{\"a\":\"\xff\"}"), Fault::NotUtf8(at(1, 7)));
        assert_eq!(fault(b"{\n\"\xc3\"}"), Fault::NotUtf8(at(2, 2)));
        // CESU-8 surrogates and overlong forms
        assert!(matches!(fault(b"{\"a\":\"\xed\xa0\x80\"}"), Fault::NotUtf8(_)));
        assert!(matches!(fault(b"{\"a\":\"\xc0\xaf\"}"), Fault::NotUtf8(_)));
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
            (b"[{}] {}", 1, 6),
            (b"[{}]\n[{}]", 2, 1),
            (b"{\"a\":\"\t\"}", 1, 6),
            (b"{\"a\":\"\\x\"}", 1, 8),
            (b"{\"a\":\"\\u12\"}", 1, 12),
            (b"// c\n{}", 1, 1),
            (b"\xef\xbb\xbf{}", 1, 1),
            (b"{}\0", 1, 3),
            (b"\x0c{}", 1, 1),
            (b"{\n", 2, 1),
        ] {
            match fault(body) {
                Fault::NotJson { reason, position } => {
                    assert_eq!(position, at(line, column), "{:?}: {reason}", body.escape_ascii().to_string());
                    assert!(!reason.is_empty() && !reason.contains("column"), "{reason}");
                }
                other => panic!("{:?}: {other:?}", body.escape_ascii().to_string()),
            }
        }
    }

    #[test]
    fn json_that_is_no_object_is_told_what_it_is() {
        for (body, found) in
            [(&b"\"{}\""[..], "a string"), (b"true", "a boolean"), (b"null", "null"), (b"-12.5", "a number")]
        {
            assert_eq!(fault(body), Fault::NotAnObject { found, position: at(1, 1) });
        }
        assert_eq!(fault(b"\n 1"), Fault::NotAnObject { found: "a number", position: at(2, 2) });
    }

    #[test]
    fn depth_is_bounded_and_brackets_within_strings_do_not_count() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Reports::check(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH)).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH + 1)).is_err());
        assert_eq!(fault(nested(MAX_DEPTH + 1).as_bytes()), Fault::TooDeep(at(1, "{\"a\":".len() + MAX_DEPTH)));
        let late = format!("{{\"wide\":[{}0],\"a\":{}}}", "[],".repeat(1_000), nested(MAX_DEPTH));
        assert!(matches!(fault(late.as_bytes()), Fault::TooDeep(at) if at.column > 3_000));
        let wide = format!("{{\"a\":[{}0]}}", "[],{},".repeat(1_000));
        assert!(Reports::check(wide.as_bytes()).is_ok());
        let strings = format!("{{\"a\":\"\\\"{}\\\\\",\"b\":[]}}", "[{".repeat(1_000));
        assert!(Reports::check(strings.as_bytes()).is_ok());
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
        assert!(matches!(fault(body.as_bytes()), Fault::TooDeep(_)));
        let body = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
        let found = Fault::NotAnObject { found: "an array", position: at(1, 2) };
        assert_eq!(Reports::check(body.as_bytes()), Err(Invalid { fault: found, element: Some(0) }));
    }

    #[test]
    fn an_array_of_objects_becomes_as_many_lines() {
        assert_eq!(lines(r#"[{"a":1},{"b":[{}, 2]}]"#).0, [r#"{"a":1}"#, r#"{"b":[{}, 2]}"#]);
        assert_eq!(lines("\n[ {} ,\n{\r\n\"a\":\n1}\t]\r\n").0, ["{}", "{  \"a\": 1}"]);
        assert_eq!(lines(" [ {\"a\":1} ] "), (vec!["{\"a\":1}".to_owned()], true), "one is a piece of the body");
        assert_eq!(fault(b" [ ] "), Fault::Empty);
    }

    #[test]
    fn objects_that_each_begin_on_a_new_line_become_as_many_lines() {
        let two = vec!["{\"a\":1}".to_owned(), "{}".to_owned()];
        for body in ["{\"a\":1}\n{}", "{\"a\":1}\n{}\n", "\n\n {\"a\":1}\n{} "] {
            assert_eq!(lines(body), (two.clone(), true), "{body:?} is not copied");
        }
        for body in ["{\"a\":1}\r\n{}\r\n", "{\"a\":1}\n\n{}", "{\"a\":1}\n {}", "{\"a\":1} \n{}"] {
            assert_eq!(lines(body), (two.clone(), false), "{body:?}");
        }
        assert_eq!(lines("{}\n{\n}\n{}\n\n{}").0, ["{}", "{ }", "{}", "{}"]);
    }

    #[test]
    fn what_comes_out_needs_no_more_room_than_the_body_took() {
        for body in ["[{},{},{}]", "{}\n\n{}\n{}", "[{\n},{}]", "{\n}"] {
            let reports = Reports::check(body.as_bytes()).unwrap();
            assert!(reports.as_bytes().len() <= body.len());
            let Cow::Owned(lines) = reports.lines else { panic!("{body:?} is not copied") };
            assert!(lines.capacity() <= body.len() + 1, "{body:?}: {}", lines.capacity());
        }
    }

    #[test]
    fn the_fault_of_a_batch_is_told_with_its_element_and_its_place_in_the_body() {
        let deep = format!("{{}}\n{{\"a\":{}{}}}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        for (body, element, line, column) in [
            (&b"[1]"[..], 0, 1, 2),
            (b"[{},\n {},\n null]", 2, 3, 2),
            (b"[{},[{}]]", 1, 1, 5),
            (b"[{},{\"a\":01}]", 1, 1, 11),
            (b"[{},]", 1, 1, 5),
            (b"[{} {}]", 1, 1, 5),
            (b"[{}", 1, 1, 3),
            (b"[{},\n{\"a\":\"\xff\"}]", 1, 2, 7),
            (b"{}\n\n{\"a\":}", 1, 3, 6),
            (b"{}\nhello", 1, 2, 1),
            (b"{}\n[{}]", 1, 2, 1),
            (b"1\n{}", 0, 1, 1),
            (b"{}\n{} {}", 1, 2, 4),
            (b"{}\n{}\n{\"a\":\"\xff\"}", 2, 3, 7),
            (b"{}\n\xff", 1, 2, 1),
            (b"[{},1,{\"a\":\"\xff\"}]", 1, 1, 5),
            (deep.as_bytes(), 1, 2, 132),
        ] {
            let invalid = Reports::check(body).unwrap_err();
            let told = format!("line {line} column {column}");
            assert_eq!(invalid.element, Some(element), "{:?}: {invalid}", body.escape_ascii().to_string());
            assert_eq!(
                invalid.fault.position(),
                Some(at(line, column)),
                "{:?}: {invalid}",
                body.escape_ascii().to_string()
            );
            assert!(invalid.to_string().contains(&told), "{invalid}");
            assert!(invalid.to_string().ends_with(&format!(", in element {element} of the batch")), "{invalid}");
        }
    }

    /// White space, with a line break in it if it has to be.
    fn blank(with_line_break: bool) -> impl Strategy<Value = String> {
        let any = "[ \t\r\n]{0,3}";
        if with_line_break { (any, any).prop_map(|(a, b)| format!("{a}\n{b}")).boxed() } else { any.boxed() }
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
            let report = Reports::check(text.as_bytes()).unwrap();
            prop_assert!(!report.as_bytes().contains(&b'\n') && !report.as_bytes().contains(&b'\r'));
            prop_assert_eq!(report.as_bytes().len(), text.len());
            let folded: Value = serde_json::from_slice(report.as_bytes()).unwrap();
            let sent: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(folded, sent);
        }

        #[test]
        fn a_batch_in_any_layout_gives_the_lines_that_its_objects_give_one_by_one(
            objects in proptest::collection::vec(
                (proptest::collection::btree_map(".*", json(), 0..4), any::<bool>(), blank(false), blank(true)),
                1..6,
            ),
            (before, after) in (blank(false), blank(false)),
        ) {
            let texts: Vec<_> = objects
                .iter()
                .map(|(map, pretty, _, _)| {
                    let text = if *pretty { serde_json::to_string_pretty(map) } else { serde_json::to_string(map) };
                    text.unwrap()
                })
                .collect();
            let one_by_one: Vec<_> = texts.iter().flat_map(|text| lines(text).0).collect();

            let elements = texts.iter().zip(&objects).map(|(text, (_, _, blank, _))| format!("{blank}{text}{blank}"));
            let array = format!("{before}[{}]{after}", elements.collect::<Vec<_>>().join(","));
            prop_assert_eq!(lines(&array).0, one_by_one.clone());

            let lined = texts.iter().zip(&objects).map(|(text, (_, _, _, blank))| format!("{text}{blank}"));
            let lined = format!("{before}{}{after}", lined.collect::<String>());
            prop_assert_eq!(lines(&lined).0, one_by_one.clone());

            let plain = one_by_one.join("\n");
            prop_assert_eq!(lines(&plain), (one_by_one, true));
        }

        #[test]
        fn no_bytes_whatever_make_a_line_that_is_no_report(body in "[\\[\\]{}\",:0-9a-z\\\\ \n\r\t]{0,40}") {
            if let Ok(reports) = Reports::check(body.as_bytes()) {
                let lines: Vec<_> = reports.as_bytes().split(|byte| *byte == b'\n').collect();
                prop_assert_eq!(lines.len(), reports.count());
                for line in lines {
                    prop_assert!(serde_json::from_slice::<Value>(line).unwrap().is_object());
                    prop_assert!(!line.contains(&b'\r'));
                }
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
            let found = Reports::check(value.to_string().as_bytes()).map(|_| ());
            prop_assert_eq!(found.is_ok(), depth(&value) <= MAX_DEPTH, "{:?}", found);
        }
    }
}
