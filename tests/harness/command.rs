//! Runs programs to their end and captures their output.
//!
//! Output goes to files, never pipes: a daemon that wrongly keeps its caller's descriptors must not
//! hang the test that would detect it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The result of a program.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Exit code as a shell gives it: 128 + n for an end by signal n.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        self.status
            .code()
            .or_else(|| self.status.signal().map(|n| 128 + n))
            .expect("an ended process has a code or a signal")
    }

    /// Standard output; the program must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// The one line of a refusal: exit code `code`, nothing on standard output, exactly one line
    /// on standard error.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert_eq!(self.code(), code, "exit code of {self}");
        assert_eq!(self.stdout, "", "standard output of {self}");
        let mut lines = self.stderr.lines();
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no error line: {self}"));
        assert_eq!(lines.next(), None, "one line was to come: {self}");
        line.to_owned()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {}\n--- standard output\n{}--- standard error\n{}---",
            self.line, self.status, self.stdout, self.stderr
        )
    }
}

/// Runs a prepared command to its end; standard input is empty unless the caller set it.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let line = format!("{command:?}");
    let status = command
        .stdout(Stdio::from(out.try_clone().unwrap()))
        .stderr(Stdio::from(err.try_clone().unwrap()))
        .status()
        .unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
    Outcome {
        line,
        status,
        stdout: text(&mut out),
        stderr: text(&mut err),
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program found through PATH, with arguments, no input.
pub fn program<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a system program that must succeed; returns its standard output.
#[track_caller]
pub fn system<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> String {
    run(&mut program(name, arguments)).ok()
}

/// Runs a shell script that must succeed, in `directory`, with `$1`, `$2`, ... bound to
/// `arguments`.
#[track_caller]
pub fn shell<S: AsRef<OsStr>>(
    directory: &Path,
    script: &str,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let mut command = program("sh", ["-euc", script, "sh"]);
    run(command.args(arguments).current_dir(directory)).ok()
}

/// One of our binaries, from COWL_BIN_DIR or the place where `make` collects them.
pub fn binary(name: &str) -> PathBuf {
    let directory = std::env::var_os("COWL_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bin"),
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is missing: `make build` makes it (or set COWL_BIN_DIR)",
        path.display()
    );
    path
}

/// A file of fixtures/.
pub fn fixture(name: &str) -> PathBuf {
    std::env::var_os("COWL_FIXTURES")
        .map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures"),
            PathBuf::from,
        )
        .join(name)
}

/// Where docker-py is installed, if it is: COWL_DOCKER_PY, or where `make test-deps` puts it.
pub fn docker_py() -> PathBuf {
    std::env::var_os("COWL_DOCKER_PY").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/docker-py"),
        PathBuf::from,
    )
}

/// Runs a Python script that must succeed, in `directory`, with `arguments` as `sys.argv[1:]`.
#[track_caller]
pub fn python<S: AsRef<OsStr>>(
    directory: &Path,
    script: &str,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let mut command = program("python3", ["-B", "-c", script]);
    run(command.args(arguments).current_dir(directory)).ok()
}
