//! Write keys: with any of them set, only those who know one may send reports.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderName};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

use super::refusal::Refusal;

const HEADER: HeaderName = HeaderName::from_static("x-write-key");

/// The same for what can't set headers, such as `sendBeacon`.
const PARAMETER: &str = "key";

/// Short ones could be guessed.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=128;

/// One key.
pub(super) type WriteKey = Arc<str>;

/// The keys, as a setting lists them, or `none`; every clone is the same set.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct WriteKeys(Arc<ArcSwap<Vec<WriteKey>>>);

/// A list in which one is no key. It is not repeated: it may be a key with a slip.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {0} of the list is not 16 to 128 letters, digits or any of -._~+/=")]
pub struct NoKey(usize);

/// Why a file gives no keys.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The line of this number, from 1, is no key.
    #[error("line {0} is not 16 to 128 letters, digits or any of -._~+/=")]
    NoKey(usize),
    /// Without a key, everybody might send reports.
    #[error("it holds no key")]
    Empty,
}

impl TryFrom<String> for WriteKeys {
    type Error = NoKey;

    fn try_from(list: String) -> Result<Self, NoKey> {
        let keys = match list.as_str() {
            "none" => Vec::new(),
            list => {
                let keys = list.split(',').enumerate().map(|(n, text)| key(text.trim()).ok_or(NoKey(n + 1)));
                keys.collect::<Result<_, _>>()?
            }
        };
        Ok(Self(Arc::new(ArcSwap::from_pointee(keys))))
    }
}

fn key(text: &str) -> Option<WriteKey> {
    // Those of a bearer token (RFC 6750, 2.1).
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (KEY_BYTES.contains(&text.len()) && text.bytes().all(allowed)).then(|| text.into())
}

impl WriteKeys {
    /// Adds those of a file: one on each line; empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`FileError`]; nothing was added then.
    pub fn add_file(&self, path: &Path) -> Result<(), FileError> {
        let text = std::fs::read_to_string(path)?;
        let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let more = lines.map(|(n, line)| key(line).ok_or(FileError::NoKey(n))).collect::<Result<Vec<_>, _>>()?;
        if more.is_empty() {
            return Err(FileError::Empty);
        }
        self.0.store(Arc::new([&self.0.load()[..], &more].concat()));
        Ok(())
    }

    /// Whether there is none: then everybody may send reports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// Has the keys of `other` hold from now on, in the place of these. Returns how many there are.
    pub fn replace_by(&self, other: &Self) -> usize {
        let keys = other.0.load_full();
        let count = keys.len();
        self.0.store(keys);
        count
    }

    /// The key that a request has brought; none when none is asked for.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Option<WriteKey>, Refusal> {
        let keys = self.0.load();
        if keys.is_empty() {
            return Ok(None);
        }
        let headers = request.headers();
        let bearer = || {
            let value = headers.get(AUTHORIZATION)?.as_bytes();
            let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii().to_owned())
        };
        let parameter = || {
            let mut parameters = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
            parameters.find(|(name, _)| name == PARAMETER).map(|(_, value)| value.into_owned().into_bytes())
        };
        let brought = headers.get(HEADER).map(|value| value.as_bytes().to_owned()).or_else(bearer).or_else(parameter);
        let brought = brought.ok_or(Refusal::KeyMissing)?;
        // All of them are compared, and each to its end, so that the time tells nothing but lengths.
        let mut found = None;
        for key in keys.iter() {
            let same: Choice = key.as_bytes().ct_eq(&brought);
            if bool::from(same) {
                found = Some(key);
            }
        }
        found.map(|key| Some(Arc::clone(key))).ok_or(Refusal::KeyWrong)
    }
}

impl fmt::Debug for WriteKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteKeys({} of them)", self.0.load().len())
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

    fn admit(keys: &WriteKeys, target: &str, headers: &[(&str, &str)]) -> Result<Option<WriteKey>, &'static str> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        keys.admit(&request.body(()).unwrap()).map_err(|refusal| match refusal {
            Refusal::KeyMissing => "missing",
            Refusal::KeyWrong => "wrong",
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_key_comes_in_a_header_as_bearer_or_as_a_parameter() {
        let keys = keys(&format!("{ONE}, {TWO}"));
        assert_eq!(admit(&keys, "/", &[("x-write-key", ONE)]).unwrap().as_deref(), Some(ONE));
        assert_eq!(admit(&keys, "/", &[("authorization", &format!("Bearer {TWO}"))]).unwrap().as_deref(), Some(TWO));
        assert_eq!(admit(&keys, "/", &[("authorization", &format!("bearer  {ONE} "))]).unwrap().as_deref(), Some(ONE));
        assert_eq!(admit(&keys, &format!("/?a=b&key={ONE}"), &[]).unwrap().as_deref(), Some(ONE));
        let escaped = format!("/?key={}", form_urlencoded::byte_serialize(TWO.as_bytes()).collect::<String>());
        assert_eq!(admit(&keys, &escaped, &[]).unwrap().as_deref(), Some(TWO));
        for headers in [&[][..], &[("authorization", "Basic dTpw")], &[("authorization", "Bearer")]] {
            assert_eq!(admit(&keys, "/?keys=x", headers), Err("missing"), "{headers:?}");
        }
        for wrong in ["", "x", &ONE[1..], &format!("{ONE}0"), &ONE.to_uppercase(), &format!("{ONE},{TWO}")] {
            assert_eq!(admit(&keys, "/", &[("x-write-key", wrong)]), Err("wrong"), "{wrong:?}");
        }
        // The first place counts.
        assert_eq!(admit(&keys, &format!("/?key={ONE}"), &[("x-write-key", "x")]), Err("wrong"));
    }

    #[test]
    fn without_keys_everybody_may_send() {
        assert_eq!(admit(&keys("none"), "/", &[]), Ok(None));
        assert_eq!(admit(&keys("none"), "/?key=x", &[("x-write-key", "x")]), Ok(None));
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let long = "x".repeat(129);
        for wrong in ["", "short", &ONE[1..], &long, "0123456789abcde ", "0123456789abcdé", "0123456789\"abcdef"] {
            let error = WriteKeys::try_from(format!("{ONE},{wrong}")).unwrap_err();
            assert_eq!(error, NoKey(2), "{wrong:?}");
            assert!(wrong.is_empty() || !error.to_string().contains(wrong));
        }
    }

    #[test]
    fn a_file_adds_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let keys = keys(ONE);
        std::fs::write(&path, format!("# ours\n\n  {TWO}\r\n")).unwrap();
        keys.add_file(&path).unwrap();
        for key in [ONE, TWO] {
            assert_eq!(admit(&keys, "/", &[("x-write-key", key)]).unwrap().as_deref(), Some(key));
        }
        std::fs::write(&path, format!("{TWO}\nx\n")).unwrap();
        assert!(matches!(keys.add_file(&path), Err(FileError::NoKey(2))));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(matches!(keys.add_file(&path), Err(FileError::Empty)));
        assert!(matches!(keys.add_file(dir.path()), Err(FileError::Io(_))));
    }

    #[test]
    fn a_replaced_set_holds_for_every_clone() {
        let first = keys(ONE);
        let clone = first.clone();
        assert_eq!(first.replace_by(&keys(TWO)), 1);
        assert_eq!(admit(&clone, "/", &[("x-write-key", ONE)]), Err("wrong"));
        assert!(admit(&clone, "/", &[("x-write-key", TWO)]).is_ok());
        assert_eq!(format!("{clone:?}"), "WriteKeys(1 of them)");
    }
}
