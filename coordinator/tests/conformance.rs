//! One suite for every backend: what a run in a store promises, under damage and races.
//!
//! Memory and a folder always; with the features `aws`, `gcp` and `azure` buckets too, if `JRS_TEST_S3_URL=s3://bucket/prefix`,
//! `JRS_TEST_GCS_URL` or `JRS_TEST_AZURE_URL` name them (credentials and endpoint in the usual `AWS_`, `GOOGLE_` and `AZURE_`
//! variables).

mod support;

use std::num::NonZeroU64;
use std::time::Duration;

use jrs_coordinator::{BackgroundSaver, Bytes, Error, Retention, RunStore, Start, Started};
use serde_json::json;
use support::{Backend, Fault, Faulty, blobs, cursor, save, try_save};

/// What happens to an object's content; `None` removes the object.
type Damage = fn(Vec<u8>) -> Option<Vec<u8>>;

macro_rules! conformance {
    ($($test:ident),+ $(,)?) => {
        mod in_memory {
            $(#[test] fn $test() { super::$test(&super::Backend::memory()); })+
        }
        mod in_a_folder {
            $(#[test] fn $test() { super::$test(&super::Backend::folder()); })+
        }
        #[cfg(feature = "aws")]
        mod in_s3 {
            $(#[test] fn $test() {
                if let Some(backend) = super::Backend::bucket("JRS_TEST_S3_URL", "AWS_") { super::$test(&backend); }
            })+
        }
        #[cfg(feature = "gcp")]
        mod in_gcs {
            $(#[test] fn $test() {
                if let Some(backend) = super::Backend::bucket("JRS_TEST_GCS_URL", "GOOGLE_") { super::$test(&backend); }
            })+
        }
        #[cfg(feature = "azure")]
        mod in_azure {
            $(#[test] fn $test() {
                if let Some(backend) = super::Backend::bucket("JRS_TEST_AZURE_URL", "AZURE_") { super::$test(&backend); }
            })+
        }
    };
}

conformance!(
    loads_what_was_saved,
    an_empty_run_has_nothing_to_load,
    steps_are_sorted_by_number,
    damage_falls_back_to_the_checkpoint_before,
    a_damaged_manifest_falls_back_too,
    an_explicit_step_never_falls_back,
    when_everything_is_damaged_nothing_starts_afresh,
    a_save_that_dies_leaves_the_earlier_checkpoint,
    a_lost_or_doubtful_reply_is_success,
    the_same_step_twice_is_one_checkpoint,
    two_writers_with_other_content_conflict,
    a_damaged_checkpoint_is_replaced_by_the_next_save,
    racing_writers_leave_one_whole_checkpoint,
    retention_keeps_the_last_and_every_nth,
    retention_does_not_count_on_broken_checkpoints,
    later_checkpoints_can_be_discarded,
    orphans_are_found_and_removed,
    a_run_keeps_its_config_and_dataset,
    an_interrupted_start_is_completed,
    generations_have_one_holder,
    of_many_claimants_one_leads,
    background_saves_arrive_in_order,
    a_failed_background_save_is_reported,
    unusable_names_are_refused,
);

fn loads_what_was_saved(backend: &Backend) {
    let saved = save(&backend.open(), 7);
    let loaded = backend.open().load_latest().unwrap().unwrap();
    assert_eq!(loaded.manifest, saved);
    assert_eq!((saved.step, saved.generation, &saved.cursor), (7, 1, &cursor(7)));
    for (name, bytes) in blobs(7) {
        assert_eq!(loaded.blob(name).unwrap(), &bytes);
    }
    assert!(loaded.skipped.is_empty());
    assert!(loaded.blob("critic").unwrap_err().to_string().contains("\"critic\""));
    let keys: Vec<&str> = saved.objects.iter().map(|object| object.key.as_str()).collect();
    let folder = format!("ckpt/step-7/{}", saved.attempt);
    assert_eq!(keys, [format!("{folder}/state.safetensors"), format!("{folder}/note.txt")]);
}

fn an_empty_run_has_nothing_to_load(backend: &Backend) {
    let store = backend.open();
    assert_eq!(store.load_latest().unwrap(), None);
    assert!(store.list_checkpoints().unwrap().is_empty());
    assert!(matches!(store.load_step(3), Err(Error::NoCheckpoint { step: 3, .. })));
}

fn steps_are_sorted_by_number(backend: &Backend) {
    let store = backend.open();
    for step in [100, 9, 20] {
        save(&store, step);
    }
    assert_eq!(steps(&store), [9, 20, 100]);
    assert_eq!(store.load_latest().unwrap().unwrap().manifest.step, 100);
}

