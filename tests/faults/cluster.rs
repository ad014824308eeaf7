//! A training cluster of real processes, its failures, and what its logs say.

use crate::network::Network;
use serde_json::Value;
use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The longest that anything here may take, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(300);

/// Critic and generator updates, as small as the networks allow: 7 steps of 3 micro-batches.
pub const GAN: &str = "system = \"JRS-GANa\"\nseed = 5\niterations = 3\n\
    sampling = { patch = 76, patches_per_pair = 6, window = 1, batch = 3, micro_batch = 1 }\n\
    generator = { rule = \"adam\", learning_rate = 1e-3, clip_norm = 1.0 }\n\
    critic = { warmup_iterations = 1, warmup_steps = 2, steps = 1 }\n\
    validation = { every = 2 }\ncheckpoint = { every = 1 }\n";
/// Steps of the run above.
pub const GAN_STEPS: u64 = 7;

/// Seed of [`quick`].
pub const SEED: u64 = 5;
/// Training pairs of the data.
pub const PAIRS: usize = 1;
/// Patches of a pair in an epoch of [`quick`].
pub const PATCHES_PER_PAIR: usize = 12;
/// Samples of a step of [`quick`].
pub const BATCH: usize = 2;

/// A generator alone, for many quick steps of 2 micro-batches.
pub fn quick(steps: u64) -> String {
    format!(
        "system = \"JRS-CNN\"\nseed = {SEED}\niterations = {steps}\n\
         sampling = {{ patch = 44, patches_per_pair = {PATCHES_PER_PAIR}, window = 1, batch = {BATCH}, micro_batch = 1 }}\n\
         generator = {{ rule = \"adam\", learning_rate = 1e-3 }}\n\
         validation = {{ every = 0 }}\ncheckpoint = {{ every = 10 }}\n"
    )
}

/// One test at a time: recovery is timed, and a cluster fills the machine.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command, ready for arguments.
pub fn jrs() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_jrs")))
}

/// Without variables from outside that change what it does.
fn clean(mut command: Command) -> Command {
    let ours = |name: &str| name.starts_with("AWS_") || ["RUST_LOG", "JRS_FAULT"].contains(&name);
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An empty folder of this name for one test.
pub fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults").join(name);
    let _ = std::fs::remove_dir_all(&path); // there is none the first time
    std::fs::create_dir_all(&path).expect("the target folder can be written");
    path
}

/// Prepared data that all tests share.
pub fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let root = folder("data");
        let [cohort, cache] = ["cohort", "cache"].map(|name| root.join(name));
        succeed(jrs().args(["phantom", "--preset", "tiny", "--out"]).arg(&cohort));
        // Coarse, so that a validation takes no longer than a step.
        succeed(jrs().args(["prepare", "--spacing", "9", "--data"]).arg(&cohort).arg("--out").arg(&cache));
        cache
    })
}

/// The model of an undisturbed run of `config` on one worker. Tests of the same configuration share it.
pub fn undisturbed(config: &str) -> &'static [u8] {
    static MODELS: Mutex<BTreeMap<String, &'static [u8]>> = Mutex::new(BTreeMap::new());
    let mut models = MODELS.lock().unwrap_or_else(PoisonError::into_inner);
    let number = models.len();
    models.entry(config.to_owned()).or_insert_with(|| {
        let root = folder(&format!("undisturbed-{number}"));
        let settings = root.join("run.toml");
        std::fs::write(&settings, config).unwrap();
        let mut train = jrs();
        train.arg("train").arg("--config").arg(&settings).arg("--data").arg(cache()).arg("--out").arg(&root);
        succeed(&mut train);
        Box::leak(bytes(&root.join("runs/default/model.safetensors")).into_boxed_slice())
    })
}

