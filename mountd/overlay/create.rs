//! Creation: files, directories, links and unnamed files, created with their final owner, mode and
//! ACL.
//!
//! Where the upper has nothing at the name, a file is created there, in one step. Where it
//! replaces a whiteout, needs a mark first, or could have an earlier file's, it is created in a
//! staging directory in `work/tmp`, which hands down group and default ACL as the parent would,
//! and renamed into place.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cowl_core::tree::{FileType, Rdev};
use cowl_core::upper::marks::{self, Mark};
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::whiteouts::Whiteouts;
use cowl_core::upper::{Upper, remove_temporary};
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::copyup::make_special;
use super::dir::{Target, Under};
use super::event::Event;
use super::files::RealFile;
use super::lookup::check_new_name;
use super::node::{Home, UpperFile};
use super::remove::end_whiteout;
use super::types::{Caller, Entry, Errno, LowerIno, NodeId, OpenFlags, Opened};
use super::{Overlay, new_file};
use crate::journal::Intent;

const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const SGID: u32 = 0o2000;

/// The type of a new file.
#[derive(Copy, Clone, Debug)]
pub(super) enum Kind<'k> {
    Regular,
    Directory,
    Symlink(&'k [u8]),
    Special(FileType, Rdev),
}

/// Owner and mode of a new file.
#[derive(Copy, Clone, Debug)]
pub(super) struct NewFile {
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) caller: Caller,
}

impl Kind<'_> {
    fn file_type(self) -> FileType {
        match self {
            Kind::Regular => FileType::Regular,
            Kind::Directory => FileType::Directory,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::Special(file_type, _) => file_type,
        }
    }

    /// Whether this is a character device 0:0, which the upper would read as a whiteout.
    fn is_null_device(self) -> bool {
        matches!(
            self,
            Kind::Special(FileType::CharDevice, Rdev { major: 0, minor: 0 })
        )
    }
}

