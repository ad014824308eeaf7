//! The manifests for Kubernetes, and a run as the pods would make it: their arguments, on hosts of their own, with data and
//! checkpoints in a bucket.

use crate::cluster::{alone, cache, folder, jrs, quick, send, undisturbed, wait};
use crate::coordinator::Authority;
use crate::network::Network;
use crate::seaweed::{self, SECRET, Seaweed, variables};
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny.toml");

/// What `k8s/checks/check.py` says, with the Python that `JRS_K8S_PYTHON` names, else `python3`. `None`, after saying so, where
/// something is missing.
fn check(arguments: &[&str]) -> Option<String> {
    let python = std::env::var("JRS_K8S_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(&python).arg(format!("{ROOT}/k8s/checks/check.py")).args(arguments).output();
    let skip = |why: &str| {
        eprintln!("SKIPPED: {python} k8s/checks/check.py: {why}");
        None
    };
    let output = match output {
        Ok(output) => output,
        Err(error) => return skip(&error.to_string()),
    };
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.code() == Some(77) {
        return skip(said.trim());
    }
    assert!(output.status.success(), "{said}");
    Some(said)
}

fn render(arguments: &[&str]) -> (Option<i32>, String) {
    let output = jrs().args(["k8s", "render"]).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn kubernetes_manifests_hold() {
    let root = folder("k8s");
    let mut folders = Vec::new();
    for overlay in [
        "jobset",
        "plain-job",
        "kueue",
        "aws-irsa",
        "monitoring",
        "cpu-demo",
        "rdma",
        "jobset,monitoring,aws-irsa",
        "plain-job,monitoring",
        "monitoring,kueue,rdma,aws-irsa",
        "cpu-demo,monitoring,kueue",
    ] {
        let out = root.join(overlay.replace(',', "+")).display().to_string();
        let (code, said) = render(&[
            "--config",
            TINY,
            "--workers",
            "8",
            "--overlay",
            overlay,
            "--out",
            &out,
            "--image",
            "registry.example/jrs:1.2",
        ]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("kubectl apply -k {out}")), "{said}");
        folders.push(out);
    }
    let mut arguments = vec!["manifests", "--jrs", env!("CARGO_BIN_EXE_jrs")];
    arguments.extend(folders.iter().map(String::as_str));
    if let Some(said) = check(&arguments) {
        eprintln!("{said}");
    }
}

#[test]
fn kubernetes_render_refuses_bad_input() {
    let root = folder("k8s-bad");
    let out = root.join("out");
    let bad = root.join("bad.toml");
    std::fs::write(&bad, "system = \"JRS-GANa\"\nseeed = 1\n").unwrap();
    let (bad, full, taken) = (bad.to_str().unwrap(), out.to_str().unwrap(), root.to_str().unwrap());
    for (arguments, words) in [
        (
            vec!["--config", TINY, "--workers", "2", "--overlay", "nomad", "--out", full],
            ["nomad", "plain-job"],
        ),
        (
            vec!["--config", TINY, "--workers", "2", "--overlay", "plain-job,kueue", "--out", full],
            ["plain-job", "jobset"],
        ),
        (
            vec!["--config", TINY, "--workers", "2", "--overlay=rdma", "--overlay=cpu-demo", "--out", full],
            ["cpu-demo", "rdma"],
        ),
        (vec!["--config", TINY, "--workers", "0", "--out", full], ["--workers", "0"]),
        (vec!["--config", bad, "--workers", "2", "--out", full], ["bad.toml", "seeed"]),
        (
            vec!["--config", "/no/such.toml", "--workers", "2", "--out", full],
            ["/no/such.toml", "No such file"],
        ),
        (
            vec!["--config", TINY, "--workers", "2", "--image", "jrs:latest", "--out", full],
            ["--image", "latest"],
        ),
        (vec!["--config", TINY, "--workers", "2", "--store", "/runs", "--out", full], ["--store", "s3://"]),
        (vec!["--config", TINY, "--workers", "2", "--run", "a b", "--out", full], ["--run", "a b"]),
        (vec!["--config", TINY, "--workers", "2", "--out", taken], ["--out", "not empty"]),
    ] {
        let (code, said) = render(&arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said} should name {words:?}");
        assert!(!out.exists(), "something was written: {said}");
    }
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1, "a draft was left behind");
}

