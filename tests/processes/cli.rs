//! Commands that need no cluster, and the texts that people see.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use stead_shared::net::admin::{MembersReport, ShardsReport};

use crate::client;
use crate::harness::{Proc, SOON, eventually, free_addr, fresh_dir, run, stderr, stdout, stead};

/// Compares with a file in `snapshots/`, or writes it when `UPDATE_SNAPSHOTS` is set.
#[track_caller]
fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processes/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} changed; UPDATE_SNAPSHOTS=1 rewrites it");
}

#[tokio::test]
async fn help_is_as_documented() {
    let mut text = String::new();
    for command in [
        &["--help"][..],
        &["node", "--help"],
        &["router", "--help"],
        &["demo", "--help"],
        &["status", "--help"],
        &["where", "--help"],
        &["drain", "--help"],
        &["move", "--help"],
        &["pins", "--help"],
        &["unpin", "--help"],
        &["keygen", "--help"],
        &["config", "--help"],
        &["completions", "--help"],
    ] {
        let output = run(command).await;
        assert!(output.status.success());
        text += &format!("$ stead {}\n{}\n", command.join(" "), stdout(&output));
    }
    snapshot("help.txt", &text);
}

#[tokio::test]
async fn errors_are_as_documented() {
    let mut text = String::new();
    for command in [
        &["node"][..],
        &["node", "--name", "n 1"],
        &["node", "--name", "n1", "--session-ttl", "1"],
        &["node", "--name", "n1", "--gossip", "0.0.0.0:7400"],
        &["router", "--join", "seed:7400", "--key", "path:0"],
        &["status", "--admin", "127.0.0.1:1"],
        &["move", "seven", "n1"],
        &["move", "7"],
        &["move", "7", "n1", "--for", "soon"],
        &["move", "7", "n1", "--timeout", "5s"],
        &["unpin", "7", "--admin", "127.0.0.1:1"],
        &["keygen", "--rotate"],
        &["stauts"],
    ] {
        let output = run(command).await;
        let code = output.status.code().unwrap();
        text += &format!("$ stead {}\n{}[{code}]\n\n", command.join(" "), stderr(&output));
    }
    snapshot("errors.txt", &text);
}