/// A run with its coordinator and workers. Everything still alive is killed when it is dropped.
pub struct Cluster {
    root: PathBuf,
    port: u16,
    /// Where the run is kept, and the variables by which it is reached.
    out: String,
    variables: Vec<(String, String)>,
    /// The coordinator is on host 0, worker n on host n + 1; without a network all are here.
    network: Option<Network>,
    coordinator: Option<Child>,
    workers: Vec<Worker>,
}

struct Worker {
    process: Child,
    log: RefCell<Log>,
    status: Option<ExitStatus>,
}

/// A log that is read as it grows.
struct Log {
    file: File,
    /// What does not end with a line break yet.
    rest: String,
    lines: Vec<Value>,
}

impl Log {
    fn follow(&mut self) {
        self.file.read_to_string(&mut self.rest).expect("logs are UTF-8");
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        self.lines.extend(self.rest[..whole].lines().filter_map(|line| serde_json::from_str(line).ok()));
        self.rest.drain(..whole);
    }
}

impl Cluster {
    /// A run called `name` of `config`, with nothing started yet.
    pub fn new(name: &str, config: &str) -> Self {
        let mut cluster = Self::in_store(name, config, "", Vec::new());
        cluster.out = cluster.root.join("store").display().to_string();
        cluster
    }

    /// The same in a store at `out`, which `variables` lead to.
    pub fn in_store(name: &str, config: &str, out: &str, variables: Vec<(String, String)>) -> Self {
        let root = folder(name);
        std::fs::write(root.join("run.toml"), config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { root, port, out: out.into(), variables, network: None, coordinator: None, workers: Vec::new() }
    }

    /// The same in a folder, with each process on a host of its own.
    pub fn on_hosts(name: &str, config: &str, network: Network) -> Self {
        let mut cluster = Self::new(name, config);
        cluster.network = Some(network);
        cluster
    }

    /// The hosts.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("made with hosts")
    }

    /// The command, ready for arguments, on a host with this address.
    fn jrs_on(&self, host: usize) -> (Command, String) {
        let (mut command, address) = match &self.network {
            Some(network) => (clean(network.command(host, env!("CARGO_BIN_EXE_jrs"))), network.address(host)),
            None => (jrs(), "127.0.0.1".to_owned()),
        };
        command.envs(self.variables.iter().cloned());
        (command, address)
    }

    /// Starts the coordinator, or its successor, which begins with `workers`.
    pub fn coordinate(&mut self, workers: usize) {
        self.coordinate_with(workers, &[]);
    }

    /// The same with more flags.
    pub fn coordinate_with(&mut self, workers: usize, flags: &[String]) {
        let log = File::options().create(true).append(true).open(self.root.join("coordinator.log"));
        let mut command = self.coordinator(self.port, workers);
        command.args(flags).stdout(Stdio::null()).stderr(log.unwrap());
        self.coordinator = Some(command.spawn().expect("the coordinator starts"));
    }

    /// A coordinator of this run that listens on `port`, not started.
    pub fn coordinator(&self, port: u16, workers: usize) -> Command {
        let (mut command, address) = self.jrs_on(0);
        command.args(["--log-json", "--log", "debug", "coordinator", "--run", "r"]);
        command.arg("--config").arg(self.root.join("run.toml")).arg("--data").arg(cache());
        command.arg("--out").arg(&self.out).arg("--listen").arg(format!("{address}:{port}"));
        command.arg("--workers").arg(workers.to_string());
        command
    }

    /// Hands over the coordinator's process: the test decides what becomes of it.
    pub fn take_coordinator(&mut self) -> Child {
        self.coordinator.take().expect("it was started")
    }

    /// The newest generation that was claimed in the store.
    pub fn newest_generation(&self) -> u64 {
        let files = std::fs::read_dir(self.root.join("store/runs/r/gen")).into_iter().flatten().flatten();
        let number = |name: String| name.strip_suffix(".json")?.parse().ok();
        files.filter_map(|file| number(file.file_name().into_string().ok()?)).max().unwrap_or(0)
    }

