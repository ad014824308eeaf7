//! `jrs k8s`: what Kubernetes needs to run a cluster, from the manifests in `k8s/`.

use clap::{Subcommand, ValueEnum};
use jrs_worker::config::TrainConfig;
use libjrs::{Error, Result};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `jrs k8s`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write a folder that `kubectl apply -k` takes, and say what else is needed.
    Render(Render),
}

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  jrs k8s render --config run.toml --workers 8 --overlay jobset --overlay monitoring --overlay aws-irsa \
                        --data s3://bucket/cache --store s3://bucket/runs --out k8s-first"
)]
struct Render {
    /// The run's TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Workers, one pod each.
    #[arg(long, value_name = "N")]
    workers: NonZeroUsize,
    /// Which way to run it, and what to add; may be given several times.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "jobset")]
    overlay: Vec<Overlay>,
    /// New or empty folder for the result.
    #[arg(long, value_name = "DIR", default_value = "jrs-k8s")]
    out: PathBuf,
    /// Name of the run inside the store.
    #[arg(long, value_name = "NAME", default_value = "first")]
    run: String,
    /// Prepared cache, as pods find it.
    #[arg(long, value_name = "URL", default_value = "s3://jrs/data")]
    data: String,
    /// Object store for generations and checkpoints, as pods find it.
    #[arg(long, value_name = "URL", default_value = "s3://jrs/runs")]
    store: String,
    /// Image with the `jrs` command, with a tag.
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("jrs:", env!("CARGO_PKG_VERSION")))]
    image: String,
}

/// Ways to run a cluster, and what is added to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Overlay {
    /// One JobSet; needs its controller. The way if none is named.
    Jobset,
    /// Two Jobs and a headless Service; needs nothing.
    PlainJob,
    /// Adds: the JobSet waits in a Kueue queue.
    Kueue,
    /// Adds: an AWS role in place of keys.
    AwsIrsa,
    /// Adds: PodMonitor, alerts and dashboard.
    Monitoring,
    /// Adds: small enough for a laptop.
    CpuDemo,
    /// Adds: GPUs with an RDMA network.
    Rdma,
}

impl Overlay {
    fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }

    fn is_way(self) -> bool {
        matches!(self, Self::Jobset | Self::PlainJob)
    }
}

/// One way and what is added, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chosen {
    way: Overlay,
    added: Vec<Overlay>,
}

impl Chosen {
    /// # Errors
    /// If the overlays do not go together.
    fn of(overlays: &[Overlay]) -> Result<Self> {
        let apart = |problem: &str, fix: &str| Err(Error::input(format!("--overlay: {problem}"), fix));
        let ways: Vec<Overlay> = overlays.iter().copied().filter(|overlay| overlay.is_way()).collect();
        let way = ways.first().copied().unwrap_or(Overlay::Jobset);
        if ways.iter().any(|other| *other != way) {
            return apart("jobset and plain-job are two ways to run the same pods", "Give one of them");
        }
        let mut added: Vec<Overlay> = overlays.iter().copied().filter(|overlay| !overlay.is_way()).collect();
        added.sort();
        added.dedup();
        if way == Overlay::PlainJob && added.iter().any(|overlay| *overlay != Overlay::Monitoring) {
            return apart("only monitoring goes with plain-job", "Use jobset, which all others change");
        }
        if [Overlay::CpuDemo, Overlay::Rdma].iter().all(|overlay| added.contains(overlay)) {
            return apart("cpu-demo and rdma want other machines", "Give one of them");
        }
        Ok(Self { way, added })
    }

    fn has(&self, overlay: Overlay) -> bool {
        self.way == overlay || self.added.contains(&overlay)
    }

    fn names(&self) -> Vec<String> {
        std::iter::once(self.way).chain(self.added.iter().copied()).map(Overlay::name).collect()
    }

    /// The files that this is made of.
    fn files(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let mut folders = vec!["base/".to_owned(), format!("overlays/{}/", self.way.name())];
        folders.extend(self.added.iter().map(|overlay| format!("components/{}/", overlay.name())));
        FILES.iter().copied().filter(move |(path, _)| folders.iter().any(|folder| path.starts_with(folder)))
    }
}

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../k8s/", $path)))),+]
    };
}

