//! Hosts that are cut off, half or whole, in network namespaces. A minority commits nothing, and comes back.

use crate::chaos::ledger;
use crate::cluster::{Cluster, alone, quick, undisturbed, wait};
use crate::network::Network;
use std::time::Instant;

const STEPS: u64 = 70;

/// So slow that the run is not over before everything happened, on any machine.
fn slowly() -> String {
    let delays: Vec<String> =
        (0..STEPS - 10).map(|step| format!("delay=300@step={step},phase=data")).collect();
    delays.join(";")
}

/// Cable pull, one-way loss, resets, and the coordinator cut off, one after the other in one run.
#[test]
fn hosts_are_cut_off() {
    let _alone = alone();
    let Some(network) = Network::start(4) else { return };
    let config = quick(STEPS);
    let mut cluster = Cluster::on_hosts("partition", &config, network);
    cluster.coordinate(3);
    let workers = [0, 1, 2].map(|_| cluster.work(&slowly()));
    cluster.reach(3);

    // Worker 2 alone on the wrong side. (Worker n is on host n + 1.)
    let before = generation(&cluster);
    cluster.network().pull(3);
    goes_on(&cluster, "a pulled cable", before, 15.0);
    let held = cluster.commits_of(2).len();
    cluster.reach(cluster.progress() + 5);
    assert_eq!(cluster.commits_of(2).len(), held, "the minority committed");
    cluster.network().plug(3);
    all_take_part(&cluster, &workers);

    // All workers without the coordinator: they step on, and it finds them as they were.
    let (before, done) = (generation(&cluster), cluster.progress());
    cluster.network().pull(0);
    cluster.reach(done + 5);
    assert_eq!(generation(&cluster), before, "a generation without a coordinator");
    cluster.network().plug(0);

    // Worker 2 answers whatever worker 1 sends with a reset; both hear the coordinator.
    let before = generation(&cluster);
    cluster.network().reset_from(3, 2);
    goes_on(&cluster, "resets", before, 15.0);
    cluster.network().accept(3);
    all_take_part(&cluster, &workers);

    // Worker 1 does not hear worker 0.
    let before = generation(&cluster);
    cluster.network().drop_from(2, 1);
    goes_on(&cluster, "a one-way loss", before, 15.0);
    cluster.network().accept(2);

    let model = cluster.finish(&workers);
    assert!(model == undisturbed(&config), "the model differs");
    ledger(&cluster.commits(), STEPS);
}

fn generation(cluster: &Cluster) -> u64 {
    cluster.commits().iter().map(|commit| commit.generation).max().unwrap_or(0)
}

/// A later generation commits within so many seconds.
fn goes_on(cluster: &Cluster, what: &str, before: u64, limit: f64) {
    let clock = Instant::now();
    wait("a step of the others", || generation(cluster) > before);
    let took = clock.elapsed().as_secs_f64();
    eprintln!("{what}: the next step was committed after {took:.1} s");
    assert!(took < limit, "{what}: {took:.1} s");
}

/// All of `workers` commit in the same generation.
fn all_take_part(cluster: &Cluster, workers: &[usize]) {
    wait("all to take part", || {
        let newest = generation(cluster);
        workers.iter().all(|&worker| {
            cluster.commits_of(worker).last().is_some_and(|commit| commit.generation == newest)
        })
    });
}
