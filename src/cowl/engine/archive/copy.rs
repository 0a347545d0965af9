//! `cowl cp`: between a container and the host, as docker's client does it over its server
//! (docker/cli, `cli/command/container/cp.go`; moby/go-archive, `copy.go`).
//!
//! A thread reads one side as a tar, the other side unpacks it. A hostile container's files are
//! handled like an untrusted tar.

use super::host::{self, Source};
use super::{Extraction, Files, PathStat, beside, name_of, split};
use crate::engine::Engine;
use crate::engine::error::{Context, Error, Kind, Result};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// Bytes copied at a time.
const CHUNK: usize = 64 << 10;
/// Most symbolic links followed in a row.
const MAX_LINKS: u8 = 40;
/// The bit of a directory in a [`PathStat`]'s mode.
const DIRECTORY: u32 = 1 << 31;
/// The bit of a symbolic link.
const SYMLINK: u32 = 1 << 27;
/// The bit of a device.
const DEVICE: u32 = 1 << 26;

/// The options of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Keep owners. Else files belong to root in a container, and to the caller on the host.
    pub keep_owners: bool,
    /// Follow a symbolic link at the end of the source's path.
    pub follow_link: bool,
}

impl CopyOptions {
    fn extraction(self) -> Extraction {
        Extraction {
            keep_kinds: true,
            keep_owners: self.keep_owners,
        }
    }
}

impl Engine {
    /// Copies a file or directory of a container to the host. Returns the length of the tar that
    /// passed.
    pub fn copy_out(&self, needle: &str, path: &str, to: &str, how: CopyOptions) -> Result<u64> {
        let (to, there) = host::destination(to)?;
        self.with_files(needle, |files| {
            let (source, stat) = files.source(path, how)?;
            let is_directory = there.as_ref().map(std::fs::Metadata::is_dir);
            let (directory, top) = plan(&top_of(path), is_dir(&stat), &to, is_directory)?;
            let local = Files::of_host(Path::new(&directory))?;
            transfer((files, &source, &top), (&local, "/"), how)
        })
    }

    /// Writes a file or directory of a container as a tar.
    pub fn copy_out_tar(
        &self,
        needle: &str,
        path: &str,
        out: impl Write,
        how: CopyOptions,
    ) -> Result<()> {
        self.with_files(needle, |files| {
            let (source, _) = files.source(path, how)?;
            files.read_as(&source, &top_of(path), BufWriter::with_capacity(CHUNK, out))
        })
    }

    /// Copies a file or directory of the host into a container. Returns the length of the tar that
    /// passed.
    pub fn copy_in(&self, from: &str, needle: &str, path: &str, how: CopyOptions) -> Result<u64> {
        let source = Source::find(from, how.follow_link)?;
        let local = Files::of_host(&source.parent)?;
        self.with_files(needle, |files| {
            let (to, stat) = files.destination(needle, path)?;
            let there = stat.as_ref().map(is_dir);
            let (directory, top) = plan(&source.top, source.is_directory, &to, there)?;
            transfer((&local, &source.name, &top), (files, &directory), how)
        })
    }

    /// Unpacks a tar into a directory of a container.
    pub fn copy_in_tar(
        &self,
        tar: impl Read,
        needle: &str,
        path: &str,
        how: CopyOptions,
    ) -> Result<()> {
        self.with_files(needle, |files| {
            let (to, stat) = files.destination(needle, path)?;
            if !stat.as_ref().is_some_and(is_dir) {
                return Err(Error::invalid(format!(
                    "destination \"{needle}:{path}\" must be a directory"
                )));
            }
            files.write(&to, tar, how.extraction())
        })
    }

    fn with_files<T>(&self, needle: &str, copy: impl FnOnce(&Files) -> Result<T>) -> Result<T> {
        let files = self.open_files(needle)?;
        let done = copy(&files);
        match (done, self.close_files(files)) {
            (Ok(done), Ok(())) => Ok(done),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }
}

impl Files {
    /// The path to copy, and the file that it leads to.
    fn source(&self, path: &str, how: CopyOptions) -> Result<(String, PathStat)> {
        if how.follow_link {
            let (at, stat) = self.follow(path)?;
            return Ok((at, stat));
        }
        Ok((path.to_owned(), self.stat(path)?))
    }

    /// The path in the container to copy to, and what exists there.
    fn destination(&self, needle: &str, path: &str) -> Result<(String, Option<PathStat>)> {
        let (at, stat) = match self.follow(path) {
            Ok((at, stat)) => (at, Some(stat)),
            Err(error) if error.kind() == Kind::NotFound => (self.dangling(path), None),
            Err(error) => return Err(error),
        };
        if stat.as_ref().is_some_and(|stat| stat.mode & DEVICE != 0) {
            return Err(Error::invalid(format!(
                "destination \"{needle}:{path}\" must be a directory or a regular file: got a device"
            )));
        }
        Ok((at, stat))
    }

    /// Follows links at the end of a path. Each step is resolved inside the root.
    fn follow(&self, path: &str) -> Result<(String, PathStat)> {
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let stat = self.stat(&at)?;
            if stat.mode & SYMLINK == 0 {
                return Ok((at, stat));
            }
            at = beside(&at, &stat.link_target);
        }
        Err(Error::from(rustix::io::Errno::LOOP).context(path.to_owned()))
    }

    /// The target of a dangling link at the end of a path; without such a link, the path itself.
    fn dangling(&self, path: &str) -> String {
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.stat(&at) {
                Ok(stat) if stat.mode & SYMLINK != 0 => at = beside(&at, &stat.link_target),
                _ => break,
            }
        }
        at
    }
}

fn is_dir(stat: &PathStat) -> bool {
    stat.mode & DIRECTORY != 0
}

