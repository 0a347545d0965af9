//! Mistakes of new users: one line that names the problem and what to do, the right exit code,
//! nothing left behind.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "helpers of tests, which build their inputs with plain std::fs"
)]

mod empty;
mod formats;
mod help;
mod output;
mod store;
mod usage;

use std::process::{Command, Output, Stdio};

/// A store of its own for each test.
pub(crate) struct Cowl {
    temp: tempfile::TempDir,
}

impl Cowl {
    pub(crate) fn new() -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
        }
    }

    /// With an empty store.
    pub(crate) fn with_store() -> Self {
        let cowl = Self::new();
        cowl.prints(&["volume", "create", "first"], "first\n");
        cowl.prints(&["volume", "rm", "first"], "first\n");
        cowl
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.temp.path().join("store")
    }

    /// `TEMP` in arguments and messages is the test's directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowl"));
        command
            .args(arguments.iter().map(|argument| self.expand(argument)))
            .env("COWL_ROOT", self.root())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn expand(&self, text: &str) -> String {
        text.replace("TEMP", self.temp.path().to_str().unwrap())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must fail: exit code, standard error, and nothing on standard output.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str], code: i32, stderr: &str) {
        let output = self.run(arguments);
        let expected = format!("cowl: {}\n", self.expand(stderr));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            expected,
            "{arguments:?}"
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(
            output.stdout.is_empty(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    #[track_caller]
    pub(crate) fn prints(&self, arguments: &[&str], stdout: &str) {
        let output = self.run(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            stdout,
            "{arguments:?}"
        );
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}
