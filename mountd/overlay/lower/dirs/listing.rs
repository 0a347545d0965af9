//! Merging: which directories of the layers make one of the lower, and which names it has.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use cowl_core::tree::FileType;
use cowl_core::upper::name_at::{NameAt, is_whiteout};
use cowl_core::upper::scan;
use cowl_core::upper::spelling::Redirect;
use rustix::fs::FileType as HostType;

use super::part::Part;
use super::{DirsLower, PlainDir, PlainNode, marks};
use crate::overlay::types::Errno;

/// A name of a merged directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: Arc<[u8]>,
    pub(super) file_type: FileType,
    pub(super) inode: u64,
    /// The topmost directory that has it.
    pub(super) holder: Arc<Part>,
    /// Of a directory: see `PlainDir`.
    pub(super) candidates: Vec<Arc<Part>>,
}

/// A name in a directory of a layer.
pub(super) type At = (Arc<Part>, Arc<[u8]>);

/// What the layers so far have at a name.
enum Seen {
    Hidden,
    File(Listed),
    /// Open: layers below may contribute.
    Directory(Listed, bool),
}

impl DirsLower {
    /// The directories that contribute to a directory, top first.
    pub(super) fn parts_of<'n>(
        &self,
        node: &PlainNode,
        dir: &'n PlainDir,
    ) -> Result<&'n [Arc<Part>], Errno> {
        if let Some(parts) = dir.parts.get() {
            return Ok(parts);
        }
        let parts = self.find_parts(node, dir)?;
        Ok(dir.parts.get_or_init(|| parts))
    }

    fn find_parts(&self, node: &PlainNode, dir: &PlainDir) -> Result<Vec<Arc<Part>>, Errno> {
        let mut parts = Vec::new();
        let mut candidates = dir.candidates.clone();
        let mut next = 0;
        while let Some(part) = candidates.get(next).map(Arc::clone) {
            next += 1;
            parts.push(Arc::clone(&part));
            if part.layer + 1 >= self.parts.layers() {
                break;
            }
            let fd = self.parts.open(&part)?;
            if marks::is_opaque(&fd, self.space)? {
                break;
            }
            if &*node.name == b"." {
                continue; // a root is its layer's, whatever it bears
            }
            if let Some(redirect) = marks::redirect(&fd, self.space)? {
                candidates.truncate(next);
                candidates.extend(self.redirected(node, &part, &redirect)?);
            }
        }
        Ok(parts)
    }

    /// The directories below a layer that a redirect leads to.
    fn redirected(
        &self,
        node: &PlainNode,
        part: &Part,
        redirect: &Redirect,
    ) -> Result<Vec<Arc<Part>>, Errno> {
        let mut found = Vec::new();
        match redirect {
            Redirect::Path(names) => {
                for layer in part.layer + 1..self.parts.layers() {
                    let Some((holder, name)) = self.walk_in(layer, names)? else {
                        continue;
                    };
                    match self.type_at(&holder, &name)? {
                        Some(FileType::Directory) => found.push(self.parts.below(&holder, &name)),
                        Some(_) => break,
                        None => {}
                    }
                }
            }
            Redirect::Sibling(name) => {
                let name: Arc<[u8]> = Arc::from(name.as_slice());
                let parent = self.get(node.parent)?;
                let parent_dir = parent.dir.as_ref().ok_or(Errno::IO)?;
                let below = self.parts_of(&parent, parent_dir)?.iter();
                for holder in below.filter(|holder| holder.layer > part.layer) {
                    match self.type_at(holder, &name)? {
                        Some(FileType::Directory) => found.push(self.parts.below(holder, &name)),
                        Some(_) => break,
                        None => {}
                    }
                }
            }
        }
        Ok(found)
    }

    /// The directory in one layer that holds the last of some names; None if the layer has not all
    /// of the others, as directories.
    fn walk_in(&self, layer: u16, names: &[Vec<u8>]) -> Result<Option<At>, Errno> {
        let mut holder = self.parts.root(layer);
        let Some((last, above)) = names.split_last() else {
            return Ok(None);
        };
        for name in above {
            if self.type_at(&holder, name)? != Some(FileType::Directory) {
                return Ok(None);
            }
            holder = self.parts.below(&holder, &Arc::from(name.as_slice()));
        }
        Ok(Some((holder, Arc::from(last.as_slice()))))
    }

    /// What a directory of a layer has at a name, a whiteout among it (as a device); None for
    /// nothing.
    fn type_at(&self, holder: &Arc<Part>, name: &[u8]) -> Result<Option<FileType>, Errno> {
        let fd = self.parts.open(holder)?;
        match NameAt::new(fd.as_fd(), name).stat() {
            Ok(stat) if is_whiteout(&stat) => Ok(Some(FileType::CharDevice)),
            Ok(stat) => {
                let host_type = HostType::from_raw_mode(u32::from(stat.stx_mode));
                scan::file_type(host_type).map(Some).ok_or(Errno::IO)
            }
            Err(Errno::NOENT) if marks::is_hidden_at(&fd, name)? => Ok(Some(FileType::CharDevice)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file at a path of the first layer below that has one.
    pub(super) fn file_at(&self, above: u16, names: &[Vec<u8>]) -> Result<Option<At>, Errno> {
        for layer in above + 1..self.parts.layers() {
            let Some((holder, name)) = self.walk_in(layer, names)? else {
                continue;
            };
            match self.type_at(&holder, &name)? {
                Some(FileType::Regular) => return Ok(Some((holder, name))),
                Some(_) => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// The file of a name in the first of some directories below a layer.
    pub(super) fn file_among(
        &self,
        above: u16,
        dirs: &[Arc<Part>],
        name: &Arc<[u8]>,
    ) -> Result<Option<At>, Errno> {
        for holder in dirs.iter().filter(|dir| dir.layer > above) {
            match self.type_at(holder, name)? {
                Some(FileType::Regular) => {
                    return Ok(Some((Arc::clone(holder), Arc::clone(name))));
                }
                Some(_) => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// The names of a directory, sorted.
    pub(super) fn list(&self, parts: &[Arc<Part>]) -> Result<Vec<Listed>, Errno> {
        let mut seen: BTreeMap<Arc<[u8]>, Seen> = BTreeMap::new();
        for part in parts {
            let fd = self.parts.open(part)?;
            let entries = marks::entries(&fd, self.space)?;
            for found in entries.files {
                let is_dir = found.file_type == FileType::Directory;
                match seen.get_mut(&*found.name) {
                    None => {
                        let name: Arc<[u8]> = Arc::from(found.name);
                        let mut listed = Listed {
                            name: Arc::clone(&name),
                            file_type: found.file_type,
                            inode: found.inode,
                            holder: Arc::clone(part),
                            candidates: Vec::new(),
                        };
                        let what = if is_dir {
                            listed.candidates.push(self.parts.below(part, &name));
                            Seen::Directory(listed, true)
                        } else {
                            Seen::File(listed)
                        };
                        seen.insert(name, what);
                    }
                    Some(Seen::Directory(listed, open)) if *open => {
                        if is_dir {
                            let below = self.parts.below(part, &listed.name);
                            listed.candidates.push(below);
                        } else {
                            *open = false;
                        }
                    }
                    Some(_) => {}
                }
            }
            // A whiteout beside a file of its name hides the layers below, not that file.
            for name in entries.hidden {
                match seen.get_mut(&*name) {
                    None => drop(seen.insert(Arc::from(name), Seen::Hidden)),
                    Some(Seen::Directory(_, open)) => *open = false,
                    Some(_) => {}
                }
            }
        }
        Ok(seen
            .into_values()
            .filter_map(|what| match what {
                Seen::Hidden => None,
                Seen::File(listed) | Seen::Directory(listed, _) => Some(listed),
            })
            .collect())
    }
}