fn damage_falls_back_to_the_checkpoint_before(backend: &Backend) {
    let store = backend.open();
    let faults: [(Damage, &str); 4] = [
        (|_| None, "is missing"),
        (|bytes| Some(bytes[..bytes.len() - 1].to_vec()), "bytes instead of"),
        (|_| Some(Vec::new()), "has 0 bytes"),
        (flip_in_the_middle, "its content changed"),
    ];
    save(&store, 1);
    for (step, (fault, reason)) in (2..).zip(faults) {
        let saved = save(&store, step);
        backend.damage(&saved.objects[0].key, fault);
        let loaded = store.load_latest().unwrap().unwrap();
        assert_eq!(loaded.manifest.step, 1);
        assert_eq!(loaded.skipped.len() as u64, step - 1);
        assert_eq!(loaded.skipped[0].step, step);
        assert!(loaded.skipped[0].reason.contains(reason), "{}", loaded.skipped[0].reason);
    }
    let sound: Vec<bool> = store.verify().unwrap().iter().map(|checked| checked.manifest.is_ok()).collect();
    assert_eq!(sound, [true, false, false, false, false]);
}

fn a_damaged_manifest_falls_back_too(backend: &Backend) {
    let store = backend.open();
    save(&store, 1);
    save(&store, 2);
    // The cursor's digits are valid JSON either way; only the manifest's own digest can tell.
    backend.damage("ckpt/step-2/MANIFEST.json", |bytes| {
        Some(String::from_utf8(bytes).unwrap().replace("\"position\": 32", "\"position\": 33").into_bytes())
    });
    let loaded = store.load_latest().unwrap().unwrap();
    assert_eq!(loaded.manifest.step, 1);
    assert!(loaded.skipped[0].reason.contains("its own SHA-256"), "{}", loaded.skipped[0].reason);
    assert!(store.list_checkpoints().unwrap()[1].manifest.is_err());
}

fn an_explicit_step_never_falls_back(backend: &Backend) {
    let store = backend.open();
    save(&store, 1);
    let saved = save(&store, 2);
    backend.damage(&saved.objects[1].key, |_| None);
    assert_eq!(store.load_step(1).unwrap().manifest.step, 1);
    assert!(matches!(store.load_step(2), Err(Error::DamagedCheckpoint { step: 2, .. })));
    let error = store.load_step(3).unwrap_err().to_string();
    assert!(error.contains("step 3") && error.contains("1, 2"), "{error}");
}

fn when_everything_is_damaged_nothing_starts_afresh(backend: &Backend) {
    let store = backend.open();
    for step in [1, 2] {
        backend.damage(&save(&store, step).objects[0].key, |_| None);
    }
    let Err(Error::NothingSound { reasons, .. }) = store.load_latest() else { panic!("must be an error") };
    assert_eq!(reasons.len(), 2);
}

/// A checkpoint of two objects is three writes; death at any of them.
fn a_save_that_dies_leaves_the_earlier_checkpoint(backend: &Backend) {
    save(&backend.open(), 1);
    for dies_at in 0..3 {
        let dying = backend.open_through(Faulty::new(&backend.store(), Fault::Dead, dies_at));
        let error = try_save(&dying, 2).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
        let loaded = backend.open().load_latest().unwrap().unwrap();
        assert_eq!((loaded.manifest.step, loaded.skipped.len()), (1, 0));
    }
    assert_eq!(backend.open().orphans().unwrap().len(), 1 + 2);
    save(&backend.open(), 2);
    assert_eq!(backend.open().load_latest().unwrap().unwrap().manifest.step, 2);
}

fn a_lost_or_doubtful_reply_is_success(backend: &Backend) {
    let faults = [Fault::LostReply, Fault::BrokenReply, Fault::Conflict];
    for (number, fault) in faults.into_iter().enumerate() {
        for at_write in 0..3 {
            let step = (10 * number + at_write) as u64;
            let store = backend.open_through(Faulty::new(&backend.store(), fault, at_write));
            let saved = save(&store, step);
            assert_eq!(backend.open().load_step(step).unwrap().manifest, saved, "{fault:?} at {at_write}");
        }
        let store = backend.open_through(Faulty::new(&backend.store(), fault, 0));
        let generation = number as u64 + 1;
        assert_eq!(
            store.claim_generation(generation, json!("a")).unwrap().generation,
            generation,
            "{fault:?}"
        );
    }
    assert!(backend.open().orphans().unwrap().is_empty());
}

fn the_same_step_twice_is_one_checkpoint(backend: &Backend) {
    let first = save(&backend.open(), 5);
    let second = save(&backend.open(), 5);
    assert_eq!(second, first);
    assert!(backend.open().orphans().unwrap().is_empty(), "the loser cleans up");
}

