//! The unsafe calls, made for real: a library in C stands for the driver and NCCL (`stand_in.c`), processes are the ranks.
//!
//! What this shows: symbols, types and the order of the calls fit each other, memory is kept and freed, an abort returns
//! while a peer is dead. What it cannot show: that the real library behaves so.

#![cfg(feature = "library")]

use jrs_nccl::loaded::{Loaded, Rank};
use jrs_nccl::{Communicator, Fault, FaultKind, Library, Reduction, UniqueId};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const PART: &str = "JRS_NCCL_TEST_PART";
const LONG: Duration = Duration::from_secs(20);

/// Folder with the library under both names, or None without a C compiler.
fn stand_in() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in.c");
        let library = folder.join("libnccl.so.2");
        let arguments = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"];
        let compiled = Command::new("cc").args(arguments).arg(&library).arg(source).status();
        match compiled {
            Err(_) => {
                eprintln!("SKIPPED: no C compiler for the library that stands for NCCL");
                None
            }
            Ok(status) => {
                assert!(status.success(), "the library that stands for NCCL does not compile");
                // One file under two names is loaded once, so that streams know of operations.
                std::os::unix::fs::symlink(&library, folder.join("libcuda.so")).unwrap();
                std::os::unix::fs::symlink(&library, folder.join("libcuda.so.1")).unwrap();
                Some(folder)
            }
        }
    });
    built.as_deref()
}

