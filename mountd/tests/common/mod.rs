//! Images made of lists, and mounts of them that end with the test.
//!
//! A mount is used by its descriptor (`/proc/self/fd/N/...`) and attached nowhere, so nothing can
//! stay behind in the host's tree; it is gone when the descriptor is closed.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Instant, SystemTime};

use cowl_core::digest::{DiffId, ObjectId, Sha256Digest};
use cowl_core::handover::{
    self, IdMap, IoMode, IoModeChoice, MountError, MountSources, Mounted, UpperSource,
};
use cowl_core::tree::{Kind, LayerBuilder, Meta, Timestamp, Tree, merge};
use cowl_tests::host::kernel_has_passthrough;
use cowl_tests::profile::{NEVER, test_path};
use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The I/O modes that a mount of this test's can have.
pub fn modes() -> Vec<IoModeChoice> {
    let passthrough = kernel_has_passthrough().then_some(IoModeChoice::Passthrough);
    let others = [IoModeChoice::Cached, IoModeChoice::Writeback];
    passthrough.into_iter().chain(others).collect()
}

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cowl-mountd");

/// A process started while another test has a lease open holds a copy of it until it executes: one
/// at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Says to a test that it is where it belongs.
const HERE: &str = "COWL_TEST_PLACE";

/// A place where mounts can be attached.
pub const OWN_MOUNTS: &[&str] = &["unshare", "-m"];

/// A place of root without any right outside.
pub const USER_NAMESPACE: &[&str] = &["unshare", "-Urm"];

