//! A network of namespaces: one per process, joined by a bridge in one more, from which pairs can
//! be cut.
//!
//! ```text
//!  this process ──veth──┐
//!  namespace 1  ──veth──┤ bridge, in a namespace of its own: nftables drops what is cut
//!  namespace 2  ──veth──┘
//! ```
//!
//! Needs root, `ip` and `nft`. All names hold the id of this process; what a process left behind
//! that could not clean up is removed by the next one.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::skipped;

/// Namespaces of these tests begin so.
const PREFIX: &str = "stead-";

/// A network that ends with its owner.
pub(crate) struct Net {
    /// `stead-PID-N`; the bridge's namespace is called so.
    name: String,
    /// 10.a.b, of all addresses.
    subnet: [u8; 3],
    n_hosts: Cell<u8>,
}

/// A namespace of its own and its address.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// For `ip netns exec`.
    pub(crate) netns: String,
    pub(crate) ip: Ipv4Addr,
}

impl Host {
    pub(crate) fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip, port))
    }
}

impl Net {
    /// A network with this process in it, where that [is possible](is_missing_for).
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Far from what clouds and containers like to use, and another one for each process.
        let subnet = [10, 128 + (pid / 256 % 100) as u8, (pid % 256) as u8 ^ (n * 37) as u8];
        let net = Self { name: format!("{PREFIX}{pid}-{n}"), subnet, n_hosts: Cell::new(0) };
        ip(&format!("netns add {}", net.name));
        net.inside("link add br0 type bridge");
        net.inside("link set br0 up");
        let mine = format!("sp{pid}x{n}");
        net.plug(&mine, &format!("type veth peer name {mine} netns {}", net.name));
        ip(&format!("addr add {}/24 dev {mine}", net.address(254)));
        ip(&format!("link set {mine} up"));
        net
    }

    /// One more host.
    pub(crate) fn host(&self) -> Host {
        let i = self.n_hosts.get() + 1;
        self.n_hosts.set(i);
        let (netns, ip_addr) = (format!("{}-{i}", self.name), self.address(i));
        ip(&format!("netns add {netns}"));
        self.plug(
            &format!("host{i}"),
            &format!("netns {netns} type veth peer name host{i} netns {}", self.name),
        );
        ip(&format!("-n {netns} addr add {ip_addr}/24 dev host{i}"));
        ip(&format!("-n {netns} link set host{i} up"));
        ip(&format!("-n {netns} link set lo up"));
        Host { netns, ip: ip_addr }
    }

    /// From now on nothing gets from one to the other, both ways.
    pub(crate) fn cut(&self, a: &Host, b: &Host) {
        let (a, b) = (a.ip, b.ip);
        self.nft(&format!(
            "table bridge stead {{ chain cuts {{ type filter hook forward priority 0; \
             ip saddr {a} ip daddr {b} drop; ip saddr {b} ip daddr {a} drop; }}; }}"
        ));
    }

    /// Undoes all cuts.
    pub(crate) fn heal(&self) {
        self.nft("delete table bridge stead");
    }

    /// Whether a packet of `a` comes back from `b`: a connection that nobody listens to is refused
    /// at once.
    pub(crate) fn reaches(&self, a: &Host, b: &Host) -> bool {
        let connect = format!("exec 3<>/dev/tcp/{}/9", b.ip);
        let tried = Command::new("ip")
            .args(["netns", "exec", &a.netns, "timeout", "0.5", "bash", "-c", &connect])
            .stderr(Stdio::null())
            .status();
        // `timeout` ends with 124 when it had to stop it.
        tried.expect("ip runs").code() != Some(124)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Makes a pair of interfaces, the far one at the bridge.
    fn plug(&self, name: &str, rest: &str) {
        ip(&format!("link add {name} {rest}"));
        self.inside(&format!("link set {name} master br0"));
        self.inside(&format!("link set {name} up"));
    }

    fn inside(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    fn nft(&self, rules: &str) {
        run("ip", &["netns", "exec", &self.name, "nft", rules])
            .unwrap_or_else(|why| panic!("{why}"));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Whether networks can be made here, or why not.
fn able() -> Result<(), String> {
    for tool in ["ip", "nft"] {
        run(tool, &["-V"]).map_err(|why| format!("{why}; benches/setup installs it"))?;
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    run("ip", &["netns", "add", &probe]).map_err(|why| format!("{why}; it takes root"))?;
    let made = run("ip", &["netns", "exec", &probe, "nft", "add table bridge stead"]);
    remove(&probe);
    made.map(drop).map_err(|why| format!("{why}; the kernel cannot filter on bridges"))
}

/// Whether a test has to be left out because networks cannot be made here. It says so.
pub(crate) fn is_missing_for(test: &str) -> bool {
    let why = able().err();
    if let Some(why) = &why {
        skipped(test, why);
    }
    why.is_some()
}

/// Removes what processes that are gone have left.
fn remove_leftovers() {
    for name in names() {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_one(&name);
        }
    }
}

/// Removes a namespace and those whose names continue its own; their interfaces go with them.
fn remove(name: &str) {
    let of_hosts = format!("{name}-");
    for found in names().into_iter().filter(|found| found == name || found.starts_with(&of_hosts)) {
        remove_one(&found);
    }
}

fn remove_one(name: &str) {
    // Another process may have been faster.
    let _ = run("ip", &["netns", "del", name]);
}

fn names() -> Vec<String> {
    let listed = run("ip", &["netns", "list"]).unwrap_or_default();
    listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn ip(arguments: &str) {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    run("ip", &arguments).unwrap_or_else(|why| panic!("{why}"));
}

/// What a command printed, or why it failed.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let what = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", what()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim()))
}
