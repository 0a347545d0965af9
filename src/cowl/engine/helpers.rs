//! Finds cowl's helper programs: beside its own executable, else in PATH.

use super::error::{Context as _, Error, Result};
use rustix::fs::{Access, access};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Path of the program `name`.
pub fn find(name: &str) -> Result<PathBuf> {
    lookup(name).ok_or_else(|| {
        Error::failed(format!(
            "{name}: not found beside cowl or in PATH; install it in the directory of cowl"
        ))
    })
}

/// Path of this program. If an upgrade replaced it while it ran, this is the new one: the kernel
/// marks the old one's path as deleted (proc(5), `/proc/PID/exe`).
pub fn own() -> Result<PathBuf> {
    let path = std::env::current_exe().context(|| "finding this program")?;
    let replaced = path.as_os_str().as_bytes().strip_suffix(b" (deleted)");
    Ok(
        match replaced.map(|name| PathBuf::from(OsStr::from_bytes(name))) {
            Some(new) if is_program(&new) => new,
            _ => path,
        },
    )
}

/// Path of the program `name`, if there is one.
pub fn lookup(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    beside
        .into_iter()
        .chain(directories.map(|directory| directory.join(name)))
        .find(|program| is_program(program))
}

/// Names of the programs with this prefix in the searched directories, without the prefix.
pub fn with_prefix(prefix: &str) -> Vec<String> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = beside.into_iter().chain(std::env::split_paths(&path));
    let entries = directories
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix(prefix)
                .map(str::to_owned)
        })
        .collect()
}

fn is_program(path: &Path) -> bool {
    let is_regular = rustix::fs::stat(path)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file());
    is_regular && access(path, Access::EXEC_OK).is_ok()
}
