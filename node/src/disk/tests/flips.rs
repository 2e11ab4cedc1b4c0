//! One flipped bit anywhere: what was confirmed is there, or its shard is named as damaged, or the
//! state is refused. Never less without a word.

use std::fmt;
use std::ops::Range;

use super::*;

/// All files of a state, without the zeros at their ends.
struct Image {
    files: BTreeMap<PathBuf, (Vec<u8>, u64)>,
    expected: BTreeMap<u32, Content>,
}

impl Image {
    fn take(dir: &Path, expected: BTreeMap<u32, Content>) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mut bytes = std::fs::read(&path).unwrap();
                let len = bytes.len();
                let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                bytes.truncate(used);
                // A journal is made with 64 MiB of zeros; some of them will do.
                let len = len.min(used + (64 << 10)) as u64;
                files.insert(path.strip_prefix(dir).unwrap().to_owned(), (bytes, len));
            }
        }
        Self { files, expected }
    }

    /// Writes it to `dir`, with one byte changed.
    fn restore(&self, dir: &Path, flip: &Flip<'_>) {
        for (name, (bytes, len)) in &self.files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut bytes = bytes.clone();
            if name == flip.file {
                bytes.resize(bytes.len().max(flip.at + 1), 0);
                bytes[flip.at] ^= flip.bits;
            }
            std::fs::write(&path, &bytes).unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(*len.max(&(bytes.len() as u64))).unwrap();
        }
    }
}

struct Flip<'a> {
    file: &'a Path,
    class: String,
    at: usize,
    bits: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Whole,
    Damaged(Vec<u32>),
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Damaged(shards) => write!(f, "damaged {shards:?}"),
            Self::Refused => f.write_str("refused"),
        }
    }
}

/// Twice, since the first start changes things: damage must not be forgotten.
async fn outcome(image: &Image, flip: &Flip<'_>) -> Outcome {
    let scratch = Scratch::new("flip");
    image.restore(&scratch.0.join("state"), flip);
    let first = start(image, flip, &scratch).await;
    let second = start(image, flip, &scratch).await;
    if let (Outcome::Damaged(first), Outcome::Damaged(second)) = (&first, &second) {
        assert!(first.iter().all(|shard| second.contains(shard)), "{first:?} {second:?}");
    } else {
        let what = format!("{} at {}: {first}, then {second}", flip.file.display(), flip.at);
        assert!(first == second || second == Outcome::Refused, "{what}");
    }
    first
}

async fn start(image: &Image, flip: &Flip<'_>, scratch: &Scratch) -> Outcome {
    let Ok((disk, recovered)) = Disk::open(scratch.config()) else { return Outcome::Refused };
    let shards = damaged(&recovered);
    let whole = contents(&disk, &recovered);
    disk.close().await.unwrap();
    let what = || format!("{} ({}) at {}", flip.file.display(), flip.class, flip.at);
    for (shard, expected) in &image.expected {
        if shards.contains(shard) {
            continue;
        }
        assert_eq!(whole.get(shard), Some(expected), "{}: shard {shard} lost a change", what());
    }
    let more = whole.keys().find(|shard| !image.expected.contains_key(shard));
    assert_eq!(more, None, "{}", what());
    if shards.is_empty() { Outcome::Whole } else { Outcome::Damaged(shards) }
}

