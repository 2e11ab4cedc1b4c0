//! Processes that are killed, and disks that are full. The child of a test is this test binary.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

/// Tells a child what to do, and where.
const WORK: &str = "STEAD_DISK_CHILD";

fn child(work: &str, dir: &Path, before: Option<&str>) -> Child {
    let own = std::env::current_exe().unwrap();
    let args = ["--exact", "disk::tests::crash::child_process", "--nocapture"];
    let mut command = match before {
        None => Command::new(&own),
        Some(script) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{script}; exec \"$0\" \"$@\"")]).arg(&own);
            shell
        }
    };
    command.args(args).env(WORK, format!("{work}:{}", dir.display()));
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What a child does; nothing when this is no child.
#[tokio::test]
async fn child_process() {
    let Ok(work) = std::env::var(WORK) else { return };
    let (work, dir) = work.split_once(':').unwrap();
    match work {
        "write" => write_for_ever(config(Path::new(dir))).await,
        "limited" => write_to_the_limit(config(Path::new(dir))).await,
        other => panic!("{other}"),
    }
}

/// 8 writers, each with keys of its own; a line for each change that is confirmed.
async fn write_for_ever(config: DiskConfig) {
    let (disk, recovered) = Disk::open(config).unwrap();
    let first = recovered.shards.iter().filter_map(|found| found.meta).map(|meta| meta.at.seq);
    let first = first.max().unwrap_or(0) + 1;
    let writer = async |shard: u32| {
        for seq in first.. {
            let key = format!("key{}", seq % 5);
            let last = if seq % 11 == 10 {
                disk.remove(ShardId(shard), at(seq), key.as_bytes())
            } else {
                put(&disk, shard, seq, &key, &seq.to_string().repeat(200))
            };
            disk.wait(last).await.unwrap();
            println!("done {shard} {seq}");
            tokio::task::yield_now().await;
        }
    };
    futures_util::future::join_all((0..8).map(writer)).await;
}

