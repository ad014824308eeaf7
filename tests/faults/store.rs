//! Stores that fail: a real S3 server behind a proxy that answers wrongly, slowly or not at all, and damaged checkpoints.

use crate::cluster::{Cluster, alone, cache, folder, jrs, quick, undisturbed, wait};
use crate::http::{Fate, Proxy, Request};
use crate::seaweed::{SECRET, Seaweed, variables};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A whole run of JRS-GANa in seconds, with a checkpoint after each of its 4 iterations.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny.toml");
const OUT: &str = "s3://runs/below/a/prefix";

/// A generator alone, with checkpoints after the updates 2, 4, 6 and 8.
fn short() -> String {
    quick(8).replace("every = 10", "every = 2")
}

/// A run of `jrs train`.
struct Run {
    config: PathBuf,
    data: String,
    logs: PathBuf,
    out: String,
    variables: Vec<(String, String)>,
}

impl Run {
    fn new(name: &str, config: &str, out: &str, variables: Vec<(String, String)>) -> Self {
        let logs = folder(name);
        let file = logs.join("run.toml");
        std::fs::write(&file, config).unwrap();
        Self { config: file, data: cache().display().to_string(), logs, out: out.into(), variables }
    }

    /// Not started.
    fn train(&self, flags: &[&str]) -> Command {
        let mut command = jrs();
        command.envs(self.variables.iter().cloned());
        command.arg("train").arg("--config").arg(&self.config).args(["--data", &self.data]);
        command.args(["--out", &self.out, "--logs"]).arg(&self.logs).args(flags);
        command
    }

    /// What `jrs runs` says of it.
    fn ask(&self, action: &str, flags: &[&str]) -> Value {
        let mut command = jrs();
        command.envs(self.variables.iter().cloned());
        command.args(["runs", "--json", action, &self.out]).args(flags);
        let output = command.output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// All checkpoints can be read and are what they were.
    fn assert_sound(&self) {
        let verified = self.ask("verify", &[]);
        assert!(verified.as_array().unwrap().iter().all(|step| step["damage"].is_null()), "{verified}");
    }

    fn model(&self) -> Vec<u8> {
        std::fs::read(self.logs.join("model.safetensors")).unwrap()
    }
}

/// Runs a command that must succeed and returns what it said.
fn succeed(mut command: Command) -> String {
    let output = command.output().expect("the binary starts");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
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
    let tiny = std::fs::read_to_string(TINY).unwrap();
    let run = Run::new("faulty-store-run", &tiny, OUT, variables(&proxy.address(), SECRET));
    let clock = Instant::now();
    let said = succeed(run.train(&["--workers", "2"]));
    let took = clock.elapsed();
    let mut befell = BTreeMap::<String, usize>::new();
    for fate in proxy.struck() {
        *befell.entry(format!("{fate:?}")).or_default() += 1;
    }
    eprintln!("{took:.1?} with {befell:?}");
    assert!(run.model() == undisturbed(&tiny), "the model differs: {said}");
    assert_eq!(befell.len(), fates.len(), "not every fault occurred: {befell:?}");
    assert!(took < Duration::from_secs(120), "{took:?}");
    committed_once(&proxy);

    // What is there is sound, and nothing half-written is left.
    let shown = run.ask("show", &[]);
    assert_eq!(shown["newest"], 9, "{shown}");
    assert_eq!(shown["orphans"].as_array().unwrap().len(), 0, "{shown}");
    run.assert_sound();
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
    const STEPS: u64 = 60;
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
    let stalls: Vec<f64> = [first, second].iter().flat_map(|&worker| cluster.stalls(worker)).collect();
    let longest = stalls.iter().copied().fold(0.0, f64::max);
    eprintln!("without a store, {} checkpoints held up training for {longest:.3} s at most", stalls.len());
    assert!(stalls.len() >= 2 && longest < 1.0, "a step waited for the store: {stalls:?}");

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
    assert!(model == undisturbed(&config), "the model differs");
}

/// Kill -9 while an object of a checkpoint is written, before and after it is there: each time the newest checkpoint is
/// the last whole one, and the run goes on from it.
#[test]
fn killed_in_a_save() {
    let _alone = alone();
    let Some(store) = Seaweed::start("killed-in-a-save") else { return };
    let proxy = Proxy::before(&store.address());
    let config = short();
    let run = Run::new("killed-in-a-save-run", &config, OUT, variables(&proxy.address(), SECRET));
    let saves = [
        ("step-2/", "state.safetensors", false, None),
        ("step-2/", "state.safetensors", true, None),
        ("step-4/", "MANIFEST.json", false, Some(2)),
        ("step-4/", "MANIFEST.json", true, Some(4)),
    ];
    for (number, (step, object, done, newest)) in saves.into_iter().enumerate() {
        let hit = move |request: &Request| {
            request.method == "PUT" && request.target.contains(step) && request.target.contains(object)
        };
        proxy.rule(move |request| if hit(request) { Fate::Hang { done } } else { Fate::Pass });
        let flags: &[&str] = if number == 0 { &[] } else { &["--resume"] };
        let before = proxy.done().len();
        let mut process = run.train(flags).stderr(Stdio::null()).spawn().unwrap();
        wait(object, || proxy.struck().len() > number);
        if done {
            wait("the store to have it", || proxy.done()[before..].iter().any(hit));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        let shown = run.ask("show", &[]);
        assert_eq!(shown["newest"], newest.map_or(Value::Null, Value::from), "{object} {done}: {shown}");
        run.assert_sound();
    }
    proxy.rule(|_| Fate::Pass);
    succeed(run.train(&["--resume"]));
    assert!(run.model() == undisturbed(&config), "the model differs");

    // An attempt at step 4 left its state behind, without a manifest. What was left of step 2 went with that step.
    let orphans = |shown: &Value| shown["orphans"].as_array().unwrap().len();
    assert_eq!(orphans(&run.ask("show", &[])), 1);
    let prune = |keep: &str| run.ask("prune", &["--keep-last", keep, "--orphan-hours", "0"]);
    let pruned = prune("3");
    assert_eq!((&pruned["checkpoints"], pruned["objects"].as_array().unwrap().len()), (&json!([]), 1));
    assert_eq!(prune("2"), json!({"checkpoints": [4], "objects": []}));
    let shown = run.ask("show", &[]);
    assert_eq!((orphans(&shown), &shown["checkpoints"]), (0, &json!(2)), "{shown}");
    assert_eq!(run.ask("list", &[])[0]["newest"], 8);
}

/// Data and run in one bucket: alone and in a cluster the model is that of local files.
#[test]
fn data_in_a_bucket() {
    let _alone = alone();
    let Some(store) = Seaweed::start("data-in-a-bucket") else { return };
    copy(&store, cache(), "cache");
    let config = short();
    for (name, workers) in [("alone", &[][..]), ("cluster", &["--workers", "2"])] {
        let out = format!("s3://runs/{name}");
        let mut run =
            Run::new(&format!("data-in-a-bucket-{name}"), &config, &out, variables(&store.address(), SECRET));
        run.data = "s3://runs/cache".into();
        let copies = run.logs.join("copies").display().to_string();
        let flags = [&["--copies", &copies], workers].concat();
        succeed(run.train(&flags));
        assert!(run.model() == undisturbed(&config), "{name}: the model differs");
        run.assert_sound();
    }
}

/// Copies all that is in a folder.
fn copy(store: &Seaweed, folder: &Path, key: &str) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, key) = (entry.path(), format!("{key}/{}", entry.file_name().display()));
        if path.is_dir() {
            copy(store, &path, &key)
        } else {
            store.write(&key, &std::fs::read(path).unwrap())
        }
    }
}

