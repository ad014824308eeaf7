//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

/// Runs `fill` on a temporary file beside `path` and renames it to `path`; on any error nothing is left.
pub(crate) fn write_atomically(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().ok_or_else(|| {
        Error::file(path, "the path names no file", "Give the name of the file that is to be written")
    })?;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary: PathBuf =
        path.with_file_name(format!(".{}.{}-{serial}.tmp", name.to_string_lossy(), std::process::id()));
    let attempt = || {
        let mut file = BufWriter::new(File::create(&temporary)?);
        fill(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|e| {
        // The first error is the one to report; the temporary file may never have existed.
        let _ = fs::remove_file(&temporary);
        Error::io(
            path,
            e,
            "Check that the folder exists, that it can be written and that the disk is not full",
        )
    })
}
