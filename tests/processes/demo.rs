//! `stead demo`: what a newcomer sees first.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::client::{self, count};
use crate::harness::{
    SOON, eventually, free_addr, free_run, fresh_dir, is_running, run, signal, stderr, stead,
};

/// Nodes of the demo: two are enough, and start faster.
const NODES: u16 = 2;

struct Demo {
    child: Child,
    output: std::path::PathBuf,
    front: SocketAddr,
    admin: SocketAddr,
}

impl Demo {
    async fn start() -> Self {
        let dir = fresh_dir();
        let (front, admin) = (free_run(2 * NODES + 4), free_run(2 * NODES + 4));
        let (port, admin_port) = (front.port().to_string(), admin.port().to_string());
        let nodes = NODES.to_string();
        let arguments = ["demo", "--nodes", &nodes, "--port", &port, "--admin-port", &admin_port];
        let output = dir.join("demo.log");
        let file = File::create(&output).unwrap();
        let child = stead(&arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut demo = Self { child, output, front, admin };
        demo.wait_for("Ctrl-C stops all of them.").await;
        demo
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Waits for a piece of its output.
    async fn wait_for(&mut self, piece: &str) {
        let output = self.output.clone();
        let child = &mut self.child;
        // Longer than the demo itself waits, so that it can say why it gives up.
        eventually(piece, SOON * 2, || {
            let text = std::fs::read_to_string(&output).unwrap();
            let found = if text.contains(piece) { Ok(()) } else { Err(text) };
            if found.is_err() {
                assert_eq!(child.try_wait().unwrap(), None, "the demo has ended: {found:?}");
            }
            std::future::ready(found)
        })
        .await;
    }

    /// The ids of its processes, as it printed them.
    fn pids(&self) -> Vec<u32> {
        let text = self.text();
        let last_words = text.lines().filter_map(|line| line.split_once(" pid "));
        last_words.filter_map(|(_, pid)| pid.trim().parse().ok()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- the demo's output\n{}", self.text());
        }
    }
}

async fn all_gone(pids: &[u32]) {
    eventually("the end of all processes", SOON, || {
        let left: Vec<_> = pids.iter().filter(|pid| is_running(**pid)).collect();
        std::future::ready(if left.is_empty() { Ok(()) } else { Err(format!("{left:?} run")) })
    })
    .await;
}

#[tokio::test]
async fn a_demo_counts_grows_and_stops_everything() {
    let mut demo = Demo::start().await;
    let text = demo.text();
    let took = text.strip_prefix("ready in ").and_then(|rest| rest.split(" s").next()).unwrap();
    println!("ready in {took} s");
    let pids = demo.pids();
    assert_eq!(pids.len(), usize::from(NODES) + 1, "{text}");
    assert!(pids.iter().all(|pid| is_running(*pid)));

    let first = count(demo.front, "alice").await.unwrap();
    assert_eq!(first.counter(), Ok(1));
    for expected in 2..=3 {
        let answer = count(demo.front, "alice").await.unwrap();
        assert_eq!(answer.counter(), Ok(expected));
        assert_eq!(answer.header("stead-node"), first.header("stead-node"));
    }

    let line = text.lines().find(|line| line.contains(" node --name n3 ")).unwrap();
    let arguments: Vec<&str> = line.split_whitespace().skip(1).collect();
    let mut newcomer = stead(&arguments)
        .arg("--exit-with-parent")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    demo.wait_for("   n3 ").await;

    signal(demo.child.id(), "TERM");
    let status = eventually("the demo's end", SOON, || {
        let ended = demo.child.try_wait().unwrap();
        std::future::ready(ended.ok_or_else(|| "it runs".to_owned()))
    })
    .await;
    assert!(status.success(), "{status}");
    all_gone(&pids).await;
    newcomer.kill().unwrap();
    newcomer.wait().unwrap();
}

#[tokio::test]
async fn a_demo_that_is_killed_leaves_nothing_behind() {
    let demo = Demo::start().await;
    let pids = demo.pids();
    signal(demo.child.id(), "KILL");
    all_gone(&pids).await;
    assert!(client::get(demo.admin, "/healthz").await.is_err());
}

#[tokio::test]
async fn a_demo_says_what_changes() {
    let mut demo = Demo::start().await;
    let drained = client::once(demo.admin, http::Method::POST, "/v1/drain?node=n2").await.unwrap();
    assert_eq!(drained.status, 202);
    demo.wait_for("n2 (pid ").await;
    demo.wait_for("has stopped").await;
    let n1 = demo.pids()[1];
    signal(n1, "KILL");
    demo.wait_for("was killed by signal 9").await;
}

#[tokio::test]
async fn a_demo_on_a_port_in_use_says_so_and_starts_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let admin = free_addr().port().to_string();
    let started = tokio::time::Instant::now();
    let output = run(&["demo", "--port", &port, "--admin-port", &admin]).await;
    assert_eq!(output.status.code(), Some(71));
    let message = stderr(&output);
    assert!(message.contains("--port") && message.contains("in use"), "{message}");
    assert!(started.elapsed() < Duration::from_secs(10));
}
