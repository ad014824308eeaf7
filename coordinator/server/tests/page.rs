//! The status page in a real browser: skipped, loudly, where there is no Chromium (Debian package chromium).

mod support;

use jrs_protocol::message::{Committed, Heartbeat, Kind, Phase, Saved, Validated, Value, from_worker::Body};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Coordinator, Worker};

const SIZE: (u32, u32) = (1280, 1400);

#[test]
fn the_page_shows_the_run() {
    let coordinator = Coordinator::start(2, None);
    let (mut first, mut second) =
        (Worker::attach(&coordinator, "node-a"), Worker::attach(&coordinator, "node-b"));
    let generation = first.formed();
    second.formed();
    assert_eq!(generation.members.len(), 2);
    assert_eq!(generation.key.len(), 32);
    train(&first, &second);
    coordinator.until("all steps are known", |c| {
        c.status()["step"] == 300 && c.status()["validations"][0].is_object()
    });
    // Heartbeats came on a stream of their own.
    coordinator.until("all bytes are known", |c| {
        let sent = "jrs_collective_bytes_total{run=\"run\",direction=\"sent\"} 5000";
        c.get("/metrics").is_some_and(|(_, metrics)| metrics.contains(sent))
    });

    probes_and_metrics(&coordinator);
    // A page of its own: what it needs from elsewhere is the status alone.
    let page = coordinator.get("/").unwrap().1;
    let addresses = page.matches("http://").count() + page.matches("https://").count();
    assert_eq!(addresses, page.matches("http://www.w3.org/2000/svg").count());

    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}/", coordinator.http);
    let dom = browse(&chromium, folder.path(), &["--dump-dom"], &url);
    for word in [
        &first.id[..8],
        &second.id[..8],
        "node-a",
        "node-b",
        "stepping",
        "generator",
        "2 workers are ready",
        "NCCL",
        "best so far",
    ] {
        assert!(dom.contains(word), "the page does not show {word}");
    }
    assert!(!dom.contains("<b>not markup</b>"), "text of other machines became markup");
    let picture =
        std::env::var_os("JRS_TEST_SCREENSHOT").map_or_else(|| folder.path().join("page.png"), PathBuf::from);
    browse(&chromium, folder.path(), &[&format!("--screenshot={}", picture.display())], &url);
    looks_like_a_page(&picture);
}

/// 300 steps with curves, two checkpoints and a validation, as rank 0 reports them.
fn train(first: &Worker, second: &Worker) {
    // What was sent before the first heartbeat is not this coordinator's.
    for (worker, sent) in [(first, 5_000), (second, 0), (first, 7_000), (second, 3_000)] {
        let heartbeat = Heartbeat {
            phase: Phase::Forward.into(),
            phase_seconds: 0.1,
            samples_per_second: 12.5,
            compute_seconds: 0.3,
            data_wait_share: 0.004,
            collective: "NCCL".into(),
            collective_sent: sent,
            collective_received: 2 * sent,
        };
        worker.send(0, Body::Heartbeat(heartbeat));
    }
    for step in 1..=300_u64 {
        let value = |name: &str, value: f64| Value { name: name.into(), value };
        let x = step as f64;
        let values = vec![
            value("generator total", 1.0 / (1.0 + 0.02 * x) + 0.02 * (0.7 * x).sin()),
            value("critic wasserstein", 0.3 - (-x / 90.0).exp() * 0.3),
            value("<b>not markup</b>", x),
        ];
        let committed = Committed {
            kind: Kind::Generator.into(),
            iteration: step / 2,
            seconds: 0.001,
            data_wait_seconds: 0.0,
            values,
        };
        first.send(step, Body::Committed(committed));
        if step % 150 == 0 {
            let saved = Saved { seconds: 0.8, stall_seconds: 0.02, bytes: 7_400_000, last: false };
            first.send(step, Body::Saved(saved));
        }
    }
    first.send(300, Body::Validated(Validated { iteration: 150, msd_mm: 2.345, best: true }));
}

fn probes_and_metrics(coordinator: &Coordinator) {
    assert_eq!(coordinator.get("/healthz").unwrap(), (200, "ok\n".to_owned()));
    let metrics = coordinator.get("/metrics").unwrap().1;
    for line in [
        "jrs_steps_total{run=\"run\"} 300",
        "jrs_step{run=\"run\"} 300",
        "jrs_checkpoints_total{run=\"run\"} 2",
        "jrs_collective_bytes_total{run=\"run\",direction=\"received\"} 10000",
        "jrs_workers{run=\"run\",state=\"stepping\"} 2",
        "jrs_messages_received_total{run=\"run\",kind=\"committed\"} 300",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    // Between the steps of a generation the coordinator said nothing.
    assert!(metrics.contains("jrs_messages_sent_total{run=\"run\",kind=\"generation\"} 2"), "{metrics}");
    assert!(!metrics.contains("kind=\"reform\""), "{metrics}");
    let status = coordinator.status();
    assert_eq!(status["samples"], 300 * 8);
    assert_eq!(status["losses"]["rows"].as_array().unwrap().len(), 300);
    assert!(status["eta_seconds"].as_f64().unwrap() > 0.0);
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|folder| ["chromium", "chromium-browser", "google-chrome"].map(|name| folder.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: the status page was not looked at, there is no chromium");
    }
    found
}

fn browse(chromium: &Path, profile: &Path, arguments: &[&str], url: &str) -> String {
    let output = Command::new(chromium)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
        ])
        .arg(format!("--user-data-dir={}", profile.join("profile").display()))
        .arg(format!("--window-size={},{}", SIZE.0, SIZE.1))
        .arg("--virtual-time-budget=3000")
        .args(arguments)
        .arg(url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Not blank: many colours, and the blue of the curves among them.
fn looks_like_a_page(picture: &Path) {
    let file = std::io::BufReader::new(std::fs::File::open(picture).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), SIZE);
    let channels = info.line_size / info.width as usize;
    let colours: std::collections::BTreeSet<&[u8]> =
        pixels.chunks_exact(channels).map(|pixel| &pixel[..3]).collect();
    assert!(colours.len() > 50, "only {} colours", colours.len());
    let blue = pixels.chunks_exact(channels).filter(|p| p[2] > 200 && p[0] < 80 && p[1] < 160).count();
    assert!(blue > 300, "{blue} pixels of curves");
}
