//! Faults of a body, and their positions.

use std::fmt;

use super::depth::MAX_DEPTH;

/// A position in a body. Within a string, serde_json may name the byte before the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The byte within the line, from 1.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

/// The first fault of a body, which makes all of it invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}{}", element.map_or_else(String::new, |element| format!(", in element {element} of the batch")))]
pub struct Invalid {
    /// The fault.
    pub fault: Fault,
    /// The index of the invalid element, from 0. `None` if the body is not a batch.
    pub element: Option<usize>,
}

/// A fault of a body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Only white space, or an empty array.
    #[error("the body contains no report")]
    Empty,
    /// Not UTF-8.
    #[error("the body contains bytes that are not UTF-8 at {0}")]
    NotUtf8(Position),
    /// Not JSON (RFC 8259).
    #[error("{reason} at {position}")]
    NotJson {
        /// The reason, as serde_json words it.
        reason: String,
        /// The position of the fault.
        position: Position,
    },
    /// JSON, but not an object.
    #[error("expected an object, found {found} at {position}")]
    NotAnObject {
        /// The type of the value, with its article.
        found: &'static str,
        /// The first byte of the value.
        position: Position,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("arrays and objects are nested deeper than {MAX_DEPTH} levels at {0}")]
    TooDeep(Position),
}

impl Fault {
    /// The position of the fault. `None` for an empty body.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Empty => None,
            Self::NotUtf8(position) | Self::TooDeep(position) => Some(*position),
            Self::NotJson { position, .. } | Self::NotAnObject { position, .. } => Some(*position),
        }
    }
}

pub(super) fn not_json(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    // `Fault` has a field for the position.
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    // serde_json reports the end of an empty line as column 0.
    let position = Position { line: error.line(), column: error.column().max(1) };
    Fault::NotJson { reason: reason.to_owned(), position }
}

pub(super) fn position(body: &[u8], offset: usize) -> Position {
    let before = &body[..offset];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    Position { line: memchr::memchr_iter(b'\n', before).count() + 1, column: offset - line_start + 1 }
}
