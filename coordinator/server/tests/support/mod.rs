//! A coordinator inside the test, and workers that say what they are told to.

use jrs_cluster::{Job, MicroBatches, Options, Policy};
use jrs_coordinator::{RunStore, Start};
use jrs_protocol::client::{Client, ClientOptions, Event};
use jrs_protocol::message::{
    FromWorker, Generation, Hello, Ready, Standing, from_coordinator, from_worker::Body,
};
use jrs_protocol::tls::TlsFiles;
use jrs_protocol::token::Token;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Patience of every wait.
pub const WAIT: Duration = Duration::from_secs(20);

/// A coordinator on a thread; it ends with the test's process.
pub struct Coordinator {
    pub address: SocketAddr,
    pub http: SocketAddr,
    pub token: Option<&'static str>,
    _folder: tempfile::TempDir,
}

impl Coordinator {
    pub fn start(min_workers: usize, token: Option<&'static str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().to_str().unwrap().to_owned();
        let store = RunStore::open(&url, "run").unwrap();
        store.start_run("seed = 1\n", "sha256:1", Start::New).unwrap();
        let (address, http) = (free_address(), free_address());
        let options = Options {
            store,
            listen: address,
            advertise: address.to_string(),
            http: Some(http),
            token: token.map(|text| Token::new(text).unwrap()),
            tls: TlsFiles::default(),
            // These workers have no heart; a browser may take its time.
            policy: Policy { silence: Duration::from_secs(120), ..Policy::new(min_workers) },
            job: Job {
                config_toml: "seed = 1\n".into(),
                dataset_digest: "sha256:1".into(),
                data_url: "cache".into(),
                store_url: url,
                resume_step: None,
                cut: MicroBatches::new(8, 4).unwrap(),
                updates: 2000,
                iterations: 400,
            },
        };
        std::thread::spawn(move || jrs_cluster::run(options).unwrap());
        let coordinator = Self { address, http, token, _folder: folder };
        coordinator.until("it is ready", |this| this.get("/readyz").is_some_and(|(code, _)| code == 200));
        coordinator
    }

    /// Status code and body of a page, or `None` if nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.http, WAIT).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status").unwrap().1).unwrap()
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WAIT;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}: never; {:?}", self.get("/status"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A worker of flesh and blood as far as the coordinator can see.
pub struct Worker {
    pub id: String,
    client: Client,
    pub generation: u64,
}

impl Worker {
    pub fn attach(coordinator: &Coordinator, host: &str) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        let message = hello(&id, host, Standing::Joining, 0);
        let token = coordinator.token.map(|text| Token::new(text).unwrap());
        let options = ClientOptions { url: coordinator.address.to_string(), token, tls: TlsFiles::default() };
        let client = Client::start(&options, move || message.clone()).unwrap();
        let worker = Self { id, client, generation: 0 };
        worker.until(|body| matches!(body, from_coordinator::Body::Welcome(_)).then_some(()));
        worker.send(0, Body::Ready(Ready {}));
        worker
    }

    pub fn send(&self, step: u64, body: Body) {
        let message = FromWorker { run: "run".into(), generation: self.generation, step, body: Some(body) };
        self.client.send(message);
    }

    /// The first message for which `wanted` gives something.
    pub fn until<T>(&self, wanted: impl Fn(&from_coordinator::Body) -> Option<T>) -> T {
        let (deadline, mut seen) = (Instant::now() + WAIT, Vec::new());
        while Instant::now() < deadline {
            if let Some(Event::Message(message)) = self.client.recv_timeout(Duration::from_millis(50)) {
                let body = message.body.unwrap();
                if let Some(found) = wanted(&body) {
                    return found;
                }
                seen.push(body);
            }
        }
        panic!("only heard {seen:?}");
    }

    pub fn formed(&mut self) -> Generation {
        let generation = self.until(|body| match body {
            from_coordinator::Body::Formed(generation) => Some(generation.clone()),
            _ => None,
        });
        self.generation = generation.number;
        generation
    }
}

/// What an honest worker says first.
pub fn hello(id: &str, host: &str, standing: Standing, generation: u64) -> FromWorker {
    let hello = Hello {
        worker: id.to_owned(),
        address: "127.0.0.1:7100".into(),
        standing: standing.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        host: host.to_owned(),
        process: std::process::id(),
        ..Hello::default()
    };
    FromWorker { run: "run".into(), generation, step: 0, body: Some(Body::Hello(hello)) }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
