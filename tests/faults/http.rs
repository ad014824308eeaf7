//! Just enough HTTP for the tests: a request to a server here, and a proxy that makes a store fail as it is told.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is served.
    Pass,
    /// The proxy answers with this status; the server never hears of it.
    Answer(u16),
    /// It is served after a while.
    Wait(Duration),
    /// The connection breaks, before or after the server has done what was asked.
    Cut { done: bool },
    /// The client waits for ever, before or after the server has done what was asked.
    Hang { done: bool },
}

/// A request on its way to the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
}

type Rule = Box<dyn FnMut(&Request) -> Fate + Send>;

/// Stands between clients and a server. Every connection carries one request.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    rule: Mutex<Rule>,
    /// What the server did and said that it succeeded.
    done: Mutex<Vec<Request>>,
    /// Fates other than to pass.
    struck: Mutex<Vec<Fate>>,
}

impl Proxy {
    /// A proxy before the server at this address, which passes everything.
    pub fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            rule: Mutex::new(Box::new(|_| Fate::Pass)),
            done: Mutex::default(),
            struck: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serving.serve(client));
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on `rule` says what becomes of requests.
    pub fn rule(&self, rule: impl FnMut(&Request) -> Fate + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// The requests that the server fulfilled, in order.
    pub fn done(&self) -> Vec<Request> {
        self.shared.done.lock().unwrap().clone()
    }

    /// What befell requests so far.
    pub fn struck(&self) -> Vec<Fate> {
        self.shared.struck.lock().unwrap().clone()
    }
}

impl Shared {
    /// A client that goes away is no failure here, and neither is a server that is dead: the connection closes.
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let (head, body) = read_request(&mut client).ok()?;
        let mut words = head.split(' ');
        let request = Request { method: words.next()?.to_owned(), target: words.next()?.to_owned() };
        let fate = (self.rule.lock().unwrap())(&request);
        if fate != Fate::Pass {
            self.struck.lock().unwrap().push(fate);
        }
        match fate {
            Fate::Answer(status) => {
                let reply =
                    format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                return client.write_all(reply.as_bytes()).ok();
            }
            Fate::Cut { done: false } => return None,
            Fate::Hang { done: false } => return wait_for_end(&mut client),
            Fate::Wait(time) => std::thread::sleep(time),
            Fate::Pass | Fate::Cut { .. } | Fate::Hang { .. } => {}
        }
        // The server closes the connection behind its reply, so that the end of the reply is the end of the stream.
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let reply = exchange(&self.server, &head, &body).ok()?;
        if status(&reply).is_some_and(|status| (200..300).contains(&status)) {
            self.done.lock().unwrap().push(request);
        }
        match fate {
            Fate::Cut { .. } => None,
            Fate::Hang { .. } => wait_for_end(&mut client),
            _ => client.write_all(&reply).ok(),
        }
    }
}

/// Sends a request to `address` and returns the whole reply. The head must ask for the connection to be closed.
pub fn exchange(address: &str, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(address)?;
    server.write_all(head.as_bytes())?;
    server.write_all(body)?;
    let mut reply = Vec::new();
    server.read_to_end(&mut reply)?;
    Ok(reply)
}

/// The status of a reply.
pub fn status(reply: &[u8]) -> Option<u16> {
    std::str::from_utf8(reply.get(..12)?).ok()?.split(' ').nth(1)?.parse().ok()
}

/// Head, with the empty line at its end, and body.
fn read_request(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    };
    let mut body = vec![0; head.lines().find_map(length).unwrap_or(0)];
    client.read_exact(&mut body)?;
    Ok((head, body))
}

fn wait_for_end(client: &mut TcpStream) -> Option<()> {
    client.read_to_end(&mut Vec::new()).ok().map(drop)
}
