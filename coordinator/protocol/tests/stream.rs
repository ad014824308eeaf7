//! The stream over real sockets: who is let in, and what a worker sees when the coordinator goes and comes.

use jrs_protocol::client::{Client, ClientOptions, Event, leader};
use jrs_protocol::message::{
    FromCoordinator, FromWorker, Heartbeat, Hello, LeaderReply, LeaderRequest, Leaving, Welcome,
    from_coordinator, from_worker,
};
use jrs_protocol::server;
use jrs_protocol::tls::TlsFiles;
use jrs_protocol::token::Token;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const WAIT: Duration = Duration::from_secs(20);

/// Answers every hello by a welcome and keeps what it hears.
#[derive(Clone, Default)]
struct Echo {
    heard: Arc<Mutex<Vec<from_worker::Body>>>,
}

#[tonic::async_trait]
impl server::Coordinator for Echo {
    type AttachStream = ReceiverStream<Result<FromCoordinator, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (sender, receiver) = mpsc::channel(4);
        let (mut incoming, heard) = (request.into_inner(), Arc::clone(&self.heard));
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let body = message.body.unwrap();
                if matches!(body, from_worker::Body::Hello(_)) {
                    let welcome = Welcome { config_toml: "seed = 1".into(), ..Welcome::default() };
                    let body = Some(from_coordinator::Body::Welcome(welcome));
                    let _ = sender.send(Ok(FromCoordinator { body, ..FromCoordinator::default() })).await;
                }
                heard.lock().unwrap().push(body);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderReply>, Status> {
        Ok(Response::new(LeaderReply { coordinator: request.into_inner().run, generation: 7 }))
    }
}

