//! The copy-on-write rules: merges a read-only lower with a writable upper, and turns each change
//! into writes to the upper.
//!
//! Invariants: the lower is never written. Whenever the worker stops, the upper holds every
//! finished change and no part of an unfinished one. Only this worker writes to the upper while it
//! is mounted. No kernel struct is used here: `fuse` translates, and calls each method from any of
//! its threads.
//!
//! | module | rule |
//! |---|---|
//! | [`lookup`], [`readdir`] | names of the merged view |
//! | [`copyup`], [`content`] | copy-up of metadata, then of content |
//! | [`masked`] | attributes shown during a copy-up |
//! | [`create`], [`link`], [`remove`], [`rename`] | changes of names; whiteouts, opaque, orphans |
//! | [`attrs`], [`xattrs`] | attributes |
//! | [`io`], [`files`] | open, read, write, fsync; the host files behind them |
//! | [`opens`], [`iomode`] | open files, and whether the kernel reads them in passthrough |
//! | [`state`], [`node`], [`dir`], [`event`] | the in-memory state, and the events that change it |
//! | [`lookups`] | the kernel's lookup counts |
//! | [`places`] | descriptors and names of files in the upper |
//! | [`lower`] | the lower: a tree and its objects, or layers of plain directories |
//! | [`busy`] | guards of nodes |
//! | [`successor`], [`record`] | taking over from a worker that died; the records for that |
//!
//! # Locks, outermost first
//! 1. `copying`: a guard of one file, held while its content is copied up. Writers and changes of
//!    its attributes wait for it.
//! 2. [`busy`]: guards of nodes, taken all at once, held over the few system calls that change
//!    these nodes or their names.
//! 3. `places.moves`: shared while a path is walked, exclusive while a directory is renamed on the
//!    host.
//! 4. `state`, `masked`, the caches of descriptors: for table work only, never over I/O.
//!
//! `getattr` takes no guard.

mod attrs;
mod busy;
mod content;
mod copyup;
mod create;
mod dir;
mod event;
mod files;
mod io;
mod iomode;
mod link;
mod lookup;
mod lookups;
mod lower;
mod masked;
mod node;
mod opens;
mod places;
mod readdir;
mod record;
mod remove;
mod rename;
mod state;
mod successor;
mod types;
mod xattrs;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cowl_core::digest::ChainId;
use cowl_core::handover::IoMode;
use cowl_core::tree::{FileType, Tree};
use cowl_core::upper::marks::Stamp;
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::scan::{Origins, is_opaque};
use cowl_core::upper::spelling::Spelling;
use cowl_core::upper::{Base, Condition, Locks, Upper, UpperError};
use parking_lot::RwLock;

pub use lower::Layers;
pub use types::*;

use busy::{Busy, Level};
use event::Event;
use files::NodeFiles;
use lower::Lower;
use masked::MaskedAttrs;
use node::{Home, Unsynced, UpperFile};
use places::Places;
use state::State;

use crate::journal::{Intent, Journal};

/// Why an overlay cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The upper.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The host, or a tree that cannot be read.
    #[error("{what}: {errno}")]
    Host {
        /// The attempted step.
        what: &'static str,
        /// The error.
        errno: Errno,
    },
    /// An owner that the user namespace has no id for.
    #[error(
        "the root directory belongs to {uid}:{gid}, and this user namespace lacks one of these ids: use one that has them (unshare --map-auto)"
    )]
    NoSuchOwner {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

/// The two directories that a mount writes to.
#[derive(Debug)]
pub struct UpperDirs {
    /// The changed files.
    pub upper: OwnedFd,
    /// The work directory, on the same file system.
    pub work: OwnedFd,
    /// Their locks, if the caller has taken them.
    pub locks: Option<Locks>,
}

/// What a mount's unchanged files come from.
#[derive(Debug)]
pub enum LowerParts {
    /// An image.
    Tree {
        /// The merged tree.
        tree: Box<Tree>,
        /// The stack it was merged from.
        chain: ChainId,
        /// The store's objects; a read-only clone where the kernel allows one.
        objects: OwnedFd,
    },
    /// Plain directories.
    Layers(Layers),
}

/// The parts of a mount.
#[derive(Debug)]
pub struct Config {
    /// What the upper covers.
    pub lower: LowerParts,
    /// Without it the mount is read-only.
    pub upper: Option<UpperDirs>,
    /// How files are served.
    pub io_mode: IoMode,
    /// What the options of the mount change.
    pub rules: Rules,
    /// Memory for a worker's successor, or of one's predecessor; none for a mount that ends with
    /// its process.
    pub(crate) journal: Option<Arc<Journal>>,
}

/// What the options of a mount change in the rules.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// Nothing is made durable: fsync succeeds at once.
    pub volatile: bool,
    /// Whether a directory that merges with one of the lower can be renamed; None: where the
    /// kernel's overlayfs would read the mark.
    pub redirect_dir: Option<bool>,
    /// Whether a copy-up of metadata leaves the content in the lower; None: as above.
    pub metacopy: Option<bool>,
    /// Marks over plain directories are in `user.` also where `trusted.` works.
    pub user_marks: bool,
    /// There are no ACLs: none is shown, set or inherited.
    pub no_acl: bool,
    /// Files are shown as of others than their owners: a copy whose owner cannot be given keeps
    /// its maker's.
    pub squashed: bool,
}