/// This program once more, as something else: the library is found by what the environment said when a process began.
fn again(part: &str, libraries: &Path, env: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["part", "--exact", "--nocapture"]).env(PART, part).env("LD_LIBRARY_PATH", libraries);
    command.env_remove("JRS_NCCL").envs(env.iter().copied()).stdout(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the other tests start; nothing by itself.
#[test]
fn part() {
    let Ok(part) = std::env::var(PART) else { return };
    match part.split_once('/') {
        Some((rank, size)) => {
            rank_of(rank.parse().unwrap(), size.parse().unwrap()).unwrap_or_else(|fault| panic!("{fault}"));
            println!("done well");
        }
        None => match Loaded::open(part.parse().unwrap()).and_then(|library| library.version()) {
            Ok(version) => println!("version {version}"),
            Err(fault) => println!("{:?}: {fault}", fault.kind),
        },
    }
}

/// Joins and does each operation; rank 1 of a group may be told to die before one.
fn rank_of(rank: usize, size: usize) -> Result<(), Fault> {
    let library = Loaded::open(0)?;
    let id = identity(&library, rank)?;
    let mut comm = library.join(&id, size, rank)?;
    until(&mut comm, |comm| comm.poll())?;
    let (mut own, mut all) = (comm.allocate(800)?, comm.allocate(800 * size)?);

    comm.upload(&mut own, &[rank as u8; 10])?;
    comm.gather(&own, &mut all, 10)?;
    finish(&mut comm)?;
    let mut gathered = vec![0; 10 * size];
    comm.download(&all, &mut gathered)?;
    assert_eq!(gathered, (0..size).flat_map(|rank| [rank as u8; 10]).collect::<Vec<_>>());

    if std::env::var_os("DIES").is_some() {
        std::process::abort();
    }
    let mine: Vec<i64> = (0..100).map(|i| (i * rank as i64) << 40).collect();
    let bytes: Vec<u8> = mine.iter().flat_map(|v| v.to_le_bytes()).collect();
    comm.upload(&mut own, &bytes)?;
    // In two parts, the first five left alone.
    comm.reduce(Reduction::SumI64, &mut own, 5, 45)?;
    until(&mut comm, |comm| comm.poll())?;
    comm.reduce(Reduction::SumI64, &mut own, 50, 50)?;
    if std::env::var_os("SEES_DEATH").is_some() {
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            assert!(!comm.idle()?, "the other rank is dead");
        }
        comm.abort();
        println!("aborted");
        return Ok(());
    }
    finish(&mut comm)?;
    let mut summed = vec![0; 800];
    comm.download(&own, &mut summed)?;
    let summed: Vec<i64> = summed.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let total = (size * (size - 1) / 2) as i64;
    let expected = |i: usize| if i < 5 { mine[i] } else { (i as i64 * total) << 40 };
    assert!((0..100).all(|i| summed[i] == expected(i)), "{summed:?}");

    let numbers = [rank as i32 - 7, -(rank as i32), i32::MIN];
    comm.upload(&mut own, &numbers.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
    comm.reduce(Reduction::MaxI32, &mut own, 0, 3)?;
    finish(&mut comm)?;
    let mut maxima = [0; 12];
    comm.download(&own, &mut maxima)?;
    let maxima: Vec<i32> = maxima.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(maxima, [size as i32 - 8, 0, i32::MIN]);

    comm.upload(&mut own, format!("said by {rank}").as_bytes())?;
    comm.broadcast(size - 1, &mut own, 9)?;
    finish(&mut comm)?;
    let mut said = [0; 9];
    comm.download(&own, &mut said)?;
    assert_eq!(String::from_utf8_lossy(&said), format!("said by {}", size - 1));

    // What does not fit is refused before any call.
    let too_long = comm.reduce(Reduction::SumI64, &mut own, 60, 41).unwrap_err();
    assert_eq!(too_long.kind, FaultKind::Usage);
    assert!(comm.gather(&own, &mut all, 801).is_err() && comm.upload(&mut own, &[0; 801]).is_err());
    comm.finalize()?;
    until(&mut comm, |comm| comm.poll())?;
    comm.destroy();
    Ok(())
}

/// Rank 0's identity, through a file.
fn identity(library: &Loaded, rank: usize) -> Result<UniqueId, Fault> {
    let path = PathBuf::from(std::env::var_os("FAKE_NCCL_FOLDER").unwrap()).join("identity");
    if rank == 0 {
        let id = library.unique_id()?;
        fs::write(path.with_extension("new"), id.0).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
        return Ok(id);
    }
    let deadline = Instant::now() + LONG;
    loop {
        if let Ok(bytes) = fs::read(&path) {
            return Ok(UniqueId(bytes.try_into().unwrap()));
        }
        assert!(Instant::now() < deadline, "rank 0 made no identity");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn until(comm: &mut Rank, done: impl Fn(&mut Rank) -> Result<bool, Fault>) -> Result<(), Fault> {
    let deadline = Instant::now() + LONG;
    while !done(comm)? {
        assert!(Instant::now() < deadline, "it never ends");
        std::thread::yield_now();
    }
    Ok(())
}

fn finish(comm: &mut Rank) -> Result<(), Fault> {
    until(comm, |comm| comm.poll())?;
    until(comm, |comm| comm.idle())
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn processes_do_every_operation() {
    let Some(libraries) = stand_in() else { return };
    for size in [2, 3] {
        let folder = folder(&format!("group-of-{size}"));
        let env = [("FAKE_NCCL_FOLDER", folder.to_str().unwrap())];
        let ranks: Vec<_> = (0..size).map(|rank| again(&format!("{rank}/{size}"), libraries, &env)).collect();
        for (rank, child) in ranks.into_iter().enumerate() {
            let (code, said) = end(child);
            assert!(code == Some(0) && said.contains("done well"), "rank {rank} of {size}: {said}");
        }
    }
}

#[test]
fn an_abort_returns_while_a_peer_is_dead() {
    let Some(libraries) = stand_in() else { return };
    let folder = folder("dead-peer");
    let place = ("FAKE_NCCL_FOLDER", folder.to_str().unwrap());
    let survivor = again("0/2", libraries, &[place, ("SEES_DEATH", "1")]);
    let dead = again("1/2", libraries, &[place, ("DIES", "1")]);
    assert_eq!(end(dead).0, None, "killed by a signal");
    let (code, said) = end(survivor);
    assert!(code == Some(0) && said.contains("aborted"), "{said}");
}

#[test]
fn what_is_missing_is_named_and_nothing_panics() {
    let Some(libraries) = stand_in() else { return };
    let opened = |part: &str, libraries: &Path, env: &[(&str, &str)]| {
        let (code, said) = end(again(part, libraries, env));
        assert_eq!(code, Some(0), "{said}");
        said
    };
    assert!(opened("0", libraries, &[]).contains("version 22203"));
    assert!(opened("1", libraries, &[("FAKE_NCCL_VERSION", "21701")]).contains("version 21701"));
    let no_such_device = opened("7", libraries, &[]);
    assert!(no_such_device.contains("Device: cuDeviceGet: invalid device ordinal"), "{no_such_device}");
    let no_library = opened("0", libraries, &[("JRS_NCCL", "/nonexistent/libnccl.so.2")]);
    assert!(no_library.contains("Missing") && no_library.contains("/nonexistent/"), "{no_library}");
    let not_nccl = opened("0", libraries, &[("JRS_NCCL", "libm.so.6")]);
    assert!(not_nccl.contains("Missing") && not_nccl.contains("ncclGetVersion"), "{not_nccl}");
    if Path::new("/dev/nvidiactl").exists() {
        eprintln!("SKIPPED: this machine has a driver, so that none cannot be tried");
    } else {
        let no_driver = opened("0", &folder("no-libraries"), &[]);
        assert!(no_driver.contains("Missing") && no_driver.contains("no NVIDIA driver"), "{no_driver}");
    }
}
