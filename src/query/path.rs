//! Paths of values within a report: a subset of the paths of jq.
//!
//! ```text
//!   .                       the whole report
//!   .geo.country            a member of a member
//!   ."user-agent"           a name with other characters, as a JSON string
//!   .["user-agent"]         the same
//!   .hosts[].name           the member of each element of an array
//!   .hosts[0].name          the member of the first element
//! ```
//!
//! A path that does not fit a report yields no values, as in jq with `?` after each step. A `?` is permitted and has no
//! effect. `[]` visits arrays only, not objects.

use std::fmt;
use std::str::FromStr;

/// Maximum length of a path.
const MAX_PATH_BYTES: usize = 1024;

/// Maximum number of steps of a path.
const MAX_PATH_STEPS: usize = 32;

/// Where values are within a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    steps: Vec<Step>,
}

/// One step from a value to the values in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The member of an object with this name.
    Member(String),
    /// The element of an array at this index.
    Index(usize),
    /// Each element of an array.
    Each,
}

/// Why a text is not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid path at character {position}: {reason}")]
pub struct InvalidPath {
    /// Counted in characters, from 1.
    pub position: usize,
    /// For users.
    pub reason: &'static str,
}

impl Path {
    pub(super) fn of(steps: Vec<Step>) -> Self {
        Self { steps }
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The number of leading steps that both paths share, up to and including the last `[]` that they share.
    pub(super) fn shared_steps(&self, other: &Self) -> usize {
        let common = self.steps.iter().zip(&other.steps).take_while(|(one, another)| one == another).count();
        self.steps[..common].iter().rposition(|step| *step == Step::Each).map_or(0, |last| last + 1)
    }
}

impl FromStr for Path {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let mut parser = Parser { text, offset: 0 };
        if text.len() > MAX_PATH_BYTES {
            parser.offset = text.floor_char_boundary(MAX_PATH_BYTES);
            return Err(parser.error("a path has at most 1024 bytes"));
        }
        if !parser.take('.') {
            return Err(parser.error("a path begins with `.`"));
        }
        let mut steps = Vec::new();
        // The first point belongs to the first step.
        let mut after_point = true;
        while let Some(next) = parser.peek() {
            if steps.len() == MAX_PATH_STEPS {
                return Err(parser.error("a path has at most 32 steps"));
            }
            match next {
                '[' => steps.push(parser.bracket(steps.is_empty())?),
                _ if after_point => steps.push(Step::Member(parser.name()?)),
                '.' => {
                    parser.take('.');
                    match parser.peek() {
                        Some('[') => {}
                        _ => steps.push(Step::Member(parser.name()?)),
                    }
                }
                '-' | '+' | '*' | '/' | '|' | ',' | ' ' | '=' | '<' | '>' => {
                    return Err(parser.error("other characters of a name need quotes, such as .\"user-agent\""));
                }
                _ => return Err(parser.error("expected `.`, `[` or the end of the path")),
            }
            after_point = false;
            while !steps.is_empty() && parser.take('?') {}
        }
        Ok(Self { steps })
    }
}

/// Displays a path in a form that parses to the same path.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self.steps.first(), Some(Step::Member(_))) {
            f.write_str(".")?;
        }
        self.steps.iter().try_for_each(|step| match step {
            Step::Member(name) if is_identifier(name) => write!(f, ".{name}"),
            Step::Member(name) => write!(f, ".{}", serde_json::to_string(name).map_err(|_| fmt::Error)?),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Each => f.write_str("[]"),
        })
    }
}

fn is_identifier(name: &str) -> bool {
    identifier_bytes(name) == name.len() && !name.is_empty()
}

/// The length of the identifier of jq at the start of `text`.
fn identifier_bytes(text: &str) -> usize {
    let is_part =
        |(index, byte): (usize, u8)| byte == b'_' || byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit());
    text.bytes().enumerate().take_while(|part| is_part(*part)).count()
}

