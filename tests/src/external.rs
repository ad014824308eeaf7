//! What lies outside the repository: Python packages and real scans. Tests that need them skip, loudly.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit status of the Python scripts in `tests/reference` when a package is missing.
const MISSING_PACKAGE: i32 = 77;

/// Runs `tests/reference/<script>` with the Python that `JRS_PYTHON` names (else `python3`) and returns what it
/// printed; `None`, after saying so, where Python or a package is missing.
///
/// # Panics
/// If the script fails.
pub fn python(script: &str, arguments: &[impl AsRef<OsStr>]) -> Option<String> {
    let python = std::env::var("JRS_PYTHON").unwrap_or_else(|_| "python3".into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference").join(script);
    let skip = |why: &str| {
        eprintln!("SKIPPED {script}: {python}: {why} (JRS_PYTHON names the Python to use)");
        None
    };
    let output = match Command::new(&python).arg(path).args(arguments).output() {
        Ok(output) => output,
        Err(error) => return skip(&error.to_string()),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(MISSING_PACKAGE) {
        return skip(said.trim());
    }
    assert!(output.status.success(), "{script}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

/// A real scan: in the folder that `JRS_TEST_DATA` names, or in a `shared/data` above the checkout. `None`, after
/// saying so, where there is none; such scans are never part of the repository.
pub fn real_scan(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("JRS_TEST_DATA").map(PathBuf::from);
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared/data"));
    let found = named.into_iter().chain(above).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no {name} in JRS_TEST_DATA or in a shared/data above the checkout");
    }
    found
}
