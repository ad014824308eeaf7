//! Hostile and broken peers on real sockets: each is refused, nobody panics, and honest workers are served all the while.

mod support;

use jrs_protocol::message::{
    Committed, Failed, FromWorker, Hello, Standing, from_coordinator, from_worker::Body,
};
use jrs_protocol::tonic::{
    self, Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Endpoint,
};
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;
use support::{Coordinator, WAIT, Worker, hello};

const TOKEN: &str = "the-token-of-this-run";

#[test]
fn nothing_that_comes_over_the_wire_brings_it_down() {
    let coordinator = Coordinator::start(1, Some(TOKEN));
    let mut honest = Worker::attach(&coordinator, "honest");
    assert_eq!(honest.formed().members[0].worker, honest.id);

    noise_instead_of_http(&coordinator);
    let peer = Peer::new(&coordinator);
    strangers_are_refused(&peer);
    garbled_messages_are_refused(&peer);
    oversized_messages_are_refused(&peer);
    wrong_runs_and_versions_are_refused(&peer);
    dishonest_messages_are_refused(&peer);
    stale_generations_change_nothing(&coordinator, &peer, &honest);

    // The honest one works on, and newcomers are welcome.
    honest.send(9, Body::Committed(Committed { seconds: 0.1, ..Committed::default() }));
    coordinator.until("the step counts", |c| c.status()["step"] == 9);
    let _second = Worker::attach(&coordinator, "second");
    honest.until(|body| matches!(body, from_coordinator::Body::Reform(_)).then_some(()));
    let metrics = coordinator.get("/metrics").unwrap().1;
    let refused = metrics.lines().find(|line| line.starts_with("jrs_messages_refused_total")).unwrap();
    let count: u64 = refused.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count >= 20, "{refused}");
}

