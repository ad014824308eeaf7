//! What goes wrong before a stream is there.

use std::path::Path;

/// Error of this crate; the message is one paragraph with the value and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file with a token, certificate or key cannot be used.
    #[error("{path}: {problem}. {fix}", path = path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// A value given by the caller cannot be used.
    #[error("{problem}. {fix}")]
    Input {
        /// What is wrong, with the value.
        problem: String,
        /// What the user can do.
        fix: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(path: &Path, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into(), fix: fix.into() }
    }

    pub(crate) fn input(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Input { problem: problem.into(), fix: fix.into() }
    }
}
