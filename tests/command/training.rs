//! `jrs train`, `jrs plan` and `jrs model`: interrupted runs end as uninterrupted ones do, and models are what they say.

use crate::support::{bytes, files_below, folder, jrs, last_json, run, said, text, tiny};
use jrs_tests::external::python;
use libjrs::model::{Model, sha256_hex};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A whole run of JRS-GANa in seconds.
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny.toml");
const ITERATIONS: u64 = 4;

#[test]
fn three_pieces_give_the_bytes_of_one() {
    let root = folder("pieces");
    let straight = Run::new(&root, "straight");
    let summary = last_json(&straight.finish(&["--json"]));
    assert_eq!((&summary["run"], &summary["steps"]), (&"straight".into(), &ITERATIONS.into()));
    assert_eq!(summary["model"], text(&straight.file("model.safetensors")));
    assert_eq!(summary["model_sha256"], sha256_hex(&bytes(&straight.file("model.safetensors"))));

    // The first piece ends by Ctrl-C during the second iteration or soon after it.
    let pieces = Run::new(&root, "pieces");
    let mut child = pieces.start(&["--json"]);
    wait_for(&mut child, "the first iteration", || pieces.iterations() >= 1);
    signal("INT", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let summary = last_json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(summary["outcome"], "interrupted", "{}", said(&output));
    let first = pieces.iterations();
    let saved = pieces.checkpoints();
    assert!(first < ITERATIONS, "Ctrl-C came too late to interrupt anything");
    assert_eq!(summary["steps"], first);
    assert!(!saved.is_empty(), "Ctrl-C saved nothing");

    // The second piece dies without warning, after at least one new checkpoint.
    let mut child = pieces.start(&["--resume"]);
    wait_for(&mut child, "a new checkpoint", || pieces.checkpoints().iter().any(|c| !saved.contains(c)));
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), None, "it ended before it was killed: {}", said(&output));
    let second = pieces.iterations();
    assert!(first < second && second <= ITERATIONS, "{first} and then {second} iterations");

    pieces.finish(&["--resume"]);
    for file in ["model.safetensors", "losses.csv", "validation.csv"] {
        assert!(bytes(&straight.file(file)) == bytes(&pieces.file(file)), "{file} differs");
    }
    assert_eq!(straight.iterations(), ITERATIONS);
    eprintln!("pieces ended in iterations {first}, {second} and {ITERATIONS}");

    // The name is taken now, and a run keeps its settings.
    let refused = pieces.command(&[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("--resume"), "{}", said(&refused));

    the_store_is_listed_checked_and_pruned(&pieces);
}

/// `jrs runs` on a folder; on S3 it is a fault test's matter.
fn the_store_is_listed_checked_and_pruned(trained: &Run) {
    let runs = |action: &str, more: &[&str]| -> serde_json::Value {
        let name = if action == "list" { &[][..] } else { &[trained.name.as_str()] };
        let out = run(&[&["runs", "--json", action, text(&trained.store)], name, more].concat());
        serde_json::from_str(&out).unwrap()
    };
    let steps = |shown: &serde_json::Value| -> Vec<u64> {
        shown.as_array().unwrap().iter().map(|step| step["step"].as_u64().unwrap()).collect()
    };
    let listed = runs("list", &[]);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect();
    assert_eq!(names, ["pieces", "straight"]);
    let all = steps(&runs("show", &[])["steps"]);
    assert_eq!(all.len(), trained.checkpoints().len());
    assert!(all.len() > 2, "{all:?} leaves nothing to prune");
    assert_eq!(listed[0]["newest"].as_u64(), all.last().copied());

    let (removed, kept) = all.split_at(all.len() - 2);
    assert_eq!(runs("prune", &["--keep-last", "2"])["checkpoints"], serde_json::json!(removed));
    assert_eq!(trained.checkpoints().len(), 2);
    assert_eq!(steps(&runs("verify", &[])), kept);

    let mut objects = files_below(trained.checkpoints()[0].parent().unwrap());
    objects.sort_by_key(|object| bytes(object).len());
    let object = objects.pop().unwrap();
    let mut damaged = bytes(&object);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&object, damaged).unwrap();
    let refused = jrs().args(["runs", "verify", text(&trained.store), &trained.name]).output().unwrap();
    assert!(!refused.status.success() && said(&refused).contains(&kept[0].to_string()), "{}", said(&refused));
}