/// The manifests that this version of the command fits.
const FILES: &[(&str, &str)] = files![
    "base/coordinator.yaml",
    "base/disruption-budget.yaml",
    "base/kustomization.yaml",
    "base/namespace.yaml",
    "base/network-policy.yaml",
    "base/run.toml",
    "base/service-account.yaml",
    "base/settings.env",
    "base/worker.yaml",
    "components/aws-irsa/kustomization.yaml",
    "components/cpu-demo/kustomization.yaml",
    "components/cpu-demo/run.toml",
    "components/kueue/kustomization.yaml",
    "components/monitoring/dashboard.json",
    "components/monitoring/kustomization.yaml",
    "components/monitoring/network-policy.yaml",
    "components/monitoring/pod-monitor.yaml",
    "components/monitoring/rules.yaml",
    "components/rdma/kustomization.yaml",
    "overlays/aws-irsa/kustomization.yaml",
    "overlays/cpu-demo/kustomization.yaml",
    "overlays/jobset/copied/jobset.yaml",
    "overlays/jobset/copied/kustomization.yaml",
    "overlays/jobset/kustomization.yaml",
    "overlays/jobset/name-references.yaml",
    "overlays/kueue/kustomization.yaml",
    "overlays/monitoring/kustomization.yaml",
    "overlays/plain-job/kustomization.yaml",
    "overlays/plain-job/service.yaml",
    "overlays/rdma/kustomization.yaml",
];

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Action::Render(render) = &args.action;
    render.check()?;
    let config = std::fs::read_to_string(&render.config)
        .map_err(|e| Error::io(&render.config, e, "Check --config"))?;
    write(&render.out, &render.pages(config)?)?;
    print!("{}", render.explanation(&Chosen::of(&render.overlay)?));
    Ok(ExitCode::SUCCESS)
}