fn noise_instead_of_http(coordinator: &Coordinator) {
    let mut random = Noise(1);
    for round in 0..20 {
        let mut stream = TcpStream::connect(coordinator.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        if round % 2 == 0 {
            // A good beginning: HTTP/2's preface.
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        }
        let _ = stream.write_all(&random.bytes(2000));
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

fn strangers_are_refused(peer: &Peer) {
    for token in [None, Some("Bearer "), Some("Bearer the-token-of-this-ruN"), Some("Basic dGhl"), Some("")] {
        let honest = hello(&uuid(), "stranger", Standing::Joining, 0).encode_to_vec();
        assert_eq!(peer.say(token, vec![honest]).unwrap_err().code(), Code::Unauthenticated, "{token:?}");
    }
}

/// Random bytes, and good messages with flipped bits or without their end.
fn garbled_messages_are_refused(peer: &Peer) {
    let mut random = Noise(2);
    for round in 0..200 {
        let mut bytes = hello(&uuid(), "garbled", Standing::Stepping, 77).encode_to_vec();
        match round % 4 {
            0 => {
                let length = 1 + random.below(300);
                bytes = random.bytes(length);
            }
            1 => bytes.truncate(random.below(bytes.len())),
            2 => bytes.extend(random.bytes(8)),
            _ => {
                for _ in 0..8 {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        // Some are still messages, by chance: then it is a stepping worker of a generation that never was.
        match peer.say(Some(&bearer()), vec![bytes]) {
            Err(status) => assert!(
                matches!(status.code(), Code::InvalidArgument | Code::Internal | Code::Unknown),
                "{status:?}"
            ),
            Ok(Some(from_coordinator::Body::Evicted(_) | from_coordinator::Body::Refused(_))) => {}
            // A flipped bit may make it a joining one.
            Ok(Some(from_coordinator::Body::Welcome(_))) => {}
            Ok(other) => panic!("{other:?}"),
        }
    }
}

fn oversized_messages_are_refused(peer: &Peer) {
    for size in [jrs_protocol::FROM_WORKER_LIMIT + 1, 8 << 20] {
        let large = Hello { host: "x".repeat(size), ..Hello::default() };
        let message = FromWorker { body: Some(Body::Hello(large)), ..FromWorker::default() };
        let status = peer.say(Some(&bearer()), vec![message.encode_to_vec()]).unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    }
}

fn wrong_runs_and_versions_are_refused(peer: &Peer) {
    let mut other_run = hello(&uuid(), "lost", Standing::Joining, 0);
    other_run.run = "another".into();
    let mut other_version = hello(&uuid(), "old", Standing::Joining, 0);
    if let Some(Body::Hello(hello)) = &mut other_version.body {
        hello.version = "0.0.1".into();
    }
    for (message, word) in [(other_run, "another"), (other_version, "0.0.1")] {
        match peer.say(Some(&bearer()), vec![message.encode_to_vec()]).unwrap() {
            Some(from_coordinator::Body::Refused(refused)) => {
                assert_eq!(refused.exit_code, 78);
                assert!(refused.reason.contains(word), "{}", refused.reason);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Well-formed, and not what an honest worker says; first or after an honest hello.
fn dishonest_messages_are_refused(peer: &Peer) {
    let bare = |body: Body| FromWorker { body: Some(body), ..FromWorker::default() };
    let cases = [
        FromWorker::default(),
        bare(Body::Committed(Committed { seconds: f64::NAN, ..Committed::default() })),
        bare(Body::Committed(Committed { seconds: -1.0, ..Committed::default() })),
        bare(Body::Failed(Failed { suspects: vec!["nobody".into()], ..Failed::default() })),
        bare(Body::Failed(Failed { reason: "x".repeat(5000), ..Failed::default() })),
    ];
    for message in cases {
        let alone = peer.say(Some(&bearer()), vec![message.encode_to_vec()]).unwrap_err();
        assert_eq!(alone.code(), Code::InvalidArgument, "{message:?}");
        let first = hello(&uuid(), "liar", Standing::Joining, 0);
        let after =
            peer.last(Some(&bearer()), vec![first.encode_to_vec(), message.encode_to_vec()]).unwrap_err();
        assert_eq!(after.code(), Code::InvalidArgument, "{message:?}");
    }
    let twice = hello(&uuid(), "twice", Standing::Joining, 0).encode_to_vec();
    assert_eq!(
        peer.last(Some(&bearer()), vec![twice.clone(), twice]).unwrap_err().code(),
        Code::InvalidArgument
    );
}

fn stale_generations_change_nothing(coordinator: &Coordinator, peer: &Peer, honest: &Worker) {
    let stepping = hello(&uuid(), "ghost", Standing::Stepping, honest.generation + 5);
    // The last word: the stream is closed behind it.
    let reply = peer.last(Some(&bearer()), vec![stepping.encode_to_vec()]).unwrap();
    assert!(matches!(reply, Some(from_coordinator::Body::Evicted(_))), "{reply:?}");
    // A late report of an old generation, by a member.
    let old = FromWorker {
        generation: honest.generation - 1,
        step: 1000,
        body: Some(Body::Committed(Committed { seconds: 1.0, ..Committed::default() })),
        run: "run".into(),
    };
    let first = hello(&uuid(), "late", Standing::Joining, 0);
    let _ = peer.say(Some(&bearer()), vec![first.encode_to_vec(), old.encode_to_vec()]);
    std::thread::sleep(Duration::from_millis(1500));
    let status = coordinator.status();
    assert_eq!((&status["step"], &status["mode"]), (&0.into(), &"training".into()), "{status}");
    assert_eq!(status["generation"], honest.generation);
}

/// A client that sends whatever bytes it is given as messages.
struct Peer {
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
}

impl Peer {
    fn new(coordinator: &Coordinator) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", coordinator.address)).unwrap();
        Self { runtime, endpoint: endpoint.timeout(WAIT) }
    }

    /// The first answer.
    fn say(
        &self,
        token: Option<&str>,
        messages: Vec<Vec<u8>>,
    ) -> Result<Option<from_coordinator::Body>, Status> {
        self.runtime.block_on(self.talk(token, messages, false))
    }

    /// The last answer before the stream ends.
    fn last(
        &self,
        token: Option<&str>,
        messages: Vec<Vec<u8>>,
    ) -> Result<Option<from_coordinator::Body>, Status> {
        self.runtime.block_on(self.talk(token, messages, true))
    }

    async fn talk(
        &self,
        token: Option<&str>,
        messages: Vec<Vec<u8>>,
        to_the_end: bool,
    ) -> Result<Option<from_coordinator::Body>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.endpoint.connect().await.unwrap());
        grpc.ready().await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        for message in messages {
            sender.send(Bytes::from(message)).await.unwrap();
        }
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        let path = "/jrs.cluster.v1.Coordinator/Attach".parse().unwrap();
        let mut replies = grpc.streaming(request, path, Raw).await?.into_inner();
        let mut last = None;
        while let Some(reply) = replies.message().await? {
            let reply = jrs_protocol::message::FromCoordinator::decode(reply).unwrap();
            last = reply.body;
            if !to_the_end {
                break;
            }
        }
        drop(sender);
        Ok(last)
    }
}

/// Messages as they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The same noise every time (a linear congruence; Knuth, The Art of Computer Programming, vol. 2, MMIX's constants).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn bearer() -> String {
    format!("Bearer {TOKEN}")
}