/// Runs this test again by way of `place`, a command that starts another.
pub fn there(place: &[&str]) {
    let own = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(place[0]);
    command
        .args(&place[1..])
        .arg(own)
        .args(["--exact", &test_path(), "--nocapture"])
        .env(HERE, "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("1 passed"), "{said}");
}

pub fn is_here() -> bool {
    std::env::var_os(HERE).is_some()
}

/// Whether something comes to be so. For what has nothing to wait on, as `/proc` has not.
pub fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + NEVER;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// What a merged tree and its objects are on disk; or plain directories, as `Image::LAYERS`.
pub struct Image {
    directory: TempDir,
    pub chain: [u8; 32],
    is_layers: bool,
}

impl Image {
    /// Regular files by path and content, root's, 0644; directories come by themselves.
    pub fn of(files: &[(&str, &[u8])]) -> Self {
        Self::build(|builder, objects| {
            for (path, content) in files {
                objects.add_file(builder, path, content, 0o644);
            }
        })
    }

    /// The same files as an image and as a plain directory, which is at the path.
    pub fn beside_plain(files: &[(&str, &[u8])]) -> (Self, PathBuf) {
        let image = Self::of(files);
        let plain = image.path("plain");
        for (path, content) in files {
            let path = plain.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        // The layer does not name its directories: their time is 0.
        for (path, entry) in cowl_tests::tree::below(&plain) {
            if entry.kind == FileType::Directory {
                let directory = File::open(plain.join(path)).unwrap();
                directory.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
        }
        (image, plain)
    }

    /// Of plain directories, the top one first.
    const LAYERS: [&str; 2] = ["layer0", "layer1"];

    /// The same files as layers of plain directories, every other one in the lower layer, and as
    /// one directory, which is at the path. The upper layer hides a file and a directory of the
    /// lower one.
    pub fn layers_beside_plain(files: &[(&str, &[u8])]) -> (Self, PathBuf) {
        let (image, plain) = Self::beside_plain(files);
        let put = |layer: &str, path: &str, content: &[u8]| {
            let path = image.path(layer).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        };
        for (number, (path, content)) in files.iter().enumerate() {
            let [top, bottom] = Self::LAYERS;
            put(if number % 2 == 0 { top } else { bottom }, path, content);
            if number % 2 == 0 {
                put(bottom, path, b"hidden by the layer above");
            }
        }
        put("layer0", ".wh.gone", b"");
        put("layer1", "gone/file", b"whited out");
        for layer in Self::LAYERS {
            for (path, entry) in cowl_tests::tree::below(&image.path(layer)) {
                if entry.kind == FileType::Directory {
                    let directory = File::open(image.path(layer).join(path)).unwrap();
                    directory.set_modified(SystemTime::UNIX_EPOCH).unwrap();
                }
            }
        }
        let is_layers = true;
        (Self { is_layers, ..image }, plain)
    }

    pub fn build(fill: impl FnOnce(&mut LayerBuilder, &Objects)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects(directory.path().join("objects"));
        fs::create_dir(&objects.0).unwrap();
        let mut builder = LayerBuilder::new();
        fill(&mut builder, &objects);
        let layer =
            Tree::from_bytes(builder.finish(DiffId(Sha256Digest::of(b"layer"))).unwrap()).unwrap();
        fs::write(directory.path().join("tree"), merge(&[layer]).unwrap()).unwrap();
        fs::write(directory.path().join("lease"), "").unwrap();
        Self {
            directory,
            chain: [7; 32],
            is_layers: false,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The log lines of every mount of this image.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Whether the lease is held.
    pub fn is_leased(&self) -> bool {
        let _alone = ALONE.lock();
        let lease = File::open(self.path("lease")).unwrap();
        rustix::fs::flock(&lease, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    }

    pub fn mount(&self, choice: IoModeChoice) -> Mount {
        self.try_mount(choice, None).unwrap()
    }

    /// A writable mount, over the upper and work directories `name` and `name.work` beside the
    /// image.
    pub fn mount_writable(&self, choice: IoModeChoice, name: &str) -> Mount {
        self.try_mount(choice, Some(name)).unwrap()
    }

    /// What is said of a mount that is refused.
    pub fn refusal(&self, choice: IoModeChoice, upper: Option<&str>) -> String {
        let refused = self.try_mount(choice, upper).err().unwrap();
        refused.to_string()
    }

    pub fn try_mount(
        &self,
        choice: IoModeChoice,
        upper: Option<&str>,
    ) -> Result<Mount, MountError> {
        self.try_mount_with(choice, upper, None)
    }

    /// A mount whose worker answers on `control`.
    pub fn mount_controlled(&self, choice: IoModeChoice, name: &str, control: &OwnedFd) -> Mount {
        let control = Some(control.as_fd());
        self.try_mount_with(choice, Some(name), control).unwrap()
    }

    fn try_mount_with(
        &self,
        choice: IoModeChoice,
        upper: Option<&str>,
        control: Option<BorrowedFd<'_>>,
    ) -> Result<Mount, MountError> {
        let _alone = ALONE.lock();
        if self.is_layers {
            return Ok(self.mount_layers(choice, upper.unwrap()));
        }
        let lease = File::open(self.path("lease")).unwrap();
        rustix::fs::flock(&lease, rustix::fs::FlockOperation::LockShared).unwrap();
        let log = self.log_to_write();
        let directories = upper.map(|name| {
            [name.to_owned(), format!("{name}.work")].map(|name| {
                fs::create_dir_all(self.path(&name)).unwrap();
                File::open(self.path(&name)).unwrap()
            })
        });
        let [tree, objects] = ["tree", "objects"].map(|name| File::open(self.path(name)).unwrap());
        let sources = MountSources {
            name: "test:image",
            chain: self.chain,
            io_mode: choice,
            ids: &IdMap::default(),
            tree: tree.as_fd(),
            objects: objects.as_fd(),
            lease: lease.as_fd(),
            upper: directories.as_ref().map(|[upper, work]| UpperSource {
                upper: upper.as_fd(),
                work: work.as_fd(),
                volatile: false,
            }),
            control,
            log: Some(log.as_fd()),
        };
        handover::mount(Path::new(PROGRAM), &sources).map(
            |Mounted {
                 ready,
                 mount,
                 keeper,
             }| Mount {
                io_mode: ready.io_mode,
                worker: ready.worker,
                root: Some(mount),
                holder: keeper.id(),
                keeper,
            },
        )
    }

    fn log_to_write(&self) -> File {
        let mut options = File::options();
        let log = options.append(true).create(true).open(self.path("log"));
        log.unwrap()
    }

    /// A mount of the layers by fuse-overlayfs's command line, in the foreground. It is attached
    /// for a moment only. For a test in a mount namespace of its own ([`there`]).
    fn mount_layers(&self, choice: IoModeChoice, upper: &str) -> Mount {
        let at = self.path("mnt");
        for name in [upper, &format!("{upper}.work"), "mnt"] {
            fs::create_dir_all(self.path(name)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={upper},workdir={upper}.work,io={choice},redirect_dir=on,metacopy=on",
            Self::LAYERS.join(":"),
        );
        let mut command = std::process::Command::new(PROGRAM);
        command.args(["-f", "-o", &options, "mnt"]);
        command.current_dir(self.directory.path());
        let keeper = command.stderr(self.log_to_write()).spawn().unwrap();
        let below = fs::metadata(&at).unwrap().dev();
        let is_mounted = || fs::metadata(&at).unwrap().dev() != below;
        assert!(eventually(is_mounted), "{}", self.log());
        let root = File::open(&at).unwrap().into();
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
        let holder = only_child(keeper.id()).unwrap();
        Mount {
            io_mode: choice.mode(),
            worker: only_child(holder).unwrap(),
            root: Some(root),
            holder,
            keeper,
        }
    }
}

/// A directory of objects.
pub struct Objects(PathBuf);

impl Objects {
    pub fn add(&self, content: &[u8]) -> Option<ObjectId> {
        if content.is_empty() {
            return None;
        }
        let id = ObjectId::of(content);
        let name = id.to_string();
        let (shard, rest) = name.split_at(2);
        fs::create_dir_all(self.0.join(shard)).unwrap();
        fs::write(self.0.join(shard).join(rest), content).unwrap();
        Some(id)
    }

    pub fn add_file(&self, builder: &mut LayerBuilder, path: &str, content: &[u8], mode: u32) {
        let kind = Kind::Regular {
            size: content.len().try_into().unwrap(),
            object: self.add(content),
            elf: content.starts_with(b"\x7fELF"),
        };
        builder.insert(&components(path), meta(mode), kind).unwrap();
    }
}

pub fn components(path: &str) -> Vec<&[u8]> {
    path.split('/').map(str::as_bytes).collect()
}

pub fn meta(mode: u32) -> Meta {
    Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            secs: 1_700_000_000,
            nanos: 123_456_789,
        },
        xattrs: Vec::new(),
    }
}

/// A mount that answers.
pub struct Mount {
    pub io_mode: IoMode,
    pub worker: u32,
    pub root: Option<OwnedFd>,
    /// The process whose child the worker is.
    pub holder: u32,
    /// The process that was started for the mount, and ends with it.
    pub keeper: Child,
}

fn only_child(process: u32) -> Option<u32> {
    let children = format!("/proc/{process}/task/{process}/children");
    let children = fs::read_to_string(children).ok()?;
    Some(children.split_whitespace().next()?.parse().unwrap())
}

impl Mount {
    pub fn path(&self, below: &str) -> PathBuf {
        let mount = self.root.as_ref().unwrap().as_raw_fd();
        PathBuf::from(format!("/proc/self/fd/{mount}/{below}"))
    }

    /// The same for a process that has not inherited the mount.
    pub fn path_for_others(&self, below: &str) -> PathBuf {
        let mount = self.root.as_ref().unwrap().as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{mount}/{below}", std::process::id()))
    }

    /// Requests of a kind so far.
    pub fn count(&self, name: &str) -> u64 {
        self.counts()
            .into_iter()
            .find(|(kind, _)| *kind == name)
            .map_or(0, |(_, count)| count)
    }

    /// All requests so far.
    pub fn requests(&self) -> u64 {
        self.counts().into_iter().map(|(_, count)| count).sum()
    }

    /// Requests so far, by kind.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = cowl_mountd::counters::read(&self.path(""))
            .unwrap()
            .unwrap();
        counts
            .into_iter()
            .map(|(code, count)| (cowl_sys::opcode::name(code).unwrap_or("?"), count))
            .collect()
    }

    /// What the descriptors of the worker are, or of the keeper.
    pub fn descriptors(process: u32) -> Vec<PathBuf> {
        let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        // One that is closed meanwhile is not open.
        open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
            .collect()
    }

    /// The worker: the keeper's only child; none while there is none.
    pub fn current_worker(&self) -> Option<Pid> {
        Pid::from_raw(only_child(self.holder)?.cast_signed())
    }

    /// Kills the worker; false if there is none just now.
    pub fn kill_worker(&self) -> bool {
        self.current_worker()
            .is_some_and(|worker| kill_process(worker, Signal::KILL).is_ok())
    }

    pub fn unmount(mut self) -> ExitStatus {
        drop(self.root.take());
        self.keeper.wait().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(self.root.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("keeper: {error}");
        }
    }
}

/// Contents of any size that are not zeroes.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; size];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// All of a file, by one open.
pub fn read_all(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    Read::read_to_end(file, &mut bytes).unwrap();
    bytes
}

pub fn write_all(file: &mut File, bytes: &[u8]) {
    file.write_all(bytes).unwrap();
}