fn two_writers_with_other_content_conflict(backend: &Backend) {
    let first = save(&backend.open(), 5);
    let other = backend.open().save_checkpoint(5, 1, cursor(5), &blobs(6));
    assert!(matches!(other, Err(Error::Conflict { step: 5, attempt, .. }) if attempt == first.attempt));
    let other = backend.open().save_checkpoint(5, 1, cursor(6), &blobs(5));
    assert!(matches!(other, Err(Error::Conflict { .. })), "another cursor is another state");
    assert_eq!(backend.open().load_latest().unwrap().unwrap().manifest, first);
    assert!(backend.open().orphans().unwrap().is_empty());
}

/// After a fall-back training reaches the damaged step again.
fn a_damaged_checkpoint_is_replaced_by_the_next_save(backend: &Backend) {
    let store = backend.open();
    let damaged = save(&store, 5);
    backend.damage(&damaged.objects[0].key, flip_in_the_middle);
    let replaced = save(&store, 5);
    assert_ne!(replaced.attempt, damaged.attempt);
    assert_eq!(store.load_latest().unwrap().unwrap().manifest, replaced);
    backend.damage("ckpt/step-5/MANIFEST.json", |_| Some(b"{".to_vec()));
    save(&store, 5);
    assert!(store.load_step(5).is_ok());
}

