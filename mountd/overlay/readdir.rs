//! Readdir: the merged names of a directory, from any cookie on.
//!
//! The cookie of an entry is 1 for `.` and 2 for `..`; 3 + position for a name of the lower,
//! copied up or not; 2^62 + hash of the name for a name that only the upper has. It depends on the
//! name alone, so a name that stays is listed exactly once, and a listing ends however often names
//! are replaced.

use cowl_core::tree::FileType;

use super::Overlay;
use super::attrs::InoSource;
use super::dir::{FIRST_OWN_COOKIE, Target};
use super::lookup::lower_side;
use super::lower::Child;
use super::state::State;
use super::types::{DirEntry, Errno, LowerIno, NodeId};

/// Entries taken from the tables at a time: no lock is held while the caller takes them, nor while
/// attributes are read.
const BATCH: usize = 64;

struct Row {
    name: Vec<u8>,
    /// None: the marks of this name were not read.
    id: Option<NodeId>,
    ino: InoSource,
    file_type: FileType,
    cookie: u64,
    /// The marks must be read for the rest.
    unread: bool,
}

impl Row {
    fn of_node(
        state: &State,
        name: Vec<u8>,
        (id, file_type): (NodeId, FileType),
        cookie: u64,
    ) -> Row {
        Row {
            name,
            id: Some(id),
            ino: InoSource::of(id, state.node(id)),
            file_type,
            cookie,
            unread: false,
        }
    }

    fn of_unread(
        name: Vec<u8>,
        (file_type, host): (FileType, u64),
        cookie: u64,
        marked: bool,
    ) -> Row {
        Row {
            name,
            id: None,
            ino: InoSource::Host(host),
            file_type,
            cookie,
            unread: marked,
        }
    }
}

impl Overlay {
    /// Passes the entries after `cookie` (0: from the start) to `take` until it returns false,
    /// which rejects that entry. With `plus` they have attributes and count as looked up.
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
                if !self.give(dir, row, plus, take)? {
                    return Ok(());
                }
            }
        }
    }

    fn give(
        &self,
        dir: NodeId,
        mut row: Row,
        plus: bool,
        take: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<bool, Errno> {
        if row.unread || (plus && row.id.is_none()) {
            match self.resolve(dir, &row.name) {
                Ok(Some(resolved)) => {
                    row.ino = InoSource::of(resolved.id, self.state.read().node(resolved.id));
                    (row.id, row.file_type) = (Some(resolved.id), resolved.file_type);
                }
                Ok(None) => return Ok(true), // removed since
                // Invalid marks fail the lookup of a name, not its listing.
                Err(Errno::IO) => {}
                Err(error) => return Err(error),
            }
        }
        let dots = row.name == b"." || row.name == b"..";
        let entry = match row.id {
            Some(id) if plus && !dots => match self.entry_with(id, |id| self.getattr(id)) {
                Ok(entry) => Some(entry),
                // Removed since: it is still a name that was there when the pass began.
                Err(Errno::STALE | Errno::NOENT) => None,
                Err(error) => return Err(error),
            },
            _ => None,
        };
        let taken = take(DirEntry {
            name: &row.name,
            ino: self.ino(row.ino),
            file_type: row.file_type,
            cookie: row.cookie,
            entry,
        });
        if taken && let Some(entry) = entry {
            self.count_lookup(entry.id);
        }
        Ok(taken)
    }

    /// The next batch of entries; empty at the end.
    fn rows(&self, dir: NodeId, mut cookie: u64) -> Result<Vec<Row>, Errno> {
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
                    let node = (id, FileType::Directory);
                    rows.push(Row::of_node(&state, name.as_bytes().to_vec(), node, number));
                }
            }
        }
        let room = BATCH - rows.len();
        loop {
            let lower = lower_side(&self.state.read(), dir);
            let below = self.lower_names(lower, cookie, room)?;
            let state = self.state.read();
            if lower_side(&state, dir) != lower {
                continue; // another thread made it opaque, or removed it
            }
            let (is_last, behind) = (below.len() < room, below.last().map(|name| name.cookie));
            rows.extend(
                below
                    .into_iter()
                    .filter_map(|name| row_in_place(&state, dir, name)),
            );
            if is_last {
                own_rows(&state, dir, cookie, &mut rows);
            }
            match behind {
                // Whiteouts alone are not the end.
                Some(behind) if rows.is_empty() && !is_last => cookie = behind,
                _ => return Ok(rows),
            }
        }
    }

    /// The next names of the lower, at most `room`.
    fn lower_names(
        &self,
        lower: Option<LowerIno>,
        cookie: u64,
        room: usize,
    ) -> Result<Vec<LowerName>, Errno> {
        let mut names = Vec::new();
        if let Some(lower) = lower
            && cookie < FIRST_OWN_COOKIE
        {
            let position =
                u32::try_from(cookie.saturating_sub(2)).map_err(|_beyond_u32| Errno::INVAL)?;
            self.lower.each_child(lower, position, &mut |next| {
                names.push(LowerName {
                    name: next.name.to_vec(),
                    child: next.child,
                    cookie: u64::from(next.position) + 3,
                });
                names.len() < room
            })?;
        }
        Ok(names)
    }
}

/// A name of the lower, with the cookie behind it.
struct LowerName {
    name: Vec<u8>,
    child: Child,
    cookie: u64,
}

/// What the merged view has at a name of the lower; None if that is whited out.
fn row_in_place(state: &State, dir: NodeId, below: LowerName) -> Option<Row> {
    let LowerName {
        name,
        child,
        cookie,
    } = below;
    let table = state.dir(dir);
    let dirent = table.and_then(|table| table.dirent(&name));
    let node = match dirent.map(|dirent| dirent.target) {
        Some(Target::Whiteout) => return None,
        Some(Target::Unread { file_type, host }) => {
            let merges = (file_type, child.file_type);
            let marked = table.is_some_and(|table| table.impure)
                || merges == (FileType::Directory, FileType::Directory);
            return Some(Row::of_unread(name, (file_type, host), cookie, marked));
        }
        Some(Target::Node(id, file_type)) => (id, file_type),
        None => (state.id_of(child.node), child.file_type),
    };
    Some(Row::of_node(state, name, node, cookie))
}

/// The next names that only the upper has.
fn own_rows(state: &State, dir: NodeId, cookie: u64, rows: &mut Vec<Row>) {
    let Some(table) = state.dir(dir) else { return };
    for (cookie, name, target) in table.own_names_behind(cookie).take(BATCH) {
        rows.extend(match target {
            Target::Whiteout => None,
            Target::Node(id, file_type) => {
                Some(Row::of_node(state, name.to_vec(), (id, file_type), cookie))
            }
            Target::Unread { file_type, host } => {
                let marked = table.impure;
                Some(Row::of_unread(
                    name.to_vec(),
                    (file_type, host),
                    cookie,
                    marked,
                ))
            }
        });
    }
}
