//! The admin token: what a client must know to read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::write_keys::{KEY_FORM, KeyFileError, key};

/// The value of `ADMIN_TOKEN` that stands for no decision: a server on a terminal makes a token, others are closed.
const AUTO: &str = "auto";

/// What the key of [`AdminToken::mac`] is for.
const MAC_KEY: &[u8] = b"netwatch-server session key, version 1";

/// Who may read. All clones share one state.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct AdminToken(Arc<ArcSwap<State>>);

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Nobody: there is no token.
    Closed,
    /// Everybody who can connect.
    Open,
    Token(Arc<str>),
}

/// The decision about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The request may read.
    Granted,
    /// There is no token that would permit it.
    Closed,
    /// The request has no token.
    Missing,
    /// The request has another token.
    Wrong,
}

/// The text is not a token. The error does not repeat it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not {KEY_FORM}")]
pub struct InvalidToken;

impl TryFrom<String> for AdminToken {
    type Error = InvalidToken;

    fn try_from(text: String) -> Result<Self, InvalidToken> {
        let state = match text.to_ascii_lowercase().as_str() {
            AUTO => State::Closed,
            "none" => State::Open,
            _ => State::Token(key(&text).ok_or(InvalidToken)?),
        };
        Ok(Self(Arc::new(ArcSwap::from_pointee(state))))
    }
}

impl AdminToken {
    /// Uses the token in a file, on its first line that is neither empty nor begins with `#`.
    ///
    /// # Errors
    /// [`KeyFileError`]. The state is unchanged then.
    pub fn read_file(&self, path: &Path) -> Result<(), KeyFileError> {
        let text = std::fs::read_to_string(path)?;
        let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
        let (n, line) =
            lines.find(|(_, line)| !line.is_empty() && !line.starts_with('#')).ok_or(KeyFileError::Empty)?;
        self.set(key(line).ok_or(KeyFileError::InvalidKey(n))?);
        Ok(())
    }

    /// Uses this token from now on, in all clones.
    pub fn set(&self, token: Arc<str>) {
        self.0.store(Arc::new(State::Token(token)));
    }

    /// Replaces the state, in all clones, with the one of `other`.
    pub fn replace_with(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// Whether nobody may read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        **self.0.load() == State::Closed
    }

    /// Whether everybody may read.
    #[must_use]
    pub fn is_open(&self) -> bool {
        **self.0.load() == State::Open
    }

    /// The HMAC-SHA256 of a message, with a key that is derived from the token. Only a program that knows the token can
    /// compute it, and it does not reveal the token. `None` if there is no token.
    #[must_use]
    pub fn mac(&self, message: &[u8]) -> Option<[u8; 32]> {
        let hmac = |key: &[u8], message: &[u8]| -> [u8; 32] {
            let mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
            mac.chain_update(message).finalize().into_bytes().into()
        };
        match &**self.0.load() {
            State::Closed | State::Open => None,
            State::Token(token) => Some(hmac(&hmac(token.as_bytes(), MAC_KEY), message)),
        }
    }

    /// Decides about a request that presents this token. The time depends on lengths only.
    #[must_use]
    pub fn check(&self, presented: Option<&[u8]>) -> Access {
        match (&**self.0.load(), presented) {
            (State::Closed, _) => Access::Closed,
            (State::Open, _) => Access::Granted,
            (State::Token(_), None) => Access::Missing,
            (State::Token(token), Some(presented)) => match bool::from(token.as_bytes().ct_eq(presented)) {
                true => Access::Granted,
                false => Access::Wrong,
            },
        }
    }
}

/// Without the token.
impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match **self.0.load() {
            State::Closed => "closed",
            State::Open => "open",
            State::Token(_) => "(secret)",
        })
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn token(text: &str) -> AdminToken {
        AdminToken::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn only_the_exact_token_permits_reading() {
        for (setting, presented, access) in [
            ("auto", Some(TOKEN), Access::Closed),
            ("auto", None, Access::Closed),
            ("NONE", None, Access::Granted),
            (TOKEN, Some(TOKEN), Access::Granted),
            (TOKEN, None, Access::Missing),
            (TOKEN, Some(""), Access::Wrong),
            (TOKEN, Some("0123456789abcdeF"), Access::Wrong),
            (TOKEN, Some("0123456789abcdef0"), Access::Wrong),
        ] {
            assert_eq!(token(setting).check(presented.map(str::as_bytes)), access, "{setting} {presented:?}");
        }
    }

    #[test]
    fn a_short_token_is_refused_and_no_token_is_shown() {
        for text in ["", "short", "with a space in it", "0123456789abcdeé"] {
            assert!(AdminToken::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(!format!("{:?}", token(TOKEN)).contains(TOKEN));
    }

    #[test]
    fn a_new_token_applies_to_every_clone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let (one, other) = (token("auto"), token("auto"));
        let clone = one.clone();
        std::fs::write(&path, "# a comment\n\n 0123456789abcdef \n").unwrap();
        other.read_file(&path).unwrap();
        one.replace_with(&other);
        assert_eq!(clone.check(Some(TOKEN.as_bytes())), Access::Granted);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(other.read_file(&path), Err(KeyFileError::InvalidKey(1))));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(other.read_file(&path), Err(KeyFileError::Empty)));
        assert_eq!(other.check(Some(TOKEN.as_bytes())), Access::Granted, "unchanged");
    }
}
