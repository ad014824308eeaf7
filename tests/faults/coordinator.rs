//! Coordinators that die, compete, hang or are moved, and peers that have no business here.

use crate::chaos::ledger;
use crate::cluster::{Cluster, alone, cache, folder, jrs, quick, send, undisturbed, wait};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Steps of the runs here.
const STEPS: u64 = 24;
/// Steps of a run that goes on while a second coordinator waits for the first one's lease to end.
const LONG: u64 = 60;

fn expected() -> &'static [u8] {
    undisturbed(&quick(STEPS))
}

/// Someone starts a second one while the first leads: it finds out, says so and ends with "try again".
#[test]
fn a_second_coordinator_ends() {
    let _alone = alone();
    let mut cluster = Cluster::new("second-coordinator", &quick(STEPS));
    cluster.coordinate(2);
    let workers = [cluster.work(""), cluster.work("")];
    cluster.reach(3);
    let (code, said) = outcome(other_coordinator(&cluster, free_port(), 2));
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("leads this run"), "{said}");
    assert!(cluster.finish(&workers) == expected(), "the model differs");
}

/// The leader hangs, another one takes over, and the leader wakes up: it must find out that it leads no more.
#[test]
fn a_leader_that_was_superseded_ends() {
    let _alone = alone();
    let mut cluster = Cluster::new("superseded", &quick(LONG));
    cluster.coordinate(2);
    let workers = [cluster.work(""), cluster.work("")];
    cluster.reach(3);
    let mut first = cluster.take_coordinator();
    send("STOP", &first);
    let mut second = Killed(other_coordinator(&cluster, free_port(), 2).spawn().unwrap());
    wait("the second one to lead", || cluster.newest_generation() > 2);
    send("CONT", &first);
    let mut code = None;
    wait("the first one to end", || {
        code = first.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(75));
    // The workers know one address: the successor has to come to them.
    drop(second.0.kill());
    drop(second);
    let alone = cluster.progress();
    cluster.reach(alone + 2);
    cluster.coordinate(1);
    assert!(cluster.finish(&workers) == undisturbed(&quick(LONG)), "the model differs");
}

/// A scheduler moves the coordinator: SIGTERM ends it with 143, workers go on, and the next one adopts them.
#[test]
fn a_moved_coordinator() {
    let _alone = alone();
    let mut cluster = Cluster::new("moved-coordinator", &quick(STEPS));
    cluster.coordinate(2);
    let workers = [cluster.work(""), cluster.work("")];
    cluster.reach(3);
    let generation = cluster.commits().last().unwrap().generation;
    let mut coordinator = cluster.take_coordinator();
    send("TERM", &coordinator);
    assert_eq!(coordinator.wait().unwrap().code(), Some(143));
    let alone = cluster.progress();
    cluster.reach(alone + 3);
    cluster.coordinate(2);
    assert!(cluster.finish(&workers) == expected(), "the model differs");
    let generations: Vec<u64> = cluster.commits().iter().map(|commit| commit.generation).collect();
    assert!(generations.iter().all(|&g| g == generation), "nobody had to stop: {generations:?}");
}

/// The whole cluster is taken down: SIGTERM to the coordinator, and to all workers as soon as it is gone. They end behind the step under way
/// with the state saved, so that no step has to be done again.
#[test]
fn everyone_is_asked_to_end() {
    let _alone = alone();
    let mut cluster = Cluster::new("taken-down", &quick(STEPS));
    cluster.coordinate(2);
    let workers = [cluster.work(""), cluster.work("")];
    cluster.reach(3);
    let mut coordinator = cluster.take_coordinator();
    send("TERM", &coordinator);
    assert_eq!(coordinator.wait().unwrap().code(), Some(143));
    for worker in workers {
        cluster.signal(worker, "TERM");
    }
    for worker in workers {
        assert_eq!(cluster.ended(worker), Some(143));
    }
    assert!(cluster.progress() < STEPS, "it was over before it was stopped");
    cluster.coordinate(1);
    let worker = cluster.work("");
    assert!(cluster.finish(&[worker]) == expected(), "the model differs");
    ledger(&cluster.commits(), STEPS);
}

/// One worker leaves while there is no coordinator; the other waits for the next one and goes on.
#[test]
fn a_worker_leaves_without_a_coordinator() {
    let _alone = alone();
    let mut cluster = Cluster::new("left-alone", &quick(STEPS));
    cluster.coordinate(2);
    let workers = [cluster.work(""), cluster.work("")];
    cluster.reach(3);
    cluster.kill_coordinator();
    cluster.signal(workers[0], "TERM");
    assert_eq!(cluster.ended(workers[0]), Some(143));
    cluster.coordinate(1);
    assert!(cluster.finish(&[workers[1]]) == expected(), "the model differs");
    ledger(&cluster.commits(), STEPS);
}

/// Ctrl-C on the coordinator stops the whole run, with the state saved; it goes on later.
#[test]
fn a_run_stopped_from_the_coordinator() {
    let _alone = alone();
    let mut cluster = Cluster::new("ctrl-c", &quick(STEPS));
    cluster.coordinate(2);
    let workers = [cluster.work(""), cluster.work("")];
    cluster.reach(3);
    let mut coordinator = cluster.take_coordinator();
    send("INT", &coordinator);
    for worker in workers {
        assert_eq!(cluster.ended(worker), Some(143));
    }
    assert_eq!(coordinator.wait().unwrap().code(), Some(130));
    assert!(cluster.progress() < STEPS, "it was over before it was stopped");
    cluster.coordinate(1);
    let worker = cluster.work("");
    assert!(cluster.finish(&[worker]) == expected(), "the model differs");
}

/// Certificates of another authority, the wrong token, another run: not let in, and the run does not suffer.
#[test]
fn who_does_not_belong_is_refused() {
    let _alone = alone();
    let root = folder("certificates");
    let (ours, theirs) = (Authority::new(&root, "ours"), Authority::new(&root, "theirs"));
    let token = root.join("token");
    std::fs::write(&token, "the-token-of-this-run\n").unwrap();
    let wrong_token = root.join("wrong-token");
    std::fs::write(&wrong_token, "the-token-of-another\n").unwrap();
    let member = |files: &[String], token: &Path| {
        let mut flags = files.to_vec();
        flags.extend(["--token-file".to_owned(), token.display().to_string()]);
        flags
    };
    let mut cluster = Cluster::new("certified", &quick(STEPS));
    cluster.coordinate_with(1, &member(&ours.issue("coordinator"), &token));
    let worker = cluster.work_with("", &member(&ours.issue("worker"), &token));
    cluster.reach(1);

    for (flags, code) in [
        (member(&ours.issue("guesser"), &wrong_token), 78),
        (ours.issue("silent"), 78),
        ([member(&ours.issue("lost"), &token), vec!["--run".into(), "another".into()]].concat(), 78),
    ] {
        let refused = cluster.work_with("", &flags);
        assert_eq!(cluster.ended(refused), Some(code), "{flags:?}");
    }
    // A handshake that fails may succeed later, so such a worker keeps trying; it never gets in.
    let mut stranger = theirs.issue("stranger");
    stranger[1] = ours.ca();
    let stranger = cluster.work_with("", &member(&stranger, &token));
    let mut fooled = ours.issue("fooled");
    fooled[1] = theirs.ca();
    let fooled = cluster.work_with("", &member(&fooled, &token));

    assert!(cluster.finish(&[worker]) == expected(), "the model differs");
    let generation = cluster.commits()[0].generation;
    assert!(cluster.commits().iter().all(|commit| commit.generation == generation), "someone got in");
    for outside in [stranger, fooled] {
        assert!(cluster.is_running(outside), "it cannot know that it is not wanted");
    }
}

/// What no coordinator can work with ends with 78, and names the file.
#[test]
fn a_configuration_that_cannot_work() {
    let _alone = alone();
    let root = folder("bad-coordinator");
    let config = root.join("run.toml");
    std::fs::write(&config, quick(2)).unwrap();
    let bad = root.join("bad.toml");
    std::fs::write(&bad, "iteratoins = 3\n").unwrap();
    let absent = root.join("absent");
    let start = |config: &Path, data: &Path, flags: &[&str]| {
        let mut command = jrs();
        command.args(["--log", "error", "coordinator", "--listen", "127.0.0.1:0", "--config"]).arg(config);
        command.arg("--data").arg(data).arg("--out").arg(root.join("store")).args(flags);
        outcome(command)
    };
    let key = root.join("key.pem");
    let key = ["--tls-key", key.to_str().unwrap()];
    let cases = [
        (start(&bad, cache(), &[]), "bad.toml"),
        (start(&config, &absent, &[]), "absent"),
        (start(&config, cache(), &key), "--tls-cert"),
        (start(&config, cache(), &["--token-file", "/absent/token"]), "/absent/token"),
        (start(&config, cache(), &["--workers", "0"]), "--workers"),
        (start(&config, cache(), &["--resume-step", "5"]), "step 5"),
    ];
    for ((code, said), word) in cases {
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(word) && !said.contains("panicked"), "{word}: {said}");
    }
}

