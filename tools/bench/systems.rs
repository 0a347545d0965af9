//! The compared file systems: mounting each over a lower, and unmounting it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::process::Pid;

use crate::command::{find, program, run};
use crate::options::Common;
use crate::output::say;
use crate::servers::{end_of, holders, wait_for};

/// The common lower, and the directories for each system's files.
#[derive(Debug)]
pub(crate) struct Ground {
    place: PathBuf,
    bin: PathBuf,
    /// Whether this is root of the initial user namespace.
    is_root: bool,
}

/// The image that cowl's systems mount.
pub(crate) const IMAGE: &str = "bench";

impl Ground {
    pub(crate) fn new(place: &Path, bin: Option<&Path>) -> Result<Self> {
        let own = std::env::current_exe().context("this program's path")?;
        let bin = bin
            .or_else(|| own.parent())
            .context("no directory of binaries")?;
        let ground = Self {
            place: place.to_owned(),
            bin: std::path::absolute(bin).context("the directory of binaries")?,
            is_root: cowl_sys::userns::is_initial().context("/proc/self/uid_map")?
                && rustix::process::geteuid().is_root(),
        };
        for name in ["cowl", "cowl-mountd"] {
            find(&ground.bin.join(name))?;
        }
        Ok(ground)
    }

    /// The lower of all systems.
    pub(crate) fn base(&self) -> PathBuf {
        self.place.join("base")
    }

    /// A directory for files outside the lower.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.is_root
    }

    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Imports the lower as an image; called when the lower is complete.
    pub(crate) fn import(&self) -> Result<()> {
        let archive = self.scratch("base.tar");
        run(program("tar", ["-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(self.base())
            .arg("."))?;
        run(self.cowl(["import"]).arg(&archive).arg(IMAGE))?;
        std::fs::remove_file(&archive).with_context(|| archive.display().to_string())
    }

    /// The directory of cowl's binaries.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    pub(crate) fn cowl<const N: usize>(&self, arguments: [&str; N]) -> std::process::Command {
        let mut command = program(self.bin.join("cowl"), ["--root"]);
        command.arg(self.place.join("store")).args(arguments);
        command
    }
}

/// The kind of lower in a cowl mount.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Lower {
    Image,
    Directories,
}

/// A file system with a name.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Native,
    Overlayfs,
    Cowl(Lower, &'static str),
    Peer(PathBuf),
}

/// A mounted system with its own upper.
#[derive(Debug)]
pub(crate) struct Mounted {
    room: PathBuf,
    point: PathBuf,
    /// The processes that serve it.
    pub(crate) servers: Vec<Pid>,
    ends: Vec<OwnedFd>,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }
}

impl System {
    fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
        }
    }

    /// Whether it is served by processes.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.kind, Kind::Cowl(..) | Kind::Peer(_))
    }

    /// Mounts it in a new directory.
    pub(crate) fn mount(&self, ground: &Ground) -> Result<Mounted> {
        let room = tempfile::Builder::new()
            .prefix("mount-")
            .tempdir_in(&ground.place)
            .context("a directory for a mount")?
            .keep();
        let [upper, work, point] = ["upper", "work", "mnt"].map(|name| room.join(name));
        for directory in [&upper, &work, &point] {
            std::fs::create_dir(directory).context("a directory for a mount")?;
        }
        let before = holders()?;
        self.attach(ground, &upper, &work, &point)
            .with_context(|| self.name.clone())?;
        let mut servers = holders()?;
        servers.retain(|process| !before.contains(process));
        let mut ends = Vec::new();
        for server in &servers {
            ends.extend(end_of(*server)?);
        }
        if self.is_served() && servers.is_empty() {
            bail!("{}: no process with /dev/fuse serves it", self.name);
        }
        Ok(Mounted {
            room,
            point,
            servers,
            ends,
        })
    }

    fn attach(&self, ground: &Ground, upper: &Path, work: &Path, point: &Path) -> Result<()> {
        let layers = || {
            let mut options = OsString::from("lowerdir=");
            for (name, path) in [
                ("", &*ground.base()),
                (",upperdir=", upper),
                (",workdir=", work),
            ] {
                options.push(name);
                options.push(path);
            }
            options
        };
        let mut command = match &self.kind {
            Kind::Native => {
                let mut command = program("cp", ["-a", "--reflink=auto"]);
                command.arg(ground.base().join("."));
                command
            }
            Kind::Overlayfs => {
                let mut options = layers();
                if !ground.is_root {
                    options.push(",userxattr");
                }
                let mut command = program("mount", ["-t", "overlay", "overlay", "-o"]);
                command.arg(options);
                command
            }
            Kind::Cowl(Lower::Image, mode) => {
                let mut command = ground.cowl(["mount", "--io", mode, "--upper"]);
                command.arg(upper).arg("--work").arg(work).arg(IMAGE);
                command
            }
            Kind::Cowl(Lower::Directories, mode) => {
                let mut options = layers();
                options.push(",io=");
                options.push(mode);
                let mut command = program(ground.bin.join("cowl-mountd"), ["-o"]);
                command.arg(options);
                command
            }
            Kind::Peer(path) => {
                let mut command = program(path, ["-o"]);
                command.arg(layers());
                command
            }
        };
        run(command.arg(point)).map(drop)
    }

    /// Unmounts it, waits for the end of its processes, and removes its files.
    pub(crate) fn unmount(&self, ground: &Ground, mounted: &Mounted) -> Result<()> {
        let done = match &self.kind {
            Kind::Native => Ok(String::new()),
            Kind::Cowl(Lower::Image, _) => run(ground.cowl(["umount"]).arg(&mounted.point)),
            _ => run(&mut program("umount", [&mounted.point])),
        };
        done.with_context(|| self.name.clone())?;
        for end in &mounted.ends {
            wait_for(end).with_context(|| self.name.clone())?;
        }
        run(program("rm", ["-rf", "--one-file-system"]).arg(&mounted.room)).map(drop)
    }
}

