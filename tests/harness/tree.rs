//! A directory tree as values, and readable differences between two of them.
//!
//! Reading uses descriptors and never follows a link or crosses a mount, so hostile trees can be
//! read too.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, fgetxattr, flistxattr, openat,
    readlinkat, statx,
};
use rustix::io::Errno;

/// Times before this (2001-09-09) were set explicitly, by an archive or utimens; later ones are
/// from the clock, and two trees cannot agree on them.
pub const SET_BEFORE: i64 = 1_000_000_000;

/// One name of a tree.
#[derive(Clone, Eq, PartialEq)]
pub struct Entry {
    /// Kind of the file.
    pub kind: FileType,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count.
    pub nlink: u32,
    /// Size in bytes; 0 for directories, whose size has no meaning.
    pub size: u64,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Modification time in seconds and nanoseconds; None if the clock set it.
    pub mtime: Option<(i64, u32)>,
    /// Hash of a file's content; a link's target.
    pub content: Content,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// First path, in sorted order, of the same file: equal in two trees with the same hard links.
    pub first_name: String,
}

/// The content.
#[derive(Clone, Eq, PartialEq)]
pub enum Content {
    /// Directory, device, fifo, socket.
    None,
    /// 64-bit hash of all bytes.
    Hash(blake3::Hash),
    /// Target of a symbolic link.
    Target(Vec<u8>),
}

/// Paths (bytes outside ASCII escaped, "" for the root itself) and their entries.
pub type Tree = BTreeMap<String, Entry>;

/// Reads the tree under `root`.
#[track_caller]
pub fn read(root: &Path) -> Tree {
    let fd = openat(
        CWD,
        root,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut reader = Reader {
        tree: Tree::new(),
        files: HashMap::new(),
    };
    reader
        .entry("", fd.as_fd(), b"")
        .unwrap_or_else(|(path, error)| panic!("{}/{path}: {error}", root.display()));
    reader.tree
}

/// Reads the tree below `root`, without `root` itself.
#[track_caller]
pub fn below(root: &Path) -> Tree {
    let mut tree = read(root);
    tree.remove("");
    tree
}

struct Reader {
    tree: Tree,
    /// Inode number -> its first path, and the content of a file that has several.
    files: HashMap<u64, (String, Content)>,
}

type Failure = (String, Errno);

impl Reader {
    fn entry(&mut self, path: &str, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failure> {
        let fail = |error| (path.to_owned(), error);
        let status = statx(
            directory,
            name,
            AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH,
            StatxFlags::BASIC_STATS,
        )
        .map_err(fail)?;
        let kind = FileType::from_raw_mode(u32::from(status.stx_mode));
        let opened = |flags: OFlags| {
            openat(
                directory,
                if name.is_empty() { b"." } else { name },
                flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let (content, xattrs) = match kind {
            FileType::RegularFile => {
                let file = opened(OFlags::RDONLY).map_err(fail)?;
                let content = match self.files.get(&status.stx_ino) {
                    Some((_, content)) => content.clone(),
                    None => Content::Hash(hash(&file).map_err(fail)?),
                };
                (content, xattrs_of(&file).map_err(fail)?)
            }
            FileType::Directory => (
                Content::None,
                xattrs_of(opened(OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?)
                    .map_err(fail)?,
            ),
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new()).map_err(fail)?;
                (
                    Content::Target(target.into_bytes()),
                    path_xattrs(directory, name).map_err(fail)?,
                )
            }
            _ => (Content::None, path_xattrs(directory, name).map_err(fail)?),
        };
        let first_name = self
            .files
            .entry(status.stx_ino)
            .or_insert_with(|| (path.to_owned(), content.clone()))
            .0
            .clone();
        self.tree.insert(
            path.to_owned(),
            entry(&status, kind, content, xattrs, first_name),
        );
        if kind == FileType::Directory {
            let fd = opened(OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
            for child in names(&fd).map_err(fail)? {
                let below = if path.is_empty() {
                    child.escape_ascii().to_string()
                } else {
                    format!("{path}/{}", child.escape_ascii())
                };
                self.entry(&below, fd.as_fd(), &child)?;
            }
        }
        Ok(())
    }
}

fn entry(
    status: &Statx,
    kind: FileType,
    content: Content,
    xattrs: BTreeMap<String, Vec<u8>>,
    first_name: String,
) -> Entry {
    Entry {
        kind,
        mode: u32::from(status.stx_mode) & 0o7777,
        uid: status.stx_uid,
        gid: status.stx_gid,
        nlink: status.stx_nlink,
        size: if kind == FileType::Directory {
            0
        } else {
            status.stx_size
        },
        rdev: (status.stx_rdev_major, status.stx_rdev_minor),
        mtime: (status.stx_mtime.tv_sec < SET_BEFORE)
            .then_some((status.stx_mtime.tv_sec, status.stx_mtime.tv_nsec)),
        content,
        xattrs,
        first_name,
    }
}

/// Sorted names of a directory, without `.` and `..`.
pub fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl Content {
    /// Of a file with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Hash(blake3::hash(bytes))
    }
}

fn hash(file: &OwnedFd) -> Result<blake3::Hash, Errno> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match rustix::io::read(file, &mut buffer)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        };
    }
}