impl Render {
    fn check(&self) -> Result<()> {
        TrainConfig::load(&self.config)?;
        let plain = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '$');
        for (flag, value) in [("--run", &self.run), ("--data", &self.data), ("--store", &self.store)] {
            if !plain(value) {
                return Err(Error::input(format!("{flag} is {value:?}"), "Give it without spaces and $"));
            }
        }
        for (flag, value) in [("--data", &self.data), ("--store", &self.store)] {
            if !["s3://", "gs://", "az://"].iter().any(|kind| value.starts_with(kind)) {
                let problem = format!("{flag} {value} is no bucket, and pods share no folder");
                return Err(Error::input(problem, "Give a URL as in s3://bucket/prefix (or gs://, az://)"));
            }
        }
        Chosen::of(&self.overlay)?;
        self.image().map(|_| ())
    }

    /// Name and tag.
    fn image(&self) -> Result<(&str, &str)> {
        let split = self.image.rsplit_once(':').filter(|(name, tag)| !name.is_empty() && !tag.contains('/'));
        match split {
            Some((_, "latest" | "")) | None => Err(Error::input(
                format!("--image {} does not say which version", self.image),
                "Give a tag other than latest: a pod that starts later must run what the others run",
            )),
            Some(parts) => Ok(parts),
        }
    }

    /// Paths and contents of the folder.
    fn pages(&self, config: String) -> Result<Vec<(String, String)>> {
        let (name, tag) = self.image()?;
        let chosen = Chosen::of(&self.overlay)?;
        let added: String = match &chosen.added[..] {
            [] => String::new(),
            added => added.iter().fold("components:\n".to_owned(), |text, overlay| {
                format!("{text}  - components/{}\n", overlay.name())
            }),
        };
        let (kind, job, path) = match chosen.way {
            Overlay::PlainJob => ("Job", "\n      name: jrs-worker", "/spec"),
            _ => ("JobSet", "", "/spec/replicatedJobs/1/template/spec"),
        };
        let top = format!(
            "# Written by `jrs k8s render`. kubectl apply -k .\n\
             apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: jrs\n\
             resources:\n  - overlays/{}\n{added}\
             configMapGenerator:\n  - name: jrs-run\n    behavior: merge\n    files:\n      - run.toml\n\
             \x20 - name: jrs-settings\n    behavior: merge\n    envs:\n      - settings.env\n\
             images:\n  - name: jrs\n    newName: {name}\n    newTag: {tag:?}\n\
             patches:\n  - target:\n      kind: {kind}{job}\n    patch: |-\n\
             \x20     - op: replace\n        path: {path}/completions\n        value: {workers}\n\
             \x20     - op: replace\n        path: {path}/parallelism\n        value: {workers}\n",
            chosen.way.name(),
            workers = self.workers,
        );
        let settings = format!(
            "JRS_RUN={}\nJRS_DATA={}\nJRS_STORE={}\nJRS_WORKERS={}\n",
            self.run, self.data, self.store, self.workers
        );
        let own = [
            ("kustomization.yaml", top),
            ("run.toml", config),
            ("settings.env", settings),
            ("README.txt", self.explanation(&chosen)),
        ];
        let shared = chosen.files().map(|(path, text)| (path.to_owned(), text.to_owned()));
        Ok(own.map(|(path, text)| (path.to_owned(), text)).into_iter().chain(shared).collect())
    }

    /// What a person has to do.
    fn explanation(&self, chosen: &Chosen) -> String {
        let out = self.out.display();
        let mut text = format!(
            "{out}: run {:?} with {} workers, {}, image {}\n  data  {}\n  store {}\n\nOnce per cluster:\n",
            self.run,
            self.workers,
            chosen.names().join(" + "),
            self.image,
            self.data,
            self.store
        );
        let mut say = |line: &str| writeln!(text, "  {line}").expect("a string takes whatever is written");
        if chosen.way == Overlay::Jobset {
            say("the JobSet controller (https://jobset.sigs.k8s.io)");
        }
        for overlay in &chosen.added {
            match overlay {
                Overlay::Kueue => say("Kueue, and a LocalQueue `jrs` in the namespace jrs"),
                Overlay::AwsIrsa => {
                    say("an IAM role for the bucket; put its ARN into components/aws-irsa/kustomization.yaml")
                }
                Overlay::Monitoring => say("the Prometheus operator, and Grafana with its dashboard sidecar"),
                Overlay::Rdma => say("the GPU operator and an RDMA device plugin"),
                Overlay::CpuDemo | Overlay::Jobset | Overlay::PlainJob => {}
            }
        }
        say(&format!("kubectl apply -f {out}/base/namespace.yaml"));
        say(
            "kubectl -n jrs create secret generic jrs-token --from-literal=token=\"$(openssl rand -hex 32)\"",
        );
        if !chosen.has(Overlay::AwsIrsa) {
            say(
                "kubectl -n jrs create secret generic jrs-store --from-env-file=FILE   (AWS_ACCESS_KEY_ID=... and so on)",
            );
        }
        say(
            "secrets jrs-coordinator-tls and jrs-worker-tls with ca.crt, tls.crt, tls.key; the coordinator's",
        );
        say("  certificate is for the name jrs-coordinator (cert-manager writes them in this form)");
        text.push_str("\nThis run:\n");
        let mut say = |line: &str| writeln!(text, "  {line}").expect("a string takes whatever is written");
        say(&format!("kubectl apply -k {out}"));
        say("kubectl -n jrs logs -f -l app.kubernetes.io/component=coordinator");
        say(&format!("jrs runs show {} {}", self.store, self.run));
        let what =
            if chosen.way == Overlay::PlainJob { "job jrs-coordinator jrs-worker" } else { "jobset jrs" };
        say(&format!(
            "to resume: kubectl -n jrs delete {what}; kubectl apply -k {out}   (goes on from the newest checkpoint)"
        ));
        text
    }
}

/// Writes all of it or nothing.
fn write(out: &Path, pages: &[(String, String)]) -> Result<()> {
    let failed = |e| Error::io(out, e, "Give a folder that can be written");
    let occupied = std::fs::read_dir(out).is_ok_and(|mut inside| inside.next().is_some()) || out.is_file();
    if occupied {
        let problem = format!("--out {} is not empty", out.display());
        return Err(Error::input(problem, "Give a new folder, or remove what is there"));
    }
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let draft = tempfile::Builder::new().prefix(".jrs-k8s-").tempdir_in(parent).map_err(failed)?;
    // A folder of its own inside: temporary ones are closed to others.
    let whole = draft.path().join("whole");
    for (path, text) in pages {
        let path = whole.join(path);
        std::fs::create_dir_all(path.parent().expect("it is inside a folder")).map_err(failed)?;
        std::fs::write(path, text).map_err(failed)?;
    }
    std::fs::rename(whole, out).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_is_in_the_command() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s");
        let mut found = Vec::new();
        let mut open = ["base", "components", "overlays"].map(|part| root.join(part)).to_vec();
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        let known: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(known, found);
    }
}
