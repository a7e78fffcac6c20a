//! Reads reports back: values at paths, and statistics about them.

mod extract;
mod path;
pub mod stats;

pub use self::extract::{Extractor, Found};
pub use self::path::{InvalidPath, Path};
