//! A training cluster of real processes, its failures, and what its logs say.

use serde_json::Value;
use std::net::TcpListener;
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

/// A generator alone, for many quick steps of 2 micro-batches.
pub fn quick(steps: u64) -> String {
    format!(
        "system = \"JRS-CNN\"\nseed = 5\niterations = {steps}\n\
         sampling = {{ patch = 44, patches_per_pair = 12, window = 1, batch = 2, micro_batch = 1 }}\n\
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_jrs"));
    command.env_remove("RUST_LOG").env_remove("JRS_FAULT");
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
        succeed(jrs().args(["prepare", "--spacing", "6", "--data"]).arg(&cohort).arg("--out").arg(&cache));
        cache
    })
}

/// The model of an undisturbed run of `config` on one worker.
pub fn undisturbed(name: &str, config: &str) -> Vec<u8> {
    let root = folder(name);
    let settings = root.join("run.toml");
    std::fs::write(&settings, config).unwrap();
    succeed(
        jrs().arg("train").arg("--config").arg(&settings).arg("--data").arg(cache()).arg("--out").arg(&root),
    );
    bytes(&root.join("runs/default/model.safetensors"))
}

/// A run with its coordinator and workers. Everything still alive is killed when it is dropped.
pub struct Cluster {
    root: PathBuf,
    port: u16,
    coordinator: Option<Child>,
    workers: Vec<Worker>,
}

struct Worker {
    process: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Cluster {
    /// A run called `name` of `config`, with nothing started yet.
    pub fn new(name: &str, config: &str) -> Self {
        let root = folder(name);
        std::fs::write(root.join("run.toml"), config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { root, port, coordinator: None, workers: Vec::new() }
    }

    /// Starts the coordinator, or its successor, which begins with `workers`.
    pub fn coordinate(&mut self, workers: usize) {
        self.coordinate_with(workers, &[]);
    }

    /// The same with more flags.
    pub fn coordinate_with(&mut self, workers: usize, flags: &[String]) {
        let log = std::fs::File::options().create(true).append(true).open(self.root.join("coordinator.log"));
        let mut command = self.coordinator(self.port, workers);
        command.args(flags).stdout(Stdio::null()).stderr(log.unwrap());
        self.coordinator = Some(command.spawn().expect("the coordinator starts"));
    }

    /// A coordinator of this run that listens on `port`, not started.
    pub fn coordinator(&self, port: u16, workers: usize) -> Command {
        let mut command = jrs();
        command.args(["--log-json", "--log", "debug", "coordinator", "--run", "r"]);
        command.arg("--config").arg(self.root.join("run.toml")).arg("--data").arg(cache());
        command.arg("--out").arg(self.root.join("store")).arg("--listen").arg(format!("127.0.0.1:{port}"));
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
        let mut command = jrs();
        command.args(["--threads", "1", "--log-json", "--log", "debug", "worker"]);
        command.arg("--coordinator").arg(format!("127.0.0.1:{}", self.port));
        command.args(["--listen", "127.0.0.1:0", "--logs"]).arg(self.root.join("logs"));
        command.args(flags);
        if !fault.is_empty() {
            command.env("JRS_FAULT", fault);
        }
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let process = command.spawn().expect("a worker starts");
        self.workers.push(Worker { process, log, status: None });
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
        for &worker in workers {
            assert_eq!(self.ended(worker), Some(0), "worker {worker}: see {}", self.root.display());
        }
        let mut coordinator = self.coordinator.take().expect("it was started");
        wait("the coordinator to end", || coordinator.try_wait().unwrap().is_some());
        assert!(coordinator.wait().unwrap().success(), "coordinator: see {}", self.root.display());
        self.model()
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
        wait(&format!("worker {worker} to say {message:?}"), || {
            self.lines(worker).iter().any(|line| line["fields"]["message"] == message)
        });
    }

    /// Every step that a worker says it committed, in the order of time.
    pub fn commits(&self) -> Vec<Commit> {
        let mut all: Vec<Commit> = (0..self.workers.len())
            .flat_map(|worker| self.lines(worker))
            .filter_map(|line| commit(&line))
            .collect();
        all.sort_by(|a, b| a.at.total_cmp(&b.at));
        all
    }

    /// The newest update that any worker has committed.
    pub fn progress(&self) -> u64 {
        self.commits().iter().map(|commit| commit.updates).max().unwrap_or(0)
    }

    /// Injected failures that happened.
    pub fn faults_struck(&self) -> usize {
        (0..self.workers.len()).filter(|&worker| self.struck(worker)).count()
    }

    /// Whether a failure was injected into a worker.
    pub fn struck(&self, worker: usize) -> bool {
        self.lines(worker).iter().any(|line| line["fields"]["message"] == "fault injected")
    }

    /// When a worker first said `message`.
    pub fn moment(&self, worker: usize, message: &str) -> f64 {
        let lines = self.lines(worker);
        let line = lines.iter().find(|line| line["fields"]["message"] == message);
        time(line.unwrap_or_else(|| panic!("worker {worker} never said {message:?}")))
    }

    fn lines(&self, worker: usize) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.workers[worker].log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
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
    /// Updates done with it.
    pub updates: u64,
    pub generation: u64,
}

fn commit(line: &Value) -> Option<Commit> {
    if line["fields"]["message"] != "step committed" {
        return None;
    }
    let spans = line["spans"].as_array()?;
    let generation = spans.iter().find_map(|span| span["generation"].as_u64())?;
    Some(Commit { at: time(line), updates: line["fields"]["updates"].as_u64()?, generation })
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
