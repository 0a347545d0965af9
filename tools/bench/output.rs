//! Output: Markdown tables as in README.md and docs/performance.md, and messages on standard error.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::statistics::Spread;

/// A table: a title for each row, right-aligned cells.
#[derive(Debug)]
pub(crate) struct Table {
    text: String,
}

impl Table {
    /// A table with these column names; that of the row titles is empty.
    pub(crate) fn new<S: AsRef<str>>(columns: &[S]) -> Self {
        let mut table = Self {
            text: String::new(),
        };
        table.row("", columns);
        let marks = "--:|".repeat(columns.len());
        table.text.push_str("|---|");
        table.text.push_str(&marks);
        table.text.push('\n');
        table
    }

    pub(crate) fn row<S: AsRef<str>>(&mut self, title: &str, cells: &[S]) {
        self.text.push('|');
        if !title.is_empty() {
            self.text.push(' ');
            self.text.push_str(title);
        }
        for cell in cells {
            self.text.push_str(" | ");
            self.text.push_str(cell.as_ref());
        }
        self.text.push_str(" |\n");
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// `51.3 ms`; from a second on `1.25 s`.
pub(crate) fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

/// The median of times, formatted.
pub(crate) fn median_time(times: &[Duration]) -> String {
    Spread::of(times.iter().map(Duration::as_secs_f64))
        .map_or_else(|| "-".to_owned(), |spread| time(spread.median))
}

/// `1.26 [1.20-1.40]`, or the median alone.
pub(crate) fn ratio(spread: Option<Spread>, medians: bool) -> String {
    let Some(spread) = spread else {
        return "-".to_owned();
    };
    let Spread { low, median, high } = spread;
    if medians {
        format!("{median:.2}")
    } else {
        format!("{median:.2} [{low:.2}-{high:.2}]")
    }
}

/// A count per operation, without a trailing `.0`.
pub(crate) fn share(count: u32, times: u32) -> String {
    let shown = format!("{:.1}", f64::from(count) / f64::from(times));
    shown
        .strip_suffix(".0")
        .map_or(shown.clone(), str::to_owned)
}

/// One line on standard error.
pub(crate) fn say(what: &str) -> Result<()> {
    write_line(&printable(what)).context("standard error")
}

/// One write: other processes may write to standard error too.
fn write_line(line: &str) -> io::Result<()> {
    anstream::stderr().write_all(format!("{line}\n").as_bytes())
}

/// Prints one line on standard error; the exit code is 2 if that fails, unless the pipe is closed.
pub(crate) fn print_error(what: &str, code: u8) -> ExitCode {
    match write_line(&format!("cowl-bench: {}", printable(what))) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::from(2),
        _ => ExitCode::from(code),
    }
}

/// Makes one printable line of other programs' messages.
fn printable(text: &str) -> String {
    let one = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    one.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Table, median_time, printable, ratio, share, time};
    use crate::statistics::Spread;

    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(&["overlayfs", "cowl"]);
        table.row("open + close", &["51.3 ms", "1.02"]);
        let expected = "\
| | overlayfs | cowl |
|---|--:|--:|
| open + close | 51.3 ms | 1.02 |
";
        assert_eq!(table.into_text(), expected);
    }

    #[test]
    fn times_and_ratios_are_short() {
        assert_eq!(time(0.0513), "51.3 ms");
        assert_eq!(time(1.254), "1.25 s");
        let times = [3, 1, 2].map(Duration::from_millis);
        assert_eq!(median_time(&times), "2.0 ms");
        let spread = Spread {
            low: 1.2,
            median: 1.256,
            high: 1.4,
        };
        assert_eq!(ratio(Some(spread), false), "1.26 [1.20-1.40]");
        assert_eq!(ratio(Some(spread), true), "1.26");
        assert_eq!(ratio(None, true), "-");
    }

    #[test]
    fn shares_of_operations() {
        assert_eq!(share(60, 20), "3");
        assert_eq!(share(61, 20), "3");
        assert_eq!(share(63, 20), "3.1");
        assert_eq!(share(0, 20), "0");
    }

    #[test]
    fn messages_are_one_line() {
        assert_eq!(
            printable("mount: no\n  such\u{1b}[1m\n"),
            "mount: no; such?[1m"
        );
    }
}