#[test]
fn every_system_trains_a_valid_model() {
    let root = folder("systems");
    for system in ["Reg-CNN", "JRS-CNN", "Reg-GAN", "JRS-GANa", "JRS-GANb"] {
        let patch = if system.contains("GAN") { 76 } else { 44 };
        let config = root.join(format!("{system}.toml"));
        let settings = format!(
            "system = \"{system}\"\niterations = 1\nsampling = {{ patch = {patch}, batch = 1 }}\n\
             critic = {{ warmup_steps = 1 }}\nvalidation = {{ every = 0 }}\n"
        );
        std::fs::write(&config, settings).unwrap();
        let trained = Run { config: text(&config).to_owned(), ..Run::new(&root, system) };
        trained.finish(&[]);
        let model = trained.file("model.safetensors");
        let said = run(&["model", "verify", text(&model)]);
        assert!(said.contains("valid") && said.contains(&sha256_hex(&bytes(&model))), "{said}");
        let shown: serde_json::Value = serde_json::from_str(&run(&["model", "show", text(&model)])).unwrap();
        assert_eq!(shown["training"]["system"], system);
        assert_eq!(shown["training"]["steps"], 1);
    }
}

#[test]
fn plan_says_what_a_run_costs() {
    let plan = run(&["plan", "--config", CONFIG, "--data", text(&tiny().cache)]);
    let value = |name: &str| {
        let line = plan.lines().find_map(|line| line.strip_prefix(&format!("# {name}")));
        line.unwrap_or_else(|| panic!("no {name} in\n{plan}")).trim().to_owned()
    };
    let digest = value("digest");
    assert!(digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()), "{digest}");
    // 3 updates of the first iteration, 2 of each other one.
    assert_eq!(value("updates in all"), "9");
    // One training pair, 8 patches, four a batch.
    assert_eq!((value("training pairs"), value("updates per epoch")), ("1".into(), "2".into()));
    assert!(value("checkpoint").contains("MB") && value("activations").contains("GB"), "{plan}");
    // What is printed is itself the configuration.
    let printed = folder("plan").join("printed.toml");
    std::fs::write(&printed, &plan).unwrap();
    assert_eq!(run(&["plan", "--config", text(&printed), "--data", text(&tiny().cache)]), plan);
}

#[test]
fn python_reads_the_model() {
    let path = &tiny().model;
    let Some(printed) = python("model_check.py", &[path]) else { return };
    let theirs: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let model = Model::load(path).unwrap();
    assert_eq!(theirs["system"], model.manifest.training.system);
    let tensors = model.generator.tensors();
    assert_eq!(theirs["tensors"].as_object().unwrap().len(), tensors.len());
    for (name, shape, values) in tensors {
        let tensor = &theirs["tensors"][format!("generator.{name}")];
        assert_eq!(tensor["shape"], serde_json::json!(shape), "{name}");
        let ours: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let sum = tensor["sum"].as_f64().unwrap();
        assert!((ours - sum).abs() <= 1e-9 * ours.abs().max(1.0), "{name}: {ours}, Python {sum}");
    }
}

/// A named run in a store below `root`, on the tiny cache.
struct Run {
    config: String,
    store: PathBuf,
    name: String,
}

impl Run {
    fn new(root: &Path, name: &str) -> Self {
        Self { config: CONFIG.into(), store: root.join("store"), name: name.into() }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = jrs();
        command.args(["train", "--config", &self.config, "--data", text(&tiny().cache)]);
        command.args(["--out", text(&self.store), "--run", &self.name]).args(more);
        command
    }

    fn start(&self, more: &[&str]) -> Child {
        self.command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs to the end, which must be a good one; returns the standard output.
    fn finish(&self, more: &[&str]) -> String {
        let output: Output = self.command(more).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.store.join("runs").join(&self.name).join(name)
    }

    /// Generator iterations in the loss table.
    fn iterations(&self) -> u64 {
        let table = std::fs::read_to_string(self.file("losses.csv")).unwrap_or_default();
        table.matches('\n').count().saturating_sub(1) as u64
    }

    /// Whole checkpoints.
    fn checkpoints(&self) -> Vec<PathBuf> {
        let mut files = files_below(&self.file("ckpt"));
        files.retain(|file| file.ends_with("MANIFEST.json"));
        files
    }
}

/// Waits until `done`, which must come before the process ends.
fn wait_for(child: &mut Child, what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before {what}");
        assert!(started.elapsed() < Duration::from_secs(300), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(name: &str, child: &Child) {
    // The shell's own `kill`: there may be no program of that name.
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(sent.success());
}
