//! Marks of an upper whose file system has no extended attributes (ramfs, NFS before 4.2, tmpfs in
//! a user namespace before Linux 6.6): symbolic links in `work/marks`.
//!
//! A link `<inode>.<mark>` leads to the time at which the file was made and the mark's value in
//! base64: `1700000000.000000001:AgEAAAUAAAA=`, with `-` for a file system that does not say when.
//! A link is made and replaced in one step, and its text needs no sync apart from its name.
//!
//! Invariant: a file in the upper's view bears no mark of an earlier file with its inode number. A
//! new file is made in `work/tmp`, where [`forget`](MarkLinks::forget) drops such marks before the
//! file gets its name. Marks of removed files stay until then, or until the next mount.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use data_encoding::BASE64;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType as HostType, StatxFlags};
use rustix::io::{Errno, Result};

use super::UpperError;
use super::directories::{each_entry, open_directory, subdirectory};
use super::host;
use super::marks::Mark;
use super::name_at::NameAt;

/// A link to the inode number of `work/marks` itself. In a copy of the work directory it is
/// another one's, and so are the inode numbers of all files.
const SELF: &str = "self";

/// `f_type` of FUSE file systems (`FUSE_SUPER_MAGIC`, linux/magic.h). Most make up inode numbers,
/// and give a file another one when the kernel has forgotten it.
const FUSE: i64 = 0x6573_5546;

const MARKS: [Mark; 6] = [
    Mark::Opaque,
    Mark::Impure,
    Mark::Redirect,
    Mark::Metacopy,
    Mark::File,
    Mark::Stamp,
];

/// Some of [`MARKS`], a [`bit`] each.
type MarkSet = u8;

const fn bit(mark: Mark) -> MarkSet {
    1 << mark as u8
}

/// `work/marks`.
#[derive(Debug)]
pub struct MarkLinks {
    dir: OwnedFd,
    /// The marks that are there, by inode number: without any, a file's cost no system call. None:
    /// another process may write them.
    known: Option<Mutex<HashMap<u64, MarkSet>>>,
}

impl MarkLinks {
    /// Opens `work/marks`, or makes it.
    ///
    /// # Errors
    /// A copy of another work directory.
    pub(super) fn open(work: BorrowedFd<'_>) -> std::result::Result<Self, UpperError> {
        let dir = subdirectory(work, b"marks")?;
        match check_self(dir.as_fd()) {
            Err(Errno::NOENT) => note_self(dir.as_fd()).map_err(host("writing work/marks"))?,
            Err(Errno::XDEV) => return Err(UpperError::CopiedMarks),
            checked => checked.map_err(host("reading work/marks"))?,
        }
        let known = list(dir.as_fd()).map_err(host("reading work/marks"))?;
        Ok(Self {
            dir,
            known: Some(Mutex::new(known)),
        })
    }

    /// Opens `work/marks` to read what a mount has written.
    pub(super) fn of_mount(work: BorrowedFd<'_>) -> std::result::Result<Self, UpperError> {
        let dir = open_directory(work, b"marks").map_err(host("opening work/marks"))?;
        Ok(Self { dir, known: None })
    }

