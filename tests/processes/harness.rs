//! Starts processes, waits for them with deadlines, sends them signals, and ends them.

use std::fs::{self, File};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use stead_shared::net::admin::{MembersReport, ShardsReport};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::client;
use crate::netns::Host;

/// For everything that should take a second, on a machine that does ten other things.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long a cluster may take to be where placement wants it: after several deaths nothing moves for
/// balance for 30 s.
const SETTLED: Duration = Duration::from_secs(75);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a log that a failing test prints.
const LOG_TAIL_LINES: usize = 60;

/// The program under test.
pub(crate) const STEAD: &str = env!("CARGO_BIN_EXE_stead");

/// Asks until `ask` gives an answer; panics with its last complaint at the deadline.
#[track_caller]
pub(crate) fn eventually<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + within;
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            match ask().await {
                Ok(answer) => return answer,
                Err(why) => assert!(Instant::now() < deadline, "{place}: {what}: {why}"),
            }
        }
    }
}

/// A loopback address whose port is free for TCP and UDP.
pub(crate) fn free_addr() -> SocketAddr {
    free_run(1)
}

/// The first of `n` loopback addresses with consecutive ports that are free for TCP and UDP.
///
/// Below the range that the kernel takes ports of outgoing connections from, and different for
/// tests that run side by side.
pub(crate) fn free_run(n: u16) -> SocketAddr {
    const FIRST: u16 = 12_000;
    const N: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(N)) as u16;
    for _ in 0..N {
        let step = NEXT.fetch_add(n, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_mul(97).wrapping_add(step) % N);
        let addr = |i| SocketAddr::from((Ipv4Addr::LOCALHOST, port + i));
        let free = |i| TcpListener::bind(addr(i)).is_ok() && UdpSocket::bind(addr(i)).is_ok();
        if (0..n).all(free) {
            return addr(0);
        }
    }
    panic!("no port is free");
}

/// A new directory for one test.
pub(crate) fn fresh_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Of an earlier process with this id.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A command with nothing of the environment that could configure it.
pub(crate) fn stead(arguments: &[&str]) -> Command {
    let mut command = unconfigured(STEAD);
    command.args(arguments);
    command
}

fn unconfigured(program: &str) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("STEAD_") {
            command.env_remove(variable);
        }
    }
    command
}

/// Runs a command that ends by itself, within [`SOON`].
pub(crate) async fn run(arguments: &[&str]) -> Output {
    let mut command = stead(arguments);
    command.stdin(Stdio::null());
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    tokio::time::timeout(SOON, output).await.expect("the command ends in time").unwrap()
}

/// What a command wrote to stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command wrote to stdout.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a file with keys of a cluster.
pub(crate) fn keys(dir: &Path, name: &str) -> String {
    let path = dir.join(name).display().to_string();
    let made = Command::new(STEAD)
        .args(["keygen", &path])
        .env_remove("STEAD_CLUSTER_KEY_FILE")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    path
}

/// A test that cannot run here must not look as if it had.
pub(crate) fn skipped(test: &str, why: &str) {
    // Not through the test's own output, which is only shown when it fails.
    let text = format!("\nSKIPPED {test}: {why}\n");
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
}

/// Sends a signal by its name to a process that this test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -{name} {pid}");
}

/// Whether a process with this id is there and not a zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// A process that runs until it is told to stop. It ends with the test.
pub(crate) struct Proc {
    pub(crate) name: String,
    pub(crate) child: Child,
    log: PathBuf,
}

impl Proc {
    /// Starts the program; its output goes to a log.
    pub(crate) fn start(name: &str, dir: &Path, arguments: &[String]) -> Self {
        Self::start_with(name, dir, arguments, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(
        name: &str,
        dir: &Path,
        arguments: &[String],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = unconfigured(STEAD);
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(name, dir, command)
    }

    /// The same in a network namespace.
    fn start_in(netns: &str, name: &str, dir: &Path, arguments: &[String]) -> Self {
        let mut command = unconfigured("ip");
        // It becomes the program, so that the process that is signalled is the right one.
        command.args(["netns", "exec", netns, STEAD]).args(arguments);
        Self::spawn(name, dir, command)
    }

    fn spawn(name: &str, dir: &Path, mut command: Command) -> Self {
        let log = dir.join(format!("{name}.{}.log", free_number()));
        let out = File::create(&log).unwrap();
        let child = command
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { name: name.to_owned(), child, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        eventually(&what, within, || {
            let ended = child.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned());
            std::future::ready(ended)
        })
        .await
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            eprintln!("---- log of {} ({})\n{}", self.name, self.log.display(), tail.join("\n"));
        }
    }
}

fn free_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where a member listens.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) gossip: SocketAddr,
    /// Plain HTTP of a node, the clients' listener of a router.
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// The network namespace it runs in, if not that of this process.
    netns: Option<String>,
}

