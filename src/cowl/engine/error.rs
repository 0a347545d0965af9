//! Errors of the engine, classified by what a caller does about them.
//!
//! `cli` maps a kind to an exit code, `api` to an HTTP status. The text is one line: what failed,
//! on what, why, and what to do about it.

use cowl_launch::message::Failed;
use rustix::io::Errno;
use std::fmt;

/// The class of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No such image, container or volume.
    NotFound,
    /// The current state forbids the request: a name in use, a running container, an image in use.
    Conflict,
    /// The request is wrong.
    Invalid,
    /// The container's program was not found (exit code 127).
    CommandNotFound,
    /// The container's program cannot be executed (exit code 126).
    CommandNotExecutable,
    /// A signal ended the command before it was done.
    Interrupted,
    /// The caller's output cannot be written to. The request itself was carried out.
    Output,
    /// Any other failure: of the host, the store or a helper program.
    Failed,
}

/// An error of the engine.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    source: anyhow::Error,
}

/// Result of engine functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with its text.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            source: anyhow::Error::msg(text.into()),
        }
    }

    /// [`Kind::NotFound`].
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, text)
    }

    /// [`Kind::Conflict`].
    pub fn conflict(text: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, text)
    }

    /// [`Kind::Invalid`].
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, text)
    }

    /// [`Kind::Interrupted`].
    pub fn interrupted(text: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, text)
    }

    /// [`Kind::Failed`].
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Kind::Failed, text)
    }

    /// The class of the error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Prefixes the text with what was being done.
    #[must_use]
    pub fn context(self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        Self {
            kind: self.kind,
            source: self.source.context(what),
        }
    }
}

/// The chain of causes on one line, outermost first. A cause that the text before it ends with is
/// not repeated.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = String::new();
        for cause in self.source.chain() {
            let text = without_numbers(&cause.to_string());
            if last.ends_with(&text) {
                continue;
            }
            write!(f, "{}{text}", if last.is_empty() { "" } else { ": " })?;
            last = text;
        }
        Ok(())
    }
}

/// Removes the " (os error 2)" that the standard library appends.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(
            part.trim_start_matches(|c: char| c.is_ascii_digit())
                .strip_prefix(')')
                .unwrap_or(part),
        );
    }
    plain
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(source: E) -> Self {
        Self {
            kind: Kind::Failed,
            source: anyhow::Error::new(source),
        }
    }
}

/// Why a container's program was not started. The kind gives Docker's exit code. The text after the
/// prefix `runtime` is Docker's, which its client parses.
pub(super) fn of_program(runtime: &str, failed: &Failed) -> Error {
    let kind = match failed.exit_code {
        127 => Kind::CommandNotFound,
        126 => Kind::CommandNotExecutable,
        _ => return Error::failed(failed.to_string()),
    };
    let Some(program) = failed.what.strip_prefix("exec ") else {
        return Error::new(kind, failed.to_string());
    };
    let why = match Errno::from_raw_os_error(failed.errno) {
        Errno::NOENT if !program.contains('/') => "executable file not found in $PATH".to_owned(),
        errno => without_numbers(&errno.to_string()).to_lowercase(),
    };
    let text = format!("{runtime}unable to start container process: exec: {program}: {why}");
    Error::new(kind, text)
}

/// [`of_program`] for `exec`. The exit code is 126 where a start's is 125; a working directory that
/// is missing, unlike a start's, is not created.
pub(super) fn of_exec(failed: &Failed) -> Error {
    const RUNTIME: &str = "OCI runtime exec failed: exec failed: ";
    let Some(directory) = failed.what.strip_prefix("enter the working directory ") else {
        let error = of_program(RUNTIME, failed);
        return match error.kind() {
            Kind::Failed => Error::new(Kind::CommandNotExecutable, error.to_string()),
            _ => error,
        };
    };
    let errno = Errno::from_raw_os_error(failed.errno);
    let why = without_numbers(&errno.to_string()).to_lowercase();
    let kind = match errno {
        Errno::NOENT => Kind::CommandNotFound,
        _ => Kind::CommandNotExecutable,
    };
    let text = format!(
        "{RUNTIME}unable to start container process: \
         chdir to cwd ({directory}) set in config.json failed: {why}"
    );
    Error::new(kind, text)
}

/// Prefixes an error with what was being done.
pub trait Context<T> {
    /// `what: error`.
    fn context<D: fmt::Display + Send + Sync + 'static>(
        self,
        what: impl FnOnce() -> D,
    ) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display + Send + Sync + 'static>(
        self,
        what: impl FnOnce() -> D,
    ) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_kind_and_the_order() {
        let result: Result<()> = Err(Error::not_found("No such image: x")).context(|| "running y");
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.to_string(), "running y: No such image: x");
    }

    #[test]
    fn a_cause_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x: {source}")]
        struct Outer {
            source: std::io::Error,
        }
        let error = Error::from(Outer {
            source: std::io::ErrorKind::NotFound.into(),
        })
        .context("store y");
        assert_eq!(
            error.to_string(),
            "store y: cannot open x: entity not found"
        );
    }

    #[test]
    fn a_system_error_is_a_failure_without_its_number() {
        let error = std::result::Result::<(), _>::Err(Errno::NOSPC)
            .context(|| "writing /x/config.json")
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert_eq!(
            error.to_string(),
            "writing /x/config.json: No space left on device"
        );
    }
}
