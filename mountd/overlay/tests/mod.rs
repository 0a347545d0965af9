//! The rules without a mount: an overlay over a tree made here, with an upper in a temporary
//! directory.
#![allow(
    clippy::disallowed_methods,
    reason = "tests build their inputs with plain std::fs"
)]

mod concurrent;
mod data;
mod forged;
mod killed;
mod layers;
mod links;
mod listing;
mod model;
mod operations;
mod privileges;
mod rules;
mod taken_over;
mod view;
mod whiteouts;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cowl_core::digest::{DiffId, ObjectId, Sha256Digest};
use cowl_core::tree::{Kind, LayerBuilder, Meta, Rdev, Timestamp, Tree};
use cowl_core::upper::marks::Namespace;
use tempfile::TempDir;

use super::*;

/// When everything in the test's tree was last changed: before `SET_BEFORE`, so it is compared.
pub(super) const OLD: Timestamp = Timestamp {
    secs: 900_000_000,
    nanos: 123_456_789,
};

/// What an entry of the tree is.
pub(super) enum ItemKind<'a> {
    File(&'a [u8]),
    Dir,
    Link(&'a str),
    Symlink(&'a str),
    Fifo,
    Device(u32, u32),
}

/// A lower that both an overlay and a plain directory are made of.
pub(super) struct Fixture {
    pub(super) base: TempDir,
    /// Empty: the lower is plain directories.
    tree: Vec<u8>,
}

/// An entry of the tree: path, mode, kind, attributes.
pub(super) type Item<'a> = (&'a str, u32, ItemKind<'a>, &'a [(&'a str, &'a [u8])]);

impl Fixture {
    pub(super) fn new(items: &[Item<'_>]) -> Fixture {
        let base = tempfile::tempdir().unwrap();
        for name in ["objects", "upper", "work", "plain"] {
            fs::create_dir_all(path_in(base.path(), name)).unwrap();
        }
        let mut layer = LayerBuilder::new();
        layer
            .insert(&[], meta(0o755, &[]), Kind::Directory)
            .unwrap();
        for (path, mode, kind, xattrs) in items {
            let path: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
            let kind = match kind {
                ItemKind::Link(target) => {
                    let target: Vec<&[u8]> = target.split('/').map(str::as_bytes).collect();
                    layer.hard_link(&path, &target).unwrap();
                    continue;
                }
                ItemKind::File(content) => regular(base.path(), content),
                ItemKind::Dir => Kind::Directory,
                ItemKind::Symlink(target) => Kind::Symlink(target.as_bytes().to_vec()),
                ItemKind::Fifo => Kind::Fifo,
                ItemKind::Device(major, minor) => Kind::CharDevice(Rdev {
                    major: *major,
                    minor: *minor,
                }),
            };
            layer
                .insert(&path, meta(*mode, stored(xattrs)), kind)
                .unwrap();
        }
        make_plain(&base.path().join("plain"), items);
        // A layer with no whiteouts is its own merged tree.
        Fixture {
            base,
            tree: layer.finish(DiffId(Sha256Digest::of(b"layer"))).unwrap(),
        }
    }

    /// Over two plain directories: what is below `d0` in the lower one, the rest in the upper one,
    /// which also hides some of what the lower one has.
    pub(super) fn over_layers(items: &[Item<'_>]) -> Fixture {
        let base = tempfile::tempdir().unwrap();
        for name in ["lower0", "lower1", "upper", "work", "plain"] {
            fs::create_dir_all(path_in(base.path(), name)).unwrap();
        }
        make_plain(&base.path().join("plain"), items);
        let layer = |path: &str| {
            let layer = if path.starts_with("d0") {
                "lower1"
            } else {
                "lower0"
            };
            base.path().join(layer).join(path)
        };
        let hidden = base.path().join("lower1");
        fs::create_dir_all(hidden.join("d1/d0/under")).unwrap();
        fs::create_dir_all(hidden.join("d2/under")).unwrap();
        for name in ["d1/d0/f2", "d1/f3", "d2/f0", "f1", "f2", "d1/f0"] {
            fs::write(hidden.join(name), "hidden").unwrap();
        }
        make_files(layer, items);
        fs::write(base.path().join("lower0/d1/d0/.wh.under"), "").unwrap();
        fs::write(base.path().join("lower0/d1/.wh.f3"), "").unwrap();
        fs::write(base.path().join("lower0/d1/d0/.wh.f2"), "").unwrap();
        fs::write(base.path().join("lower0/d2/.wh..wh..opq"), "").unwrap();
        set_old(layer, items);
        Fixture {
            base,
            tree: Vec::new(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        path_in(self.base.path(), name)
    }

    pub(super) fn open_with(
        &self,
        io_mode: IoMode,
        writable: bool,
    ) -> Result<Overlay, OverlayError> {
        open_at(self.base.path(), &self.tree, io_mode, writable)
    }

    /// For another process to read.
    pub(super) fn write_tree(&self) {
        fs::write(self.path("tree"), &self.tree).unwrap();
    }

    pub(super) fn overlay(&self) -> Overlay {
        self.open_with(IoMode::Passthrough, true).unwrap()
    }
}

/// Where all uppers are, if not beside their lowers.
const UPPERS: &str = "COWL_TEST_UPPERS";

/// Whether uppers have no extended attributes.
pub(super) fn marks_are_links() -> bool {
    std::env::var_os(UPPERS).is_some_and(|uppers| {
        let probed = rustix::fs::getxattr(uppers, "user.x", &mut [0; 1]);
        probed == Err(Errno::OPNOTSUPP)
    })
}

/// The attributes of a file that an upper can have, too.
fn stored<'x, 'v>(xattrs: &'x [(&'v str, &'v [u8])]) -> &'x [(&'v str, &'v [u8])] {
    if marks_are_links() { &[] } else { xattrs }
}

/// A path in a fixture's directory.
fn path_in(base: &Path, name: &str) -> PathBuf {
    let of_upper = name.starts_with("upper") || name.starts_with("work");
    match std::env::var_os(UPPERS).filter(|_| of_upper) {
        Some(uppers) => {
            let fixture = base.file_name().unwrap();
            Path::new(&uppers).join(fixture).join(name)
        }
        None => base.join(name),
    }
}

/// A process that is being started has the files of this one open, and so holds its locks, until
/// some time after it became another program.
static STARTING: RwLock<()> = RwLock::new(());

/// Runs a program to its end while no upper is being opened.
pub(super) fn run(command: &mut Command) -> Output {
    let _alone = STARTING.write();
    command.output().unwrap()
}

/// An overlay over a fixture's directories.
pub(super) fn open_at(
    base: &Path,
    tree: &[u8],
    io_mode: IoMode,
    writable: bool,
) -> Result<Overlay, OverlayError> {
    let _none_starts = STARTING.read();
    let dir = |name: &str| OwnedFd::from(File::open(path_in(base, name)).unwrap());
    let lower = if tree.is_empty() {
        LowerParts::Layers(Layers {
            roots: vec![dir("lower0"), dir("lower1")],
            space: Namespace::User,
            static_nlink: false,
        })
    } else {
        LowerParts::Tree {
            tree: Box::new(Tree::from_bytes(tree.to_vec()).unwrap()),
            chain: ChainId::first(DiffId(Sha256Digest::of(b"layer"))),
            objects: dir("objects"),
        }
    };
    Overlay::new(Config {
        lower,
        upper: writable.then(|| UpperDirs {
            upper: dir("upper"),
            work: dir("work"),
            locks: None,
        }),
        io_mode,
        rules: Rules::default(),
        journal: None,
    })
}

/// The same files as a plain directory, by system calls.
fn make_plain(root: &Path, items: &[Item<'_>]) {
    make_files(|path| root.join(path), items);
    set_old(|path| root.join(path), items);
}

fn make_files(at: impl Fn(&str) -> PathBuf, items: &[Item<'_>]) {
    use rustix::fs::{CWD, FileType as HostType, Mode, XattrFlags as Host};
    let root = at;
    for (path, mode, kind, xattrs) in items {
        let at = root(path);
        let node =
            |kind, device| rustix::fs::mknodat(CWD, &at, kind, Mode::empty(), device).unwrap();
        match kind {
            ItemKind::File(content) => fs::write(&at, content).unwrap(),
            ItemKind::Dir => fs::create_dir_all(&at).unwrap(),
            ItemKind::Link(target) => fs::hard_link(root(target), &at).unwrap(),
            ItemKind::Symlink(target) => std::os::unix::fs::symlink(target, &at).unwrap(),
            ItemKind::Fifo => node(HostType::Fifo, 0),
            ItemKind::Device(major, minor) => node(
                HostType::CharacterDevice,
                rustix::fs::makedev(*major, *minor),
            ),
        }
        if !matches!(kind, ItemKind::Symlink(_)) {
            rustix::fs::chmod(&at, Mode::from_raw_mode(*mode)).unwrap();
        }
        // The others are for trees only: no file system of Linux takes them.
        let xattrs = stored(xattrs).iter();
        for (name, value) in xattrs.filter(|(name, _)| !name.starts_with("com.")) {
            rustix::fs::lsetxattr(&at, *name, value, Host::empty()).unwrap();
        }
    }
}

fn set_old(at: impl Fn(&str) -> PathBuf, items: &[Item<'_>]) {
    use rustix::fs::{AtFlags, CWD};
    let old = cowl_core::upper::name_at::times(OLD, OLD);
    for (path, ..) in items {
        rustix::fs::utimensat(CWD, at(path), &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn meta(mode: u32, xattrs: &[(&str, &[u8])]) -> Meta {
    let xattrs = xattrs
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
        .collect();
    Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: OLD,
        xattrs,
    }
}

fn regular(base: &Path, content: &[u8]) -> Kind {
    if content.is_empty() {
        return Kind::Regular {
            size: 0,
            object: None,
            elf: false,
        };
    }
    let id = ObjectId::of(content);
    let hex = id.to_string();
    let (shard, rest) = hex.split_at(2);
    let dir = base.join("objects").join(shard);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(rest), content).unwrap();
    Kind::Regular {
        size: content.len() as u64,
        object: Some(id),
        elf: content.starts_with(b"\x7fELF"),
    }
}

pub(super) const ROOT_CALLER: Caller = Caller { uid: 0, gid: 0 };

/// The namespace of an overlay's marks.
pub(super) fn namespace(overlay: &Overlay) -> Namespace {
    let upper = overlay.upper.as_ref().unwrap();
    upper.mark_store().namespace().unwrap()
}

/// Walks to a path, without counting lookups.
pub(super) fn walk(overlay: &Overlay, path: &str) -> Result<NodeId, Errno> {
    let mut at = NodeId::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = overlay
            .resolve(at, name.as_bytes())?
            .ok_or(Errno::NOENT)?
            .id;
    }
    Ok(at)
}

/// A path's directory and last name.
pub(super) fn parent_and_name<'p>(
    overlay: &Overlay,
    path: &'p str,
) -> Result<(NodeId, &'p [u8]), Errno> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((walk(overlay, dir)?, name.as_bytes()))
}

pub(super) fn content(overlay: &Overlay, path: &str) -> Vec<u8> {
    let id = walk(overlay, path).unwrap();
    read_all(overlay, id, None)
}

pub(super) fn read_all(overlay: &Overlay, id: NodeId, handle: Option<HandleId>) -> Vec<u8> {
    let size = overlay.getattr(id).unwrap().size;
    let mut bytes = vec![0; usize::try_from(size).unwrap() + 1];
    let length = overlay.read(id, handle, 0, &mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

pub(super) fn names(overlay: &Overlay, path: &str) -> Vec<String> {
    let dir = walk(overlay, path).unwrap();
    let mut names = Vec::new();
    overlay
        .readdir(dir, 0, false, &mut |entry| {
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            true
        })
        .unwrap();
    names.retain(|name| name != "." && name != "..");
    names
}

/// What is in a directory of the host, relative paths, sorted; whiteouts of either kind as the name
/// that they hide and a `!`.
pub(super) fn on_disk(dir: &Path) -> Vec<String> {
    let device = rustix::fs::FileType::CharacterDevice;
    let entries = view::of_directory(dir).into_iter();
    let shown = entries.map(|(path, entry)| {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
        match (name.strip_prefix(".wh."), entry.kind, entry.rdev) {
            (Some(hidden), ..) if above.is_empty() => format!("{hidden}!"),
            (Some(hidden), ..) => format!("{above}/{hidden}!"),
            (None, kind, (0, 0)) if kind == device => format!("{path}!"),
            (None, ..) => path,
        }
    });
    let mut shown: Vec<String> = shown.collect();
    shown.sort();
    shown
}

pub(super) const WRITE: OpenFlags = OpenFlags {
    write: true,
    truncate: false,
    sync: false,
    kill_priv: false,
};

pub(super) fn mode(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

pub(super) fn stat(overlay: &Overlay, path: &str) -> Attr {
    overlay.getattr(walk(overlay, path).unwrap()).unwrap()
}

/// Runs all tests again as root of a user namespace: marks in `user.`, one id, no privilege in the
/// initial namespace.
#[test]
fn all_tests_pass_in_a_user_namespace() {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    if map.split_whitespace().nth(2) == Some("1") {
        return; // this is it
    }
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["overlay::", "--skip", "killed", "--skip", "all_tests_pass"])
        .args(["--skip", "where_whiteouts_are_files"])
        .args(["--skip", "where_marks_are_links"])
        .env("COWL_ALLOW_SKIP", "overlay::tests::privileges")
        .env_remove("COWL_SKIP_LOG")
        .env_remove("NEXTEST_TEST_NAME");
    let output = run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

/// Runs tests again with uppers on the kernel's overlayfs, which takes neither devices 0:0 nor
/// `RENAME_WHITEOUT`: whiteouts are files.
pub(super) fn run_on_overlayfs(tests: &[&str]) {
    let overlayfs = fs::read_to_string("/proc/filesystems").unwrap();
    if !overlayfs.contains("\toverlay\n") {
        return cowl_tests::skip::skip("the kernel has no overlayfs");
    }
    run_on(
        "-t overlay overlay -olowerdir=lower,upperdir=upper,workdir=work",
        tests,
    );
}

/// Runs tests again with uppers on a ramfs, which has no extended attributes either: marks are
/// links.
pub(super) fn run_on_ramfs(tests: &[&str]) {
    run_on("-t ramfs ramfs", tests);
}

/// Runs tests again with uppers on what `mount` mounts with these arguments.
fn run_on(mount: &str, tests: &[&str]) {
    let base = tempfile::tempdir().unwrap();
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(base.path().join(name)).unwrap();
    }
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--mount", "sh", "-c"])
        .arg(format!(
            "mount {mount} merged && COWL_TEST_UPPERS=$PWD/merged exec \"$@\""
        ))
        .arg("sh")
        .arg(std::env::current_exe().unwrap())
        .args(tests)
        .current_dir(base.path())
        .env_remove("COWL_SKIP_LOG")
        .env_remove("NEXTEST_TEST_NAME");
    let output = run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    assert!(!text.contains("running 0 tests"), "{text}");
}

#[test]
fn all_tests_pass_where_whiteouts_are_files() {
    let others = ["killed", "model", "all_tests_pass"].map(|name| ["--skip", name]);
    run_on_overlayfs(&[&["overlay::"], others.as_flattened()].concat());
}

/// But for those of attributes and holes, which a ramfs does not have.
#[test]
fn all_tests_pass_where_marks_are_links() {
    let others = [
        "killed",
        "model",
        "all_tests_pass",
        "privileges::",
        "holes",
        "listxattr",
        "read_getattr_and_rename",
        "erofs",
    ];
    let others = others.map(|name| ["--skip", name]);
    run_on_ramfs(&[&["overlay::"], others.as_flattened()].concat());
}
