//! Stores that fail: a real S3 server behind a proxy that answers wrongly, slowly or not at all, and damaged checkpoints.

use crate::cluster::{Cluster, alone, cache, folder, jrs, quick, undisturbed, wait};
use crate::http::{Fate, Proxy, Request};
use crate::seaweed::{SECRET, Seaweed, variables};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A whole run of JRS-GANa in seconds, with a checkpoint after each of its 4 iterations.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny.toml");
const OUT: &str = "s3://runs/below/a/prefix";

/// The model that the tiny run ends with in a folder, undisturbed.
fn expected() -> &'static [u8] {
    static MODEL: OnceLock<Vec<u8>> = OnceLock::new();
    MODEL.get_or_init(|| undisturbed("undisturbed-tiny", &std::fs::read_to_string(TINY).unwrap()))
}

/// `jrs train` of the tiny run, not started.
fn train(logs: &Path, out: &str, variables: &[(String, String)], flags: &[&str]) -> Command {
    let mut command = jrs();
    command.envs(variables.iter().cloned());
    command.args(["train", "--config", TINY, "--out", out, "--data"]).arg(cache());
    command.arg("--logs").arg(logs).args(flags);
    command
}

/// Runs a command that must succeed and returns what it said.
fn succeed(mut command: Command) -> String {
    let output = command.output().expect("the binary starts");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// `jrs runs` with these arguments, as JSON.
fn runs(variables: &[(String, String)], arguments: &[&str]) -> Value {
    let mut command = jrs();
    command.envs(variables.iter().cloned()).args(["runs", "--json"]).args(arguments);
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn model(logs: &Path) -> Vec<u8> {
    std::fs::read(logs.join("model.safetensors")).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every request of a whole run is disturbed once: refused, delayed, cut off, or done without a word.
#[test]
fn a_store_with_faults() {
    let _alone = alone();
    let Some(store) = Seaweed::start("faulty-store") else { return };
    let proxy = Proxy::before(&store.address());
    let fates = [
        Fate::Answer(500),
        Fate::Cut { done: true },
        Fate::Answer(503),
        Fate::Wait(Duration::from_millis(500)),
        Fate::Answer(409), // Amazon's answer to a write during another one that comes to nothing
        Fate::Cut { done: false },
    ];
    let mut seen = HashSet::new();
    let mut next = BTreeMap::<String, usize>::new();
    proxy.rule(move |request| {
        if !seen.insert(request.clone()) {
            return Fate::Pass;
        }
        let number = next.entry(request.method.clone()).or_default();
        *number += 1;
        match fates[*number % fates.len()] {
            Fate::Answer(409) if request.method != "PUT" => Fate::Pass,
            fate => fate,
        }
    });
    let found = variables(&proxy.address(), SECRET);
    let logs = folder("faulty-store-logs");
    let clock = Instant::now();
    let said = succeed(train(&logs, OUT, &found, &["--workers", "2"]));
    let took = clock.elapsed();
    let mut befell = BTreeMap::<String, usize>::new();
    for fate in proxy.struck() {
        *befell.entry(format!("{fate:?}")).or_default() += 1;
    }
    eprintln!("{took:.1?} with {befell:?}");
    assert!(model(&logs) == expected(), "the model differs: {said}");
    assert_eq!(befell.len(), fates.len(), "not every fault occurred: {befell:?}");
    assert!(took < Duration::from_secs(120), "{took:?}");
    committed_once(&proxy);

    // What is there is sound, and nothing half-written is left.
    let shown = runs(&found, &["show", OUT]);
    assert_eq!(shown["newest"], 9, "{shown}");
    assert_eq!(shown["orphans"].as_array().unwrap().len(), 0, "{shown}");
    let verified = runs(&found, &["verify", OUT]);
    assert!(verified.as_array().unwrap().iter().all(|step| step["damage"].is_null()), "{verified}");
}

/// Manifests and generations were each written by one request.
fn committed_once(proxy: &Proxy) {
    let mut writes = BTreeMap::<String, usize>::new();
    for Request { method, target } in proxy.done() {
        if method == "PUT" && (target.contains("MANIFEST") || target.contains("/gen/")) {
            *writes.entry(target).or_default() += 1;
        }
    }
    assert!(writes.len() >= 5, "{writes:?}");
    assert!(writes.values().all(|&count| count == 1), "committed twice: {writes:?}");
}

/// The store is killed for a while, and a worker meanwhile. The others step on, but no generation begins without the
/// store; when it is back, everything goes on.
#[test]
fn a_dead_store() {
    const STEPS: u64 = 150;
    let _alone = alone();
    let Some(mut store) = Seaweed::start("dead-store") else { return };
    let config = quick(STEPS);
    let mut cluster = Cluster::in_store("dead-store-run", &config, OUT, variables(&store.address(), SECRET));
    cluster.coordinate(2);
    let [first, second] = [cluster.work(""), cluster.work("")];
    cluster.reach(5);
    store.kill();
    let before = cluster.progress();
    cluster.reach(before + 25); // two checkpoints are due in these
    let commits = cluster.commits();
    let longest = commits.windows(2).map(|pair| pair[1].at - pair[0].at).fold(0.0, f64::max);
    eprintln!("without a store the longest pause between two steps was {longest:.1} s");
    assert!(longest < 5.0, "a step waited for the store: {longest:.1} s");

    let generation = commits.last().unwrap().generation;
    cluster.signal(second, "KILL");
    assert_eq!(cluster.ended(second), None);
    let third = cluster.work("");
    std::thread::sleep(Duration::from_secs(4));
    assert!(cluster.progress() < STEPS, "the run was over before the store came back");
    assert!(cluster.commits().iter().all(|commit| commit.generation == generation), "nobody could claim it");
    store.restart();
    let clock = Instant::now();
    wait("a new generation", || cluster.commits().last().unwrap().generation > generation);
    let took = clock.elapsed();
    eprintln!("the next step was committed {took:.1?} after the store came back");
    assert!(took < Duration::from_secs(10), "{took:?}");
    cluster.end(&[first, third]);
    let model = store.read("below/a/prefix/runs/r/model.safetensors");
    assert!(model == undisturbed("undisturbed-dead-store", &config), "the model differs");
}

/// Kill -9 while an object of a checkpoint is written, before and after it is there: each time the newest checkpoint is
/// the last whole one, and the run goes on from it.
#[test]
fn killed_in_a_save() {
    let _alone = alone();
    let Some(store) = Seaweed::start("killed-in-a-save") else { return };
    let proxy = Proxy::before(&store.address());
    let found = variables(&proxy.address(), SECRET);
    let logs = folder("killed-in-a-save-logs");
    // Checkpoints are due after the updates 3, 5, 7 and 9.
    let saves = [
        ("step-3/", "state.safetensors", false, None),
        ("step-3/", "state.safetensors", true, None),
        ("step-5/", "MANIFEST.json", false, Some(3)),
        ("step-5/", "MANIFEST.json", true, Some(5)),
    ];
    for (number, (step, object, done, newest)) in saves.into_iter().enumerate() {
        proxy.rule(move |request| {
            let hit =
                request.method == "PUT" && request.target.contains(step) && request.target.contains(object);
            if hit { Fate::Hang { done } } else { Fate::Pass }
        });
        let flags: &[&str] = if number == 0 { &[] } else { &["--resume"] };
        let mut process = train(&logs, OUT, &found, flags).stderr(Stdio::null()).spawn().unwrap();
        wait(object, || proxy.struck().len() > number);
        if done {
            wait("the store to have it", || {
                proxy.done().iter().any(|put| put.target.contains(step) && put.target.contains(object))
            });
        }
        process.kill().unwrap();
        process.wait().unwrap();
        let shown = runs(&found, &["show", OUT]);
        assert_eq!(shown["newest"], newest.map_or(Value::Null, Value::from), "{object} {done}: {shown}");
        let verified = runs(&found, &["verify", OUT]);
        assert!(verified.as_array().unwrap().iter().all(|step| step["damage"].is_null()), "{verified}");
    }
    proxy.rule(|_| Fate::Pass);
    succeed(train(&logs, OUT, &found, &["--resume"]));
    assert!(model(&logs) == expected(), "the model differs");

    // Two attempts left their states behind, without a manifest.
    let orphans = runs(&found, &["show", OUT])["orphans"].as_array().unwrap().len();
    assert_eq!(orphans, 2, "one after the first object, one before the manifest");
    let pruned = runs(&found, &["prune", OUT, "--keep-last", "2", "--orphan-hours", "0"]);
    assert_eq!(pruned["objects"].as_array().unwrap().len(), orphans, "{pruned}");
    let shown = runs(&found, &["show", OUT]);
    assert_eq!(shown["orphans"].as_array().unwrap().len(), 0, "{shown}");
    assert_eq!(shown["checkpoints"], 2, "{shown}");
    assert_eq!(runs(&found, &["list", OUT])[0]["newest"], 9);
}

/// The newest checkpoints are flipped, truncated and gone: the one before loads, which is said, and the run ends as ever.
#[test]
fn damaged_checkpoints() {
    let _alone = alone();
    for workers in [None, Some("2")] {
        let root = folder("damaged-checkpoints");
        let (out, logs) = (root.join("store"), root.join("logs"));
        succeed(train(&logs, path(&out), &[], &["--stop-after", "3"]));
        let damaged = [
            ("step-7", "state.safetensors", Damage::Flip),
            ("step-5", "state.safetensors", Damage::Truncate),
        ];
        for (step, name, damage) in damaged {
            damage.do_to(&find(&out.join("runs/default/ckpt").join(step), name));
        }
        let verified = runs(&[], &["verify", path(&out)]);
        let reasons: Vec<Option<&str>> =
            verified.as_array().unwrap().iter().map(|step| step["damage"].as_str()).collect();
        assert_eq!(reasons.len(), 3, "{verified}");
        assert!(reasons[0].is_none(), "{verified}");
        assert!(reasons[1].unwrap().contains("bytes instead of"), "{verified}");
        assert!(reasons[2].unwrap().contains("its content changed"), "{verified}");
        let mut flags = vec!["--resume"];
        flags.extend(workers.iter().flat_map(|count| ["--workers", *count]));
        let said = succeed(train(&logs, path(&out), &[], &flags));
        for words in ["step-7", "step-5", "updates=3 damaged=2"] {
            assert!(said.contains(words), "{words} in {said}");
        }
        assert!(model(&logs) == expected(), "the model differs");
    }
}

#[derive(Clone, Copy)]
enum Damage {
    Flip,
    Truncate,
}

impl Damage {
    fn do_to(self, file: &Path) {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Self::Flip => bytes[middle] ^= 1,
            Self::Truncate => bytes.truncate(middle),
        }
        std::fs::write(file, bytes).unwrap();
    }
}

/// The file of this name below a folder of one checkpoint.
fn find(step: &Path, name: &str) -> PathBuf {
    let attempts = std::fs::read_dir(step).unwrap().flatten().map(|entry| entry.path().join(name));
    attempts.into_iter().find(|file| file.is_file()).unwrap_or_else(|| panic!("{name} in {}", step.display()))
}

/// Credentials that are wrong or absent: an error at once that says what to set.
#[test]
fn wrong_credentials() {
    let _alone = alone();
    let Some(store) = Seaweed::start("credentials") else { return };
    let logs = folder("credentials-logs");
    let wrong = variables(&store.address(), "not-the-secret");
    let mut absent = variables(&store.address(), SECRET);
    absent.retain(|(name, _)| !name.contains("KEY"));
    for (which, found) in [("wrong", wrong), ("absent", absent)] {
        for flags in [&[][..], &["--workers", "2"]] {
            let clock = Instant::now();
            let output = train(&logs, OUT, &found, flags).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!("{which}, after {:.1?}: {said}", clock.elapsed());
            assert!(!output.status.success());
            for words in [OUT, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
                assert!(said.contains(words), "{words} in {said}");
            }
            assert!(clock.elapsed() < Duration::from_secs(30), "{which}: {:?}", clock.elapsed());
        }
    }
}