struct Parser<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, expected: char) -> bool {
        let found = self.rest().starts_with(expected);
        self.offset += if found { expected.len_utf8() } else { 0 };
        found
    }

    fn error(&self, reason: &'static str) -> InvalidPath {
        InvalidPath { position: self.text[..self.offset].chars().count() + 1, reason }
    }

    /// The name after a point.
    fn name(&mut self) -> Result<String, InvalidPath> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let name = &self.rest()[..identifier_bytes(self.rest())];
        if name.is_empty() {
            return Err(self.error("expected a name of letters, digits and `_`, or a name in quotes"));
        }
        self.offset += name.len();
        Ok(name.to_owned())
    }

    /// A JSON string.
    fn quoted(&mut self) -> Result<String, InvalidPath> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|byte| {
            let is_end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            is_end
        });
        let Some(end) = end else {
            return Err(self.error("the quoted name has no end"));
        };
        let quoted = &rest[..end + 2];
        let name = serde_json::from_str(quoted).map_err(|_| self.error("the quoted name is not a JSON string"))?;
        self.offset += quoted.len();
        Ok(name)
    }

    /// A step in square brackets.
    fn bracket(&mut self, is_first: bool) -> Result<Step, InvalidPath> {
        let start = self.offset;
        self.take('[');
        let step = match self.peek() {
            Some('"') => Step::Member(self.quoted()?),
            Some(']') => Step::Each,
            Some('0'..='9') => {
                let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
                let index = self.rest()[..digits].parse().ok().filter(|index| *index <= u32::MAX as usize);
                let index = index.ok_or_else(|| self.error("the index is too large"))?;
                self.offset += digits;
                Step::Index(index)
            }
            _ => return Err(self.error("expected `]`, an index such as 0, or a name in quotes")),
        };
        if !self.take(']') {
            return Err(self.error("expected `]`"));
        }
        if is_first && !matches!(step, Step::Member(_)) {
            self.offset = start;
            return Err(self.error("a report is an object, so a path begins with the name of a member"));
        }
        Ok(step)
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(text: &str) -> Vec<Step> {
        text.parse::<Path>().unwrap_or_else(|error| panic!("{text}: {error}")).steps
    }

    fn member(name: &str) -> Step {
        Step::Member(name.to_owned())
    }

    #[test]
    fn paths_are_written_as_in_jq() {
        assert_eq!(steps("."), []);
        assert_eq!(steps(".a"), [member("a")]);
        assert_eq!(steps(".a.b_1"), [member("a"), member("b_1")]);
        assert_eq!(steps(".a[].b"), [member("a"), Step::Each, member("b")]);
        assert_eq!(steps(".a[][]"), [member("a"), Step::Each, Step::Each]);
        assert_eq!(steps(".a[0][10]"), [member("a"), Step::Index(0), Step::Index(10)]);
        assert_eq!(steps(".a.[0]"), [member("a"), Step::Index(0)]);
        assert_eq!(steps(r#"."user-agent""#), [member("user-agent")]);
        assert_eq!(steps(r#".["user-agent"].x"#), [member("user-agent"), member("x")]);
        assert_eq!(steps(r#".a."é"["\u00e9 \" ]"]"#), [member("a"), member("é"), member("é \" ]")]);
        assert_eq!(steps(r#"."""#), [member("")]);
        assert_eq!(steps(".a?[]?.b?"), [member("a"), Step::Each, member("b")]);
    }

    #[test]
    fn an_error_names_the_position() {
        for (text, position, reason) in [
            ("", 1, "begins with"),
            ("a", 1, "begins with"),
            (".a.", 4, "expected a name"),
            ("..", 2, "expected a name"),
            (".1", 2, "expected a name"),
            (".user-agent", 6, "need quotes"),
            (".a | .b", 3, "need quotes"),
            (".a b", 3, "need quotes"),
            (".a[", 4, "expected `]`, an index"),
            (".a[-1]", 4, "expected `]`, an index"),
            (".a[1", 5, "expected `]`"),
            (".a[99999999999999999999]", 4, "too large"),
            (".[]", 2, "a report is an object"),
            (".[0].a", 2, "a report is an object"),
            (r#".é"#, 2, "expected a name"),
            (r#"."é"é"#, 5, "expected `.`, `[`"),
            (r#"."a"#, 2, "has no end"),
            (r#"."\x""#, 2, "not a JSON string"),
            (r#"."\(1)""#, 2, "not a JSON string"),
            (".a[\"b\"", 7, "expected `]`"),
            (".?", 2, "expected a name"),
        ] {
            let error = text.parse::<Path>().expect_err(text);
            assert_eq!(error.position, position, "{text}: {error}");
            assert!(error.reason.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn length_and_depth_are_limited() {
        assert_eq!(steps(&".a".repeat(32)).len(), 32);
        let error = ".a".repeat(33).parse::<Path>().expect_err("33 steps");
        assert_eq!((error.position, error.reason), (65, "a path has at most 32 steps"));
        assert_eq!(steps(&format!(".{}", "a".repeat(1023))).len(), 1);
        let error = format!(".{}", "é".repeat(1023)).parse::<Path>().expect_err("2047 bytes");
        assert_eq!(error.reason, "a path has at most 1024 bytes");
    }

    #[test]
    fn paths_share_steps_up_to_the_last_array_of_both() {
        let shared = |one: &str, another: &str| {
            let parse = |text: &str| text.parse::<Path>().expect("a path");
            parse(one).shared_steps(&parse(another))
        };
        assert_eq!(shared(".hosts[].history[].latency", ".hosts[].name"), 2);
        assert_eq!(shared(".hosts[].history[].latency", ".hosts[].history[].error"), 4);
        assert_eq!(shared(".hosts[].a.b", ".hosts[].a.c"), 2);
        assert_eq!(shared(".hosts[].latency", ".geo.country"), 0);
        assert_eq!(shared(".a.b", ".a.b"), 0);
        assert_eq!(shared(".a[0].b", ".a[].c"), 0);
        assert_eq!(shared(".", ".a[]"), 0);
    }

    proptest! {
        #[test]
        fn a_path_is_displayed_as_text_that_parses_to_it(
            names in prop::collection::vec((any::<String>().prop_filter("short", |name| name.len() < 20), 0_usize..4), 1..8)
        ) {
            let mut expected = vec![Step::Member("first".to_owned())];
            expected.extend(names.into_iter().map(|(name, kind)| match kind {
                0 => Step::Each,
                1 => Step::Index(name.len()),
                _ => Step::Member(name),
            }));
            let path = Path { steps: expected };
            if path.to_string().len() <= MAX_PATH_BYTES {
                prop_assert_eq!(path.to_string().parse::<Path>(), Ok(path));
            }
        }

        #[test]
        fn any_text_is_a_path_or_an_error_with_a_position_in_it(text in r#"[.a-c\[\]"\\0-9?é ]{0,12}"#) {
            match text.parse::<Path>() {
                Ok(path) => prop_assert_eq!(path.to_string().parse::<Path>(), Ok(path)),
                Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.position)),
            }
        }
    }
}
