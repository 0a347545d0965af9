//! Runs programs to their end. Their output goes to unnamed files, not pipes: a daemon that
//! inherits a pipe would keep it open.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Access, AtFlags, CWD, accessat};

/// A program with its arguments.
pub(crate) fn program<S: AsRef<OsStr>>(
    name: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

/// Runs a command that must succeed; returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let mut output = tempfile::tempfile().context("a file for output")?;
    let mut errors = tempfile::tempfile().context("a file for errors")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(errors.try_clone()?)
        .status()
        .with_context(|| name.clone())?;
    if !status.success() {
        let said = text(&mut errors)?;
        bail!("{name}: {status}: {}", said.trim());
    }
    text(&mut output)
}

/// Runs a command that must succeed; returns the time that it took.
pub(crate) fn timed(command: &mut Command) -> Result<Duration> {
    let begin = Instant::now();
    run(command)?;
    Ok(begin.elapsed())
}

pub(crate) fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    std::io::copy(file, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file of a command: its name if that has a slash, else the first match in PATH.
pub(crate) fn find(name: &Path) -> Result<PathBuf> {
    let is_program = |path: &PathBuf| {
        accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()).is_ok()
            && std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir())
    };
    let found = if name.components().count() > 1 || name.is_absolute() {
        std::path::absolute(name).ok().filter(is_program)
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(name));
        candidates.find(is_program)
    };
    found.with_context(|| format!("{}: no such program", name.display()))
}
