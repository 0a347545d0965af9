//! Docker's table layout, and a standard output on which EPIPE is no error.
//!
//! All of `cowl`'s output goes through [`Out`]: `println!` would panic on a closed pipe.

use std::io::{self, Write};

/// Standard output of one command. After EPIPE further output is dropped.
#[derive(Debug)]
pub(super) struct Out<W> {
    to: W,
    closed: bool,
}

impl<W: Write> Out<W> {
    /// Writes to `to`.
    pub(super) fn new(to: W) -> Self {
        Self { to, closed: false }
    }

    /// Writes a line and a newline.
    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        self.unless_closed(|to| {
            to.write_all(line.as_bytes())?;
            to.write_all(b"\n")
        })
    }

    /// Flushes the buffer.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.unless_closed(Write::flush)
    }

    fn unless_closed(&mut self, write: impl FnOnce(&mut W) -> io::Result<()>) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        match write(&mut self.to) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// Rows under a header. Each column but the last is three wider than its widest cell, and at least
/// ten wide (Docker's tabwriter).
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    const MIN_WIDTH: usize = 10;
    const PADDING: usize = 3;

    /// A table with a header row.
    pub(super) fn new(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(str::to_owned)],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The rows as lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut widths = [Self::MIN_WIDTH; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count() + Self::PADDING);
            }
        }
        self.rows
            .iter()
            .map(|row| Self::line(row, &widths))
            .collect()
    }

    fn line(row: &[String; N], widths: &[usize; N]) -> String {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            line.push_str(cell);
            if column + 1 < N {
                line.extend(std::iter::repeat_n(
                    ' ',
                    width.saturating_sub(cell.chars().count()),
                ));
            }
        }
        line
    }
}

/// Truncates to `limit` characters with an ellipsis at the end, as Docker shows commands.
pub(super) fn ellipsis(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Escapes control characters, so that a hostile name or command cannot drive the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// Quotes text: escapes double quotes, backslashes and control characters.
pub(super) fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", printable(&escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_dockers() {
        let mut table = Table::new(["REPOSITORY", "TAG", "SIZE"]);
        table.row(["ubuntu".into(), "22.04".into(), "5.6MB".into()]);
        assert_eq!(
            table.lines(),
            [
                "REPOSITORY   TAG       SIZE",
                "ubuntu       22.04     5.6MB"
            ]
        );
    }

    #[test]
    fn long_commands_are_truncated_and_control_characters_escaped() {
        assert_eq!(ellipsis("\"sleep 300\"", 20), "\"sleep 300\"");
        assert_eq!(
            ellipsis("abcdefghijklmnopqrstuvwxyz", 20),
            "abcdefghijklmnopqrs…"
        );
        assert_eq!(printable("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(quoted("a \"b\" \\\n"), r#""a \"b\" \\\n""#);
    }

    #[test]
    fn epipe_is_no_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut out = Out::new(Gone);
        out.line("x").unwrap();
        out.flush().unwrap();
        assert_eq!(
            Out::new(Gone).flush().unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
