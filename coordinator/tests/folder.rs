//! Runs in a folder of this machine: opening, and death of the process at any moment.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jrs_coordinator::{Bytes, Manifest, Retention, RunStore, Start};
use serde_json::json;

/// Set in the child process that is killed while it saves.
const CHILD_FOLDER: &str = "JRS_TEST_CHILD_FOLDER";

#[test]
fn a_folder_holds_the_documented_layout() {
    let dir = tempfile::tempdir().unwrap();
    let store = RunStore::open(dir.path().to_str().unwrap(), "first").unwrap();
    assert!(store.start_run("", "", Start::Resume).is_err(), "opening does not begin a run");
    store.start_run("seed = 1\n", "d", Start::New).unwrap();
    store.claim_generation(1, json!({"host": "here"})).unwrap();
    let saved = save(&store, 12);
    for file in [
        "config.toml".to_owned(),
        "dataset.digest".to_owned(),
        "gen/1.json".to_owned(),
        "ckpt/step-12/MANIFEST.json".to_owned(),
        format!("ckpt/step-12/{}/state.safetensors", saved.attempt),
    ] {
        assert!(dir.path().join("runs/first").join(&file).is_file(), "{file}");
    }
    let url = format!("file://{}", dir.path().display());
    let read = RunStore::open_to_read(&url, "first").unwrap();
    assert_eq!(read.location(), dir.path().join("runs/first").display().to_string());
    assert_eq!(read.load_latest().unwrap().unwrap().manifest, saved);
}

#[test]
#[cfg(target_os = "linux")]
fn a_place_that_cannot_be_written_to_is_refused_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for place in [file.clone(), file.join("below")] {
        let error = RunStore::open(place.to_str().unwrap(), "run").unwrap_err().to_string();
        assert!(error.contains(place.to_str().unwrap()) && error.contains("Name a folder"), "{error}");
    }
    // A folder that exists and refuses new files, even to root.
    let error = RunStore::open("/proc", "run").unwrap_err().to_string();
    assert!(error.contains("cannot be written to") && error.contains("permissions"), "{error}");
    assert!(RunStore::open_to_read(dir.path().join("absent").to_str().unwrap(), "run").is_err());
}

/// The child saves step after step until it is killed without warning. Whenever that is, the newest checkpoint is
/// whole, nothing is damaged, and what the last save left is found and removed.
#[test]
fn kill_9_during_a_save_leaves_whole_checkpoints() {
    let mut seen = 0;
    for delay_ms in [0, 3, 7, 12] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_saves_until_killed", "--nocapture"])
            .env(CHILD_FOLDER, folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let store = RunStore::open(folder, "run").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while store.list_checkpoints().unwrap().len() < 2 {
            assert!(Instant::now() < deadline, "the child saved nothing");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();

        let loaded = store.load_latest().unwrap().unwrap();
        assert!(loaded.skipped.is_empty());
        assert_eq!(loaded.blobs, child_state(loaded.manifest.step));
        assert!(store.verify().unwrap().iter().all(|checked| checked.manifest.is_ok()));
        seen += store.clean_orphans(Duration::ZERO).unwrap().len();
        assert!(store.orphans().unwrap().is_empty());
        assert_eq!(store.load_latest().unwrap().unwrap(), loaded);
    }
    eprintln!("four kills left {seen} unfinished objects");
}

/// Other programs have runtimes of their own.
#[test]
fn a_store_may_be_dropped_inside_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let store = RunStore::open(dir.path().to_str().unwrap(), "run").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { drop(store) });
}

#[test]
fn pruned_checkpoints_leave_no_folders() {
    let dir = tempfile::tempdir().unwrap();
    let store = RunStore::open(dir.path().to_str().unwrap(), "run").unwrap();
    (1..=4).for_each(|step| drop(save(&store, step)));
    store.prune(Retention::new(2, None).unwrap()).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(dir.path().join("runs/run/ckpt"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["step-3", "step-4"]);
}

#[test]
fn a_killed_write_is_an_orphan_although_the_store_does_not_list_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = RunStore::open(dir.path().to_str().unwrap(), "run").unwrap();
    save(&store, 1);
    let attempt = dir.path().join("runs/run/ckpt/step-2/0123");
    std::fs::create_dir_all(&attempt).unwrap();
    std::fs::write(attempt.join("state.safetensors#1"), "half").unwrap();
    let orphans = store.orphans().unwrap();
    assert_eq!(orphans.len(), 1);
    assert_eq!((orphans[0].key.as_str(), orphans[0].size), ("ckpt/step-2/0123/state.safetensors#1", 4));
    assert_eq!(store.clean_orphans(Duration::ZERO).unwrap(), orphans);
    assert!(!attempt.join("state.safetensors#1").exists());
    assert_eq!(store.load_latest().unwrap().unwrap().manifest.step, 1);
}

/// Not a test of its own: the process that is killed.
#[test]
fn child_that_saves_until_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let store = RunStore::open(&folder, "run").unwrap();
    for step in 1.. {
        let state = child_state(step);
        let blobs: Vec<_> = state.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        store.save_checkpoint(step, 1, json!(step), &blobs).unwrap();
    }
}

fn save(store: &RunStore, step: u64) -> Manifest {
    let state = Bytes::from(vec![step as u8; 100]);
    store.save_checkpoint(step, 1, json!(step), &[("state.safetensors", state)]).unwrap()
}

fn child_state(step: u64) -> Vec<(String, Bytes)> {
    vec![("state".to_owned(), Bytes::from(vec![step as u8; 1 << 20]))]
}
