//! Other names of files that are listed: those that the upper does not touch.

use std::collections::BTreeSet;

use super::{Change, ChangesError, Now, Untouched, Walk, join};
use crate::tree::TreeIno;

impl<E: From<ChangesError>, F: FnMut(&Change<'_>) -> Result<(), E>> Walk<'_, F> {
    /// The names of listed tree files that the upper does not touch.
    pub(super) fn other_names(&mut self) -> Result<(), E> {
        let tree = self.tree;
        let mut files: BTreeSet<TreeIno> = self.linked.keys().copied().collect();
        files.extend(&self.indexed);
        for ino in files {
            for name in tree.names_of(ino).map_err(ChangesError::from)? {
                let name = name.map_err(ChangesError::from)?;
                let Some((path, directories)) = self.untouched(name.parent, name.name)? else {
                    continue;
                };
                for (path, dir) in directories {
                    if self.named.insert(dir) {
                        self.give(&path, Now::Tree(dir))?;
                    }
                }
                if self.indexed.contains(&ino) {
                    self.indexed_leaf(&path, ino)?;
                } else if let Some(first) = self.linked.get(&ino).cloned() {
                    self.give(&path, Now::Link(&first))?;
                }
            }
        }
        Ok(())
    }

    /// The path at which a mount shows a name of the tree, and the directories on the way that the
    /// upper does not have; None if it shows it nowhere, or if it is listed.
    fn untouched(&self, dir: TreeIno, name: &[u8]) -> Result<Option<Untouched>, ChangesError> {
        // From the name up to the first directory whose place is known.
        let mut parts: Vec<(&[u8], TreeIno)> = Vec::new();
        let mut above = dir;
        let place = loop {
            if let Some(place) = self.places.get(&above) {
                break place;
            }
            let first = self.tree.names_of(above)?.next();
            let Some(dirent) = first.transpose()? else {
                return Ok(None);
            };
            parts.push((dirent.name, above));
            above = dirent.parent;
        };
        let shown = parts.last().map_or(name, |(part, _)| part);
        if place.listed || place.hidden.contains(shown) {
            return Ok(None);
        }
        let mut path = place.path.clone();
        let mut directories = Vec::new();
        for (part, dir) in parts.into_iter().rev() {
            path = join(&path, part);
            directories.push((path.clone(), dir));
        }
        Ok(Some((join(&path, name), directories)))
    }
}
