//! After a worker's death: its successor gives each node the number that the dead worker gave it.
//!
//! It lists the same directories in the same order. A directory that has other names by now, or
//! gives them other numbers, was changed beneath the mount. What the dead worker found there is
//! then no more (ESTALE), the rest keeps its numbers, and the directory is listed anew when it is
//! looked into.

use super::DirsLower;
use crate::journal::Listing;
use crate::overlay::types::{Errno, LowerIno};

impl DirsLower {
    pub(super) fn take_over(&self) {
        let journal = self.journal.iter().filter(|journal| journal.is_inherited());
        for listing in journal.flat_map(|journal| journal.listings()) {
            let dir = LowerIno(listing.dir);
            match self.list_again(dir, listing) {
                Ok(true) => continue,
                Ok(false) => {
                    let path = self.path(dir).unwrap_or_default();
                    tracing::error!(path = %path.escape_ascii(), "a lower directory was changed beneath the mount");
                }
                // In a directory of which that was said.
                Err(Errno::STALE) => {}
                Err(error) => {
                    let path = self.path(dir).unwrap_or_default();
                    tracing::error!(path = %path.escape_ascii(), %error, "a lower directory cannot be read any more");
                }
            }
            let mut table = self.table.write();
            let lost = (0..listing.added).map(|_| None);
            table.nodes.extend(lost);
        }
    }

    /// Whether its names have the numbers again that they had.
    fn list_again(&self, dir: LowerIno, listing: Listing) -> Result<bool, Errno> {
        let node = self.get(dir)?;
        let plain = node.dir.as_ref().ok_or(Errno::STALE)?;
        let listed = self.list(self.parts_of(&node, plain)?)?;
        let mut table = self.table.write();
        let numbered = self.number(&table, dir, listed)?;
        let is_same = numbered.listing(dir) == listing;
        if is_same {
            numbered.enter(&mut table, plain);
        }
        Ok(is_same)
    }
}
