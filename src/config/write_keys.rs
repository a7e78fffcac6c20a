//! Write keys. If there are any, only requests with one of them may send reports.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

use super::values::is_none;

/// Valid key lengths in bytes. Shorter keys could be guessed.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=128;

/// The form of keys and tokens, for error messages.
pub(super) const KEY_FORM: &str = "16 to 128 letters, digits or any of -._~+/=";

/// One write key.
pub type WriteKey = Arc<str>;

/// The set of accepted write keys. All clones share one set.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct WriteKeys(Arc<ArcSwap<Vec<WriteKey>>>);

/// The list contains text that is not a key. The error does not repeat the text, which may be a mistyped key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {0} of the list is not {KEY_FORM}")]
pub struct InvalidKey(usize);

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The line with this number (from 1) is not a key.
    #[error("line {0} is not {KEY_FORM}")]
    InvalidKey(usize),
    /// The file contains no key. Without keys, everybody could send reports.
    #[error("the file contains no key")]
    Empty,
}

impl TryFrom<String> for WriteKeys {
    type Error = InvalidKey;

    fn try_from(list: String) -> Result<Self, InvalidKey> {
        let keys = match is_none(&list) {
            true => Vec::new(),
            false => {
                let keys = list.split(',').enumerate().map(|(n, text)| key(text.trim()).ok_or(InvalidKey(n + 1)));
                keys.collect::<Result<_, _>>()?
            }
        };
        Ok(Self(Arc::new(ArcSwap::from_pointee(keys))))
    }
}

pub(super) fn key(text: &str) -> Option<WriteKey> {
    // The characters of a bearer token (RFC 6750, section 2.1).
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (KEY_BYTES.contains(&text.len()) && text.bytes().all(allowed)).then(|| text.into())
}

impl WriteKeys {
    /// Adds the keys of a file with one key per line. Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`KeyFileError`]. The set is unchanged then.
    pub fn add_file(&self, path: &Path) -> Result<(), KeyFileError> {
        let text = std::fs::read_to_string(path)?;
        let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let more =
            lines.map(|(n, line)| key(line).ok_or(KeyFileError::InvalidKey(n))).collect::<Result<Vec<_>, _>>()?;
        if more.is_empty() {
            return Err(KeyFileError::Empty);
        }
        self.0.store(Arc::new([&self.0.load()[..], &more].concat()));
        Ok(())
    }

    /// All keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = WriteKey> {
        Vec::clone(&self.0.load()).into_iter()
    }

    /// Whether there are no keys. Then every request may send reports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// Replaces this set, in all its clones, with the keys of `other`. Returns the number of keys.
    pub fn replace_with(&self, other: &Self) -> usize {
        let keys = other.0.load_full();
        let count = keys.len();
        self.0.store(keys);
        count
    }

    /// The key that equals `presented`, if it is in the set.
    #[must_use]
    pub fn find(&self, presented: &[u8]) -> Option<WriteKey> {
        let keys = self.0.load();
        // Every key is compared to its end, so the time depends on lengths only.
        let mut found = None;
        for key in keys.iter() {
            let same: Choice = key.as_bytes().ct_eq(presented);
            if bool::from(same) {
                found = Some(key);
            }
        }
        found.map(Arc::clone)
    }
}

impl fmt::Debug for WriteKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteKeys({} keys)", self.0.load().len())
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "fedcba9876543210-._~+/=";

    fn keys(list: &str) -> WriteKeys {
        WriteKeys::try_from(list.to_owned()).unwrap()
    }

    #[test]
    fn only_an_exact_key_is_found() {
        let keys = keys(&format!("{ONE}, {TWO}"));
        for key in [ONE, TWO] {
            assert_eq!(keys.find(key.as_bytes()).as_deref(), Some(key));
        }
        for wrong in ["", "x", &ONE[1..], &format!("{ONE}0"), &ONE.to_uppercase(), &format!("{ONE},{TWO}")] {
            assert_eq!(keys.find(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_invalid_key_is_refused_and_not_repeated_in_the_error() {
        let long = "x".repeat(129);
        for wrong in ["", "short", &ONE[1..], &long, "0123456789abcde ", "0123456789abcdé", "0123456789\"abcdef"] {
            let error = WriteKeys::try_from(format!("{ONE},{wrong}")).unwrap_err();
            assert_eq!(error, InvalidKey(2), "{wrong:?}");
            assert!(wrong.is_empty() || !error.to_string().contains(wrong));
        }
    }

    #[test]
    fn a_file_adds_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let keys = keys(ONE);
        std::fs::write(&path, format!("# ours\n\n  {TWO}\r\n")).unwrap();
        keys.add_file(&path).unwrap();
        for key in [ONE, TWO] {
            assert_eq!(keys.find(key.as_bytes()).as_deref(), Some(key));
        }
        std::fs::write(&path, format!("{TWO}\nx\n")).unwrap();
        assert!(matches!(keys.add_file(&path), Err(KeyFileError::InvalidKey(2))));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(matches!(keys.add_file(&path), Err(KeyFileError::Empty)));
        assert!(matches!(keys.add_file(dir.path()), Err(KeyFileError::Io(_))));
    }

    #[test]
    fn a_replaced_set_applies_to_every_clone() {
        let first = keys(ONE);
        let clone = first.clone();
        assert_eq!(first.replace_with(&keys(TWO)), 1);
        assert_eq!(clone.find(ONE.as_bytes()), None);
        assert!(clone.find(TWO.as_bytes()).is_some());
        assert_eq!(format!("{clone:?}"), "WriteKeys(1 keys)");
    }
}
