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

/// Adds the operation and the path to an error.
pub(super) trait Describe<T> {
    fn describe(self, operation: &'static str, path: &Path) -> io::Result<T>;
}

impl<T> Describe<T> for io::Result<T> {
    fn describe(self, operation: &'static str, path: &Path) -> io::Result<T> {
        self.map_err(|source| {
            let kind = source.kind();
            io::Error::new(kind, DiskError { operation, path: path.to_owned(), source })
        })
    }
}

/// Whether the operating system reported the error, as opposed to a decoder.
pub(super) fn is_from_system(error: &io::Error) -> bool {
    let described = error.get_ref().and_then(|inner| inner.downcast_ref::<DiskError>());
    described.map_or(error, |described| &described.source).raw_os_error().is_some()
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_path_reason_and_user() {
        let denied: io::Result<()> = Err(io::Error::from_raw_os_error(13));
        let error = denied.describe("create", Path::new("/data/x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(is_from_system(&error));
        let text = error.to_string();
        assert!(
            text.starts_with("can't create /data/x: Permission denied (os error 13); the server runs as uid "),
            "{text}"
        );
        assert!(!is_from_system(&io::Error::other("corrupt")));
    }
}