/// A few batches over a few shards; what is in them in the end. `tables`: half of it no longer
/// only in the journal.
async fn write(disk: &Disk, tables: bool) -> BTreeMap<u32, Content> {
    let mut expected: BTreeMap<u32, Content> = BTreeMap::new();
    for shard in 1..=3 {
        disk.meta(ShardId(shard), owned(0));
    }
    for number in 1..=8u64 {
        let mut last = 0;
        for shard in [1, 2 + u32::try_from(number).unwrap() % 2] {
            let (key, record) = (format!("key{}", number % 3), format!("record {number}"));
            last = put(disk, shard, number, &key, &record);
            expected.entry(shard).or_default().insert(key, (number, record));
        }
        disk.wait(last).await.unwrap();
        if tables && number == 5 {
            disk.handle.shared.reader().unwrap().flush();
        }
    }
    disk.remove(ShardId(1), at(9), b"key0");
    expected.get_mut(&1).unwrap().remove("key0");
    let last = disk.forget(ShardId(3));
    expected.remove(&3);
    disk.wait(last).await.unwrap();
    let last = put(disk, 2, 10, "last", "of all");
    disk.wait(last).await.unwrap();
    expected.get_mut(&2).unwrap().insert("last".to_owned(), (10, "of all".to_owned()));
    expected
}

async fn image(clean: bool, tables: bool) -> Image {
    let scratch = Scratch::new("image");
    let (disk, _) = scratch.open();
    let expected = write(&disk, tables).await;
    let state = scratch.0.join("state");
    if clean {
        disk.close().await.unwrap();
        return Image::take(&state, expected);
    }
    // As a killed process leaves it.
    let image = Image::take(&state, expected);
    disk.close().await.unwrap();
    image
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// A part of a journal: where, what, in which batch.
type Part = (Range<usize>, &'static str, usize);

/// The parts of a journal, and how many batches it has.
fn parts(bytes: &[u8]) -> (Vec<Part>, usize) {
    let (mut parts, mut at, mut batch) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let count = u32_at(bytes, at + 1);
        let mut part = |len: usize, name| {
            parts.push((at..at + len, name, batch));
            at += len;
        };
        part(1, "start tag");
        part(4, "count");
        part(8, "number");
        for _ in 0..count {
            let item = parts.last().unwrap().0.end;
            let key = usize::from(u16::from_le_bytes([bytes[item + 11], bytes[item + 12]]));
            let value = u32_at(bytes, item + 13);
            let mut part = |len: usize, name| {
                if len > 0 {
                    parts.push((at..at + len, name, batch));
                }
                at += len;
            };
            for (len, name) in [
                (1, "item tag"),
                (1, "type"),
                (1, "compression"),
                (8, "keyspace"),
                (2, "key length"),
                (4, "value length"),
                (4, "stored length"),
                (key, "key"),
                (value, "value"),
            ] {
                part(len, name);
            }
        }
        for (len, name) in [(1, "end tag"), (8, "checksum"), (4, "trailer")] {
            parts.push((at..at + len, name, batch));
            at += len;
        }
        batch += 1;
    }
    (parts, batch)
}

fn journal_flips(image: &Image) -> Vec<Flip<'_>> {
    let mut flips = Vec::new();
    for (file, (bytes, _)) in &image.files {
        if file.extension().is_none_or(|extension| extension != "jnl") {
            continue;
        }
        let (parts, batches) = parts(bytes);
        for (range, name, batch) in parts {
            let place = match batch {
                0 => "first",
                batch if batch + 1 == batches => "last",
                batch if batch == batches / 2 => "middle",
                _ => continue,
            };
            let class = format!("journal, {name}, {place} batch");
            for (at, bits) in [(range.start, 1), (range.end - 1, 0x80), (range.start, 0x40)] {
                flips.push(Flip { file, class: class.clone(), at, bits });
            }
        }
        for (distance, bits) in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (100, 1)] {
            let class = "journal, zeros at the end".to_owned();
            flips.push(Flip { file, class, at: bytes.len() + distance, bits });
        }
    }
    flips
}

