//! Hosts that are cut off, half or whole, in network namespaces. A minority commits nothing, and comes back.

use crate::chaos::ledger;
use crate::cluster::{Cluster, alone, quick, undisturbed, wait};
use crate::network::Network;
use std::time::{Duration, Instant};

/// Cable pull, one-way loss, resets, and the coordinator cut off, one after the other in one run.
#[test]
fn hosts_are_cut_off() {
    const STEPS: u64 = 400;
    let _alone = alone();
    let Some(network) = Network::start(4) else { return };
    let config = quick(STEPS);
    let mut cluster = Cluster::on_hosts("partition", &config, network);
    cluster.coordinate(3);
    let workers = [0, 1, 2].map(|_| cluster.work(""));
    cluster.reach(3);

    // Worker 2 alone on the wrong side. (Worker n is on host n + 1.)
    let before = generation(&cluster);
    cluster.network().pull(3);
    cut_off(&cluster, "a pulled cable", 2, before);
    cluster.network().plug(3);
    takes_part_again(&cluster, 2);

    // Worker 1 does not hear worker 0, and both hear the coordinator.
    let before = generation(&cluster);
    cluster.network().drop_from(2, 1);
    goes_on(&cluster, "a one-way loss", before, Duration::from_secs(45));
    cluster.network().accept(2);
    all_take_part(&cluster, &workers);

    // The same, but with resets.
    let before = generation(&cluster);
    cluster.network().reset_from(2, 1);
    goes_on(&cluster, "resets", before, Duration::from_secs(30));
    cluster.network().accept(2);
    all_take_part(&cluster, &workers);

    // All workers without the coordinator: they step on, and it finds them as they were.
    let (before, done) = (generation(&cluster), cluster.progress());
    cluster.network().pull(0);
    cluster.reach(done + 5);
    assert_eq!(generation(&cluster), before, "a generation without a coordinator");
    cluster.network().plug(0);

    let model = cluster.finish(&workers);
    assert!(model == undisturbed("undisturbed-partition", &config), "the model differs");
    ledger(&cluster.commits(), STEPS);
}

fn generation(cluster: &Cluster) -> u64 {
    cluster.commits().iter().map(|commit| commit.generation).max().unwrap_or(0)
}

/// A later generation commits within `limit`.
fn goes_on(cluster: &Cluster, what: &str, before: u64, limit: Duration) {
    let clock = Instant::now();
    wait("a step of the others", || generation(cluster) > before);
    let took = clock.elapsed();
    eprintln!("{what}: the next step was committed after {took:.1?}");
    assert!(took < limit, "{what}: {took:.1?}");
}

/// The others go on without `worker`, which commits nothing meanwhile.
fn cut_off(cluster: &Cluster, what: &str, worker: usize, before: u64) {
    goes_on(cluster, what, before, Duration::from_secs(15));
    let held = cluster.commits_of(worker).len();
    let done = cluster.progress();
    cluster.reach(done + 10);
    assert_eq!(cluster.commits_of(worker).len(), held, "{what}: the minority committed");
}

/// `worker` commits in a new generation.
fn takes_part_again(cluster: &Cluster, worker: usize) {
    let newest = |worker| cluster.commits_of(worker).last().map(|commit| commit.generation);
    let before = newest(worker);
    wait(&format!("worker {worker} to take part again"), || newest(worker) > before);
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
