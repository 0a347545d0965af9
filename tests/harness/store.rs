//! A cowl store, and guards for what is mounted from it.
//!
//! Only the test and its `cowl` commands use the store. Guards unmount at the end of their scope;
//! in a failing test that is left to the end of its namespaces.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{Outcome, binary, fixture, program, run, shell, system};
use crate::profile::directory;
use crate::tree::{self, Tree};

/// A store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    io_mode: Option<&'static str>,
}

impl Store {
    /// A store named `name` in the running test's directory; the first `cowl load` or `import`
    /// creates it.
    pub fn new(name: &str) -> Self {
        Self {
            root: directory().join(name),
            io_mode: None,
        }
    }

    /// The same store with mounts by `--io MODE`.
    #[must_use]
    pub fn with_io(&self, mode: &'static str) -> Self {
        Self {
            io_mode: Some(mode),
            ..self.clone()
        }
    }

    /// A new store with nothing in it.
    #[track_caller]
    pub fn empty(name: &str) -> Self {
        let store = Self::new(name);
        for command in ["create", "rm"] {
            store.ok(["volume", command, "first"]);
        }
        store
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The store at `root`.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            io_mode: None,
        }
    }

    /// The command `cowl --root STORE ARGUMENTS`, not started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary("cowl"));
        command
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        run(&mut self.command(arguments))
    }

    /// Runs a command that must succeed; returns its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.run(arguments).ok()
    }

    /// `cowl load -i FILE`.
    #[track_caller]
    pub fn load(&self, archive: &Path) -> String {
        self.ok([OsStr::new("load"), OsStr::new("-i"), archive.as_os_str()])
    }

    /// Packs a directory with GNU tar and imports it as `image`.
    #[track_caller]
    pub fn import_directory(&self, content: &Path, image: &str) {
        let archive = directory().join("import.tar");
        pack(content, &archive);
        self.ok([OsStr::new("import"), archive.as_os_str(), OsStr::new(image)]);
        std::fs::remove_file(archive).unwrap();
    }

    /// Mounts `image` read-only at a new directory `name` of the running test.
    #[track_caller]
    pub fn mount(&self, image: &str, name: &str) -> Mount<'_> {
        let point = directory().join(name);
        std::fs::create_dir(&point).unwrap();
        Mount::new(self, image, point, None)
    }

    /// Mounts `image` at `name` with the upper `name.upper`, created if missing: mounting again
    /// shows the changes.
    #[track_caller]
    pub fn mount_upper(&self, image: &str, name: &str) -> Mount<'_> {
        let (point, upper) = (
            directory().join(name),
            directory().join(format!("{name}.upper")),
        );
        for made in [&point, &upper] {
            std::fs::create_dir_all(made).unwrap();
        }
        Mount::new(self, image, point, Some(upper))
    }

    /// Mounts `image`, compares it with the expected tree, and unmounts it.
    #[track_caller]
    pub fn assert_shows(&self, image: &str, expected: &Tree, what: &str) {
        let mount = self.mount(image, "shown");
        tree::assert_same(expected, &tree::read(mount.path()), what);
        let point = mount.path().to_owned();
        mount.unmount();
        std::fs::remove_dir(point).unwrap();
    }

    /// Every object's path, size, mode, time and content hash, as the system's own tools see them.
    pub fn objects(&self) -> String {
        shell(
            &self.root,
            "find objects -type f -exec stat -c '%n %s %a %Y' {} + | sort; find objects -type f -exec sha256sum {} + | sort",
            [""; 0],
        )
    }

    /// Every object's path and size.
    pub fn objects_by_name(&self) -> String {
        shell(
            &self.root,
            "find objects -type f -exec stat -c '%n %s' {} + | sort",
            [""; 0],
        )
    }
}

/// Packs a directory with GNU tar: PAX headers, numeric ids, extended attributes, sub-second times.
#[track_caller]
pub fn pack(content: &Path, archive: &Path) {
    let arguments = [
        "--create",
        "--format=posix",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--sort=name",
        "--file",
    ];
    let mut command = program("tar", arguments);
    run(command
        .arg(archive)
        .arg("--directory")
        .arg(content)
        .arg("."))
    .ok();
}

/// Makes an image archive of layer tars, bottom first. `kind`: docker or oci (see
/// fixtures/mkimage.py).
#[track_caller]
pub fn make_image(kind: &str, archive: &Path, tag: &str, options: &[&str], layers: &[&Path]) {
    let mut arguments: Vec<&OsStr> = vec![OsStr::new("-B")];
    let maker = fixture("mkimage.py");
    arguments.push(maker.as_os_str());
    arguments.extend([
        OsStr::new(kind),
        archive.as_os_str(),
        OsStr::new("--tag"),
        OsStr::new(tag),
    ]);
    arguments.extend(options.iter().map(OsStr::new));
    arguments.extend(layers.iter().map(|layer| layer.as_os_str()));
    system("python3", arguments);
}

/// Extracts a stack of layers, bottom first, by GNU tar (fixtures/extract.py) to `to`.
#[track_caller]
pub fn extract<L: AsRef<OsStr>>(to: &Path, layers: impl IntoIterator<Item = L>) -> Tree {
    let mut command = program("python3", ["-B"]);
    run(command.arg(fixture("extract.py")).arg(to).args(layers)).ok();
    tree::read(to)
}

/// A mounted image; unmounted at the end of its scope.
#[derive(Debug)]
pub struct Mount<'s> {
    store: &'s Store,
    image: String,
    point: PathBuf,
    upper: Option<PathBuf>,
    mounted: bool,
}

impl<'s> Mount<'s> {
    #[track_caller]
    fn new(store: &'s Store, image: &str, point: PathBuf, upper: Option<PathBuf>) -> Self {
        let mut mount = Self {
            store,
            image: image.to_owned(),
            point,
            upper,
            mounted: false,
        };
        mount.attach();
        mount
    }

    #[track_caller]
    fn attach(&mut self) {
        let mut command = self.store.command(["mount", &self.image]);
        command.arg(&self.point);
        if let Some(upper) = &self.upper {
            command.arg("--upper").arg(upper);
        }
        if let Some(io_mode) = self.store.io_mode {
            command.args(["--io", io_mode]);
        }
        run(&mut command).ok();
        self.mounted = true;
        let kind = mounted_kind(&self.point);
        assert!(
            kind.as_deref().is_some_and(|kind| kind.starts_with("fuse")),
            "{} carries {kind:?}",
            self.point.display()
        );
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// The upper directory of a writable mount.
    pub fn upper(&self) -> &Path {
        self.upper.as_deref().expect("a mount with an upper")
    }

    /// Unmounts it and mounts it again over the same upper.
    #[track_caller]
    pub fn remount(&mut self) {
        self.detach();
        self.attach();
    }

    /// Takes it down.
    #[track_caller]
    pub fn unmount(mut self) {
        self.detach();
    }

    /// Tells the guard that something else has unmounted it.
    pub fn forget(mut self) {
        self.mounted = false;
    }

    #[track_caller]
    fn detach(&mut self) {
        self.mounted = false;
        self.store
            .ok([OsStr::new("umount"), self.point.as_os_str()]);
    }
}

/// The type of the file system mounted exactly at this path.
pub fn mounted_kind(point: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = table
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4).map(Path::new) == Some(point))?;
    found
        .split_once(" - ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .map(str::to_owned)
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if self.mounted && !std::thread::panicking() {
            self.detach();
        }
    }
}