impl Site {
    /// Free ports of loopback.
    pub(crate) fn free() -> Self {
        Self::free_but(free_addr())
    }

    fn free_but(gossip: SocketAddr) -> Self {
        Self { gossip, http: free_addr(), admin: free_addr(), netns: None }
    }

    /// A host that runs nothing else.
    pub(crate) fn at(host: &Host) -> Self {
        let [gossip, http, admin] = [7400, 8080, 9180].map(|port| host.port(port));
        Self { gossip, http, admin, netns: Some(host.netns.clone()) }
    }

    fn start(self, name: &str, dir: &Path, command: &[&str], options: &[&str]) -> Member {
        let Self { gossip, http, admin, netns } = self.clone();
        let http_flag = if command[0] == "router" { "--listen" } else { "--http" };
        let mut arguments = words(command);
        for (flag, addr) in [("--gossip", gossip), (http_flag, http), ("--admin", admin)] {
            arguments.extend([flag.to_owned(), addr.to_string()]);
        }
        arguments.extend(words(options));
        let proc = match &netns {
            Some(netns) => Proc::start_in(netns, name, dir, &arguments),
            None => Proc::start(name, dir, &arguments),
        };
        Member { proc, gossip, http, admin, site: self }
    }
}

/// A node or router and its addresses.
pub(crate) struct Member {
    pub(crate) proc: Proc,
    pub(crate) gossip: SocketAddr,
    /// Plain HTTP of a node, the clients' listener of a router.
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    site: Site,
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) shards: u32,
    /// One for each node.
    pub(crate) nodes: Vec<Site>,
    pub(crate) router: Site,
    /// Options of all members.
    pub(crate) options: Vec<String>,
    /// Options of nodes.
    pub(crate) node_options: Vec<String>,
    /// Nodes keep their sessions in directories of their own.
    pub(crate) disks: bool,
}

impl Plan {
    /// `n` nodes on loopback.
    pub(crate) fn of(n: usize, shards: u32) -> Self {
        let nodes = (0..n).map(|_| Site::free()).collect();
        Self {
            shards,
            nodes,
            router: Site::free(),
            options: vec![],
            node_options: vec![],
            disks: false,
        }
    }

    fn node(&self, dir: &Path, name: &str, site: Site, join: &str) -> Member {
        let shards = self.shards.to_string();
        let mut options = vec!["--shards", &shards, "--join", join];
        options.extend(self.options.iter().chain(&self.node_options).map(String::as_str));
        let data = dir.join(format!("data-{name}")).display().to_string();
        if self.disks {
            options.extend(["--data-dir", &data]);
        }
        site.start(name, dir, &["node", "--name", name], &options)
    }
}

/// How many clusters may run at a time: more would only wait for each other's processors, and
/// what is measured would be that.
static ROOM: Semaphore = Semaphore::const_new(ROOM_FOR);
const ROOM_FOR: usize = 2;

/// A router and nodes.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) router: Member,
    pub(crate) nodes: Vec<Member>,
    plan: Plan,
    _room: SemaphorePermit<'static>,
}

impl Cluster {
    /// Starts `n` nodes, `n1` and so on, and a router, and waits until all shards have owners.
    pub(crate) async fn start(n: usize, shards: u32) -> Self {
        Self::planned(Plan::of(n, shards)).await
    }

    /// The same as planned.
    pub(crate) async fn planned(plan: Plan) -> Self {
        Self::start_in(ROOM.acquire().await.unwrap(), plan).await
    }

    /// The same while no other cluster runs: for tests that measure how long something takes.
    pub(crate) async fn start_alone(n: usize, shards: u32) -> Self {
        Self::planned_alone(Plan::of(n, shards)).await
    }

    /// The same as planned, while no other cluster runs.
    pub(crate) async fn planned_alone(plan: Plan) -> Self {
        Self::start_in(ROOM.acquire_many(ROOM_FOR as u32).await.unwrap(), plan).await
    }