    /// Starts a worker, with failures to inject, and returns its number.
    pub fn work(&mut self, fault: &str) -> usize {
        self.work_with(fault, &[])
    }

    /// The same with more flags.
    pub fn work_with(&mut self, fault: &str, flags: &[String]) -> usize {
        let number = self.workers.len();
        let log = self.root.join(format!("worker-{number}.log"));
        let (_, coordinator) = self.jrs_on(0);
        let (mut command, address) = self.jrs_on(number + 1);
        command.args(["--threads", "1", "--log-json", "--log", "debug", "worker"]);
        command.arg("--coordinator").arg(format!("{coordinator}:{}", self.port));
        command.args(["--listen", &format!("{address}:0"), "--logs"]).arg(self.root.join("logs"));
        command.args(flags);
        if !fault.is_empty() {
            command.env("JRS_FAULT", fault);
        }
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let process = command.spawn().expect("a worker starts");
        let log = Log { file: File::open(&log).unwrap(), rest: String::new(), lines: Vec::new() };
        self.workers.push(Worker { process, log: RefCell::new(log), status: None });
        number
    }

    /// Sends a signal to a worker.
    pub fn signal(&self, worker: usize, signal: &str) {
        send(signal, &self.workers[worker].process);
    }

    /// Kills the coordinator as a power failure would.
    pub fn kill_coordinator(&mut self) {
        let mut coordinator = self.coordinator.take().expect("it was started");
        coordinator.kill().unwrap();
        coordinator.wait().unwrap();
    }

    /// Waits until a worker has ended, and returns its exit code; none if a signal ended it.
    pub fn ended(&mut self, worker: usize) -> Option<i32> {
        wait(&format!("worker {worker} to end"), || {
            let worker = &mut self.workers[worker];
            if worker.status.is_none() {
                worker.status = worker.process.try_wait().unwrap();
            }
            worker.status.is_some()
        });
        self.workers[worker].status.unwrap().code()
    }

    /// Whether a worker still runs.
    pub fn is_running(&mut self, worker: usize) -> bool {
        self.workers[worker].process.try_wait().unwrap().is_none()
    }