/// What the bill of materials lists is what cargo links into the command, no more and no less.
#[test]
fn kubernetes_image_is_described() {
    let out = folder("k8s-sbom");
    let made = Command::new("python3")
        .arg(format!("{ROOT}/ffi/package/bill_of_materials.py"))
        .args([out.to_str().unwrap(), "jrs"])
        .output();
    let Ok(made) = made else {
        eprintln!("SKIPPED: no python3");
        return;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let listed: Value = serde_json::from_slice(&std::fs::read(out.join("sbom.cdx.json")).unwrap()).unwrap();
    assert_eq!(listed["metadata"]["component"]["name"], "jrs");
    let crates = listed["components"].as_array().unwrap().iter().filter(|entry| !entry["purl"].is_null());
    let name = |value: &Value| value.as_str().unwrap().to_owned();
    let mut listed: Vec<String> =
        crates.map(|c| format!("{} v{}", name(&c["name"]), name(&c["version"]))).collect();
    let mut tree = Command::new(env!("CARGO"));
    tree.current_dir(ROOT).args(["tree", "--locked", "-p", "jrs", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--edges", "no-dev,no-build,no-proc-macro", "--target", "x86_64-unknown-linux-gnu"]);
    let tree = String::from_utf8(tree.output().unwrap().stdout).unwrap();
    let words = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let mut linked: Vec<String> = tree.lines().map(words).filter(|name| !name.starts_with("jrs v")).collect();
    for names in [&mut listed, &mut linked] {
        names.sort();
        names.dedup();
    }
    assert_eq!(listed, linked);
    assert!(listed.len() > 100 && listed.iter().any(|name| name.starts_with("burn-flex v")), "{listed:?}");
}

/// Steps of the run below.
const STEPS: u64 = 50;
/// Hosts: the store, two for the coordinator, four for workers.
const HOSTS: usize = 7;
const STORE: usize = 0;

/// Pods of a rendered folder, as processes on hosts.
struct Pods<'a> {
    network: &'a Network,
    root: PathBuf,
    manifests: Value,
    store: Vec<(String, String)>,
    running: Vec<(Child, PathBuf)>,
}

impl Pods<'_> {
    /// Starts one and returns its number. Its volumes are folders of its own: what it copied before is gone.
    fn start(&mut self, role: &str, host: usize) -> usize {
        self.start_with(role, host, "")
    }

    /// The same with failures to inject.
    fn start_with(&mut self, role: &str, host: usize, fault: &str) -> usize {
        let number = self.running.len();
        let volumes = self.root.join(format!("pod-{number}"));
        std::fs::create_dir_all(volumes.join("cache")).unwrap();
        let log = volumes.join("log");
        let settings = self.manifests["settings"].as_object().unwrap();
        let mut command = self.network.command(host, env!("CARGO_BIN_EXE_jrs"));
        command.args(["--log", "debug", "--threads", "1"]).env_remove("RUST_LOG");
        for word in self.manifests["args"][role].as_array().unwrap() {
            let mut word = word.as_str().unwrap().to_owned();
            for (name, value) in settings {
                word = word.replace(&format!("$({name})"), value.as_str().unwrap());
            }
            word = word.replace("$(POD_IP)", &self.network.address(host));
            word = word.replace("$(JRS_COORDINATOR_HOST)", "jrs-coordinator");
            let (volumes, shared) = (volumes.display(), self.root.display());
            word = word.replace("=/cache", &format!("={volumes}/cache"));
            for mount in ["config", "token"] {
                word = word.replace(&format!("=/{mount}/"), &format!("={shared}/{mount}/"));
            }
            command.arg(word.replace("=/tls/", &format!("={shared}/tls-{role}/")));
        }
        for (name, value) in settings {
            command.env(name, value.as_str().unwrap());
        }
        command.envs(self.store.iter().cloned());
        if !fault.is_empty() {
            command.env("JRS_FAULT", fault);
        }
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        self.running.push((command.spawn().expect("a pod starts"), log));
        number
    }

    fn lines(&self, pod: usize) -> Vec<Value> {
        let log = std::fs::read_to_string(&self.running[pod].1).unwrap();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Updates after which a worker committed.
    fn progress(&self, pod: usize) -> u64 {
        let lines = self.lines(pod);
        let commits = lines.iter().filter(|line| line["fields"]["message"] == "step committed");
        commits.filter_map(|line| line["fields"]["updates"].as_u64()).max().unwrap_or(0)
    }

    /// Waits until a worker has committed `updates`, and says how long that took.
    fn reach(&self, what: &str, pod: usize, updates: u64) {
        let clock = Instant::now();
        wait(&format!("{what}: see {}", self.root.display()), || self.progress(pod) >= updates);
        eprintln!("{what}: {:.1} s", clock.elapsed().as_secs_f64());
    }

    fn kill(&mut self, pod: usize) {
        self.running[pod].0.kill().unwrap();
        self.running[pod].0.wait().unwrap();
    }

    /// Waits for a pod's end.
    fn ended(&mut self, pod: usize) -> Option<i32> {
        let log = self.running[pod].1.clone();
        let process = &mut self.running[pod].0;
        wait(&format!("a pod to end: see {}", log.display()), || process.try_wait().unwrap().is_some());
        process.wait().unwrap().code()
    }
}

/// So slow that the run is not over before everything happened.
fn slowly() -> String {
    let delays: Vec<String> = (0..STEPS).map(|step| format!("delay=200@step={step},phase=data")).collect();
    delays.join(";")
}

impl Drop for Pods<'_> {
    fn drop(&mut self) {
        for (process, _) in &mut self.running {
            let _ = process.kill(); // it may have ended
            let _ = process.wait();
        }
    }
}

/// Data, token, certificates and checkpoints as pods have them; a node cut off and replaced, a worker drained, the coordinator
/// moved to another node, and the run resumed by other processes from the bucket alone.
#[test]
fn kubernetes_run_without_kubernetes() {
    let _alone = alone();
    let Some(weed) = seaweed::program() else { return };
    let Some(network) = Network::start(HOSTS) else { return };
    let root = folder("k8s-run");
    let config = root.join("run.toml");
    std::fs::write(&config, quick(STEPS)).unwrap();
    let (config, manifests) = (config.display().to_string(), root.join("manifests").display().to_string());
    let place = ["--data", "s3://runs/cache", "--store", "s3://runs/below/a/prefix", "--overlay", "jobset"];
    let flags = [&["--config", &config, "--workers", "2", "--out", &manifests][..], &place].concat();
    assert_eq!(render(&flags).0, Some(0));
    let Some(pods) = check(&["pods", &manifests]) else { return };

    // The cluster's part: a store with the data, a name, and what secrets hold.
    let store = Seaweed::on_host("k8s-store", &network, STORE).expect("it is installed");
    wait("the store", || network.get(1, STORE, store.port(), "/").contains(" 403 "));
    let copied = network.command(STORE, weed.to_str().unwrap()).args(store.copy(cache())).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    network.name("jrs-coordinator", 1);
    let authority = Authority::new(&root, "cluster");
    for role in ["coordinator", "worker"] {
        let flags = authority.issue(role);
        let folder = root.join(format!("tls-{role}"));
        std::fs::create_dir(&folder).unwrap();
        for (file, source) in ["ca.crt", "tls.crt", "tls.key"].iter().zip(flags.iter().skip(1).step_by(2)) {
            std::fs::copy(source, folder.join(file)).unwrap();
        }
    }
    for (mount, file, text) in
        [("token", "token", "a-secret-of-the-cluster"), ("config", "run.toml", &quick(STEPS))]
    {
        std::fs::create_dir(root.join(mount)).unwrap();
        std::fs::write(root.join(mount).join(file), text).unwrap();
    }
    let manifests: Value = serde_json::from_str(&pods).unwrap();
    let grace = manifests["grace"]["worker"].as_f64().unwrap();
    let mut pods = Pods {
        network: &network,
        root,
        manifests,
        store: variables(&store.address(), SECRET),
        running: Vec::new(),
    };

    let coordinator = pods.start("coordinator", 1);
    let [a, b] = [3, 4].map(|host| pods.start_with("worker", host, &slowly()));
    pods.reach("from nothing to step 5", a, 5);
    wait("both to work", || pods.progress(b) > 0);
    for (path, answer) in [("/healthz", " 200 "), ("/readyz", " 200 "), ("/metrics", "# EOF")] {
        assert!(network.get(STORE, 1, 8080, path).contains(answer), "{path}");
    }

    // A node is cut off; its pod is replaced on another.
    let done = pods.progress(a);
    network.pull(4);
    pods.reach("a node cut off, until the next step", a, done + 2);
    let c = pods.start_with("worker", 5, &slowly());
    pods.reach("its replacement works", c, 1);
    pods.kill(b);
    let page = network.get(STORE, 1, 8080, "/metrics");
    let metrics = pods.root.join("metrics.txt");
    std::fs::write(&metrics, page.split_once("\r\n\r\n").expect("a head and a body").1).unwrap();
    eprintln!("{}", check(&["metrics", metrics.to_str().unwrap()]).unwrap_or_default());

    // A node is drained.
    let clock = Instant::now();
    send("TERM", &pods.running[a].0);
    assert_eq!(pods.ended(a), Some(143));
    let left = clock.elapsed().as_secs_f64();
    eprintln!("a drained worker left after {left:.1} s of {grace} s");
    assert!(left < grace / 2.0);

    // The coordinator's node is gone; the next one has another address under the same name.
    let done = pods.progress(c);
    pods.kill(coordinator);
    network.name("jrs-coordinator", 2);
    let coordinator = pods.start("coordinator", 2);
    let d = pods.start_with("worker", 6, &slowly());
    pods.reach("the coordinator moved, and a newcomer works under it", d, done + 1);

    // Nothing is left but the bucket.
    wait("a checkpoint", || pods.progress(c) > 25);
    for pod in [coordinator, c, d] {
        pods.kill(pod);
    }
    network.name("jrs-coordinator", 1);
    let coordinator = pods.start("coordinator", 1);
    let workers = [3, 6].map(|host| pods.start("worker", host));
    let sent = network.sent(3);
    for pod in [coordinator, workers[0], workers[1]] {
        assert_eq!(pods.ended(pod), Some(0), "see {}", pods.root.display());
    }
    let first = |pod: usize| pods.lines(pod).iter().filter_map(|line| line["fields"]["first"].as_u64()).min();
    let steps =
        pods.lines(workers[0]).iter().filter(|line| line["fields"]["message"] == "step committed").count();
    let megabytes = (network.sent(3) - sent) as f64 / 1e6;
    eprintln!("one of two workers sent {megabytes:.1} MB in {steps} steps and one checkpoint in ten");
    let resumed = workers.iter().filter_map(|&worker| first(worker)).min();
    assert!(resumed.is_some_and(|position| position > 0), "it began anew: {resumed:?}");

    let mut print = network.command(STORE, weed.to_str().unwrap());
    let model =
        print.args(store.print("below/a/prefix/runs/first/model.safetensors")).output().unwrap().stdout;
    assert!(model == undisturbed(&quick(STEPS)), "the model differs ({} bytes)", model.len());

    // One trace for the run, in all processes and all their lives; one span each.
    let mut traces = std::collections::BTreeSet::new();
    let mut spans = std::collections::BTreeSet::new();
    for pod in 0..pods.running.len() {
        let lines = pods.lines(pod);
        let last = lines.last().unwrap_or_else(|| panic!("pod {pod} said nothing"));
        traces.insert(last["trace_id"].as_str().unwrap().to_owned());
        spans.insert(last["span_id"].as_str().unwrap().to_owned());
    }
    assert_eq!((traces.len(), spans.len()), (1, pods.running.len()));
    assert!(traces.iter().all(|id| id.len() == 32) && spans.iter().all(|id| id.len() == 16));
}
