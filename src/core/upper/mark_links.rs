//! Marks of an upper whose file system has no extended attributes (ramfs, and tmpfs in a user
//! namespace before Linux 6.6): symbolic links in `work/marks`.
//!
//! A link `<inode>.<mark>` leads to the time at which the file was made and the mark's value in
//! base64: `1700000000.000000001:AgEAAAUAAAA=`, with `-` for a file system that does not say when.
//! A link is made and replaced in one step, and its text needs no sync apart from its name.
//!
//! Invariant: a file in the upper's view bears no mark of an earlier file with its inode number. A
//! new file is made in `work/tmp`, where [`forget`](MarkLinks::forget) drops such marks before the
//! file gets its name. Marks go after their file; what a crash leaves, the next mount drops.

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

/// A link to the inode numbers of `work/marks` itself and of the upper. In a copy of either they
/// are others, and so are those of all files.
const SELF: &str = "self";

/// `f_type` (linux/magic.h) of the file systems that are known to keep a file's inode number, to
/// list it too, and to give it to no other file: tmpfs and ramfs. Others without attributes may
/// not: FUSE, SMB, NFS, and overlayfs for directories.
const KEEP_NUMBERS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

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

/// Whose marks are in a directory.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Owner {
    /// None were written yet.
    Nobody,
    ThisUpper,
    OtherUpper,
    /// Of the directory that this one is a copy of.
    OtherWork,
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
    /// Opens `work/marks`, or makes it. Beside a new upper, marks of another one are dropped.
    ///
    /// # Errors
    /// A copy of the work directory, or of the upper.
    pub(super) fn open(
        work: BorrowedFd<'_>,
        root: BorrowedFd<'_>,
        is_new: bool,
    ) -> std::result::Result<Self, UpperError> {
        let dir = subdirectory(work, b"marks")?;
        let known = list(dir.as_fd()).map_err(host("reading work/marks"))?;
        let links = Self {
            dir,
            known: Some(Mutex::new(known)),
        };
        match links.owner(root).map_err(host("reading work/marks"))? {
            Owner::ThisUpper => {}
            Owner::Nobody => links.begin(root).map_err(host("writing work/marks"))?,
            Owner::OtherUpper if is_new => links.begin(root).map_err(host("writing work/marks"))?,
            Owner::OtherUpper | Owner::OtherWork => return Err(UpperError::CopiedMarks),
        }
        Ok(links)
    }

    /// Whether an upper that has no entries bears a mark itself.
    pub(super) fn mark_upper(
        work: BorrowedFd<'_>,
        root: BorrowedFd<'_>,
    ) -> std::result::Result<bool, UpperError> {
        let links = Self::open(work, root, true)?;
        let upper = NameAt::new(root, b".");
        let read = |mark| {
            let found = links.read(upper, mark);
            found.map_err(host("reading the upper's marks"))
        };
        Ok(read(Mark::Stamp)?.is_some() || read(Mark::Impure)?.is_some())
    }

    /// Opens `work/marks` to read what a mount has written.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn of_mount(
        work: BorrowedFd<'_>,
        root: BorrowedFd<'_>,
    ) -> std::result::Result<Self, UpperError> {
        let dir = open_directory(work, b"marks").map_err(host("opening work/marks"))?;
        let links = Self { dir, known: None };
        match links.owner(root).map_err(host("reading work/marks"))? {
            Owner::ThisUpper => Ok(links),
            Owner::Nobody | Owner::OtherUpper | Owner::OtherWork => Err(UpperError::CopiedMarks),
        }
    }

    fn owner(&self, root: BorrowedFd<'_>) -> Result<Owner> {
        let noted = match rustix::fs::readlinkat(&self.dir, SELF, Vec::new()) {
            Ok(noted) => noted,
            Err(Errno::NOENT) => return Ok(Owner::Nobody),
            Err(errno) => return Err(errno),
        };
        let (marks, upper) = self.numbers(root)?;
        Ok(match noted.to_str().unwrap_or_default().split_once(' ') {
            Some((noted, _)) if noted != marks => Owner::OtherWork,
            Some((_, noted)) if noted != upper => Owner::OtherUpper,
            Some(_) => Owner::ThisUpper,
            None => Owner::OtherWork,
        })
    }

    /// Begins without marks.
    fn begin(&self, root: BorrowedFd<'_>) -> Result<()> {
        self.clear()?;
        self.remove_link(SELF)?;
        let (marks, upper) = self.numbers(root)?;
        rustix::fs::symlinkat(format!("{marks} {upper}"), &self.dir, SELF)
    }

    /// What [`SELF`] says here.
    fn numbers(&self, root: BorrowedFd<'_>) -> Result<(String, String)> {
        let number = |dir| Ok(NameAt::new(dir, b".").stat()?.stx_ino.to_string());
        Ok((number(self.dir.as_fd())?, number(root)?))
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
            // Threads may give the upper's root the same mark at once.
            Err(Errno::EXIST) if self.leads_to(&link, &text)? => {}
            Err(Errno::EXIST) => {
                let new = format!("{link}.new");
                self.remove_link(&new)?;
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
        self.remove_all(Birth::of(name_at)?.inode)
    }

    /// Removes all marks of an inode number.
    pub(super) fn remove_all(&self, inode: u64) -> Result<()> {
        for mark in MARKS {
            if self.has(inode, mark) {
                self.unlink(inode, &[mark])?;
            }
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
            self.remove_link(&link_name(inode, *mark))?;
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

    fn remove_link(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn leads_to(&self, link: &str, text: &str) -> Result<bool> {
        let found = rustix::fs::readlinkat(&self.dir, link, Vec::new())?;
        Ok(found.as_bytes() == text.as_bytes())
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
    if !KEEP_NUMBERS.contains(&i64::from(fs.f_type)) {
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
        let [work, upper] = ["work", "upper"].map(|name| File::open(base.join(name)).unwrap());
        MarkLinks::open(work.as_fd(), upper.as_fd(), false)
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
    fn threads_can_write_the_same_mark_at_once() {
        let fixture = fixture();
        let one = fixture.file("one");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        fixture.links.write(one, Mark::Impure, b"y").unwrap();
                    }
                });
            }
        });
        let inode = one.stat().unwrap().stx_ino;
        assert_eq!(fixture.names(), [format!("{inode}.impure"), "self".into()]);
    }

    #[test]
    fn a_copy_of_either_directory_is_refused_and_keeps_its_marks() {
        for copied in ["work", "upper"] {
            let fixture = fixture();
            let base = fixture.base.path();
            fixture
                .links
                .write(fixture.file("one"), Mark::File, b"v")
                .unwrap();
            let names = fixture.names();
            let copy = std::process::Command::new("sh")
                .args(["-c", "mv $0 original && cp -a original $0", copied])
                .current_dir(base)
                .status();
            assert!(copy.unwrap().success());
            let [work, upper] = ["work", "upper"].map(|name| File::open(base.join(name)).unwrap());
            let (work, upper) = (work.as_fd(), upper.as_fd());
            for refused in [
                MarkLinks::open(work, upper, false),
                MarkLinks::of_mount(work, upper),
            ] {
                assert!(matches!(refused, Err(UpperError::CopiedMarks)), "{copied}");
            }
            assert_eq!(fixture.names(), names);
            // An empty upper beside an earlier one's work directory.
            let new = MarkLinks::open(work, upper, true);
            if copied == "upper" {
                new.unwrap();
                assert_eq!(fixture.names(), ["self"]);
                open(base).unwrap();
            } else {
                assert!(matches!(new, Err(UpperError::CopiedMarks)));
            }
        }
    }
}