    async fn start_in(room: SemaphorePermit<'static>, plan: Plan) -> Self {
        let dir = fresh_dir();
        let seeds: Vec<String> = plan.nodes.iter().map(|site| site.gossip.to_string()).collect();
        let join = seeds.join(",");
        let nodes: Vec<Member> = (1..)
            .zip(&plan.nodes)
            .map(|(i, site)| plan.node(&dir, &format!("n{i}"), site.clone(), &join))
            .collect();
        let options: Vec<&str> = plan.options.iter().map(String::as_str).collect();
        let router = router_at(plan.router.clone(), &dir, &join, &options);
        let n = nodes.len();
        let cluster = Self { dir, router, nodes, plan, _room: room };
        cluster.settled(n).await;
        cluster
    }

    /// Where the router takes requests.
    pub(crate) fn front(&self) -> SocketAddr {
        self.router.http
    }

    pub(crate) fn join(&self) -> String {
        let seeds: Vec<String> = self.nodes.iter().map(|node| node.gossip.to_string()).collect();
        seeds.join(",")
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut Member {
        self.nodes.iter_mut().find(|node| node.proc.name == name).unwrap()
    }

    /// Starts one more node without waiting for it.
    pub(crate) fn add(&mut self, name: &str) {
        self.add_at(name, Site::free());
    }

    /// The same at a site.
    pub(crate) fn add_at(&mut self, name: &str, site: Site) {
        let node = self.plan.node(&self.dir, name, site, &self.join());
        self.nodes.push(node);
    }

    /// Starts a node that has ended again, under its name and addresses, without waiting for it.
    pub(crate) fn start_again(&mut self, name: &str) {
        let site = self.node(name).site.clone();
        let join = self.join();
        *self.node(name) = self.plan.node(&self.dir, name, site, &join);
    }

    pub(crate) async fn members(&self) -> Result<MembersReport, String> {
        client::get_json(self.router.admin, "/v1/members").await
    }

    pub(crate) async fn shards(&self) -> Result<ShardsReport, String> {
        client::get_json(self.router.admin, "/v1/shards").await
    }

    /// Waits until exactly `n` nodes own all shards and nothing moves, as the router and every
    /// node among them see it.
    pub(crate) async fn settled(&self, n: usize) {
        let mut admins = vec![self.router.admin];
        let running = |node: &&Member| is_running(node.proc.pid());
        admins.extend(self.nodes.iter().filter(running).map(|node| node.admin));
        for admin in admins {
            eventually("a settled cluster", SETTLED, || settled(admin, n)).await;
        }
    }
}

async fn settled(admin: SocketAddr, n: usize) -> Result<(), String> {
    let report: ShardsReport = client::get_json(admin, "/v1/shards").await?;
    let owned: u32 = report.by_node.values().sum();
    assert_eq!(owned + report.unowned, report.shards, "{admin}: by_node + unowned = shards");
    let at_home = report.moving == 0 && report.by_node == report.targets;
    let at_home = at_home && report.under_replicated == 0;
    if report.shards == 0 || report.unowned > 0 || !at_home || report.by_node.len() != n {
        let short = ShardsReport { owned: vec![], ..report };
        return Err(format!("{admin}: {short:?}"));
    }
    client::get(admin, "/readyz").await?.success().map(drop)
}

/// Starts a node.
pub(crate) fn node(
    dir: &Path,
    name: &str,
    gossip: SocketAddr,
    join: &str,
    shards: u32,
    more: &[&str],
) -> Member {
    let shards = shards.to_string();
    let mut options = vec!["--shards", &shards];
    if !join.is_empty() {
        options.extend(["--join", join]);
    }
    options.extend(more);
    Site::free_but(gossip).start(name, dir, &["node", "--name", name], &options)
}

/// Starts a router with `--key path:2 --expose-headers`.
pub(crate) fn router(dir: &Path, join: &str, more: &[&str]) -> Member {
    router_at(Site::free(), dir, join, more)
}

fn router_at(site: Site, dir: &Path, join: &str, more: &[&str]) -> Member {
    let command = ["router", "--key", "path:2", "--expose-headers", "--join", join];
    site.start("router", dir, &command, more)
}

/// Waits until a member calls itself ready.
pub(crate) async fn ready(member: &Member) {
    eventually("readiness", SOON, || async {
        client::get(member.admin, "/readyz").await?.success().map(drop)
    })
    .await;
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