    /// Whether the coordinator has ended.
    pub fn is_over(&mut self) -> bool {
        self.coordinator.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some())
    }

    /// Waits until the run is finished: the coordinator and `workers` end with 0. Returns the model.
    pub fn finish(&mut self, workers: &[usize]) -> Vec<u8> {
        self.end(workers);
        self.model()
    }

    /// The same for a store that is not a folder.
    pub fn end(&mut self, workers: &[usize]) {
        for &worker in workers {
            assert_eq!(self.ended(worker), Some(0), "worker {worker}: see {}", self.root.display());
        }
        let mut coordinator = self.coordinator.take().expect("it was started");
        wait("the coordinator to end", || coordinator.try_wait().unwrap().is_some());
        assert!(coordinator.wait().unwrap().success(), "coordinator: see {}", self.root.display());
    }

    /// The model in the store.
    pub fn model(&self) -> Vec<u8> {
        bytes(&self.root.join("store/runs/r/model.safetensors"))
    }

    /// A file that the first rank writes.
    pub fn table(&self, name: &str) -> Vec<u8> {
        bytes(&self.root.join("logs").join(name))
    }

    /// Waits until some worker has committed `updates`.
    pub fn reach(&self, updates: u64) {
        wait(&format!("{updates} updates"), || self.progress() >= updates);
    }

    /// Waits until a worker's log has a line with this message.
    pub fn said(&self, worker: usize, message: &str) {
        wait(&format!("worker {worker} to say {message:?}"), || self.times_said(worker, message) > 0);
    }

    /// Every step that a worker says it committed, in the order of time.
    pub fn commits(&self) -> Vec<Commit> {
        let mut all: Vec<Commit> =
            (0..self.workers.len()).flat_map(|worker| self.commits_of(worker)).collect();
        all.sort_by(|a, b| a.at.total_cmp(&b.at));
        all
    }

    /// Those of one worker.
    pub fn commits_of(&self, worker: usize) -> Vec<Commit> {
        self.lines(worker).iter().filter_map(commit).collect()
    }

    /// The newest update that any worker has committed.
    pub fn progress(&self) -> u64 {
        self.commits().iter().map(|commit| commit.updates).max().unwrap_or(0)
    }

    /// Injected failures that happened.
    pub fn faults_struck(&self) -> usize {
        (0..self.workers.len()).map(|worker| self.times_said(worker, "fault injected")).sum()
    }

    /// Connections that were cut on purpose.
    pub fn cuts(&self) -> usize {
        let is_cut = |line: &&Value| {
            line["fields"]["message"] == "fault injected" && line["fields"]["action"] == "Cut"
        };
        (0..self.workers.len()).map(|worker| self.lines(worker).iter().filter(is_cut).count()).sum()
    }

    /// Whether a failure was injected into a worker.
    pub fn struck(&self, worker: usize) -> bool {
        self.times_said(worker, "fault injected") > 0
    }

    /// How often a worker said `message`.
    pub fn times_said(&self, worker: usize, message: &str) -> usize {
        self.lines(worker).iter().filter(|line| line["fields"]["message"] == message).count()
    }

    /// Seconds that a worker's training waited for each of its checkpoints.
    pub fn stalls(&self, worker: usize) -> Vec<f64> {
        let lines = self.lines(worker);
        let stalls = lines
            .iter()
            .filter(|line| line["fields"]["message"] == "training waited for the copy of its state");
        stalls.filter_map(|line| line["fields"]["seconds"].as_f64()).collect()
    }

    /// When a worker first said `message`.
    pub fn moment(&self, worker: usize, message: &str) -> f64 {
        let lines = self.lines(worker);
        let line = lines.iter().find(|line| line["fields"]["message"] == message);
        time(line.unwrap_or_else(|| panic!("worker {worker} never said {message:?}")))
    }

    fn lines(&self, worker: usize) -> Ref<'_, [Value]> {
        let log = &self.workers[worker].log;
        log.borrow_mut().follow();
        Ref::map(log.borrow(), |log| &log.lines[..])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let workers = self.workers.iter_mut().map(|worker| &mut worker.process);
        for process in workers.chain(&mut self.coordinator) {
            let _ = process.kill(); // it may have ended
            let _ = process.wait();
        }
    }
}

/// A step that a worker made final.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// Seconds of the day.
    pub at: f64,
    /// Seconds that this worker was busy with the step.
    pub took: f64,
    /// Updates done with it.
    pub updates: u64,
    pub generation: u64,
    /// Positions in the sample order that this worker computed.
    pub positions: Range<u64>,
}

fn commit(line: &Value) -> Option<Commit> {
    if line["fields"]["message"] != "step committed" {
        return None;
    }
    let spans = line["spans"].as_array()?;
    let generation = spans.iter().find_map(|span| span["generation"].as_u64())?;
    let number = |name: &str| line["fields"][name].as_u64();
    let positions = number("first")?..number("end")?;
    let took = line["fields"]["seconds"].as_f64()?;
    Some(Commit { at: time(line), took, updates: number("updates")?, generation, positions })
}

/// Seconds of the day in a line's `timestamp`, as in 2026-01-31T12:30:05.123456Z.
fn time(line: &Value) -> f64 {
    let stamp = line["timestamp"].as_str().expect("every line has a timestamp");
    let (_, clock) = stamp.trim_end_matches('Z').split_once('T').expect("date and time");
    clock.split(':').fold(0.0, |sum, part| 60.0 * sum + part.parse::<f64>().expect("a number"))
}

/// Waits until `done`.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal by its name without SIG.
pub fn send(signal: &str, process: &Child) {
    // The shell's own `kill`: there may be no program of that name.
    let command = format!("kill -{signal} {}", process.id());
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
