//! A directory's names, from any of them on.
//!
//! A cookie says where to go on behind the entry it came with: 1 and 2 behind `.` and `..`; 3 + position behind a name that the tree has,
//! whoever has the file now; 2^62 + hash of the name behind one that only the upper has. So a name that stays is given exactly once in one
//! pass, and a pass ends whatever is renamed or replaced meanwhile: no name is behind itself.

use cowl_core::tree::{FileType, TreeIno};

use super::attrs::ino_of;
use super::lookup::tree_side;
use super::state::{FIRST_OWN_COOKIE, State, Target};
use super::types::{DirEntry, Errno, NodeId};
use super::{Overlay, state};

/// Entries taken from the tables at a time: no lock is held while the caller takes them, nor while attributes are read.
const BATCH: usize = 64;

struct Row {
    name: Vec<u8>,
    id: NodeId,
    ino: u64,
    file_type: FileType,
    cookie: u64,
}

impl Overlay {
    /// Gives the entries behind `cookie` (0: from the start) to `take` until it returns false, which means that it did not take that one.
    /// With `plus` they come with attributes and count as looked up.
    pub fn readdir(
        &self,
        dir: NodeId,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.ensure_read(dir)?;
        let mut cookie = cookie;
        loop {
            let rows = self.rows(dir, cookie)?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            cookie = last.cookie;
            for row in rows {
                if !self.give(row, plus, take)? {
                    return Ok(());
                }
            }
        }
    }

    fn give(
        &self,
        row: Row,
        plus: bool,
        take: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let Row {
            name,
            id,
            ino,
            file_type,
            cookie,
        } = row;
        let dots = name == b"." || name == b"..";
        let entry = if plus && !dots {
            match self.getattr(id, None) {
                Ok(attr) => Some(super::types::Entry { id, attr }),
                // Removed since: it is still a name that was there when the pass began.
                Err(Errno::STALE | Errno::NOENT) => None,
                Err(error) => return Err(error),
            }
        } else {
            None
        };
        let taken = take(DirEntry {
            name: &name,
            ino,
            file_type,
            cookie,
            entry,
        });
        if taken && entry.is_some() {
            self.count_lookup(id);
        }
        Ok(taken)
    }

    /// The next entries, some at a time; none at the end.
    fn rows(&self, dir: NodeId, cookie: u64) -> Result<Vec<Row>, Errno> {
        let mut rows = Vec::new();
        if cookie < 2 {
            let parent = if self.is_gone(dir) {
                dir
            } else {
                self.parent_of(dir)?
            };
            let state = self.state.read();
            for (number, name, id) in [(1, ".", dir), (2, "..", parent)] {
                if cookie < number {
                    let ino = ino_of(id, state.node(id));
                    rows.push(Row {
                        name: name.into(),
                        id,
                        ino,
                        file_type: FileType::Directory,
                        cookie: number,
                    });
                }
            }
        }
        let state = self.state.read();
        if let Some(tree) = tree_side(&state, dir)
            && cookie < FIRST_OWN_COOKIE
        {
            let position =
                u32::try_from(cookie.saturating_sub(2)).map_err(|_beyond_u32| Errno::INVAL)?;
            self.tree_rows(&state, dir, tree, position, &mut rows)?;
        }
        if rows.len() < BATCH
            && let Some(table) = state.dir(dir)
        {
            for (cookie, name, id, file_type) in table.own_names_behind(cookie).take(BATCH) {
                let ino = ino_of(id, state.node(id));
                rows.push(Row {
                    name: name.to_vec(),
                    id,
                    ino,
                    file_type,
                    cookie,
                });
            }
        }
        Ok(rows)
    }

    fn tree_rows(
        &self,
        state: &State,
        dir: NodeId,
        tree: TreeIno,
        mut position: u32,
        rows: &mut Vec<Row>,
    ) -> Result<(), Errno> {
        let table: Option<&state::Dir> = state.dir(dir);
        while rows.len() < BATCH
            && let Some(child) = self.lower.child(tree, position)?
        {
            position += 1;
            let (id, file_type) = match table
                .and_then(|table| table.slot(child.name))
                .map(|slot| slot.target)
            {
                Some(Target::Whiteout) => continue,
                Some(Target::Node(id, file_type)) => (id, file_type),
                None => (state.id_of(child.node), child.file_type),
            };
            let ino = ino_of(id, state.node(id));
            rows.push(Row {
                name: child.name.to_vec(),
                id,
                ino,
                file_type,
                cookie: u64::from(position) + 2,
            });
        }
        Ok(())
    }
}