fn other_flips(image: &Image) -> Vec<Flip<'_>> {
    let mut flips = Vec::new();
    for (file, (bytes, _)) in &image.files {
        let name = file.display().to_string();
        if name.ends_with(".jnl") || name == "lock" {
            continue;
        }
        let parts: Vec<&str> = name.split('/').collect();
        let class = match parts[..] {
            ["keyspaces", "0", ..] => "list of keyspaces",
            ["keyspaces", _, "tables", _] => "table",
            ["keyspaces", _, name] if name.starts_with('v') => "list of tables",
            ["keyspaces", _, "current"] => "number of the list of tables",
            ["keyspaces", _, _] => "description of a keyspace",
            ["seqs"] => "witness",
            ["identity"] => "identity",
            _ => "others",
        };
        let samples = if class == "witness" { 200 } else { 50 };
        let step = bytes.len() / samples + 1;
        let last = bytes.len().saturating_sub(8)..bytes.len();
        for at in (0..bytes.len()).step_by(step).chain(last) {
            let bits = 1 << (at % 8);
            flips.push(Flip { file, class: class.to_owned(), at, bits });
        }
    }
    flips
}

async fn table(title: &str, image: &Image, flips: Vec<Flip<'_>>) -> BTreeMap<String, Vec<Outcome>> {
    let mut table: BTreeMap<String, BTreeMap<Outcome, usize>> = BTreeMap::new();
    for flip in &flips {
        let outcome = outcome(image, flip).await;
        *table.entry(flip.class.clone()).or_default().entry(outcome).or_default() += 1;
    }
    println!("{title}: {} flips", flips.len());
    for (class, outcomes) in &table {
        let outcomes: Vec<String> =
            outcomes.iter().map(|(outcome, times)| format!("{times} {outcome}")).collect();
        println!("  {class:<45} {}", outcomes.join(", "));
    }
    table.into_iter().map(|(class, outcomes)| (class, outcomes.into_keys().collect())).collect()
}

#[tokio::test]
async fn a_flip_in_a_journal_is_no_loss_without_a_word() {
    for (title, clean) in [("clean end", true), ("killed", false)] {
        let image = image(clean, false).await;
        let table = table(title, &image, journal_flips(&image)).await;
        for (class, outcomes) in table {
            let harmless = class.contains("zeros") || class.contains("number");
            assert!(harmless || !outcomes.contains(&Outcome::Whole), "{class}");
        }
    }
}

#[tokio::test]
async fn a_flip_in_a_journal_behind_tables_is_no_loss_without_a_word() {
    for (title, clean) in [("clean end, tables", true), ("killed, tables", false)] {
        let image = image(clean, true).await;
        table(title, &image, journal_flips(&image)).await;
    }
}

#[tokio::test]
async fn a_flip_in_any_other_file_is_no_loss_without_a_word() {
    for (title, clean) in [("clean end", true), ("killed", false)] {
        let image = image(clean, true).await;
        let table = table(title, &image, other_flips(&image)).await;
        // A witness that lost the word that shard 3 was dropped misses it.
        let alarm = [Outcome::Whole, Outcome::Damaged(vec![3])];
        assert!(table["witness"].iter().all(|outcome| alarm.contains(outcome)));
        assert_eq!(table["identity"], [Outcome::Refused]);
    }
}

#[tokio::test]
async fn the_journal_of_the_database_is_as_it_is_read_here() {
    let image = image(true, false).await;
    let (bytes, _) = &image.files[Path::new("0.jnl")];
    let found = crate::logic::journal::check(bytes, None);
    assert!(!found.garbage && found.good == bytes.len(), "{found:?}");
    assert_eq!(found.batches, parts(bytes).1);
}

/// A state whose journals or tables were taken away is not an empty one.
#[tokio::test]
async fn a_missing_file_is_no_loss_without_a_word() {
    let image = image(true, true).await;
    for missing in image.files.keys().filter(|file| *file != Path::new("lock")) {
        let scratch = Scratch::new("missing");
        let state = scratch.0.join("state");
        let class = format!("without {}", missing.display());
        let flip = Flip { file: Path::new(""), class, at: 0, bits: 0 };
        image.restore(&state, &flip);
        std::fs::remove_file(state.join(missing)).unwrap();
        let outcome = start(&image, &flip, &scratch).await;
        println!("  without {:<37} {outcome}", missing.display());
    }
}
