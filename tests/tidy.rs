//! Rules about the source that review would forget: purity, the direction of dependencies, names
//! of metrics, lengths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What pure code never names, and why.
const IMPURE: [(&str, &str); 12] = [
    ("tokio::", "no runtime"),
    (".await", "no waiting"),
    ("async fn", "no waiting"),
    ("Instant::now", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("thread_rng", "randomness is an argument"),
    ("rand::rng()", "randomness is an argument"),
    ("getrandom", "randomness is an argument"),
    ("std::net::TcpStream", "no sockets"),
    ("std::net::UdpSocket", "no sockets"),
    ("std::fs", "no files"),
    ("Mutex<", "no locks"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(under: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(under)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("source is UTF-8");
                found.push((name(&path), text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no source under {under}");
    found
}

fn all_files() -> Vec<(String, String)> {
    ["shared/src", "node/src", "router/src", "src"].into_iter().flat_map(files).collect()
}

/// The part before unit tests, without comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn is_pure(name: &str) -> bool {
    let shared = name.starts_with("shared/src/") && !name.starts_with("shared/src/net/");
    shared || name.starts_with("node/src/logic/") || name.starts_with("router/src/logic/")
}

#[test]
fn pure_code_has_no_clock_socket_task_lock_or_randomness() {
    let mut found = Vec::new();
    for (name, text) in all_files().iter().filter(|(name, _)| is_pure(name)) {
        for (pattern, why) in IMPURE {
            if code(text).contains(pattern) {
                found.push(format!("{name}: `{pattern}` ({why})"));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn sockets_are_opened_in_one_place() {
    let openers = ["TcpListener::bind", "UdpSocket::bind", "TcpStream::connect", "Socket::new"];
    let mut found = Vec::new();
    let libraries = ["shared/src", "node/src", "router/src"].into_iter().flat_map(files);
    for (name, text) in libraries.filter(|(name, _)| !name.starts_with("shared/src/net/sock")) {
        for opener in openers.iter().filter(|opener| code(&text).contains(*opener)) {
            found.push(format!("{name}: `{opener}`"));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Without it the branches are polled in a random order, and no seed repeats a run.
#[test]
fn every_select_is_biased() {
    let mut found = Vec::new();
    for (name, text) in all_files() {
        for branches in code(&text).split("select! {").skip(1) {
            if !branches.trim_start().starts_with("biased;") {
                found.push(format!(
                    "{name}: {}",
                    branches.trim_start().lines().next().unwrap_or("")
                ));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn router_and_node_know_only_shared() {
    for (manifest, forbidden) in [
        ("shared/Cargo.toml", &["stead-node", "stead-router"][..]),
        ("node/Cargo.toml", &["stead-router"][..]),
        ("router/Cargo.toml", &["stead-node"][..]),
    ] {
        let text = std::fs::read_to_string(root().join(manifest)).expect("the manifest is there");
        let dependencies = text.split("[dev-dependencies]").next().unwrap_or_default();
        for name in forbidden {
            assert!(!dependencies.contains(name), "{manifest} depends on {name}");
        }
    }
}

/// Names of metrics in the source: text literals that begin with `stead_`.
fn metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in all_files() {
        for piece in code(&text).split('"').skip(1).step_by(2) {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if piece.starts_with("stead_") && piece.chars().all(plain) && !piece.ends_with('_') {
                names.insert(piece.to_owned());
            }
        }
    }
    names.retain(|name| !["stead_node", "stead_router", "stead_shared"].contains(&name.as_str()));
    names
}

#[test]
fn every_metric_is_in_the_operator_s_list() {
    let list = std::fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    let missing: Vec<String> =
        metrics().into_iter().filter(|name| !list.contains(&format!("`{name}`"))).collect();
    assert_eq!(missing, Vec::<String>::new(), "not in docs/metrics.md");
}

#[test]
fn nothing_is_left_for_later() {
    let markers = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "XX".to_owned() + "X"];
    let mut found = Vec::new();
    for folder in ["shared", "node", "router", "src", "tests", "benches", "examples"] {
        for (name, text) in files(folder) {
            for marker in markers.iter().filter(|marker| text.contains(marker.as_str())) {
                found.push(format!("{name}: {marker}"));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// A ratchet: it may only fall.
#[test]
fn files_stay_readable() {
    const LINES_MAX: usize = 700;
    let mut found = Vec::new();
    for (name, text) in all_files() {
        let lines = code(&text).lines().count();
        if lines > LINES_MAX {
            found.push(format!("{name}: {lines} lines"));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}