/// The name that a copy of a container's path gets in a directory.
fn top_of(path: &str) -> String {
    match name_of(path).as_str() {
        "/" | ".." => ".".to_owned(),
        name => name.to_owned(),
    }
}

/// The directory to copy into, and the copy's name there. `there`: whether the destination is a
/// directory, if it exists.
fn plan(
    source: &str,
    source_is_directory: bool,
    destination: &str,
    there: Option<bool>,
) -> Result<(String, String)> {
    match there {
        Some(true) => return Ok((destination.to_owned(), source.to_owned())),
        Some(false) if source_is_directory => {
            return Err(Error::invalid("cannot copy directory"));
        }
        None if !source_is_directory && split(destination).1 == "." => {
            return Err(Error::invalid("no such directory"));
        }
        Some(false) | None => {}
    }
    let mut place = destination;
    while let Some(shorter) = place.strip_suffix("/.").or_else(|| place.strip_suffix('/')) {
        place = shorter;
    }
    Ok(split(place))
}

/// Reads one side and unpacks it at the other.
fn transfer(
    (from, path, top): (&Files, &str, &str),
    (to, directory): (&Files, &str),
    how: CopyOptions,
) -> Result<u64> {
    let (reader, writer) = io::pipe().context(|| "creating a pipe")?;
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new()
            .name("tar".to_owned())
            .spawn_scoped(scope, move || {
                from.read_as(path, top, BufWriter::with_capacity(CHUNK, writer))
            })
            .context(|| "starting a thread")?;
        let mut tar = Counted {
            from: BufReader::with_capacity(CHUNK, reader),
            count: 0,
            ended: false,
        };
        let unpacked = to.unpack(directory, &mut tar, how.extraction());
        if unpacked.is_ok() {
            // Read the padding at the tar's end.
            io::copy(&mut tar, &mut io::sink())?;
        }
        let (count, is_whole) = (tar.count, tar.ended);
        // Else the writing thread would block for ever.
        drop(tar);
        let read = reading.join();
        let read = read.map_err(|_panic| Error::failed("the thread that read panicked"))?;
        match (read, unpacked) {
            // The writer failed because the tar was not read to its end.
            (Err(_), Err(error)) if !is_whole => Err(error),
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(())) => Ok(count),
        }
    })
}

/// Counts the bytes read from a tar.
struct Counted<R> {
    from: R,
    count: u64,
    ended: bool,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.count += length as u64;
        self.ended |= length == 0 && !buffer.is_empty();
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_names_a_copy_as_docker_does() {
        let planned = |source, is_directory, destination, there| {
            let planned = plan(source, is_directory, destination, there);
            planned.map(|(directory, top)| format!("{directory} {top}"))
        };
        for (source, is_directory, destination, there, expected) in [
            ("file", false, "/to", Some(true), "/to file"),
            ("file", false, "/to", Some(false), "/ to"),
            ("file", false, "/a/to", None, "/a to"),
            ("file", false, "to", None, ". to"),
            ("dir", true, "/to/", Some(true), "/to/ dir"),
            (".", true, "/to", Some(true), "/to ."),
            ("dir", true, "/a/to", None, "/a to"),
            ("dir", true, "/a/to/.", None, "/a to"),
            (".", true, "to/", None, ". to"),
        ] {
            let planned = planned(source, is_directory, destination, there).unwrap();
            assert_eq!(planned, expected, "{source} to {destination}");
        }
        let refused = planned("dir", true, "/to", Some(false)).unwrap_err();
        assert_eq!(refused.to_string(), "cannot copy directory");
        let refused = planned("file", false, "/to/", None).unwrap_err();
        assert_eq!(refused.to_string(), "no such directory");
    }

    /// A tar as a hostile container could cause: a directory is replaced by a link meanwhile.
    #[test]
    fn a_copy_to_the_host_stays_below_its_directory() {
        let temp = tempfile::tempdir().unwrap();
        let (inside, outside) = (temp.path().join("inside"), temp.path().join("outside"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, target) in [("up", "../outside"), ("away", outside.to_str().unwrap())] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_mtime(0);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_size(1);
            let name = format!("{name}/file");
            tar.append_data(&mut header, name, &b"x"[..]).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let files = Files::of_host(&inside).unwrap();
        let how = CopyOptions::default().extraction();
        // It may succeed or fail, but nothing is written outside.
        files.unpack("/", tar.as_slice(), how).unwrap_or_default();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(inside.join("up").is_symlink());
    }

    /// Names need not be UTF-8, the umask does not change a node's mode, and sockets are left out
    /// under each of their names.
    #[test]
    fn a_copy_has_names_modes_and_links_of_its_source() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        for directory in [&from, &to] {
            std::fs::create_dir(directory).unwrap();
        }
        let script = r#"
            umask 0; d=$(printf 'd\351'); mkdir -m 1777 "$d"; echo x > "$d"/$(printf 'f\377')
            ln "$d"/f* "$d"/link; ln -s "$d" symlink; mkfifo -m 666 fifo
            python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'; ln socket same"#;
        let run = |script: &str, directory: &Path| {
            let mut shell = std::process::Command::new("sh");
            let done = shell.args(["-ec", script]).current_dir(directory).output();
            let done = done.unwrap();
            assert!(done.status.success(), "{done:?}");
            done.stdout
        };
        run(script, &from);
        let [source, target] = [&from, &to].map(|directory| Files::of_host(directory).unwrap());
        let how = CopyOptions::default();
        transfer((&source, "/", "."), (&target, "/"), how).unwrap();
        let list = "find . ! -type s -printf '%p %y %m %n %l\n' | sort";
        assert_eq!(run(list, &from), run(list, &to));
        assert_eq!(run("find . -type s", &to), b"");
    }
}
