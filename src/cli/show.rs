//! How things look on a terminal: columns, sizes, and lines of progress.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use stead_shared::config::Span;
use stead_shared::net::pinning::unix_ms;
use tokio::time::Instant;

/// The shortest time between two lines of progress.
const LINES_APART: Duration = Duration::from_millis(500);

/// Columns as wide as their widest cell, two spaces between them. Those in `numbers` stand to the
/// right.
pub(super) fn render(rows: &[Vec<String>], numbers: &RangeInclusive<usize>, text: &mut String) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..rows[0].len()).map(|c| width(c).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let written = if numbers.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
            written.expect("a String takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// `512 B`, `4.2 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How long it is until `at_ms`, in Unix milliseconds: seconds matter only in the last hour.
pub(super) fn until(at_ms: u64) -> String {
    let seconds = at_ms.saturating_sub(unix_ms()).div_ceil(1000);
    let shown = if seconds < 3600 { seconds } else { seconds.div_ceil(60) * 60 };
    Span::secs(shown).to_string()
}

/// Lines of progress on stderr: each once, and not one after the other too fast.
#[derive(Debug)]
pub(super) struct ProgressLines {
    begin: Instant,
    last: String,
    printed: Option<Instant>,
}

impl ProgressLines {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), last: String::new(), printed: None }
    }

    /// Time since the begin.
    pub(super) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Says how far it is now. A change that comes too soon is left to the next call.
    pub(super) fn show(&mut self, now: &str) {
        if let Some(line) = self.due(now, Instant::now()) {
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn due(&mut self, now: &str, at: Instant) -> Option<String> {
        let too_soon = self.printed.is_some_and(|printed| at - printed < LINES_APART);
        if too_soon || self.last == now {
            return None;
        }
        now.clone_into(&mut self.last);
        self.printed = Some(at);
        Some(format!("{:7.1} s  {now}", (at - self.begin).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_the_unit_that_fits() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (4_404_019, "4.2 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn the_time_left_is_shown_in_minutes_but_for_the_last_hour() {
        assert_eq!(until(0), "0s");
        let day = unix_ms() + 24 * 3_600_000;
        assert_eq!(until(day), "24h");
        let soon = until(unix_ms() + 90_000);
        assert!(["1m30s", "1m29s"].contains(&soon.as_str()), "{soon}");
    }

    #[test]
    fn a_line_is_shown_when_it_changes_and_not_too_often() {
        let mut lines = ProgressLines::new();
        let at = |ms: u64| lines_begin(&lines) + Duration::from_millis(ms);
        let (start, soon, later, last) = (at(0), at(499), at(500), at(2000));
        assert_eq!(lines.due("3 left", start).as_deref(), Some("    0.0 s  3 left"));
        assert_eq!(lines.due("2 left", soon), None, "too soon");
        assert_eq!(lines.due("1 left", later).as_deref(), Some("    0.5 s  1 left"));
        assert_eq!(lines.due("1 left", last), None, "nothing new");
    }

    fn lines_begin(lines: &ProgressLines) -> Instant {
        lines.begin
    }
}