/// A server on a thread of its own, until it is dropped.
struct Serving {
    address: SocketAddr,
    echo: Echo,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Serving {
    fn start(at: &str, token: Option<&str>, tls: &TlsFiles) -> Self {
        let (echo, token) = (Echo::default(), token.map(|text| Token::new(text).unwrap()));
        let (service, mut builder) = (server::service(echo.clone(), token), server::builder());
        if let Some(tls) = tls.server().unwrap() {
            builder = builder.tls_config(tls).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let listener = runtime.block_on(TcpListener::bind(at)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let serve = builder.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
            runtime.block_on(async {
                tokio::select! { _ = serve => {}, _ = stopped => {} }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        Self { address, echo, stop: Some(stop), thread: Some(thread) }
    }

    fn heard(&self, wanted: impl Fn(&from_worker::Body) -> bool) -> usize {
        self.echo.heard.lock().unwrap().iter().filter(|body| wanted(body)).count()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn attach(address: SocketAddr, token: Option<&str>, tls: TlsFiles) -> Client {
    let token = token.map(|text| Token::new(text).unwrap());
    let hello = || FromWorker {
        body: Some(from_worker::Body::Hello(Hello { host: "here".into(), ..Hello::default() })),
        ..FromWorker::default()
    };
    Client::start(&ClientOptions { url: address.to_string(), token, tls }, hello).unwrap()
}

fn message(body: from_worker::Body) -> FromWorker {
    FromWorker { body: Some(body), ..FromWorker::default() }
}

/// The first event for which `wanted` holds, or a panic with what came instead.
fn until<T>(client: &Client, wanted: impl Fn(&Event) -> Option<T>) -> T {
    let (deadline, mut seen) = (Instant::now() + WAIT, Vec::new());
    while Instant::now() < deadline {
        let Some(event) = client.recv_timeout(Duration::from_millis(100)) else { continue };
        if let Some(found) = wanted(&event) {
            return found;
        }
        seen.push(event);
    }
    panic!("only saw {seen:?}");
}

fn welcomed(event: &Event) -> Option<()> {
    let Event::Message(message) = event else { return None };
    matches!(message.body, Some(from_coordinator::Body::Welcome(_))).then_some(())
}

fn disconnected(event: &Event) -> Option<String> {
    let Event::Disconnected { reason } = event else { return None };
    Some(reason.clone())
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} never happened");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_worker_comes_back_to_the_successor_and_loses_no_report() {
    let first = Serving::start("127.0.0.1:0", None, &TlsFiles::default());
    let address = first.address;
    let client = attach(address, None, TlsFiles::default());
    until(&client, welcomed);
    drop(first);
    until(&client, disconnected);
    client.send(message(from_worker::Body::Heartbeat(Heartbeat::default())));
    client.send(message(from_worker::Body::Leaving(Leaving { reason: "while it was away".into() })));

    let second = Serving::start(&address.to_string(), None, &TlsFiles::default());
    until(&client, welcomed);
    eventually("the report", || second.heard(|body| matches!(body, from_worker::Body::Leaving(_))) == 1);
    assert_eq!(second.heard(|body| matches!(body, from_worker::Body::Hello(_))), 1);
    assert_eq!(second.heard(|body| matches!(body, from_worker::Body::Heartbeat(_))), 0, "stale heartbeat");
}

#[test]
fn what_is_sent_last_arrives_before_the_client_is_gone() {
    let serving = Serving::start("127.0.0.1:0", None, &TlsFiles::default());
    let client = attach(serving.address, None, TlsFiles::default());
    until(&client, welcomed);
    client.send(message(from_worker::Body::Leaving(Leaving::default())));
    drop(client);
    assert_eq!(serving.heard(|body| matches!(body, from_worker::Body::Leaving(_))), 1);
}

#[test]
fn without_the_token_nothing_is_read() {
    let token = "the-token-of-this-run";
    let serving = Serving::start("127.0.0.1:0", Some(token), &TlsFiles::default());
    for given in [None, Some("another-0123456789")] {
        let client = attach(serving.address, given, TlsFiles::default());
        let code = until(&client, |event| match event {
            Event::Message(FromCoordinator {
                body: Some(from_coordinator::Body::Refused(refused)), ..
            }) => Some(refused.exit_code),
            _ => None,
        });
        assert_eq!(code, 78);
    }
    assert_eq!(serving.heard(|_| true), 0);
    let client = attach(serving.address, Some(token), TlsFiles::default());
    until(&client, welcomed);
}

#[test]
fn a_second_coordinator_finds_the_first() {
    let serving = Serving::start("127.0.0.1:0", None, &TlsFiles::default());
    let options = |address: SocketAddr| ClientOptions {
        url: address.to_string(),
        token: None,
        tls: TlsFiles::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |address| runtime.block_on(leader(&options(address), "run", WAIT)).unwrap();
    assert_eq!(
        ask(serving.address).map(|reply| (reply.coordinator, reply.generation)),
        Some(("run".into(), 7))
    );
    let gone = serving.address;
    drop(serving);
    assert_eq!(ask(gone), None);
}

#[test]
fn with_mutual_tls_both_sides_must_prove_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let theirs = Authority::new(folder.path(), "theirs");
    let coordinator = ours.issue("coordinator");
    let serving = Serving::start("127.0.0.1:0", None, &coordinator);

    let client = attach(serving.address, None, ours.issue("worker"));
    until(&client, welcomed);
    let cases = [
        ("a worker of another authority", TlsFiles { ca: ours.ca(), ..theirs.issue("stranger") }),
        ("a worker that trusts another authority", TlsFiles { ca: theirs.ca(), ..ours.issue("lost") }),
        ("a worker without a certificate", TlsFiles { ca: ours.ca(), ..TlsFiles::default() }),
        ("a worker without TLS", TlsFiles::default()),
    ];
    let hellos = || serving.heard(|body| matches!(body, from_worker::Body::Hello(_)));
    for (who, tls) in cases {
        let client = attach(serving.address, None, tls);
        let reason = until(&client, disconnected);
        eprintln!("{who}: {reason}");
        assert_eq!(hellos(), 1, "{who} was let in");
    }
    // The refused ones did no harm.
    until(&attach(serving.address, None, ours.issue("worker-2")), welcomed);
}

/// A certificate authority made for the test.
struct Authority<'a> {
    folder: &'a Path,
    name: &'static str,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(folder: &'a Path, name: &'static str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = parameters.self_signed(&key).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        Self { folder, name, issuer: rcgen::Issuer::new(parameters, key) }
    }

    fn ca(&self) -> Option<std::path::PathBuf> {
        Some(self.folder.join(format!("{}.pem", self.name)))
    }

    fn issue(&self, who: &str) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.folder.join(format!("{}-{who}-{kind}.pem", self.name));
        std::fs::write(file("cert"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        TlsFiles { ca: self.ca(), cert: Some(file("cert")), key: Some(file("key")), name: None }
    }
}
