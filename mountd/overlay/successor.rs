//! Taking over from a worker that died while its mount lives.
//!
//! Names, marks and contents are read from the upper, which shows every finished change whole and
//! no unfinished one; the journal has the ids that the kernel knows files by. So nothing that the
//! dead worker had in memory is missed. Counts of lookups may be too high by what was counted and
//! not answered, so such a file may stay in `work/orphans` until the mount ends. Only directories
//! are read that the dead worker had read: the kernel cannot know what is below others.
//!
//! A request that the dead worker had read and not answered is answered by its successor. Most can
//! be done again, or the present state shows that they were done, since the kernel blocks other
//! requests on these names meanwhile; the rest is in the request's [`Intent`].

use cowl_core::tree::FileType;
use cowl_core::upper::Upper;
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::scan;
use rustix::fs::FileType as HostType;

use super::Overlay;
use super::dir::{Name, Under};
use super::event::Event;
use super::lookup::upper_file;
use super::node::{Home, UpperFile};
use super::record::Record;
use super::types::{Attr, Entry, Errno, HandleId, LowerIno, NodeId};
use crate::journal::Intent;

impl Overlay {
    /// Finds all that the kernel knows again. The root and `work/index` were read.
    pub(super) fn take_over(&self, upper: &Upper) -> Result<(), Errno> {
        for number in upper.orphaned()? {
            self.take_over_orphan(upper, number)?;
        }
        self.take_over_names()?;
        let records: Vec<Record> = self.state.read().inherited().records().collect();
        for record in &records {
            self.take_over_nameless(record)?;
        }
        let intents = self.journal.as_ref().map(|journal| journal.intents());
        for intent in intents.into_iter().flatten() {
            if let Intent::Remove { node } = intent {
                self.take_over_removed(NodeId(node))?;
            }
        }
        self.commit(|_| [Event::TakenOver]);
        for record in &records {
            self.drop_orphan(record.id);
        }
        Ok(())
    }

    /// A file in `work/orphans` that the kernel knows stays; another is of a request that was not
    /// answered.
    fn take_over_orphan(&self, upper: &Upper, number: u64) -> Result<(), Errno> {
        let name = number.to_string();
        let name_at = NameAt::new(upper.orphans(), name.as_bytes());
        let stat = name_at.stat()?;
        let Some(id) = self.state.read().inherited().node_of(stat.stx_ino) else {
            return name_at.unlink();
        };
        let host_type = HostType::from_raw_mode(u32::from(stat.stx_mode));
        let host_type = scan::file_type(host_type).ok_or(Errno::IO)?;
        let store = upper.mark_store();
        let marks = match scan::read_marks(name_at, host_type, store, &self.lower, None, true) {
            Ok(marks) => marks,
            Err(error) => {
                tracing::error!(number, %error, "a removed file that is still open cannot be used");
                return Ok(());
            }
        };
        if let Some(saved) = &marks.interrupted {
            self.undo_copying(name_at, &marks, saved)?;
        }
        let file = UpperFile {
            home: Home::Orphan(number),
            copying: None,
            ..upper_file(stat.stx_ino, &marks)
        };
        let (file_type, origin) = (marks.file_type, marks.origin.or(id.lower()));
        let attr = self.attr_of_host(&stat, &file, file_type);
        // One that was never named can still get a name (O_TMPFILE); the kernel sees to it that no
        // other does.
        let gone = origin.is_some() && attr.nlink == 0;
        self.commit(|_| {
            let mut events = vec![Event::Copied {
                node: id,
                file_type,
                origin,
                file,
            }];
            events.extend(gone.then_some(Event::Gone {
                node: id,
                file_type,
                origin,
                attr,
            }));
            events
        });
        Ok(())
    }

