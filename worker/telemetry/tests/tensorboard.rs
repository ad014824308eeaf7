//! Event files as TensorBoard itself reads them.

use jrs_telemetry::tensorboard::EventWriter;
use jrs_tests::external::python;

#[test]
fn tensorboard_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(folder.path(), None).unwrap();
    writer.scalars(1, &[("train/generator", 0.5), ("train/critic", -3.25)]).unwrap();
    writer.scalars(2, &[("train/generator", 0.0), ("train/critic", 4096.25)]).unwrap();
    let Some(shown) = python("tensorboard_check.py", &[folder.path()]) else { return };
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
    let Some(shown) = python("tensorboard_check.py", &[folder.path()]) else { return };
    assert_eq!(shown, r#"{"loss": [[1, 1.0], [2, 1.0], [3, 2.0], [4, 2.0], [5, 2.0]]}"#);
}
