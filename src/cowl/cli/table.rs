//! Text formatting as in Docker, and a standard output where EPIPE is not an error.
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

    /// Writes text unchanged.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        self.unless_closed(|to| to.write_all(text.as_bytes()))
    }

    /// Writes a line and a newline.
    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        self.unless_closed(|to| {
            to.write_all(line.as_bytes())?;
            to.write_all(b"\n")
        })
    }

    /// Whether the reader is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
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

/// Writes bytes unchanged; drops them once the reader is gone.
impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_closed(|to| to.write_all(bytes))?;
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_closed(Write::flush)
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
    fn epipe_is_not_an_error() {
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