/// A mounted image: see the head of this module.
#[derive(Debug)]
pub struct Overlay {
    lower: Lower,
    upper: Option<Upper>,
    io_mode: IoMode,
    rules: Rules,
    state: RwLock<State>,
    copying: Busy,
    busy: Busy,
    masked: MaskedAttrs,
    places: Places,
    files: NodeFiles,
    journal: Option<Arc<Journal>>,
}

/// `inherits`: after a worker that died while the mount lives.
fn open_upper(dirs: UpperDirs, base: Base<'_>, inherits: bool) -> Result<Upper, UpperError> {
    let UpperDirs { upper, work, locks } = dirs;
    let locks = match locks {
        Some(locks) => locks,
        None => Locks::take(upper.as_fd(), work.as_fd())?,
    };
    if inherits {
        return Upper::reopen(upper, &work, locks, base);
    }
    let upper = Upper::open_locked(upper, &work, locks, base)?;
    if let Err(errno) = upper.sweep_marks() {
        tracing::warn!(%errno, "marks of removed files stay in work/marks");
    }
    Ok(upper)
}

impl Overlay {
    /// Opens the upper, if there is one, and reads its root and `work/index`; other directories
    /// are read at their first lookup.
    ///
    /// # Errors
    /// An upper that is in use, belongs to another image, or lies where it cannot work.
    pub fn new(config: Config) -> Result<Overlay, OverlayError> {
        let Config {
            lower,
            upper,
            io_mode,
            rules,
            journal,
        } = config;
        let inherits = journal
            .as_ref()
            .is_some_and(|journal| journal.is_inherited());
        let (lower, chain) = match lower {
            LowerParts::Tree {
                tree,
                chain,
                objects,
            } => (Lower::of_tree(*tree, objects), Some(chain)),
            LowerParts::Layers(layers) => {
                let upper = upper.as_ref().map(|dirs| &dirs.upper);
                let lower = Lower::of_layers(layers, upper, journal.clone());
                (lower.map_err(host("opening the lower directories"))?, None)
            }
        };
        // Lookup counts decide when removed nodes are freed; a read-only mount removes none.
        let counted = upper.as_ref().map_or(0, |_| lower.most_nodes());
        let stamp = chain.map(|chain| Stamp {
            chain,
            numbering: lower.numbering(),
        });
        let volatile = rules.volatile;
        let base = stamp.as_ref().map_or(
            Base::Plain {
                user_marks: rules.user_marks,
                volatile,
            },
            |stamp| Base::Tree { stamp, volatile },
        );
        let upper = upper
            .map(|dirs| open_upper(dirs, base, inherits))
            .transpose()?;
        let state = match &journal {
            Some(journal) if upper.is_some() => State::journaled(Arc::clone(journal)),
            Some(journal) => State::read_only(Arc::clone(journal)),
            None => State::new(counted),
        };
        let overlay = Overlay {
            lower,
            upper,
            io_mode,
            rules,
            state: RwLock::new(state),
            copying: Busy::new(Level::ContentCopy),
            busy: Busy::new(Level::Change),
            masked: MaskedAttrs::default(),
            places: Places::new(),
            files: NodeFiles::new(),
            journal,
        };
        if let Some(upper) = &overlay.upper {
            tracing::info!(marks = %upper.mark_store(), whiteouts = %upper.whiteouts(), "opened the upper");
            overlay.take_over_root(upper, stamp.as_ref())?;
            overlay
                .take_over_index(upper)
                .map_err(host("reading work/index"))?;
            if inherits {
                overlay
                    .take_over(upper)
                    .map_err(host("taking over from a dead worker"))?;
            }
        }
        Ok(overlay)
    }

    fn take_over_root(&self, upper: &Upper, stamp: Option<&Stamp>) -> Result<(), OverlayError> {
        let root = NameAt::new(upper.root(), b".");
        if upper.condition() == Condition::Empty {
            let root_node = self.lower.node(LowerIno::ROOT);
            let Attr { uid, gid, .. } = root_node.map_err(host("reading the root"))?.attr;
            self.apply_root_metadata(root)
                .map_err(|errno| match errno {
                    // The owner has no mapping (user_namespaces(7)), or an id of an ACL has none.
                    Errno::INVAL if root.chown(Some(uid), Some(gid)) == Err(Errno::INVAL) => {
                        OverlayError::NoSuchOwner { uid, gid }
                    }
                    errno => host("giving the upper the root's attributes")(errno),
                })?;
        }
        if let Some(stamp) = stamp
            && upper.condition() != Condition::Stamped
        {
            upper.stamp(stamp)?;
        }
        let opaque =
            is_opaque(root, upper.mark_store()).map_err(host("reading the upper's root"))?;
        let stat = root.stat().map_err(host("reading the upper's root"))?;
        let file = UpperFile {
            opaque,
            ..new_file(stat.stx_ino)
        };
        self.commit(|_| {
            [Event::Copied {
                node: NodeId::ROOT,
                file_type: FileType::Directory,
                origin: Some(LowerIno::ROOT),
                file,
            }]
        });
        Ok(())
    }

