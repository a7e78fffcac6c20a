//! Checks a request body and turns it into one-line reports.

mod depth;
mod fault;
#[cfg(all(test, not(netwatch_loom)))]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer as _, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

pub use self::depth::MAX_DEPTH;
use self::depth::too_deep;
pub use self::fault::{Fault, Invalid, Position};
use self::fault::{not_json, position};

/// The reports of one request: valid JSON objects, one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reports<'a> {
    lines: Cow<'a, [u8]>,
    count: usize,
}

impl<'a> Reports<'a> {
    /// Checks that `body` is UTF-8 and contains JSON objects (RFC 8259), nested no deeper than [`MAX_DEPTH`]: one
    /// object, several objects that each begin on a new line, or an array of objects. One invalid object makes the body
    /// invalid.
    ///
    /// White space around objects is removed. Each line break within an object becomes a space. All other bytes stay
    /// unchanged, including numbers and duplicate names. The result is never longer than `body`. It borrows from `body`
    /// if it is a contiguous part of it: a single object without line breaks, or several with one line break between
    /// them.
    ///
    /// # Errors
    /// [`Invalid`] with the first fault.
    pub fn check(body: &'a [u8]) -> Result<Self, Invalid> {
        // serde_json checks the UTF-8 only of strings that it returns.
        let text = simdutf8::basic::from_utf8(body).map_err(|_| not_utf8(body))?;
        let mut reports = Self { lines: Cow::Borrowed(&[]), count: 0 };
        let mut borrowed = 0..0;
        for_each_element(text, |element| {
            let report = &body[element.clone()];
            if report[0] != b'{' {
                let position = position(body, element.start);
                return Err(Fault::NotAnObject { found: type_name(report[0]), position });
            }
            if let Some(offset) = too_deep(report) {
                return Err(Fault::TooDeep(position(body, element.start + offset)));
            }
            reports.push(body, &mut borrowed, element);
            Ok(())
        })?;
        match reports.count {
            0 => Err(Invalid { fault: Fault::Empty, element: None }),
            _ => Ok(reports),
        }
    }

    /// Reports that were checked before and have got additional members since. `lines` contains `count` lines.
    pub(crate) fn from_checked(lines: Vec<u8>, count: usize) -> Self {
        Self { lines: Cow::Owned(lines), count }
    }

    /// The lines, without a line break after the last one.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.lines
    }

    /// The number of reports, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds the report at `element` of `body`. While the lines borrow from `body`, `borrowed` is their range.
    fn push(&mut self, body: &'a [u8], borrowed: &mut Range<usize>, element: Range<usize>) {
        let report = &body[element.clone()];
        let is_one_line = memchr::memchr2(b'\n', b'\r', report).is_none();
        let is_next = self.count == 0 || (element.start == borrowed.end + 1 && body[borrowed.end] == b'\n');
        self.count += 1;
        match &mut self.lines {
            Cow::Borrowed(lines) if is_one_line && is_next => {
                let start = if self.count == 1 { element.start } else { borrowed.start };
                *borrowed = start..element.end;
                *lines = &body[borrowed.clone()];
            }
            lines => {
                if let Cow::Borrowed(before) = lines {
                    // An upper bound of the result: each line break replaces at least one byte of `body`.
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

/// Calls `take` with the range of each element of a body, whether it is an object or not. Stops at the first fault.
fn for_each_element(text: &str, take: impl FnMut(Range<usize>) -> Result<(), Fault>) -> Result<(), Invalid> {
    match text[blank_bytes(text)..].starts_with('[') {
        true => for_each_of_array(text, take),
        false => for_each_of_lines(text, take),
    }
}

/// [`for_each_element`] for one or more values that each begin on a new line.
fn for_each_of_lines(text: &str, mut take: impl FnMut(Range<usize>) -> Result<(), Fault>) -> Result<(), Invalid> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    for index in 0.. {
        let end = values.byte_offset();
        let start = end + blank_bytes(&text[end..]);
        if start == text.len() {
            break;
        }
        // Several values on one line are more likely a mistake than a batch.
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

/// [`for_each_element`] for one array.
fn for_each_of_array(text: &str, take: impl FnMut(Range<usize>) -> Result<(), Fault>) -> Result<(), Invalid> {
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
                    A::Error::custom("replaced by the fault of the element")
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

/// The length of the leading white space (RFC 8259) of `text`.
fn blank_bytes(text: &str) -> usize {
    text.bytes().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(text.len())
}

/// The first fault of a body that is not UTF-8: another fault can precede the invalid byte.
fn not_utf8(body: &[u8]) -> Invalid {
    let valid_bytes = simdutf8::compat::from_utf8(body).map_or_else(|error| error.valid_up_to(), str::len);
    let fault = Fault::NotUtf8(position(body, valid_bytes));
    // The valid prefix may end in the middle of a value. That is reported at its last byte or after it, and is not an
    // earlier fault.
    let before = &body[..valid_bytes];
    let last = position(before, valid_bytes.saturating_sub(1));
    match Reports::check(before) {
        Err(earlier) if earlier.fault.position().is_some_and(|position| position < last) => earlier,
        Err(Invalid { element, .. }) => Invalid { fault, element },
        Ok(reports) => Invalid { fault, element: Some(reports.count) },
    }
}

/// The type of a valid JSON text that begins with `first`, with its article.
fn type_name(first: u8) -> &'static str {
    match first {
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}
