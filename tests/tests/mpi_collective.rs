//! The TCP collective against MPI (MPICH) on the same buffers: equal results, and time as a ratio, to MPI over TCP as well as to the
//! shared memory that it takes between ranks of one machine.

use jrs_worker::collective::Collective;
use jrs_worker::collective::tcp::{Abort, Group, Rendezvous};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const RANKS: usize = 2;
/// About the generator's gradient.
const VALUES: usize = 500_000;
const REPEATS: usize = 15;

fn value(rank: usize, i: usize) -> i64 {
    let (i, rank) = (i as u64, rank as u64);
    ((i * 2_654_435_761 + rank * 40_503 + 1) % (1 << 40)) as i64 - (1 << 39)
}

/// MPICH as Debian builds it (on UCX) then uses sockets between ranks of one machine too.
const OVER_TCP: [(&str, &str); 2] = [("MPIR_CVAR_NOLOCAL", "1"), ("UCX_TLS", "tcp")];

/// The most that may pass the network, of the least that a ring needs: headers are less than a thousandth of such buffers.
const MOST: f64 = 1.001;

/// Results and median milliseconds of the sum and the maximum.
type Reduced = (Vec<i64>, Vec<i32>, [f64; 2]);

#[test]
fn equal_to_mpi() {
    let Some(program) = program() else { return };
    let (shared, theirs) = (mpi(&program, &[]), mpi(&program, &OVER_TCP));
    let ours = ours();
    for theirs in [&shared, &theirs] {
        assert!(ours.0 == theirs.0, "sums differ");
        assert!(ours.1 == theirs.1, "maxima differ");
    }
    for (k, what) in ["sum of i64", "maximum of i32"].iter().enumerate() {
        eprintln!(
            "{what}, {RANKS} ranks, {VALUES} values: {:.2} ms, MPICH over TCP {:.2} ms, ratio {:.2}, in shared memory {:.2} ms, ratio \
             {:.2}",
            ours.2[k],
            theirs.2[k],
            ours.2[k] / theirs.2[k],
            shared.2[k],
            ours.2[k] / shared.2[k]
        );
    }
}

/// MPICH's counterpart; `None`, after saying so, where there is no MPI.
fn program() -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/mpi_allreduce.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mpi_allreduce");
    match Command::new("mpicc").args(["-O2", "-o"]).arg(&program).arg(source).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("SKIPPED: mpicc: {error} (Debian: mpich, libmpich-dev)");
            return None;
        }
    }
    Some(program)
}

/// What MPICH makes of the buffers with these variables.
fn mpi(program: &Path, variables: &[(&str, &str)]) -> Reduced {
    let results = program.with_extension("bin");
    let output = Command::new("mpiexec")
        .envs(variables.iter().copied())
        .env("MPIEXEC_TIMEOUT", "60") // seconds: ranks that wait for each other spin for ever
        .args(["-n", &RANKS.to_string()])
        .arg(program)
        .arg(&results)
        .arg(VALUES.to_string())
        .output()
        .expect("MPICH brings mpiexec");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<f64> = printed.split_whitespace().map(|ms| ms.parse().expect("milliseconds")).collect();
    let bytes = std::fs::read(&results).expect("rank 0 wrote it");
    let (sums, maxima) = bytes.split_at(8 * VALUES);
    let sums = sums.chunks_exact(8).map(|b| i64::from_ne_bytes(b.try_into().expect("eight"))).collect();
    let maxima = maxima.chunks_exact(4).map(|b| i32::from_ne_bytes(b.try_into().expect("four"))).collect();
    (sums, maxima, [times[0], times[1]])
}

fn ours() -> Reduced {
    let listeners: Vec<_> = (0..RANKS).map(|_| Rendezvous::listen("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.address().to_string()).collect();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(rank, listener)| {
                let group = Group {
                    run: "mpi".into(),
                    generation: 1,
                    key: b"key".to_vec(),
                    rank,
                    addresses: addresses.clone(),
                };
                scope.spawn(move || reduce(rank, listener, &group))
            })
            .collect();
        let results: Vec<Reduced> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        bytes_are_few(&listeners);
        results.into_iter().next().expect("there is a rank 0")
    })
}

/// What passed the sockets, against the least of any ring: 2 (N-1)/N of each buffer in each direction of each rank.
fn bytes_are_few(listeners: &[Rendezvous]) {
    let least = REPEATS * VALUES * (size_of::<i64>() + size_of::<i32>()) * 2 * (RANKS - 1) / RANKS;
    for (rank, listener) in listeners.iter().enumerate() {
        // Every operation ended, so all that a rank received was read, and what its neighbour sent is that.
        let (sent, received) = (listener.traffic().sent(), listener.traffic().received());
        let ratio = received as f64 / least as f64;
        eprintln!(
            "rank {rank}: {sent} bytes sent and {received} received in {REPEATS} sums and maxima, {ratio:.5} of the least that a ring needs"
        );
        assert!((1.0..MOST).contains(&ratio), "{received} bytes where {least} are needed");
    }
}

fn reduce(rank: usize, listener: &Rendezvous, group: &Group) -> Reduced {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut ring = listener.join(group, deadline, &Abort::default()).unwrap();
    let (mut sums, mut maxima) = (Vec::new(), Vec::new());
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..REPEATS {
        sums = (0..VALUES).map(|i| value(rank, i)).collect();
        maxima = (0..VALUES).map(|i| (value(rank, i) >> 10) as i32).collect();
        ring.sum(&mut [0]).unwrap(); // all begin together
        let start = Instant::now();
        ring.sum(&mut sums).unwrap();
        let middle = Instant::now();
        ring.max(&mut maxima).unwrap();
        times[0].push(1e3 * (middle - start).as_secs_f64());
        times[1].push(1e3 * middle.elapsed().as_secs_f64());
    }
    let median = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[REPEATS / 2]
    });
    (sums, maxima, median)
}