    /// The value of a file's mark.
    pub(super) fn read(&self, name_at: NameAt<'_>, mark: Mark) -> Result<Option<Vec<u8>>> {
        if self.is_without_marks() {
            return Ok(None);
        }
        let file = Birth::of(name_at)?;
        if !self.has(file.inode, mark) {
            return Ok(None);
        }
        let link = link_name(file.inode, mark);
        let text = match rustix::fs::readlinkat(&self.dir, link, Vec::new()) {
            Ok(text) => text.into_bytes(),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let Some(colon) = text.iter().position(|byte| *byte == b':') else {
            return Err(Errno::IO);
        };
        let (time, value) = text.split_at(colon);
        if time != file.time.as_bytes() {
            // An earlier file's.
            return Ok(None);
        }
        let value = value.get(1..).unwrap_or_default();
        BASE64.decode(value).map(Some).map_err(|_bad| Errno::IO)
    }

    /// Writes a file's mark.
    ///
    /// # Errors
    /// ENAMETOOLONG for a value that a symbolic link of this file system cannot hold.
    pub(super) fn write(&self, name_at: NameAt<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        let file = Birth::of(name_at)?;
        let text = format!("{}:{}", file.time, BASE64.encode(value));
        let link = link_name(file.inode, mark);
        match rustix::fs::symlinkat(&text, &self.dir, &link) {
            Err(Errno::EXIST) => {
                let new = format!("{link}.new");
                match rustix::fs::unlinkat(&self.dir, &new, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
                rustix::fs::symlinkat(&text, &self.dir, &new)?;
                rustix::fs::renameat(&self.dir, &new, &self.dir, &link)?;
            }
            made => made?,
        }
        self.change_known(|known| *known.entry(file.inode).or_default() |= bit(mark))
    }

    /// Removes a file's mark if it is there.
    pub(super) fn remove(&self, name_at: NameAt<'_>, mark: Mark) -> Result<()> {
        if self.is_without_marks() {
            return Ok(());
        }
        let inode = Birth::of(name_at)?.inode;
        if self.has(inode, mark) {
            self.unlink(inode, &[mark])?;
        }
        Ok(())
    }

    /// Drops the marks of an earlier file with the inode number of this new one.
    pub(super) fn forget(&self, name_at: NameAt<'_>) -> Result<()> {
        if self.is_without_marks() {
            return Ok(());
        }
        let inode = Birth::of(name_at)?.inode;
        if MARKS.iter().any(|mark| self.has(inode, *mark)) {
            self.unlink(inode, &MARKS)?;
        }
        Ok(())
    }

    /// Drops the marks of files that are in none of these directories, nor below them. Nothing may
    /// change meanwhile.
    pub(super) fn sweep(&self, dirs: [BorrowedFd<'_>; 3]) -> Result<()> {
        if self.is_without_marks() {
            return Ok(());
        }
        let mut found = HashSet::new();
        for dir in dirs {
            found.insert(NameAt::new(dir, b".").stat()?.stx_ino);
            add_inodes(dir, &mut found)?;
        }
        let mut gone = Vec::new();
        self.change_known(|known| {
            gone.extend(known.keys().filter(|inode| !found.contains(inode)).copied());
        })?;
        gone.into_iter()
            .try_for_each(|inode| self.unlink(inode, &MARKS))
    }

    /// Drops all marks: they are of a removed upper.
    pub(super) fn clear(&self) -> Result<()> {
        let mut all = Vec::new();
        self.change_known(|known| all.extend(known.keys().copied()))?;
        all.into_iter()
            .try_for_each(|inode| self.unlink(inode, &MARKS))
    }

    /// Makes all marks durable.
    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.dir)
    }

    fn unlink(&self, inode: u64, marks: &[Mark]) -> Result<()> {
        for mark in marks {
            let link = link_name(inode, *mark);
            match rustix::fs::unlinkat(&self.dir, link, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.change_known(|known| {
            if let Some(left) = known.get_mut(&inode) {
                *left &= !marks.iter().fold(0, |set, mark| set | bit(*mark));
                if *left == 0 {
                    known.remove(&inode);
                }
            }
        })
    }

    fn is_without_marks(&self) -> bool {
        let known = self.known.as_ref();
        known.is_some_and(|known| known.lock().is_empty())
    }

    fn has(&self, inode: u64, mark: Mark) -> bool {
        let known = self.known.as_ref();
        known.is_none_or(|known| {
            let marks = known.lock().get(&inode).copied();
            marks.unwrap_or_default() & bit(mark) != 0
        })
    }

    fn change_known(&self, change: impl FnOnce(&mut HashMap<u64, MarkSet>)) -> Result<()> {
        let known = self.known.as_ref().ok_or(Errno::ROFS)?;
        change(&mut known.lock());
        Ok(())
    }
}

/// Whether marks can be links here.
pub(super) fn are_possible(tmp: BorrowedFd<'_>) -> std::result::Result<bool, UpperError> {
    let fs = rustix::fs::fstatfs(tmp).map_err(host("probing the upper's file system"))?;
    #[expect(clippy::useless_conversion, reason = "f_type is shorter on 32 bits")]
    if i64::from(fs.f_type) == FUSE {
        return Ok(false);
    }
    let probe = NameAt::new(tmp, b"probe");
    match rustix::fs::symlinkat("-:", tmp, "probe") {
        Ok(()) => {}
        Err(Errno::PERM | Errno::OPNOTSUPP) => return Ok(false),
        Err(errno) => return Err(host("writing to work/tmp")(errno)),
    }
    probe.unlink().map_err(host("writing to work/tmp"))?;
    Ok(true)
}

/// What tells a file from an earlier one of its inode number.
struct Birth {
    inode: u64,
    /// When it was made, or `-`.
    time: String,
}

impl Birth {
    fn of(name_at: NameAt<'_>) -> Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statx(name_at.dir, name_at.name, flags, wanted)?;
        let time = if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
            "-".to_owned()
        } else {
            format!("{}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
        };
        Ok(Self {
            inode: stat.stx_ino,
            time,
        })
    }
}

fn link_name(inode: u64, mark: Mark) -> String {
    format!("{inode}.{}", mark.suffix())
}

fn check_self(dir: BorrowedFd<'_>) -> Result<()> {
    let noted = rustix::fs::readlinkat(dir, SELF, Vec::new())?;
    let inode = NameAt::new(dir, b".").stat()?.stx_ino;
    if noted.as_bytes() == inode.to_string().as_bytes() {
        Ok(())
    } else {
        Err(Errno::XDEV)
    }
}

fn note_self(dir: BorrowedFd<'_>) -> Result<()> {
    let inode = NameAt::new(dir, b".").stat()?.stx_ino;
    rustix::fs::symlinkat(inode.to_string(), dir, SELF)
}

fn list(dir: BorrowedFd<'_>) -> Result<HashMap<u64, MarkSet>> {
    let mut known: HashMap<u64, MarkSet> = HashMap::new();
    each_entry(dir, |name, _, _| {
        let name = std::str::from_utf8(name).unwrap_or_default();
        if let Some((inode, mark)) = name.split_once('.')
            && let Ok(inode) = inode.parse()
            && let Some(mark) = MARKS.iter().find(|known| known.suffix() == mark)
        {
            *known.entry(inode).or_default() |= bit(*mark);
        }
        Ok(())
    })?;
    Ok(known)
}

/// Adds the inode numbers of all files below a directory. It holds one descriptor for each level.
fn add_inodes(dir: BorrowedFd<'_>, found: &mut HashSet<u64>) -> Result<()> {
    let mut levels = vec![(open_directory(dir, b".")?, None)];
    while let Some((dir, below)) = levels.last_mut() {
        let below: &mut Vec<Vec<u8>> = match below {
            Some(below) => below,
            None => below.insert(read_level(dir.as_fd(), found)?),
        };
        if let Some(name) = below.pop() {
            let next = open_directory(dir.as_fd(), &name)?;
            levels.push((next, None));
        } else {
            levels.pop();
        }
    }
    Ok(())
}

/// Adds the inode numbers in a directory and returns the names of its directories.
fn read_level(dir: BorrowedFd<'_>, found: &mut HashSet<u64>) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    each_entry(dir, |name, host_type, inode| {
        found.insert(inode);
        let host_type = match host_type {
            HostType::Unknown => {
                HostType::from_raw_mode(u32::from(NameAt::new(dir, name).stat()?.stx_mode))
            }
            known => known,
        };
        if host_type == HostType::Directory {
            names.push(name.to_vec());
        }
        Ok(())
    })?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    struct Fixture {
        base: tempfile::TempDir,
        upper: OwnedFd,
        links: MarkLinks,
    }

    fn fixture() -> Fixture {
        let base = tempfile::tempdir().unwrap();
        for name in ["upper", "work", "other"] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        Fixture {
            upper: File::open(base.path().join("upper")).unwrap().into(),
            links: open(base.path()).unwrap(),
            base,
        }
    }

    fn open(base: &std::path::Path) -> std::result::Result<MarkLinks, UpperError> {
        MarkLinks::open(File::open(base.join("work")).unwrap().as_fd())
    }

    impl Fixture {
        fn file(&self, name: &'static str) -> NameAt<'_> {
            fs::write(self.base.path().join("upper").join(name), "").unwrap();
            NameAt::new(self.upper.as_fd(), name.as_bytes())
        }

        /// The names in `work/marks`.
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.base.path().join("work/marks")).unwrap();
            let mut names: Vec<String> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn write_replaces_a_mark_and_a_later_open_reads_it() {
        let fixture = fixture();
        let (one, two) = (fixture.file("one"), fixture.file("two"));
        for value in [&b""[..], b"y", &[0; 60]] {
            fixture.links.write(one, Mark::File, value).unwrap();
            let later = open(fixture.base.path()).unwrap();
            for links in [&fixture.links, &later] {
                assert_eq!(links.read(one, Mark::File).unwrap().unwrap(), value);
                assert_eq!(links.read(one, Mark::Opaque).unwrap(), None);
                assert_eq!(links.read(two, Mark::File).unwrap(), None);
            }
        }
        fixture.links.remove(one, Mark::File).unwrap();
        fixture.links.remove(one, Mark::File).unwrap();
        assert_eq!(fixture.links.read(one, Mark::File).unwrap(), None);
        assert_eq!(fixture.names(), ["self"]);
    }

    #[test]
    fn write_of_a_value_that_no_link_holds_fails() {
        let fixture = fixture();
        let one = fixture.file("one");
        let long = fixture.links.write(one, Mark::Redirect, &[b'a'; 4000]);
        assert_eq!(long, Err(Errno::NAMETOOLONG));
        assert_eq!(fixture.links.read(one, Mark::Redirect).unwrap(), None);
    }

    #[test]
    fn read_ignores_and_forget_drops_marks_of_an_earlier_file() {
        let fixture = fixture();
        let one = fixture.file("one");
        fixture.links.write(one, Mark::File, b"its own").unwrap();
        let inode = one.stat().unwrap().stx_ino;
        let link = fixture
            .base
            .path()
            .join("work/marks")
            .join(format!("{inode}.cowl"));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("1.000000001:AgEAAA==", &link).unwrap();
        assert_eq!(fixture.links.read(one, Mark::File).unwrap(), None);
        fixture.links.forget(one).unwrap();
        assert_eq!(fixture.names(), ["self"]);
    }

    #[test]
    fn sweep_drops_marks_of_removed_files_only() {
        let fixture = fixture();
        let path = fixture.base.path().join("upper");
        fs::create_dir_all(path.join("dir/below")).unwrap();
        let upper = fixture.upper.as_fd();
        for name_at in [NameAt::new(upper, b"dir"), fixture.file("gone")] {
            fixture.links.write(name_at, Mark::File, b"v").unwrap();
            fixture.links.write(name_at, Mark::Impure, b"y").unwrap();
        }
        let below = File::open(path.join("dir/below")).unwrap();
        let below = NameAt::new(below.as_fd(), b".");
        fixture.links.write(below, Mark::Opaque, b"y").unwrap();
        fs::remove_file(path.join("gone")).unwrap();
        let other = File::open(fixture.base.path().join("other")).unwrap();
        fixture
            .links
            .sweep([upper, other.as_fd(), other.as_fd()])
            .unwrap();
        let [dir, below] =
            ["dir", "dir/below"].map(|name| path.join(name).metadata().unwrap().ino());
        let mut expected = vec![
            format!("{dir}.cowl"),
            format!("{dir}.impure"),
            format!("{below}.opaque"),
            "self".to_owned(),
        ];
        expected.sort();
        assert_eq!(fixture.names(), expected);
        fixture.links.clear().unwrap();
        assert_eq!(fixture.names(), ["self"]);
    }

    #[test]
    fn open_refuses_a_copy() {
        let fixture = fixture();
        let work = fixture.base.path().join("work");
        fs::rename(&work, fixture.base.path().join("original")).unwrap();
        fs::create_dir_all(work.join("marks")).unwrap();
        let own = fs::read_link(fixture.base.path().join("original/marks/self")).unwrap();
        std::os::unix::fs::symlink(own, work.join("marks/self")).unwrap();
        let refused = open(fixture.base.path());
        assert!(matches!(refused, Err(UpperError::CopiedMarks)));
    }
}
