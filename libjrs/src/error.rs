//! One error type for the core. Every message names the file (where there is one), the value and the fix.

use std::path::{Path, PathBuf};

/// What can go wrong in the core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, created or written.
    #[error("{}: {source}. {fix}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What the user can do.
        fix: String,
    },
    /// A file was read but its content cannot be used.
    #[error("{}: {problem}. {fix}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the value.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// Inputs that came from no file, or from several, do not fit.
    #[error("{problem}. {fix}")]
    Input {
        /// What is wrong, with the value.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// A device is not there, or was lost.
    #[error("{problem}. {fix}")]
    Device {
        /// What is wrong.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// More memory is needed than there is, or than is allowed.
    #[error("{problem}. {fix}")]
    Memory {
        /// How much for what.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// The option exists and this machine or build does not have it.
    #[error("{problem}. {fix}")]
    Unsupported {
        /// What is missing.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// The caller asked to stop (see [`crate::progress::Progress::cancel`]).
    #[error("cancelled before the end; nothing was written. Start again to get a result")]
    Cancelled,
}

/// Result with the core's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An operating-system error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error, fix: impl Into<String>) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source, fix: fix.into() }
    }

    /// Unusable content in `path`. `problem` and `fix` are clauses without a final full stop.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), problem: problem.into(), fix: fix.into() }
    }

    /// A device that cannot be used. `problem` and `fix` are clauses without a final full stop.
    pub fn device(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Device { problem: problem.into(), fix: fix.into() }
    }

    /// Too little memory. `problem` and `fix` are clauses without a final full stop.
    pub fn memory(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Memory { problem: problem.into(), fix: fix.into() }
    }

    /// An option that is not to be had here. `problem` and `fix` are clauses without a final full stop.
    pub fn unsupported(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Unsupported { problem: problem.into(), fix: fix.into() }
    }

    /// Inputs that do not fit. `problem` and `fix` are clauses without a final full stop.
    pub fn input(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Input { problem: problem.into(), fix: fix.into() }
    }
}
