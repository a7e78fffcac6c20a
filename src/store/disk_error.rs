//! Errors of file operations that name the operation and the path.

use std::io;
use std::path::{Path, PathBuf};

/// A failed file operation. It is the inner error of an [`io::Error`] of the same kind.
#[derive(Debug, thiserror::Error)]
#[error("can't {operation} {path}: {source}{hint}", path = path.display(), hint = hint(source))]
struct DiskError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Names the user of the process where that is the likely cause, as with a volume that belongs to another user.
fn hint(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("; the server runs as uid {}", rustix::process::geteuid().as_raw()),
        _ => String::new(),
    }
}

/// Adds the operation and the path to an error, unless it has them already.
pub(super) trait Describe<T> {
    fn describe(self, operation: &'static str, path: &Path) -> io::Result<T>;
}

impl<T> Describe<T> for io::Result<T> {
    fn describe(self, operation: &'static str, path: &Path) -> io::Result<T> {
        self.map_err(|source| match described(&source) {
            Some(_) => source,
            None => io::Error::new(source.kind(), DiskError { operation, path: path.to_owned(), source }),
        })
    }
}

fn described(error: &io::Error) -> Option<&DiskError> {
    error.get_ref()?.downcast_ref()
}

/// The kind of an error: operation, path and reason. The name of a temporary file is random, so its directory stands for
/// it: each attempt at the same operation has the same kind.
pub(super) fn kind(error: &io::Error) -> String {
    let Some(DiskError { operation, path, source }) = described(error) else { return error.to_string() };
    let is_temporary = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let path = path.parent().filter(|_| is_temporary).unwrap_or(path);
    format!("{operation} {}: {source}", path.display())
}

/// Whether the file could not be read, as opposed to a file that was read and is corrupt.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    let source = described(error).map_or(error, |described| &described.source);
    source.raw_os_error().is_some() || source.kind() == io::ErrorKind::NotFound
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_an_error_does_not_depend_on_random_names() {
        let kind_of = |path: &str| {
            let failed: io::Result<()> = Err(io::Error::from_raw_os_error(5));
            kind(&failed.describe("create", Path::new(path)).unwrap_err())
        };
        assert_eq!(kind_of("/data/tmp/.journal.00000001.tmp"), kind_of("/data/tmp/.journal.00000002.tmp"));
        assert_ne!(kind_of("/data/journal/one.jsonl"), kind_of("/data/journal/two.jsonl"));
    }

    #[test]
    fn an_error_names_operation_path_reason_and_user() {
        let denied: io::Result<()> = Err(io::Error::from_raw_os_error(13));
        let error = denied.describe("create", Path::new("/data/x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(is_unreadable(&error));
        let text = error.to_string();
        assert!(
            text.starts_with("can't create /data/x: Permission denied (os error 13); the server runs as uid "),
            "{text}"
        );
        let twice = Err::<(), _>(error).describe("read", Path::new("/data")).unwrap_err();
        assert_eq!(twice.to_string(), text, "not described again");
        assert!(is_unreadable(&twice));
        let corrupt = Err::<(), _>(io::Error::other("corrupt")).describe("read", Path::new("/data/x")).unwrap_err();
        assert!(!is_unreadable(&corrupt));
    }
}