/// A process that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

fn other_coordinator(cluster: &Cluster, port: u16, workers: usize) -> Command {
    let mut command = cluster.coordinator(port, workers);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Exit code and standard error.
fn outcome(mut command: Command) -> (Option<i32>, String) {
    let output = command.stderr(Stdio::piped()).output().expect("it starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A certificate authority made for the test.
pub struct Authority {
    folder: PathBuf,
    name: &'static str,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new(folder: &Path, name: &'static str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = parameters.self_signed(&key).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        Self { folder: folder.to_owned(), name, issuer: rcgen::Issuer::new(parameters, key) }
    }

    fn ca(&self) -> String {
        self.folder.join(format!("{}.pem", self.name)).display().to_string()
    }

    /// The flags of a process with a certificate of this authority.
    pub fn issue(&self, who: &str) -> Vec<String> {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters =
            rcgen::CertificateParams::new(["127.0.0.1", "jrs-coordinator"].map(str::to_owned)).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.folder.join(format!("{}-{who}-{kind}.pem", self.name));
        std::fs::write(file("cert"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        let shown = |path: PathBuf| path.display().to_string();
        let flags = ["--tls-ca", "--tls-cert", "--tls-key"].map(str::to_owned);
        flags
            .into_iter()
            .zip([self.ca(), shown(file("cert")), shown(file("key"))])
            .flat_map(|(f, v)| [f, v])
            .collect()
    }
}
