//! Event files as TensorBoard itself reads them. `JRS_TEST_PYTHON` names a Python with the package tensorboard;
//! `python3` otherwise.

use std::path::Path;
use std::process::Command;

use jrs_telemetry::tensorboard::EventWriter;

#[test]
fn tensorboard_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(folder.path(), None).unwrap();
    writer.scalars(1, &[("train/generator", 0.5), ("train/critic", -3.25)]).unwrap();
    writer.scalars(2, &[("train/generator", 0.0), ("train/critic", 4096.25)]).unwrap();
    let Some(shown) = shown_by_tensorboard(folder.path()) else { return };
    assert_eq!(
        shown,
        r#"{"train/critic": [[1, -3.25], [2, 4096.25]], "train/generator": [[1, 0.5], [2, 0.0]]}"#
    );
}

#[test]
fn a_resume_replaces_the_steps_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = EventWriter::create(folder.path(), None).unwrap();
    for step in 1..=4 {
        before.scalars(step, &[("loss", 1.0)]).unwrap();
    }
    let mut after = EventWriter::create(folder.path(), Some(3)).unwrap();
    for step in 3..=5 {
        after.scalars(step, &[("loss", 2.0)]).unwrap();
    }
    let Some(shown) = shown_by_tensorboard(folder.path()) else { return };
    assert_eq!(shown, r#"{"loss": [[1, 1.0], [2, 1.0], [3, 2.0], [4, 2.0], [5, 2.0]]}"#);
}

fn shown_by_tensorboard(folder: &Path) -> Option<String> {
    let python = std::env::var("JRS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/tensorboard_check.py");
    let output = match Command::new(&python).arg(script).arg(folder).output() {
        Ok(output) if output.status.code() == Some(3) => {
            eprintln!(
                "SKIPPED TensorBoard's reader: {python} has no package tensorboard (set JRS_TEST_PYTHON)"
            );
            return None;
        }
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED TensorBoard's reader: {python} cannot be run: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}