#[tokio::test]
async fn the_version_is_that_of_the_package() {
    let output = run(&["--version"]).await;
    assert_eq!(stdout(&output), format!("stead {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn every_flag_has_a_variable_and_a_key() {
    for role in ["node", "router"] {
        let schema = run(&["config", "schema", role]).await;
        let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
        assert_eq!(schema["additionalProperties"], false);
        let keys: BTreeSet<String> =
            schema["properties"].as_object().unwrap().keys().cloned().collect();
        let help = run(&[role, "--help"]).await;
        let mut flags = BTreeSet::new();
        for line in stdout(&help).lines().filter(|line| line.trim_start().starts_with("--")) {
            let flag = line.trim_start()[2..].split([' ', '[', '=']).next().unwrap().to_owned();
            let variable = format!("STEAD_{}", flag.replace('-', "_").to_uppercase());
            assert!(line.contains(&format!("[env: {variable}]")), "{line}");
            flags.insert(flag);
        }
        assert!(flags.remove("config"));
        assert_eq!(flags, keys, "flags of `stead {role}` and keys of its file");
        for (key, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().unwrap().len() > 20, "{key}");
        }
    }
}

#[tokio::test]
async fn the_schema_of_both_roles_is_one_document() {
    let output = run(&["config", "schema"]).await;
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["anyOf"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_config_show_prints_is_a_file_again() {
    let dir = fresh_dir();
    let path = dir.join("router.toml").display().to_string();
    fs::write(&path, "join = [\"a:7400\"]\nkey = [\"cookie:sid\"]\nissue_cookie = \"sid\"\n")
        .unwrap();
    let first = stdout(&run(&["config", "show", &path]).await);
    assert!(first.contains("issue-cookie = \"sid\"") && first.contains("listen = "), "{first}");
    fs::write(&path, &first).unwrap();
    assert_eq!(stdout(&run(&["config", "show", &path]).await), first);
}

#[tokio::test]
async fn the_examples_of_the_deployment_can_be_used() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let mut checked = 0;
    for entry in fs::read_dir(deploy.join("config")).unwrap() {
        let path = entry.unwrap().path().display().to_string();
        let output = run(&["config", "check", &path]).await;
        assert!(output.status.success(), "{}", stderr(&output));
        checked += 1;
    }
    assert!(checked >= 2, "{checked} files");
}

#[tokio::test]
async fn the_deployment_uses_only_flags_that_exist() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let mut known = String::new();
    for command in ["node", "router", "drain"] {
        known += &stdout(&run(&[command, "--help"]).await);
    }
    known += &stdout(&run(&["config", "check", "--help"]).await);
    for file in
        ["kubernetes/stead.yaml", "systemd/stead-node.service", "systemd/stead-router.service"]
    {
        let text = fs::read_to_string(deploy.join(file)).unwrap();
        let stays_in_a_flag = |c: char| c.is_ascii_lowercase() || c == '-';
        let stead_lines = text
            .lines()
            .filter(|line| line.contains("- --") || line.contains("/usr/local/bin/stead"));
        let mut n_flags = 0;
        for word in stead_lines.flat_map(|line| line.split(['"', ' '])) {
            let Some(flag) = word.strip_prefix("--") else { continue };
            let flag = flag.split(|c| !stays_in_a_flag(c)).next().unwrap();
            assert!(known.contains(&format!("--{flag} ")), "{file}: --{flag}");
            n_flags += 1;
        }
        assert!(n_flags >= 2, "{file}: {n_flags} flags");
    }
}

#[tokio::test]
async fn a_key_file_is_made_once_and_rotated_in_place() {
    use std::os::unix::fs::PermissionsExt as _;
    let path = fresh_dir().join("keys.toml");
    let name = path.display().to_string();
    assert!(run(&["keygen", &name]).await.status.success());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let first = fs::read_to_string(&path).unwrap();
    let again = run(&["keygen", &name]).await;
    assert_eq!(again.status.code(), Some(73), "{}", stderr(&again));
    assert_eq!(fs::read_to_string(&path).unwrap(), first);
    let secret = |text: &str| {
        text.lines().find(|line| line.starts_with("hash_secret")).map(str::to_owned).unwrap()
    };
    for n_keys in [2, 2] {
        let rotated = run(&["keygen", "--rotate", "--cluster-key-file", &name]).await;
        assert!(rotated.status.success(), "{}", stderr(&rotated));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("[[gossip]]").count(), n_keys);
        assert_eq!(secret(&text), secret(&first), "sessions stay on their shards");
    }
}

#[tokio::test]
async fn a_flag_wins_over_a_variable_over_a_file() {
    let dir = fresh_dir();
    let file = dir.join("n1.toml");
    let text = "name = \"n1\"\nweight = 2\nzone = \"file\"\nshards = 64\n";
    fs::write(&file, text).unwrap();
    let (gossip, http, admin) = (free_addr(), free_addr(), free_addr());
    let arguments = format!(
        "node --config {} --gossip {gossip} --http {http} --weight 4 --log-format json",
        file.display()
    );
    let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    // A URL is taken too: commands read the same variable.
    let url = format!("http://{admin}");
    let variables = [("STEAD_WEIGHT", "3"), ("STEAD_ZONE", "variable"), ("STEAD_ADMIN", &*url)];
    let node = Proc::start_with("n1", &dir, &arguments, &variables);
    let report: MembersReport = eventually("a lone node", SOON, || async {
        client::get(admin, "/readyz").await?.success()?;
        client::get_json(admin, "/v1/members").await
    })
    .await;
    let me = &report.members[0];
    assert_eq!((me.name.as_str(), me.weight, me.zone.as_str()), ("n1", 4, "variable"));
    let shards: ShardsReport = client::get_json(admin, "/v1/shards").await.unwrap();
    assert_eq!(shards.shards, 64);
    for line in node.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}"));
    }
}

#[tokio::test]
async fn a_bad_variable_is_named() {
    let output = stead(&["node", "--name", "n1"]).env("STEAD_WEIGHT", "heavy").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("the variable STEAD_WEIGHT"), "{}", stderr(&output));
    let output = stead(&["node", "--name", "n1"]).env("STEAD_SHARDS", "7").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).starts_with("stead: STEAD_SHARDS: 7 "), "{}", stderr(&output));
}

#[tokio::test]
async fn there_are_completions_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]).await;
        assert!(output.status.success());
        assert!(stdout(&output).contains("session-ttl"), "{shell}");
    }
}