/// The newest checkpoints are flipped, truncated or gone: the one before loads, which is said, and the run ends as ever.
#[test]
fn damaged_checkpoints() {
    let _alone = alone();
    let config = short();
    for workers in [None, Some("2")] {
        // One process alone, and a cluster.
        let store = folder("damaged-checkpoints");
        let run = Run::new("damaged-checkpoints-run", &config, store.to_str().unwrap(), Vec::new());
        succeed(run.train(&["--stop-after", "6"]));
        let state =
            |step: u64| find(&store.join(format!("runs/default/ckpt/step-{step}")), "state.safetensors");
        damage(&state(6), |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        damage(&state(4), |bytes| bytes.truncate(bytes.len() / 2));
        let verified = run.ask("verify", &[]);
        let reasons = verified.as_array().unwrap().iter().map(|step| step["damage"].as_str());
        let reasons: Vec<Option<&str>> = reasons.collect();
        assert!(
            matches!(reasons[..], [None, Some(four), Some(six)]
                if four.contains("bytes instead of") && six.contains("its content changed")),
            "{verified}"
        );
        let mut flags = vec!["--resume"];
        flags.extend(workers.iter().flat_map(|count| ["--workers", *count]));
        let said = succeed(run.train(&flags));
        for words in ["step=6", "step=4", "updates=2 damaged=2"] {
            assert!(said.contains(words), "{words} in {said}");
        }
        assert!(run.model() == undisturbed(&config), "the model differs");

        // An object that is gone, and an answer that says so.
        std::fs::remove_file(state(8)).unwrap();
        let verified = run.ask("verify", &[]);
        assert!(verified.to_string().contains("is missing"), "{verified}");
        std::fs::remove_file(run.logs.join("model.safetensors")).unwrap();
        let said = succeed(run.train(&flags));
        assert!(said.contains("updates=6 damaged=1"), "{said}");
        assert!(run.model() == undisturbed(&config), "the model differs");
    }
}

fn damage(file: &Path, how: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file).unwrap();
    how(&mut bytes);
    std::fs::write(file, bytes).unwrap();
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
    let config = short();
    let wrong = variables(&store.address(), "not-the-secret");
    let mut absent = variables(&store.address(), SECRET);
    absent.retain(|(name, _)| !name.contains("KEY"));
    for (which, found) in [("wrong", wrong), ("absent", absent)] {
        let run = Run::new("credentials-run", &config, OUT, found);
        cache(); // made before the clock starts
        let clock = Instant::now();
        let output = run.train(&["--workers", "2"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!("{which}, after {:.1?}: {said}", clock.elapsed());
        assert!(!output.status.success());
        for words in [OUT, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            assert!(said.contains(words), "{words} in {said}");
        }
        assert!(clock.elapsed() < Duration::from_secs(90), "{which}: {:?}", clock.elapsed());
    }
}
