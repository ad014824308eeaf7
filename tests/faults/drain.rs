//! How long leaving takes after SIGTERM in the worst moments, against the grace that the manifests give.

use crate::cluster::{Cluster, GAN, alone, folder, jrs, quick, send, wait};
use crate::http::{Fate, Proxy};
use crate::seaweed::{SECRET, Seaweed, variables};
use std::process::Child;
use std::time::{Duration, Instant};

/// Grace over the longest time measured here. A store or a network may be as much slower than these.
const MARGIN: f64 = 3.0;
/// How long the store takes for each object.
const SLOW: Duration = Duration::from_secs(3);

/// A worker in the middle of a step of JRS-GANa, the first rank in the middle of a save to a slow store, and coordinators meanwhile.
#[test]
fn leaving_fits_the_grace_period() {
    let _alone = alone();
    let [worker_grace, coordinator_grace] = grace();
    let mut worst = [0.0_f64; 2];
    let mut measured = |what: &str, [worker, coordinator]: [f64; 2]| {
        eprintln!("{what}: a worker left after {worker:.1} s, the coordinator after {coordinator:.1} s");
        worst = [worst[0].max(worker), worst[1].max(coordinator)];
    };

    let mut cluster = Cluster::new("drained-in-a-step", GAN);
    measured("in a step", drain(&mut cluster, "delay=1000@rank=0,step=2,phase=forward"));

    if let Some(store) = Seaweed::start("drained-store") {
        let proxy = Proxy::before(&store.address());
        proxy.rule(|request| match request.method == "PUT" && request.target.contains("/ckpt/") {
            true => Fate::Wait(SLOW),
            false => Fate::Pass,
        });
        let place = variables(&proxy.address(), SECRET);
        let mut cluster = Cluster::in_store("drained-in-a-save", &quick(200), "s3://runs", place);
        measured("in a save", drain(&mut cluster, "delay=100@rank=0,step=10,phase=save"));
    }

    let [worker, coordinator] = worst;
    eprintln!("worst: {worker:.1} s of {worker_grace} s, {coordinator:.1} s of {coordinator_grace} s");
    assert!(MARGIN * worker < worker_grace && MARGIN * coordinator < coordinator_grace, "{worst:?}");
}

/// Seconds that the first rank takes to leave from the moment of its fault on, and then the coordinator, while another worker steps.
fn drain(cluster: &mut Cluster, fault: &str) -> [f64; 2] {
    cluster.coordinate(2);
    let first = cluster.work(fault);
    cluster.said(first, "ready to take part"); // so that ranks are in this order
    cluster.work("");
    wait("the moment", || cluster.struck(first));
    let clock = Instant::now();
    cluster.signal(first, "TERM");
    assert_eq!(cluster.ended(first), Some(143));
    let worker = clock.elapsed().as_secs_f64();
    cluster.reach(cluster.progress() + 1);
    let mut coordinator = cluster.take_coordinator();
    let clock = Instant::now();
    send("TERM", &coordinator);
    assert_eq!(ended(&mut coordinator), Some(143));
    [worker, clock.elapsed().as_secs_f64()]
}

fn ended(process: &mut Child) -> Option<i32> {
    wait("the coordinator to end", || process.try_wait().unwrap().is_some());
    process.wait().unwrap().code()
}

/// Seconds that rendered manifests give workers and the coordinator.
fn grace() -> [f64; 2] {
    let root = folder("grace");
    let out = root.join("manifests");
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny.toml");
    let made = jrs().args(["k8s", "render", "--workers", "2", "--config", tiny, "--out"]).arg(&out).output();
    assert!(made.unwrap().status.success());
    ["worker", "coordinator"].map(|role| {
        let text = std::fs::read_to_string(out.join(format!("base/{role}.yaml"))).unwrap();
        let (_, rest) = text.split_once("terminationGracePeriodSeconds: ").expect("it is there");
        rest.lines().next().unwrap().parse().expect("a number of seconds")
    })
}