/// The systems selected on the command line, in the order of the columns: the baseline comes first.
/// The lower and the image must exist.
pub(crate) fn wanted(
    common: &Common,
    ground: &Ground,
    fits: impl Fn(&System) -> bool,
) -> Result<Vec<System>> {
    let all = candidates(common)?;
    let mut chosen: Vec<System> = Vec::new();
    for name in &common.system {
        let found: Vec<&System> = all
            .iter()
            .filter(|one| one.name.starts_with(name))
            .collect();
        if found.is_empty() {
            let names: Vec<&str> = all.iter().map(|system| system.name.as_str()).collect();
            bail!("no system {name:?}; known are: {}", names.join(", "));
        }
        for system in found {
            if !chosen.iter().any(|one| one.name == system.name) {
                chosen.push(system.clone());
            }
        }
    }
    if common.system.is_empty() {
        chosen = all;
    }
    let mut working = Vec::new();
    for system in chosen.into_iter().filter(fits) {
        match system.mount(ground) {
            Ok(mounted) => {
                system.unmount(ground, &mounted)?;
                working.push(system);
            }
            // Without this system there is nothing to measure.
            Err(error) if matches!(system.kind, Kind::Cowl(_, "cached")) => return Err(error),
            Err(error) => say(&format!("left out: {error:#}"))?,
        }
    }
    if working.is_empty() {
        bail!("no system is left to measure");
    }
    Ok(working)
}

fn candidates(common: &Common) -> Result<Vec<System>> {
    let mut all = vec![
        System::new("overlayfs", Kind::Overlayfs),
        System::new("native", Kind::Native),
    ];
    for (what, lower) in [("image", Lower::Image), ("dirs", Lower::Directories)] {
        for mode in ["cached", "passthrough", "writeback"] {
            let name = format!("cowl {what} {mode}");
            all.push(System::new(name, Kind::Cowl(lower, mode)));
        }
    }
    for peer in &common.peer {
        all.push(peer_at(&find(peer)?)?);
    }
    if common.peer.is_empty() {
        match find(Path::new("fuse-overlayfs")) {
            Ok(path) => all.push(peer_at(&path)?),
            Err(error) => say(&format!("left out: {error:#}"))?,
        }
    }
    Ok(all)
}

/// A peer, named by its own name and version. Its output has those of libfuse and fusermount too,
/// each on a line of its own.
fn peer_at(path: &Path) -> Result<System> {
    let said = run(&mut program(path, ["--version"]))?;
    let name = said.lines().find(|line| line.starts_with("fuse-overlayfs"));
    let name = name.map_or_else(
        || path.display().to_string(),
        |line| line.replace(": version", ""),
    );
    Ok(System::new(name, Kind::Peer(path.to_owned())))
}