fn racing_writers_leave_one_whole_checkpoint(backend: &Backend) {
    let stores: Vec<RunStore> = (0..4).map(|_| backend.open()).collect();
    let saved: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = stores.iter().map(|store| scope.spawn(|| save(store, 3))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let held = backend.open().load_step(3).unwrap().manifest;
    assert!(saved.iter().all(|manifest| *manifest == held));
    assert!(backend.open().orphans().unwrap().is_empty());
}

fn retention_keeps_the_last_and_every_nth(backend: &Backend) {
    let store = backend.open();
    (1..=10).for_each(|step| drop(save(&store, step)));
    let retention = Retention::new(2, NonZeroU64::new(4)).unwrap();
    assert_eq!(store.prune(retention).unwrap(), [1, 2, 3, 5, 6, 7]);
    assert_eq!(steps(&store), [4, 8, 9, 10]);
    assert!(
        store.orphans().unwrap().is_empty(),
        "objects go with their manifest, step-1 does not take step-10"
    );
    assert!(store.verify().unwrap().iter().all(|checked| checked.manifest.is_ok()));
    assert_eq!(store.prune(Retention::new(2, None).unwrap()).unwrap(), [4, 8]);
    assert!(Retention::new(1, None).is_err());
}

fn retention_does_not_count_on_broken_checkpoints(backend: &Backend) {
    let store = backend.open();
    let saved: Vec<_> = (1..=5).map(|step| save(&store, step)).collect();
    backend.damage(&saved[4].objects[0].key, |_| None);
    backend.damage(&saved[3].objects[1].key, |bytes| Some(bytes[1..].to_vec()));
    assert_eq!(store.prune(Retention::new(2, None).unwrap()).unwrap(), [1]);
    assert_eq!(store.load_latest().unwrap().unwrap().manifest.step, 3);
}

fn later_checkpoints_can_be_discarded(backend: &Backend) {
    let store = backend.open();
    (1..=4).for_each(|step| drop(save(&store, step)));
    assert_eq!(store.discard_after(2).unwrap(), [3, 4]);
    assert_eq!(steps(&store), [1, 2]);
    assert!(store.save_checkpoint(3, 1, cursor(9), &blobs(9)).is_ok());
}

fn orphans_are_found_and_removed(backend: &Backend) {
    let store = backend.open();
    save(&store, 1);
    for step in [1, 2] {
        let dying = backend.open_through(Faulty::new(&backend.store(), Fault::Dead, 2));
        try_save(&dying, step).unwrap_err();
    }
    let orphans = store.orphans().unwrap();
    assert_eq!(orphans.len(), 4);
    assert!(store.clean_orphans(Duration::from_secs(3600)).unwrap().is_empty(), "a save may be under way");
    assert_eq!(store.clean_orphans(Duration::ZERO).unwrap(), orphans);
    assert!(store.orphans().unwrap().is_empty());
    assert!(store.verify().unwrap().iter().all(|checked| checked.manifest.is_ok()));
}

fn a_run_keeps_its_config_and_dataset(backend: &Backend) {
    let config = "seed = 1\n[train]\nsteps = 100\nrate = 0.1\n";
    let store = backend.open();
    assert!(matches!(store.start_run(config, "d1", Start::Resume), Err(Error::NoRun { .. })));
    assert_eq!(store.start_run(config, "d1", Start::New).unwrap(), Started::New);
    assert!(matches!(
        store.start_run(config, "d1", Start::New),
        Err(Error::RunExists { newest_step: None, .. })
    ));
    save(&store, 4);
    assert!(matches!(
        store.start_run(config, "d1", Start::New),
        Err(Error::RunExists { newest_step: Some(4), .. })
    ));

    let same = "# a comment\nseed=1\ntrain = { rate = 0.10, steps = 100 }\n";
    assert_eq!(store.start_run(same, "d1", Start::Resume).unwrap(), Started::Resumed);
    assert_eq!(store.start_run(same, "d1", Start::ResumeOrNew).unwrap(), Started::Resumed);

    let other = "seed = 2\nname = \"x\"\n[train]\nsteps = 100\n";
    let Err(Error::RunDiffers { differences, .. }) = store.start_run(other, "d2", Start::Resume) else {
        panic!("must be an error")
    };
    let expected = [
        "name was absent and is now \"x\"",
        "seed was 1 and is now 2",
        "train.rate was 0.1 and is now absent",
        "dataset digest was d1 and is now d2",
    ];
    assert_eq!(differences, expected);
    assert_eq!(store.config().unwrap().unwrap(), config);
    assert_eq!(store.dataset_digest().unwrap().unwrap(), "d1");
    assert!(store.start_run("seed = ", "d1", Start::Resume).is_err());
}

fn an_interrupted_start_is_completed(backend: &Backend) {
    let dying = backend.open_through(Faulty::new(&backend.store(), Fault::Dead, 1));
    dying.start_run("seed = 1", "d", Start::New).unwrap_err();
    let store = backend.open();
    assert!(matches!(store.start_run("seed = 2", "d", Start::New), Err(Error::RunDiffers { .. })));
    assert!(matches!(store.start_run("seed = 1", "d", Start::Resume), Err(Error::NoRun { .. })));
    assert_eq!(store.start_run("seed = 1", "d", Start::ResumeOrNew).unwrap(), Started::New);
}

fn generations_have_one_holder(backend: &Backend) {
    let store = backend.open();
    assert_eq!(store.latest_generation().unwrap(), None);
    store.claim_generation(9, json!({"host": "a"})).unwrap();
    store.claim_generation(10, json!({"host": "b"})).unwrap();
    assert_eq!(store.latest_generation().unwrap(), Some(10));
    for stale in [9, 10, 3] {
        let error = backend.open().claim_generation(stale, json!({"host": "c"})).unwrap_err().to_string();
        assert!(error.contains("generation 10") && error.contains("\"host\":\"b\""), "{error}");
    }
}

fn of_many_claimants_one_leads(backend: &Backend) {
    let stores: Vec<RunStore> = (0..6).map(|_| backend.open()).collect();
    let leaders = std::thread::scope(|scope| {
        let claim = |(index, store): (usize, &RunStore)| store.claim_generation(1, json!(index)).is_ok();
        let threads: Vec<_> =
            stores.iter().enumerate().map(|each| scope.spawn(move || claim(each))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|&led| led).count()
    });
    assert_eq!(leaders, 1);
}

fn background_saves_arrive_in_order(backend: &Backend) {
    let retention = Retention::new(2, None).unwrap();
    let mut saver = BackgroundSaver::new(backend.open().into(), Some(retention));
    for step in 1..=5 {
        let before = saver.save(step, 1, cursor(step), owned(step)).unwrap();
        assert_eq!(before.map(|manifest| manifest.step), (step > 1).then(|| step - 1));
    }
    assert_eq!(saver.finish().unwrap().unwrap().step, 5);
    assert_eq!(steps(&backend.open()), [4, 5]);
}

fn a_failed_background_save_is_reported(backend: &Backend) {
    let dying = backend.open_through(Faulty::new(&backend.store(), Fault::Dead, 0));
    let mut saver = BackgroundSaver::new(dying.into(), None);
    saver.save(1, 1, cursor(1), owned(1)).unwrap();
    assert!(saver.save(2, 1, cursor(2), owned(2)).is_err());
    assert!(saver.finish().unwrap().is_none());
}

fn unusable_names_are_refused(backend: &Backend) {
    let store = backend.open();
    let blob = Bytes::from_static(b"x");
    for names in [vec![], vec!["../up"], vec!["a/b"], vec!["same", "same"], vec![""]] {
        let blobs: Vec<_> = names.iter().map(|name| (*name, blob.clone())).collect();
        assert!(
            matches!(store.save_checkpoint(1, 1, json!(null), &blobs), Err(Error::Input { .. })),
            "{names:?}"
        );
    }
    assert!(store.orphans().unwrap().is_empty());
    assert!(RunStore::with_store(backend.store(), backend.prefix.clone(), "../other").is_err());
}

fn steps(store: &RunStore) -> Vec<u64> {
    store.list_checkpoints().unwrap().iter().map(|checked| checked.step).collect()
}

fn owned(step: u64) -> Vec<(String, Bytes)> {
    blobs(step).map(|(name, bytes)| (name.to_owned(), bytes)).to_vec()
}

fn flip_in_the_middle(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Some(bytes)
}
