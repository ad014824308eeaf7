//! `jrs train --workers N`: a coordinator and N workers as processes of this machine, started again when they die.

use super::phase;
use super::train::{Args, Summary};
use anyhow::Context;
use jrs_coordinator::{Bucket, RunStore, Start};
use jrs_telemetry::interrupt::Interrupt;
use jrs_worker::cluster::{BAD_CONFIG, FAULT_VARIABLE};
use jrs_worker::config::TrainConfig;
use libjrs::model::sha256_hex;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(200);
/// How long the workers may take to end once the coordinator has.
const FAREWELL: Duration = Duration::from_secs(30);
/// A process that dies again and again is not started for ever.
const RESTARTS: usize = 20;

/// Trains with `workers` processes.
pub fn train(
    args: &Args,
    workers: NonZeroUsize,
    logs: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<Summary> {
    let config = TrainConfig::load(&args.config)?;
    let digest = args.copies.open(&args.data)?.digest;
    let start = if args.resume.is_some() { Start::Resume } else { Start::New };
    RunStore::open(&args.out, &args.run)?.start_run(&config.to_toml(), &digest, start)?;

    // A file that only this user can read; workers of others do not get in.
    let mut token = tempfile::NamedTempFile::new()?;
    writeln!(token, "{}", uuid::Uuid::new_v4())?;
    let mut cluster = Cluster::start(args, workers, logs, token.path())?;
    let title = args.title.clone().unwrap_or_else(|| format!("train {}", config.system.name()));
    let bar = phase(&format!("{title}, {workers} workers"), config.iterations);
    bar.resume_at(iterations(logs));
    let mut shown = iterations(logs);
    let mut asked = false;
    while !cluster.over()? {
        if interrupt.requested() && !asked {
            asked = true;
            tracing::info!("asking the workers to save and leave");
            cluster.drain();
        }
        let done = iterations(logs);
        bar.advance(done.saturating_sub(shown));
        shown = shown.max(done);
        std::thread::sleep(TICK);
    }
    bar.finish();
    cluster.finish();

    let path = logs.join("model.safetensors");
    let steps = iterations(logs);
    let outcome = match (asked, steps < config.iterations) {
        (true, _) => "interrupted",
        (false, true) => "early stop",
        (false, false) => "finished",
    };
    let bucket = Bucket::open(&args.out)?;
    let model = bucket.read(&format!("runs/{}/model.safetensors", args.run));
    let model_sha256 = match model {
        Ok(model) => {
            if std::fs::read(&path).ok().as_deref() != Some(&model) {
                std::fs::write(&path, &model).with_context(|| path.display().to_string())?;
            }
            sha256_hex(&model)
        }
        Err(_) if asked => String::new(), // there is none before the end
        Err(error) => return Err(error.into()),
    };
    Ok(Summary { run: args.run.clone(), steps, model: path, model_sha256, outcome })
}

/// Whole rows of the loss table.
fn iterations(logs: &Path) -> u64 {
    let table = std::fs::read(logs.join("losses.csv")).unwrap_or_default();
    (table.iter().filter(|&&byte| byte == b'\n').count() as u64).saturating_sub(1)
}

/// The processes.
struct Cluster {
    coordinator: Member,
    workers: Vec<Member>,
}

struct Member {
    name: String,
    command: Command,
    process: Option<Child>,
    restarts: usize,
}

impl Cluster {
    fn start(args: &Args, workers: NonZeroUsize, logs: &Path, token: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let jrs = |threads: usize| {
            let mut command = Command::new(&program);
            command.args(["--threads", &threads.to_string()]);
            // Only this process hears Ctrl-C, and has the others leave in order.
            command.process_group(0);
            command
        };
        let mut coordinator = jrs(1);
        coordinator.arg("coordinator").arg("--config").arg(&args.config);
        coordinator.args(args.copies.flags(&args.data));
        coordinator.args(["--out", &args.out, "--run", &args.run, "--listen", &address]);
        coordinator.args(["--workers", &workers.to_string()]).arg("--token-file").arg(token);
        if let Some(step) = args.resume.as_deref().filter(|step| *step != "latest") {
            coordinator.args(["--resume-step", step]);
        }
        let threads = (rayon::current_num_threads() / workers).max(1);
        let worker = |number: usize| {
            let mut command = jrs(threads);
            command.args(["worker", "--coordinator", &address, "--listen", "127.0.0.1:0"]);
            command.args(["--device", &args.device.to_string()]);
            command.args(args.copies.flags(&args.data));
            command.arg("--logs").arg(logs).arg("--token-file").arg(token);
            Member::start(format!("worker {number}"), command)
        };
        Ok(Self {
            coordinator: Member::start("coordinator".into(), coordinator)?,
            workers: (0..workers.get()).map(worker).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Whether the coordinator has ended in order. Whoever died otherwise is started again.
    fn over(&mut self) -> anyhow::Result<bool> {
        let over = self.coordinator.watch(&[0, 130])?;
        for worker in &mut self.workers {
            worker.watch(&[0, 143])?;
        }
        Ok(over)
    }

    fn drain(&mut self) {
        if let Some(process) = &self.coordinator.process {
            let _ = kill_process(Pid::from_child(process), Signal::INT); // it may have ended just now
        }
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        for worker in &mut self.workers {
            while let Some(process) = &mut worker.process
                && matches!(process.try_wait(), Ok(None))
                && Instant::now() < deadline
            {
                std::thread::sleep(TICK);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in self.workers.iter_mut().chain([&mut self.coordinator]) {
            if let Some(process) = &mut member.process {
                let _ = process.kill(); // it has ended, unless something went wrong
                let _ = process.wait();
            }
        }
    }
}

impl Member {
    fn start(name: String, mut command: Command) -> anyhow::Result<Self> {
        let process = command.spawn().with_context(|| format!("the {name} cannot be started"))?;
        Ok(Self { name, command, process: Some(process), restarts: 0 })
    }

    /// True once it has ended with one of `good`.
    fn watch(&mut self, good: &[i32]) -> anyhow::Result<bool> {
        let Some(process) = &mut self.process else { return Ok(true) };
        let Some(status) = process.try_wait()? else { return Ok(false) };
        match status.code() {
            Some(code) if good.contains(&code) => {
                self.process = None;
                return Ok(true);
            }
            Some(code) if code == i32::from(BAD_CONFIG) => {
                anyhow::bail!("the {} refused its configuration; what it said stands above", self.name)
            }
            _ if self.restarts == RESTARTS => {
                anyhow::bail!("the {} died {RESTARTS} times, the last time with {status}", self.name)
            }
            _ => {}
        }
        tracing::warn!(%status, "the {} died; starting it again", self.name);
        self.restarts += 1;
        // A failure injected once is not meant for its successor.
        self.command.env_remove(FAULT_VARIABLE);
        self.process = Some(self.command.spawn().with_context(|| format!("the {}", self.name))?);
        Ok(false)
    }
}