impl Overlay {
    /// Creates a file of any type but a directory or a symbolic link.
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of mknod(2), and the caller"
    )]
    pub fn mknod(
        &self,
        parent: NodeId,
        name: &[u8],
        file_type: FileType,
        mode: u32,
        rdev: Rdev,
        umask: u32,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let kind = match file_type {
            FileType::Regular => Kind::Regular,
            FileType::Directory => return Err(Errno::PERM),
            FileType::Symlink => return Err(Errno::INVAL),
            FileType::CharDevice | FileType::BlockDevice => Kind::Special(file_type, rdev),
            FileType::Fifo | FileType::Socket => Kind::Special(file_type, Rdev::default()),
        };
        let (entry, file) = self.make(
            parent,
            name,
            kind,
            NewFile {
                mode,
                umask,
                caller: *caller,
            },
        )?;
        if let Some(file) = file.filter(|_| file_type == FileType::Regular) {
            // It is written next, as a rule.
            let file = RealFile::upper(Arc::new(file.into()));
            self.files.put(entry.id, true, file);
        }
        Ok(entry)
    }

    /// Creates a directory.
    pub fn mkdir(
        &self,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let wanted = NewFile {
            mode,
            umask,
            caller: *caller,
        };
        self.make(parent, name, Kind::Directory, wanted)
            .map(|(entry, _)| entry)
    }

    /// Creates a symbolic link.
    pub fn symlink(
        &self,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let wanted = NewFile {
            mode: 0o777,
            umask: 0,
            caller: *caller,
        };
        self.make(parent, name, Kind::Symlink(target), wanted)
            .map(|(entry, _)| entry)
    }

    /// Creates a regular file and opens it. EEXIST if the name exists, even without O_EXCL: the
    /// kernel has looked it up before.
    pub fn create(
        &self,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: OpenFlags,
        caller: &Caller,
    ) -> Result<(Entry, Opened), Errno> {
        let wanted = NewFile {
            mode,
            umask,
            caller: *caller,
        };
        let (mut entry, file) = self.make(parent, name, Kind::Regular, wanted)?;
        let opened = self.open_new(&mut entry, flags.write, file.ok_or(Errno::IO)?)?;
        Ok((entry, opened))
    }

    /// Creates an unnamed regular file and opens it (`O_TMPFILE`).
    pub fn tmpfile(
        &self,
        parent: NodeId,
        mode: u32,
        umask: u32,
        flags: OpenFlags,
        caller: &Caller,
    ) -> Result<(Entry, Opened), Errno> {
        let upper = self.writable()?;
        self.copy_up_dir(parent)?;
        let staging = self.staging(upper, parent)?;
        let name_at = NameAt::new(staging.dir.as_fd(), b"f");
        let number = upper.new_number();
        self.intend(Intent::Unnamed { number });
        let wanted = NewFile {
            mode,
            umask,
            caller: *caller,
        };
        let made = create_file(name_at, Kind::Regular, wanted).and_then(|file| {
            upper.mark_new(name_at)?;
            let host = name_at.stat()?.stx_ino;
            name_at.rename_new(NameAt::new(upper.orphans(), number.to_string().as_bytes()))?;
            Ok((file, host))
        });
        staging.close(upper);
        let (file, host) = made?;
        let file_on_disk = UpperFile {
            home: Home::Orphan(number),
            ..new_file(host)
        };
        let id = self.enter_new(FileType::Regular, file_on_disk, |_| Vec::new());
        let attr = self.getattr(id)?;
        let mut entry = Entry {
            id,
            attr,
            settled: true,
        };
        let opened = self.open_new(&mut entry, flags.write, file.ok_or(Errno::IO)?)?;
        Ok((entry, opened))
    }

    fn open_new(&self, new: &mut Entry, write: bool, file: OwnedFd) -> Result<Opened, Errno> {
        let _guard = self.busy.lock(&[new.id]);
        let file = Arc::new(file.into());
        let opened = self.register_open(new.id, write, Some((new.attr.mode, file)))?;
        new.settled = !opened.unsettles;
        Ok(opened)
    }

    fn make(
        &self,
        parent: NodeId,
        name: &[u8],
        kind: Kind<'_>,
        wanted: NewFile,
    ) -> Result<(Entry, Option<OwnedFd>), Errno> {
        let upper = self.writable()?;
        check_new_name(upper, name)?;
        if self.resolve(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.copy_up_dir(parent)?;
        let _guard = self.busy.lock(&[parent]);
        if self.is_gone(parent) {
            return Err(Errno::NOENT);
        }
        if self.resolve(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let under = self.under(parent, name)?;
        let whiteout = self.dirent(parent, name).is_some();
        let opaque = matches!(kind, Kind::Directory) && under == Under::Directory;
        let device = kind.is_null_device();
        let place = self.place_in(parent, name)?;
        // A file beside its whiteout needs no staging. Without ACLs none may be handed down by the
        // directory itself.
        let in_its_place = whiteout && upper.whiteouts() == Whiteouts::Devices;
        let staged = in_its_place || opaque || device;
        let fd = if staged || self.rules.no_acl || upper.stages_new_files() {
            self.make_in_staging(
                upper,
                parent,
                place.name_at(),
                kind,
                wanted,
                Special {
                    whiteout,
                    opaque,
                    device,
                },
            )?
        } else {
            create_file(place.name_at(), kind, wanted)?
        };
        if whiteout {
            end_whiteout(upper, place.name_at());
        }
        let stat = place.name_at().stat()?;
        let file = UpperFile {
            opaque,
            device,
            ..new_file(stat.stx_ino)
        };
        let file_type = kind.file_type();
        let attr = self.attr_of_host(&stat, &file, file_type);
        let id = self.enter_new(file_type, file, |id| {
            let mut events = Vec::new();
            if file_type == FileType::Directory {
                // It is empty, so it needs no listing.
                events.push(Event::DirRead {
                    dir: id,
                    subdirs: 0,
                    visible: 0,
                    impure: false,
                    names: Vec::new(),
                });
            }
            events.push(Event::Named {
                dir: parent,
                name: name.into(),
                node: id,
                file_type,
                under,
            });
            events
        });
        let settled = true;
        Ok((Entry { id, attr, settled }, fd))
    }

    /// Adds a new file to the state, counted as looked up, and returns its id.
    fn enter_new(
        &self,
        file_type: FileType,
        file: UpperFile,
        more: impl FnOnce(NodeId) -> Vec<Event>,
    ) -> NodeId {
        let mut id = NodeId::ROOT;
        self.commit(|state| {
            id = state.next_created();
            let mut events = vec![Event::Copied {
                node: id,
                file_type,
                origin: None,
                file,
            }];
            events.extend(more(id));
            events.push(Event::Looked { node: id });
            events
        });
        id
    }

    fn make_in_staging(
        &self,
        upper: &Upper,
        parent: NodeId,
        to: NameAt<'_>,
        kind: Kind<'_>,
        wanted: NewFile,
        special: Special,
    ) -> Result<Option<OwnedFd>, Errno> {
        if special.device {
            self.mark_impure(parent)?;
        }
        let staging = self.staging(upper, parent)?;
        let name_at = NameAt::new(staging.dir.as_fd(), b"f");
        let store = upper.mark_store();
        let made = create_file(
            name_at,
            if special.device { Kind::Regular } else { kind },
            wanted,
        )
        .and_then(|fd| {
            upper.mark_new(name_at)?;
            if special.opaque {
                name_at.set_mark(store, Mark::Opaque, marks::YES)?;
            }
            if special.device {
                let file = UpperFile {
                    device: true,
                    ..new_file(0)
                };
                self.write_mark(name_at, FileType::Regular, &file, None)?;
            }
            let directory = matches!(kind, Kind::Directory);
            upper.move_in(name_at, to, directory, special.whiteout)?;
            Ok(fd)
        });
        staging.close(upper);
        made
    }

    /// Creates a staging directory in `work/tmp` with the set-group-id, group and default ACL of
    /// `parent`, for new files to inherit.
    fn staging(&self, upper: &Upper, parent: NodeId) -> Result<Staging, Errno> {
        let parent = self.dir_fd(parent)?;
        let parent = NameAt::new(parent.as_fd(), b".");
        let name = upper.new_name();
        let name_at = NameAt::new(upper.tmp(), &name);
        crate::sys::identity::own()?;
        rustix::fs::mkdirat(name_at.dir, name_at.name, Mode::RWXU)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let staging = Staging {
            dir: rustix::fs::openat(name_at.dir, name_at.name, flags, Mode::empty())?,
            name,
        };
        let prepared = staging.prepare(parent, !self.rules.no_acl);
        if prepared.is_err() {
            staging.close(upper);
            return Err(prepared.err().unwrap_or(Errno::IO));
        }
        Ok(staging)
    }

    /// A node that has a file in the upper.
    pub(super) fn upper_node(&self, id: NodeId) -> Option<(FileType, Option<LowerIno>, UpperFile)> {
        let state = self.state.read();
        let node = state.node(id)?;
        Some((node.file_type, node.origin, node.upper.clone()?))
    }

    /// Whether the upper has a file, not a whiteout, at a name.
    pub(super) fn has_node(&self, dir: NodeId, name: &[u8]) -> bool {
        matches!(
            self.dirent(dir, name).map(|dirent| dirent.target),
            Some(Target::Node(..))
        )
    }
}

/// Why a file must be created in a staging directory first.
#[derive(Copy, Clone, Debug)]
struct Special {
    whiteout: bool,
    opaque: bool,
    device: bool,
}

struct Staging {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Staging {
    fn prepare(&self, parent: NameAt<'_>, with_acl: bool) -> Result<(), Errno> {
        let own = NameAt::new(self.dir.as_fd(), b".");
        let stat = parent.stat()?;
        if u32::from(stat.stx_mode) & SGID != 0 {
            own.chown(None, Some(stat.stx_gid))?;
            own.chmod(0o700 | SGID)?;
        }
        if with_acl && let Some(acl) = parent.xattr(DEFAULT_ACL)? {
            own.set_xattr(DEFAULT_ACL, &acl, XattrFlags::empty())?;
        }
        Ok(())
    }

    /// Removes the staging directory and its files.
    fn close(self, upper: &Upper) {
        if let Err(errno) = remove_temporary(NameAt::new(upper.tmp(), &self.name)) {
            tracing::warn!(%errno, "cannot remove a directory from work/tmp; the next mount will");
        }
    }
}

/// Creates a file as the caller; a regular file is returned open for reading and writing.
fn create_file(
    name_at: NameAt<'_>,
    kind: Kind<'_>,
    wanted: NewFile,
) -> Result<Option<OwnedFd>, Errno> {
    let NewFile {
        mode,
        umask,
        caller,
    } = wanted;
    crate::sys::identity::assume(caller.uid, caller.gid, umask)?;
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match kind {
        Kind::Regular => {
            let flags =
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(name_at.dir, name_at.name, flags, mode).map(Some)
        }
        Kind::Directory => rustix::fs::mkdirat(name_at.dir, name_at.name, mode).map(|()| None),
        Kind::Symlink(target) => {
            rustix::fs::symlinkat(target, name_at.dir, name_at.name).map(|()| None)
        }
        Kind::Special(file_type, rdev) => {
            make_special(name_at, file_type, mode, rdev).map(|()| None)
        }
    }
}
