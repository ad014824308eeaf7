//! Hosts as network namespaces on one switch, whose cables can be pulled and whose packets can be dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Some hosts with the addresses 10.77.0.1, 10.77.0.2, ... They are gone when it is dropped, with whatever runs on them
/// cut off.
pub struct Network {
    id: String,
    hosts: usize,
}

impl Network {
    /// A network of so many hosts. `None`, after saying so, where this user may not make one.
    pub fn start(hosts: usize) -> Option<Self> {
        // Nothing of the machine's own network is touched: the switch is in a namespace too.
        let network = Self { id: format!("jrs-{}", std::process::id()), hosts };
        let switch = network.switch();
        let made = tried(&format!("ip netns add {switch}"))
            && tried(&format!("ip -n {switch} link add name bridge0 type bridge"))
            && tried(&format!("ip -n {switch} link set dev bridge0 up"))
            && (0..hosts).all(|number| network.add(number))
            && network.filter(0, "");
        if !made {
            eprintln!(
                "SKIPPED: network namespaces need root, iproute2 and nftables; they were not to be had here"
            );
            return None;
        }
        Some(network)
    }

    fn add(&self, number: usize) -> bool {
        let (host, switch, port, address) =
            (self.host(number), self.switch(), self.port(number), self.address(number));
        tried(&format!("ip netns add {host}"))
            && tried(&format!("ip link add name {port} netns {switch} type veth peer name eth0 netns {host}"))
            && tried(&format!("ip -n {switch} link set dev {port} master bridge0 up"))
            && tried(&format!("ip -n {host} address add {address}/24 dev eth0"))
            && tried(&format!("ip -n {host} link set dev eth0 up"))
            && tried(&format!("ip -n {host} link set dev lo up"))
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// `program` on a host. It becomes the process itself, so that signals reach it.
    pub fn command(&self, host: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.host(host), program]);
        command
    }

    /// What `host` says on `port` to a GET of `path`, head and all; nothing if nobody answers.
    pub fn get(&self, from: usize, host: usize, port: u16, path: &str) -> String {
        let mut command = self.command(from, "bash");
        let ask = format!(
            "exec 3<>/dev/tcp/{}/{port} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
            self.address(host)
        );
        let output = command.args(["-c", &ask]).output().expect("bash runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Bytes that a host has sent.
    pub fn sent(&self, host: usize) -> u64 {
        let output =
            self.command(host, "cat").arg("/sys/class/net/eth0/statistics/tx_bytes").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number of bytes")
    }

    /// Lets `name` mean the address of `target`, for programs that are started on any host from now on; for those that run
    /// already once it meant something before.
    pub fn name(&self, name: &str, target: usize) {
        for host in 0..self.hosts {
            let folder = self.settings(host);
            std::fs::create_dir_all(&folder).unwrap();
            // In place: running programs hold this very file.
            let line = format!("127.0.0.1 localhost\n{} {name}\n", self.address(target));
            std::fs::write(folder.join("hosts"), line).unwrap();
        }
    }

    /// What `ip netns exec` puts over `/etc`.
    fn settings(&self, host: usize) -> PathBuf {
        Path::new("/etc/netns").join(self.host(host))
    }

    /// Pulls a host's cable.
    pub fn pull(&self, host: usize) {
        assert!(tried(&format!("ip -n {} link set dev {} nomaster", self.switch(), self.port(host))));
    }

    /// Plugs it in again.
    pub fn plug(&self, host: usize) {
        assert!(tried(&format!("ip -n {} link set dev {} master bridge0", self.switch(), self.port(host))));
    }

    /// From now on nothing that `from` sends arrives at `host`; the other way is open.
    pub fn drop_from(&self, host: usize, from: usize) {
        assert!(self.filter(host, &format!("ip saddr {} drop", self.address(from))));
    }

    /// From now on `host` answers whatever `from` sends with a reset.
    pub fn reset_from(&self, host: usize, from: usize) {
        let rule = format!("ip saddr {} meta l4proto tcp reject with tcp reset", self.address(from));
        assert!(self.filter(host, &rule));
    }

    /// Takes everything that arrives at `host` again.
    pub fn accept(&self, host: usize) {
        assert!(self.filter(host, ""));
    }

    fn filter(&self, host: usize, rule: &str) -> bool {
        let rules = format!(
            "flush ruleset\ntable inet faults {{\nchain in {{\ntype filter hook input priority 0\n{rule}\n}}\n}}\n"
        );
        let file = std::env::temp_dir().join(format!("{}.nft", self.id));
        std::fs::write(&file, rules).unwrap();
        let loaded = tried(&format!("ip netns exec {} nft -f {}", self.host(host), file.display()));
        std::fs::remove_file(file).unwrap();
        loaded
    }

    fn host(&self, number: usize) -> String {
        format!("{}-{number}", self.id)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.id)
    }

    fn port(&self, number: usize) -> String {
        format!("port{number}")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..self.hosts).map(|number| self.host(number)).chain([self.switch()]) {
            tried(&format!("ip netns delete {name}"));
            let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(name)); // most have none
        }
    }
}

fn tried(words: &str) -> bool {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