    /// Reads the directories that the kernel may know something in, and of their names those that
    /// it may know, or that stand where the lower has a name.
    fn take_over_names(&self) -> Result<(), Errno> {
        let mut directories = vec![NodeId::ROOT];
        while let Some(dir) = directories.pop() {
            self.ensure_read(dir)?;
            for name in self.names_to_take_over(dir) {
                match self.resolve(dir, &name) {
                    Ok(Some(found)) if found.file_type == FileType::Directory => {
                        if self.state.read().inherited().knows(found.id) {
                            directories.push(found.id);
                        }
                    }
                    // What is wrong with a file's marks fails its lookup.
                    Ok(_) | Err(Errno::IO) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    fn names_to_take_over(&self, dir: NodeId) -> Vec<Name> {
        let state = self.state.read();
        let Some(table) = state.dir(dir) else {
            return Vec::new();
        };
        table
            .unread_names()
            .filter(|(_, host, under)| {
                *under != Under::Nothing || state.inherited().node_of(*host).is_some()
            })
            .map(|(name, ..)| name.clone())
            .collect()
    }

    /// A node that was found nowhere has no name and no file.
    fn take_over_nameless(&self, record: &Record) -> Result<(), Errno> {
        let had_any = record.gone || record.host.is_some();
        if !had_any || self.in_upper(record.id) || record.id == NodeId::ROOT {
            return Ok(());
        }
        let origin = self.state.read().inherited().origin_of(record.id);
        let attr = match origin {
            _ if record.gone && record.host.is_none() => record.attr,
            Some(node) => self.attr_of_unlinked(node)?.unwrap_or(record.attr),
            None => record.attr,
        };
        self.commit(|_| {
            [Event::Vanished {
                node: record.id,
                file_type: record.file_type,
                origin,
                attr,
                lost: record.lost || record.host.is_some(),
            }]
        });
        Ok(())
    }

    /// The dead worker was removing a name of this node. If that is done, and the node was in the
    /// lower alone, there is nothing of it to be found.
    fn take_over_removed(&self, id: NodeId) -> Result<(), Errno> {
        let Some(node) = id.lower() else {
            return Ok(());
        };
        let Some(attr) = self.attr_of_unlinked(node)? else {
            return Ok(());
        };
        let is_known = self.state.read().node(id).is_some();
        let found = self.lower.name_of(node)?;
        let (false, Some((dir, name))) = (is_known, found) else {
            return Ok(());
        };
        let dir = self.state.read().id_of(dir);
        if self.is_gone(dir) || self.resolve(dir, &name)?.is_some_and(|at| at.id == id) {
            return Ok(());
        }
        let file_type = attr.file_type;
        self.commit(|_| {
            [Event::Gone {
                node: id,
                file_type,
                origin: Some(node),
                attr,
            }]
        });
        Ok(())
    }

    /// What the lower has of a node, without its names; None: the node is lost, since a lower
    /// directory was changed beneath the mount.
    fn attr_of_unlinked(&self, node: LowerIno) -> Result<Option<Attr>, Errno> {
        match self.lower.node(node) {
            Ok(found) => Ok(Some(Attr {
                nlink: 0,
                ..found.attr
            })),
            Err(Errno::STALE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Drops the link in `work/index` of a file whose last name is gone, unless the kernel knows
    /// the file: then it is an orphan.
    pub(super) fn drop_last_link(
        &self,
        upper: &Upper,
        link: NameAt<'_>,
        host: u64,
    ) -> Result<(), Errno> {
        if self.state.read().inherited().node_of(host).is_none() {
            return link.unlink();
        }
        let number = upper.new_number().to_string();
        let orphan = NameAt::new(upper.orphans(), number.as_bytes());
        link.rename_new(orphan)
    }
}

/// What a resent request finds of what it did.
impl Overlay {
    /// The file that a request was to make at a name, if it did: nobody else could. Its one lookup
    /// is counted once.
    pub(crate) fn already_made(&self, parent: NodeId, name: &[u8]) -> Result<Option<Entry>, Errno> {
        let Some(found) = self.resolve(parent, name)? else {
            return Ok(None);
        };
        let entry = self.entry_with(found.id, |id| self.getattr(id))?;
        let is_counted = found.id.lower().is_none() && self.state.read().is_looked_up(found.id);
        if !is_counted {
            self.count_lookup(found.id);
        }
        Ok(Some(entry))
    }

    /// The node at a name that a request was to give it, if it did.
    pub(crate) fn already_linked(
        &self,
        id: NodeId,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Option<Entry>, Errno> {
        match self.resolve(parent, name)? {
            Some(found) if found.id == self.current(id) => self.entry(found.id).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether a name is gone that a request was to remove, or to move away.
    pub(crate) fn already_removed(&self, parent: NodeId, name: &[u8]) -> Result<bool, Errno> {
        Ok(self.resolve(parent, name)?.is_none())
    }

    /// Whether two files were exchanged: at the first one's name is the second, by its inode.
    pub(crate) fn already_exchanged(
        &self,
        parent: NodeId,
        name: &[u8],
        other: u64,
    ) -> Result<bool, Errno> {
        let found = self.resolve(parent, name)?;
        let file = found.and_then(|found| self.upper_node(found.id));
        Ok(file.is_some_and(|(_, _, file)| file.host == other))
    }

    /// The unnamed file that a request made before, of which the kernel knows nothing.
    pub(crate) fn unanswered_file(&self, number: u64) -> Option<NodeId> {
        self.state.read().node_at(Home::Orphan(number))
    }

    /// Whether a file is open with this handle.
    pub(crate) fn is_open(&self, handle: HandleId) -> bool {
        self.open_file(handle).is_ok()
    }

    /// The handles with which a file is open in passthrough, or might be.
    pub(crate) fn handles(&self, id: NodeId) -> Vec<HandleId> {
        self.state.read().opens().handles(id)
    }
}
