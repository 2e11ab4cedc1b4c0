//! TOML files with options: read, tell nodes from routers, and explain mistakes by line.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;
use serde::de::DeserializeOwned;
use stead_shared::config::{ConfigError, NodeConfig, NodeOptions, RouterConfig, RouterOptions};

use super::Cli;
use super::exit::Exit;

/// Larger files are no configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whose options a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Role {
    /// `stead node`.
    Node,
    /// `stead router`.
    Router,
}

impl Role {
    /// The command that takes the options.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Router => "router",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Node => Self::Router,
            Self::Router => Self::Node,
        }
    }

    /// Its keys: the names of the flags but those that are about files and processes.
    pub(super) fn keys(self) -> Vec<String> {
        let cli = Cli::command();
        let command = cli.find_subcommand(self.command()).expect("the command is declared");
        command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .filter_map(|argument| argument.get_long())
            .filter(|flag| !["config", "help", "version"].contains(flag))
            .map(str::to_owned)
            .collect()
    }
}

/// Checked options.
pub(super) enum Checked {
    /// Of a node.
    Node(Box<NodeOptions>),
    /// Of a router.
    Router(Box<RouterOptions>),
}

/// A file that was read, not yet parsed.
pub(super) struct OptionsFile {
    name: String,
    text: String,
}

impl OptionsFile {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let fail = |why: String| Exit::NoInput.because(format!("cannot read {name}: {why}"));
        let size = fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(fail(format!("{size} bytes are no configuration (at most 1 MiB)")));
        }
        let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        Ok(Self { name, text })
    }

    /// Whose options these are: a router's when a key says so that nodes do not have.
    pub(super) fn role(&self) -> Role {
        let (ours, theirs) = (Role::Router.keys(), Role::Node.keys());
        let mut only_router = ours.iter().filter(|key| !theirs.contains(key));
        if only_router.any(|key| self.line_of(key).is_some()) { Role::Router } else { Role::Node }
    }

    /// The options in the file, defaults elsewhere.
    pub(super) fn parse<T: DeserializeOwned>(&self, role: Role) -> anyhow::Result<T> {
        toml::from_str(&self.text).map_err(|error| self.explain_syntax(&error, role))
    }

    /// The options in the file, and whether a process could start with them.
    pub(super) fn check(&self, role: Role) -> anyhow::Result<Checked> {
        match role {
            Role::Node => {
                let options: NodeOptions = self.parse(role)?;
                NodeConfig::try_from(&options).map_err(|error| self.explain(&error))?;
                Ok(Checked::Node(Box::new(options)))
            }
            Role::Router => {
                let options: RouterOptions = self.parse(role)?;
                RouterConfig::try_from(&options).map_err(|error| self.explain(&error))?;
                Ok(Checked::Router(Box::new(options)))
            }
        }
    }

    /// An option of the file that cannot be used.
    pub(super) fn explain(&self, error: &ConfigError) -> anyhow::Error {
        let message = format!("{}: {}", error.key, error.problem);
        match self.line_of(error.key) {
            Some(line) => self.at(line, &message, &error.hint),
            None => Exit::Config.because(format!(
                "{}: {message}\n  hint: {}, as a flag or here as `{} = …`",
                self.name, error.hint, error.key
            )),
        }
    }

    fn explain_syntax(&self, error: &toml::de::Error, role: Role) -> anyhow::Error {
        let line = error.span().map_or(1, |span| {
            1 + self.text.as_bytes()[..span.start.min(self.text.len())]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
        });
        match error
            .message()
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split('`').next())
        {
            Some(key) => self.at(line, &format!("unknown option `{key}`"), &unknown(key, role)),
            None => {
                let message = error.message().lines().collect::<Vec<_>>().join("; ");
                let hint =
                    format!("`stead config schema {}` describes every option", role.command());
                self.at(line, &message, &hint)
            }
        }
    }

    fn at(&self, line: usize, message: &str, hint: &str) -> anyhow::Error {
        let shown = self.text.lines().nth(line - 1).unwrap_or_default();
        let shown: String = shown.chars().take(120).collect();
        let name = &self.name;
        Exit::Config
            .because(format!("{name}:{line}: {message}\n  {line} | {shown}\n  hint: {hint}"))
    }

    /// The line that sets `key`, from 1. The files are flat, so the text of a line tells.
    fn line_of(&self, key: &str) -> Option<usize> {
        let snake = key.replace('-', "_");
        let sets = |line: &str, key: &str| {
            line.trim_start()
                .trim_start_matches('"')
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start_matches('"').trim_start().starts_with('='))
        };
        self.text.lines().position(|line| sets(line, key) || sets(line, &snake)).map(|i| i + 1)
    }
}

/// What the writer of an unknown key may have meant.
fn unknown(key: &str, role: Role) -> String {
    let spelled = key.replace('_', "-");
    if role.other().keys().contains(&spelled) {
        return format!("`{spelled}` is an option of `stead {}`", role.other().command());
    }
    let keys = role.keys();
    match keys.iter().min_by_key(|known| distance(&spelled, known)) {
        Some(near) if distance(&spelled, near) <= 2 + spelled.len() / 6 => {
            format!("did you mean `{near}`?")
        }
        Some(_) | None => format!("the options are {}", keys.join(", ")),
    }
}

/// Edits that turn one text into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> OptionsFile {
        OptionsFile { name: "stead.toml".into(), text: text.into() }
    }

    #[track_caller]
    fn refused(role: Role, text: &str) -> String {
        match file(text).check(role) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_unknown_key_is_shown_with_its_line_and_a_guess() {
        let message = refused(Role::Node, "# a node\nname = \"n1\"\nsesion-ttl = \"1h\"\n");
        assert_eq!(
            message,
            "stead.toml:3: unknown option `sesion-ttl`\n  3 | sesion-ttl = \"1h\"\n  \
             hint: did you mean `session-ttl`?"
        );
    }

    #[test]
    fn a_key_of_the_other_role_says_whose_it_is() {
        let message = refused(Role::Node, "name = \"n1\"\nlisten = \"127.0.0.1:80\"\n");
        assert!(message.contains("`listen` is an option of `stead router`"), "{message}");
    }

    #[test]
    fn a_value_out_of_range_is_shown_with_its_line() {
        let message = refused(Role::Node, "name = \"n1\"\n\nshards = 1000\n");
        assert!(
            message.starts_with("stead.toml:3: shards: 1000 is not a power of two"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_type_and_broken_syntax_name_the_line() {
        for text in ["name = \"n1\"\nweight = \"heavy\"\n", "name = \"n1\"\nweight = [\n"] {
            let message = refused(Role::Node, text);
            assert!(message.starts_with("stead.toml:2: "), "{message}");
        }
        let message = refused(Role::Node, "name = \"n1\"\nsession_ttl = \"soon\"\n");
        assert!(message.contains("stead.toml:2: `soon` is not a duration"), "{message}");
    }

    #[test]
    fn a_missing_key_names_the_file() {
        let message = refused(Role::Router, "key = [\"path:2\"]\n");
        assert!(message.starts_with("stead.toml: join: missing"), "{message}");
    }

    #[test]
    fn the_role_is_told_by_keys_that_only_routers_have() {
        assert_eq!(file("name = \"n1\"\n").role(), Role::Node);
        assert_eq!(file("expose_headers = true\n").role(), Role::Router);
    }

    #[test]
    fn distances_are_counted_in_edits() {
        for (a, b, n) in [("", "abc", 3), ("name", "nmae", 2), ("key", "key", 0), ("ab", "b", 1)] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }
}