    /// Applies the image's metadata to the upper's root, without the default ACL that mkdir may
    /// have inherited.
    fn apply_root_metadata(&self, root: NameAt<'_>) -> Result<(), Errno> {
        for acl in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
            match root.remove_xattr(acl) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.apply_metadata(root, LowerIno::ROOT, None)
    }

    /// Reads `work/index`, so that hard links are known before any of their names is looked up.
    /// Invalid marks damage their node only.
    fn take_over_index(&self, upper: &Upper) -> Result<(), Errno> {
        for number in upper.indexed()? {
            let node = match self.lower.spelling() {
                Spelling::Plain => None,
                Spelling::Tree => {
                    let node = u32::try_from(number).ok().map(LowerIno);
                    let Some(node) = node.filter(|node| self.lower.node(*node).is_ok()) else {
                        tracing::warn!(
                            number,
                            "work/index has a file for a node that is not in the tree"
                        );
                        continue;
                    };
                    Some(node)
                }
            };
            match (self.take_over_indexed(upper, number, node), node) {
                // Over plain directories an invalid mark does not say which file it is for.
                (Ok(()), _) | (Err(Errno::IO), None) => {}
                (Err(Errno::IO), Some(node)) => self.commit(|state| {
                    [Event::Damaged {
                        node: state.id_of(node),
                    }]
                }),
                (Err(errno), _) => return Err(errno),
            }
        }
        Ok(())
    }

    fn take_over_indexed(
        &self,
        upper: &Upper,
        number: u64,
        node: Option<LowerIno>,
    ) -> Result<(), Errno> {
        let name = Upper::index_name(number);
        let name_at = NameAt::new(upper.index(), &name);
        let stat = name_at.stat()?;
        let (marks, mut file) = self.read_indexed(upper, name_at, node, &stat)?;
        let node = marks.origin.ok_or(Errno::IO)?;
        if !upper.mark_store().marks(marks.file_type) {
            // This file cannot bear a mark, so no delta was stored: assume that all names of the
            // lower remain.
            file.link_delta = i32::try_from(self.lower.node(node)?.attr.nlink).unwrap_or(i32::MAX);
        } else if stat.stx_nlink == 1 && file.link_delta == 0 {
            // The worker stopped between removing its last name and this link.
            return self.drop_last_link(upper, name_at, stat.stx_ino);
        }
        self.commit(|state| {
            [Event::Copied {
                node: state.id_of(node),
                file_type: marks.file_type,
                origin: Some(node),
                file: UpperFile {
                    home: Home::Index(number),
                    ..file
                },
            }]
        });
        Ok(())
    }

    /// Whether there is an upper.
    pub fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// The upper; EROFS without one.
    fn writable(&self) -> Result<&Upper, Errno> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// Applies the events that `events` returns, atomically. It runs under the state's lock, so an
    /// id it takes from there is free.
    fn commit<E: IntoIterator<Item = Event>>(&self, events: impl FnOnce(&State) -> E) {
        let has_shrunk = {
            let mut state = self.state.write();
            for event in events(&state).into_iter().collect::<Vec<_>>() {
                state.apply(event);
            }
            state.take_has_shrunk()
        };
        if has_shrunk {
            cowl_sys::memory::give_back();
        }
    }

    /// Memory for a worker's successor, if there is any.
    pub(crate) fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.as_ref()
    }

    /// How often each node is open in passthrough.
    pub(crate) fn open_in_passthrough(&self) -> HashMap<NodeId, u32> {
        self.state.read().opens().in_passthrough()
    }

    /// Notes what this request is about to do, for a successor that is asked the same again.
    fn intend(&self, intent: Intent) {
        if let Some(journal) = &self.journal {
            journal.intend(intent);
        }
    }

    /// Blocks and inodes of the upper's file system; without an upper, of the objects'.
    pub fn statfs(&self) -> Result<Statfs, Errno> {
        match &self.upper {
            Some(upper) => lower::statfs_of(&upper.root()),
            None => self.lower.statfs(),
        }
    }

    /// Makes everything written so far durable.
    pub fn syncfs(&self) -> Result<(), Errno> {
        match &self.upper {
            Some(upper) if !self.rules.volatile => rustix::fs::syncfs(upper.root().as_fd()),
            _ => Ok(()),
        }
    }
}

fn host(what: &'static str) -> impl FnOnce(Errno) -> OverlayError {
    move |errno| OverlayError::Host { what, errno }
}

/// The state of a new file that is at its name.
fn new_file(host: u64) -> UpperFile {
    UpperFile {
        host,
        home: Home::Named,
        metadata_only: false,
        copying: None,
        opaque: false,
        device: false,
        link_delta: 0,
        unsynced: Unsynced::default(),
    }
}

#[cfg(test)]
mod tests;
