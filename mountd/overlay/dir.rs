//! The table of a directory: the names that the upper holds, and where they stand in a listing.

use std::collections::BTreeMap;
use std::ops::Bound;

use cowl_core::digest::ObjectId;
use cowl_core::tree::FileType;

use super::types::NodeId;

/// Cookies of names that the lower does not have; those of the lower's names are below 2^33.
pub(super) const FIRST_OWN_COOKIE: u64 = 1 << 62;

/// A name in a directory.
pub(super) type Name = Box<[u8]>;

/// The upper's part of a directory, read from it once.
#[derive(Debug)]
pub(super) struct Dir {
    dirents: BTreeMap<Name, Dirent>,
    /// The visible names that the lower does not have, in the order in which they are listed.
    by_cookie: BTreeMap<u64, Name>,
    /// Directories among the visible names.
    pub(super) subdirs: u32,
    /// Visible names.
    pub(super) visible: u64,
    /// Files in it bear marks.
    pub(super) impure: bool,
}

/// A name that the upper's directory holds.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Dirent {
    pub(super) target: Target,
    pub(super) under: Under,
    /// Of a name that is listed by itself, not in the place of the lower's.
    cookie: Option<u64>,
}

/// What the upper says about a name.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    Whiteout,
    /// A file of which no marks were read yet.
    Unread {
        file_type: FileType,
        host: u64,
    },
    Node(NodeId, FileType),
}

/// What the lower has under a name of the upper.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Under {
    Nothing,
    File,
    Directory,
}

#[derive(Copy, Clone)]
enum Sign {
    Add,
    Remove,
}

impl Dir {
    /// A table of sorted names. `subdirs` and `visible` count the lower's part only.
    pub(super) fn of_sorted(
        names: Vec<(Name, Target, Under)>,
        subdirs: u32,
        visible: u64,
        impure: bool,
    ) -> Dir {
        let mut table = Dir {
            dirents: BTreeMap::new(),
            by_cookie: BTreeMap::new(),
            subdirs,
            visible,
            impure,
        };
        // Of sorted names a map is built as a whole, without a search for each.
        let dirents = names.into_iter().map(|(name, target, under)| {
            let dirent = table.new_dirent(&name, target, under);
            (name, dirent)
        });
        let dirents = dirents.collect();
        table.dirents = dirents;
        table
    }

    /// Enters a name that the table does not have.
    pub(super) fn put(&mut self, name: Name, target: Target, under: Under) {
        let dirent = self.new_dirent(&name, target, under);
        self.dirents.insert(name, dirent);
    }

    /// Removes a name.
    pub(super) fn take(&mut self, name: &[u8]) -> Option<Dirent> {
        let dirent = self.dirents.remove(name)?;
        if let Some(cookie) = dirent.cookie {
            self.by_cookie.remove(&cookie);
        }
        self.count(dirent, Sign::Remove);
        Some(dirent)
    }

    /// Changes what a name is, to another node of the same type.
    pub(super) fn retarget(&mut self, name: &[u8], target: Target) {
        if let Some(dirent) = self.dirents.get_mut(name) {
            dirent.target = target;
        }
    }

    pub(super) fn dirent(&self, name: &[u8]) -> Option<Dirent> {
        self.dirents.get(name).copied()
    }

    /// Names that the lower does not have, behind a cookie.
    pub(super) fn own_names_behind(
        &self,
        cookie: u64,
    ) -> impl Iterator<Item = (u64, &[u8], Target)> {
        let behind = (Bound::Excluded(cookie), Bound::Unbounded);
        self.by_cookie.range(behind).filter_map(|(cookie, name)| {
            let dirent = self.dirents.get(name)?;
            Some((*cookie, &**name, dirent.target))
        })
    }

    /// Names whose marks were not read, with the host's inode and what the lower has there.
    pub(super) fn unread_names(&self) -> impl Iterator<Item = (&Name, u64, Under)> {
        self.dirents
            .iter()
            .filter_map(|(name, dirent)| match dirent.target {
                Target::Unread { host, .. } => Some((name, host, dirent.under)),
                Target::Whiteout | Target::Node(..) => None,
            })
    }

    /// A cookie that depends on the name alone, unless another name has it: a name that is
    /// replaced, or moved away and back, keeps its place.
    fn free_cookie(&self, name: &[u8]) -> u64 {
        const WITHIN: u64 = FIRST_OWN_COOKIE - 1;
        let hash = ObjectId::of(name);
        let hash = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        let mut cookie = u64::from_le_bytes(hash);
        loop {
            cookie = FIRST_OWN_COOKIE | (cookie & WITHIN);
            if !self.by_cookie.contains_key(&cookie) {
                return cookie;
            }
            cookie += 1;
        }
    }

    /// The dirent of a name that the table does not have yet, counted and with its cookie.
    fn new_dirent(&mut self, name: &Name, target: Target, under: Under) -> Dirent {
        let cookie = match (target, under) {
            (Target::Whiteout, _) | (_, Under::File | Under::Directory) => None,
            _ => Some(self.free_cookie(name)),
        };
        let dirent = Dirent {
            target,
            under,
            cookie,
        };
        self.count(dirent, Sign::Add);
        if let Some(cookie) = cookie {
            self.by_cookie.insert(cookie, name.clone());
        }
        dirent
    }

    /// How many names the upper holds, whiteouts among them.
    pub(super) fn held(&self) -> usize {
        self.dirents.len()
    }

    fn count(&mut self, dirent: Dirent, sign: Sign) {
        let own = match dirent.target {
            Target::Whiteout => Under::Nothing,
            Target::Node(_, file_type) | Target::Unread { file_type, .. } => match file_type {
                FileType::Directory => Under::Directory,
                _ => Under::File,
            },
        };
        let (more, less) = match sign {
            Sign::Add => (own, dirent.under),
            Sign::Remove => (dirent.under, own),
        };
        self.visible += u64::from(more != Under::Nothing);
        self.visible = self
            .visible
            .saturating_sub(u64::from(less != Under::Nothing));
        self.subdirs += u32::from(more == Under::Directory);
        self.subdirs = self
            .subdirs
            .saturating_sub(u32::from(less == Under::Directory));
    }
}