/// What was confirmed is there, or something newer of the same key.
fn check_shard(content: &Content, confirmed: &[u64]) {
    let newest = content.values().map(|(seq, _)| *seq).max().unwrap_or(0);
    for (key, (seq, record)) in content {
        assert_eq!((key, record), (&format!("key{}", seq % 5), &seq.to_string().repeat(200)));
    }
    for seq in confirmed {
        let removed = (*seq..=newest + 1).any(|later| later % 5 == seq % 5 && later % 11 == 10);
        match content.get(&format!("key{}", seq % 5)) {
            Some((found, _)) => assert!(found >= seq, "{found} < {seq}"),
            None => assert!(removed, "{seq} is lost, {newest} is there"),
        }
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_confirmed() {
    let scratch = Scratch::new("kill");
    for round in 0..8u64 {
        let mut child = child("write", &scratch.0, None);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut confirmed: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let done = lines.map(Result::unwrap).filter(|line| line.starts_with("done "));
        for line in done.take(200 + 77 * usize::try_from(round).unwrap()) {
            let numbers: Vec<u64> =
                line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
            let shard = u32::try_from(numbers[0]).unwrap();
            confirmed.entry(shard).or_default().push(numbers[1]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (disk, recovered) = scratch.open();
        assert_eq!(damaged(&recovered), Vec::<u32>::new(), "round {round}");
        let contents = contents(&disk, &recovered);
        for (shard, confirmed) in confirmed {
            check_shard(&contents[&shard], &confirmed);
        }
        disk.close().await.unwrap();
    }
}

/// Goal: a first start that ended before the database was made is made up for by the next one. Method:
/// its files and folders one after the other, in the order in which the database makes them.
#[tokio::test]
async fn a_database_that_was_not_made_to_its_end_is_made_anew() {
    let steps: [(&str, Option<&[u8]>); 9] = [
        ("lock", Some(b"")),
        ("keyspaces", None),
        ("0.jnl", Some(b"")),
        ("0.jnl", Some(&[0; 4096])),
        ("version", Some(b"")),
        ("version", Some(b"FJL")),
        ("version", Some(b"FJL\x03")),
        ("keyspaces/0", None),
        ("keyspaces/0/tables", None),
    ];
    for n_done in 1..=steps.len() {
        let scratch = Scratch::new("half-made");
        let state = scratch.0.join("state");
        std::fs::create_dir_all(&state).unwrap();
        identity::check(&state, "n1", ClusterId::of_name("test")).unwrap();
        for (name, content) in &steps[..n_done] {
            match content {
                Some(content) => std::fs::write(state.join(name), content).unwrap(),
                None => std::fs::create_dir(state.join(name)).unwrap(),
            }
        }
        // Twice: what one start has made the other must be able to use.
        for seq in 1..=2 {
            let (disk, recovered) = Disk::open(scratch.config())
                .unwrap_or_else(|error| panic!("after {:?}: {error}", steps[n_done - 1]));
            let found = recovered.shards.iter().map(|shard| shard.rows).sum::<u64>();
            assert_eq!(found, seq - 1, "after {:?}", steps[n_done - 1]);
            disk.meta(ShardId(1), owned(seq));
            disk.wait(put(&disk, 1, seq, &format!("key{seq}"), "record")).await.unwrap();
            disk.close().await.unwrap();
        }
    }
}

/// Writes until the disk refuses, and tells what was confirmed before.
async fn write_to_the_limit(config: DiskConfig) {
    let (disk, _) = Disk::open(config).unwrap();
    let mut confirmed = 0;
    for seq in 1.. {
        let last = put(&disk, 1, seq, &format!("key{seq}"), &"x".repeat(10_000));
        match disk.wait(last).await {
            Ok(()) => confirmed = seq,
            Err(failed) => {
                assert_eq!(failed, DiskFailed::Failing);
                break;
            }
        }
        assert!(seq < 10_000, "the limit was not reached");
    }
    assert!(matches!(*disk.state().borrow(), DiskState::Failing { .. }));
    println!("done 1 {confirmed}");
    assert_eq!(disk.close().await, Err(DiskFailed::Closed { complete: false }));
}

/// A file may not grow beyond 1 MiB, and the disk has room: it fails, and is not full.
#[tokio::test]
async fn a_process_that_may_not_write_any_more_keeps_what_was_confirmed() {
    let scratch = Scratch::new("limit");
    scratch.open().0.close().await.unwrap();
    // Blocks of 512 bytes, or of 1024 in some shells.
    let mut child = child("limited", &scratch.0, Some("trap '' XFSZ; ulimit -f 2048"));
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let lines: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success(), "{lines:?}");
    let confirmed = lines.iter().find_map(|line| line.strip_prefix("done 1 ")).unwrap();
    let confirmed: u64 = confirmed.parse().unwrap();
    let (disk, recovered) = scratch.open();
    assert_eq!(damaged(&recovered), Vec::<u32>::new());
    let content = content(&disk, ShardId(1)).unwrap();
    for seq in 1..=confirmed {
        assert!(content.contains_key(&format!("key{seq}")), "{seq} of {confirmed}");
    }
    disk.close().await.unwrap();
}

/// A small file system in memory, while this lives.
struct SmallDisk(Scratch);

impl SmallDisk {
    /// None when this process may not mount.
    fn mount() -> Option<Self> {
        let scratch = Scratch::new("small");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&scratch.0);
        mount.stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then(|| Self(scratch))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_says_so_and_writes_everything_when_there_is_room_again() {
    let Some(small) = SmallDisk::mount() else {
        println!("SKIPPED: a full disk is not tested, for this process may not mount one");
        return;
    };
    let dir = small.0.0.clone();
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let (disk, _) = Disk::open(config(&dir)).unwrap();
    let mut state = disk.state();
    let (mut seq, mut last) = (0, 0);
    let failed = loop {
        seq += 1;
        last = put(&disk, 1, seq, &format!("key{seq}"), &"x".repeat(10_000)).max(last);
        if let Err(failed) = disk.wait(last).await {
            break failed;
        }
        assert!(seq < 10_000, "the disk was never full");
    };
    assert_eq!(failed, DiskFailed::Full);
    assert!(disk.done().1 && *state.borrow_and_update() == DiskState::Full);
    // What comes meanwhile stays queued, and is told of at once.
    last = put(&disk, 2, 1, "later", "too");
    assert_eq!(disk.wait(last).await, Err(DiskFailed::Full));
    std::fs::remove_file(&ballast).unwrap();
    state.wait_for(|state| *state == DiskState::Ok).await.unwrap();
    disk.wait(last).await.unwrap();
    disk.close().await.unwrap();
    let (disk, recovered) = Disk::open(config(&dir)).unwrap();
    assert_eq!(damaged(&recovered), Vec::<u32>::new());
    let contents = contents(&disk, &recovered);
    assert_eq!(contents[&1].len() as u64, seq);
    assert_eq!(contents[&2], of([("later", 1, "too")]));
    disk.close().await.unwrap();
}
