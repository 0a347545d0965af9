//! File I/O: open, read, write, fsync, fallocate, lseek, copy_file_range and release.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use cowl_core::tree::FileType;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};

use super::Overlay;
use super::content::SET_ID;
use super::event::Event;
use super::node::{Home, Unsynced};
use super::opens::Serving;
use super::types::{CopyEnd, Errno, HandleId, NodeId, OpenFlags, Opened, Seek};

impl Overlay {
    /// Opens a regular file. For writing, its content is copied up first, unless it is truncated.
    ///
    /// # Errors
    /// ESTALE if the file is opened for writing while the kernel reads its object in passthrough:
    /// the kernel looks the name up again, which gives another node, and retries.
    pub fn open(&self, id: NodeId, flags: OpenFlags) -> Result<Opened, Errno> {
        if self.current(id) != id {
            return Err(Errno::STALE);
        }
        match self.type_of(id)? {
            FileType::Regular => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::OPNOTSUPP),
        }
        // O_RDONLY | O_TRUNC truncates as well.
        let changes = flags.write || flags.truncate;
        if changes {
            self.writable()?;
            self.copy_up_to_write(id, if flags.truncate { 0 } else { u64::MAX })?;
        }
        if flags.write {
            self.sync_before_passthrough(id, flags)?;
        }
        let _guard = self.busy.lock(&[id]);
        if changes {
            self.make_writable(id, flags)?;
        }
        if self.is_lost(id) {
            return Err(Errno::STALE);
        }
        self.register_open(id, flags.write, None)
    }

    fn make_writable(&self, id: NodeId, flags: OpenFlags) -> Result<(), Errno> {
        if !self.owns_content(id) {
            return Err(Errno::STALE); // removed or renumbered before the guard was taken
        }
        if flags.truncate {
            if flags.kill_priv {
                self.drop_privilege(id)?;
            }
            rustix::fs::ftruncate(self.place_of(id)?.open(OFlags::WRONLY)?, 0)?;
        }
        if self.serving(id) == Some(Serving::Lower) {
            self.renumber(id)?;
            return Err(Errno::STALE);
        }
        Ok(())
    }

    pub(super) fn type_of(&self, id: NodeId) -> Result<FileType, Errno> {
        if let Some(node) = self.state.read().node(id) {
            return Ok(node.file_type);
        }
        let node = id.lower().ok_or(Errno::STALE)?;
        Ok(self.lower.node(node)?.file_type())
    }

    /// Releases a handle, and removes the file if it is an orphan that is no longer used.
    pub fn release(&self, _node: NodeId, handle: HandleId) -> Result<(), Errno> {
        let file = self.open_file(handle)?;
        self.commit(|_| [Event::Released { handle }]);
        self.drop_orphan(file.node);
        Ok(())
    }

    /// Reads; short at the end of the file only.
    pub fn read(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let Some(file) = self.file_to_read(id, handle)? else {
            return Ok(0);
        };
        let mut done = 0;
        while let Some(room) = buffer.get_mut(done..).filter(|room| !room.is_empty()) {
            match rustix::io::pread(&*file, room, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes; short only if a later part fails. `kill_priv`: drop set-id bits first. A capability
    /// is dropped by the host, for privileged writers too.
    pub fn write(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
        offset: u64,
        data: &[u8],
        kill_priv: bool,
    ) -> Result<usize, Errno> {
        self.writable()?;
        let file = self.file_to_write(id, handle)?;
        if kill_priv && rustix::fs::fstat(&*file)?.st_mode & SET_ID != 0 {
            let id = self.current(id);
            let _guard = self.busy.lock(&[id]);
            self.drop_privilege(id)?;
        }
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&*file, rest, offset.saturating_add(done as u64)) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                // A short write; the kernel retries the rest and gets the error.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Makes a file durable, with its marks, its name and everything above it that was copied up.
    pub fn fsync(&self, id: NodeId, data_only: bool) -> Result<(), Errno> {
        let id = self.current(id);
        if self.rules.volatile || !self.in_upper(id) {
            return Ok(());
        }
        let open = self.files.upper_file(id).map_or_else(
            || {
                let _guard = self.busy.lock(&[id]);
                self.place_of(id)?.open(OFlags::RDONLY).map(Arc::new)
            },
            Ok,
        )?;
        if !self.sync_inode(id, &open)? {
            if data_only {
                rustix::fs::fdatasync(&*open)?;
            } else {
                rustix::fs::fsync(&*open)?;
            }
        }
        self.sync_above(id)
    }

    /// Syncs a file whose marks are not durable yet, even for fdatasync: without them the content
    /// would be the object's. False if they are durable.
    fn sync_inode(&self, id: NodeId, open: &File) -> Result<bool, Errno> {
        let unsynced = || self.unsynced(id).is_some_and(|unsynced| unsynced.inode);
        if !unsynced() {
            return Ok(false);
        }
        let _guard = self.busy.lock(&[id]);
        if !unsynced() {
            return Ok(false);
        }
        rustix::fs::fsync(open)?;
        self.writable()?.sync_marks()?;
        self.commit(|_| [Event::InodeSynced { node: id }]);
        Ok(true)
    }

    fn unsynced(&self, id: NodeId) -> Option<Unsynced> {
        let state = self.state.read();
        Some(state.node(id)?.upper.as_ref()?.unsynced)
    }

    /// Makes the marks of a file durable before it is opened in passthrough: there the kernel
    /// handles `O_DSYNC` and `RWF_DSYNC` itself, and syncs the content only.
    fn sync_before_passthrough(&self, id: NodeId, flags: OpenFlags) -> Result<(), Errno> {
        if self.rules.volatile || !self.io_mode.has_handles() {
            return Ok(());
        }
        if self.unsynced(id).is_some_and(|unsynced| unsynced.inode) {
            let file = {
                let _guard = self.busy.lock(&[id]);
                self.place_of(id)?.open(OFlags::RDONLY)?
            };
            self.sync_inode(id, &file)?;
        }
        if flags.sync {
            self.sync_above(id)
        } else {
            Ok(())
        }
    }

    /// Makes a directory durable.
    pub fn fsyncdir(&self, id: NodeId, _data_only: bool) -> Result<(), Errno> {
        if self.rules.volatile || !self.in_upper(id) {
            return Ok(());
        }
        self.sync_directory(id)?;
        self.sync_above(id)
    }

    fn sync_directory(&self, id: NodeId) -> Result<(), Errno> {
        let dir = self.dir_fd(id)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::fsync(rustix::fs::openat(dir.as_fd(), ".", flags, Mode::empty())?)?;
        self.writable()?.sync_marks()
    }

    /// Syncs the directories above a copied-up node, up to the root, where its name or that of a
    /// parent is not durable.
    fn sync_above(&self, id: NodeId) -> Result<(), Errno> {
        let mut at = id;
        while at != NodeId::ROOT {
            let (home, unsynced) = {
                let state = self.state.read();
                match state.node(at).and_then(|node| node.upper.as_ref()) {
                    Some(file) => (file.home, file.unsynced.name),
                    None => return Ok(()),
                }
            };
            match home {
                Home::Orphan(_) => return Ok(()),
                Home::Index(_) => {
                    if unsynced {
                        rustix::fs::fsync(self.writable()?.index())?;
                        self.commit(|_| [Event::NameSynced { node: at }]);
                    }
                    return Ok(());
                }
                Home::Named => {}
            }
            let dir = self.parent_of(at)?;
            if unsynced {
                self.sync_directory(dir)?;
                self.commit(|_| [Event::NameSynced { node: at }]);
            }
            at = dir;
        }
        Ok(())
    }

    /// Reserves or frees space; `mode` as in `fallocate(2)`.
    pub fn fallocate(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        self.writable()?;
        rustix::fs::fallocate(&*self.file_to_write(id, handle)?, mode, offset, length)
    }

    /// The next data or hole at or after `offset`; ENXIO if there is none.
    pub fn lseek(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
        offset: u64,
        seek: Seek,
    ) -> Result<u64, Errno> {
        let file = self.file_to_read(id, handle)?.ok_or(Errno::NXIO)?;
        let from = match seek {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&*file, from)
    }

    /// Copies bytes between two files on the host, and returns their number.
    pub fn copy_file_range(&self, from: CopyEnd, to: CopyEnd, length: u64) -> Result<usize, Errno> {
        self.writable()?;
        let Some(source) = self.file_to_read(from.node, from.handle)? else {
            return Ok(0);
        };
        let target = self.file_to_write(to.node, to.handle)?;
        let (mut read, mut write) = (from.offset, to.offset);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        rustix::fs::copy_file_range(
            &*source,
            Some(&mut read),
            &*target,
            Some(&mut write),
            length,
        )
    }

    /// Removes an orphan's file once it is released and forgotten.
    pub(super) fn drop_orphan(&self, id: NodeId) {
        let Some(upper) = &self.upper else { return };
        if self.unused_orphan(id).is_none() {
            return;
        }
        let _guard = self.busy.lock(&[id]);
        let Some(number) = self.unused_orphan(id) else {
            return;
        };
        self.files.forget(id);
        let host = self.host_of(id);
        // Before its file is, so that no successor takes another with its inode for it.
        self.commit(|_| [Event::Dropped { node: id }]);
        let name = number.to_string();
        match rustix::fs::unlinkat(upper.orphans(), name, rustix::fs::AtFlags::empty()) {
            Ok(()) => self.drop_marks(host),
            Err(errno) => {
                tracing::warn!(number, %errno, "cannot remove a file from work/orphans; the next mount will");
            }
        }
    }

    fn unused_orphan(&self, id: NodeId) -> Option<u64> {
        if self.io_mode.has_handles() && self.serving(id).is_some() {
            return None;
        }
        let state = self.state.read();
        let node = state.node(id)?;
        match node.upper.as_ref()?.home {
            Home::Orphan(number) if node.known_names() == 0 && !state.is_looked_up(id) => {
                Some(number)
            }
            _ => None,
        }
    }
}