fn xattrs_of(file: impl AsFd) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    collect(
        |buffer| flistxattr(&file, buffer),
        |name, buffer| fgetxattr(&file, name, buffer),
    )
}

/// The xattrs of a file that cannot or must not be opened, by a path through the directory's
/// descriptor.
fn path_xattrs(directory: BorrowedFd<'_>, name: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    use std::os::fd::AsRawFd as _;
    let path = [
        format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(),
        name,
    ]
    .concat();
    collect(
        |buffer| rustix::fs::llistxattr(path.as_slice(), buffer),
        |name, buffer| rustix::fs::lgetxattr(path.as_slice(), name, buffer),
    )
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&str, &mut [u8]) -> Result<usize, Errno>,
) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    let mut buffer = vec![0; 64 * 1024];
    let length = match list(&mut buffer) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let listed = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut found = BTreeMap::new();
    for name in listed.split_terminator('\0') {
        let length = get(name, &mut buffer)?;
        found.insert(name.to_owned(), buffer[..length].to_vec());
    }
    Ok(found)
}

/// The differences, one line each; `left` is the expected tree. Empty if the trees are equal.
pub fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for path in expected
        .keys()
        .chain(found.keys().filter(|path| !expected.contains_key(*path)))
    {
        match (expected.get(path), found.get(path)) {
            (Some(_), None) => lines.push(format!("/{path}: missing")),
            (None, Some(entry)) => lines.push(format!("/{path}: too much: {entry:?}")),
            (Some(left), Some(right)) if left != right => lines.push(format!(
                "/{path}: expected {left:?}\n{}found {right:?}",
                " ".repeat(path.len() + 6)
            )),
            _ => {}
        }
    }
    lines
}

/// Panics with the differences, if any; `what` names the comparison.
#[track_caller]
pub fn assert_same(expected: &Tree, found: &Tree, what: &str) {
    let lines = differences(expected, found);
    assert!(
        lines.is_empty(),
        "{what}: {} differences\n{}",
        lines.len(),
        lines[..lines.len().min(20)].join("\n")
    );
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:04o} {}:{} nlink {} size {}",
            self.kind, self.mode, self.uid, self.gid, self.nlink, self.size
        )?;
        if self.rdev != (0, 0) {
            write!(f, " rdev {}:{}", self.rdev.0, self.rdev.1)?;
        }
        match self.mtime {
            Some((seconds, nanoseconds)) => write!(f, " mtime {seconds}.{nanoseconds:09}")?,
            None => f.write_str(" mtime now")?,
        }
        match &self.content {
            Content::None => {}
            Content::Hash(hash) => write!(f, " content {hash}")?,
            Content::Target(target) => write!(f, " -> {}", String::from_utf8_lossy(target))?,
        }
        for (name, value) in &self.xattrs {
            write!(f, " {name}={}", value.escape_ascii())?;
        }
        write!(f, " same file as /{}", self.first_name)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("-"),
            Self::Hash(hash) => write!(f, "{hash}"),
            Self::Target(target) => f.write_str(&String::from_utf8_lossy(target)),
        }
    }
}
