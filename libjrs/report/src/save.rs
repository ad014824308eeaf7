//! Writing a finished file: under a temporary name first, so that a reader never sees half of it.

use std::fs;
use std::path::Path;

use libjrs::{Error, Result};

/// Writes `bytes` to `path`, replacing what was there in one step.
///
/// # Errors
/// If the folder does not exist or cannot be written.
pub fn save(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(name);
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).map_err(|source| {
        // The first error is the one to report; a leftover that cannot be removed is only untidy.
        let _ = fs::remove_file(&partial);
        Error::io(path, source, "check that the folder exists and is writable")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        save(&path, "one").unwrap();
        save(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = save(folder.path().join("absent/page.html"), "x").unwrap_err().to_string();
        assert!(error.contains("absent/page.html") && error.contains("writable"), "{error}");
    }
}
