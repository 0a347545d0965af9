//! Removal. Nothing is copied up: a whiteout hides the lower's file. A file that may still be open
//! moves to `work/orphans`, until its last release and forget.

use std::os::fd::AsFd;

use cowl_core::tree::FileType;
use cowl_core::upper::marks::{self, Mark};
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::spelling::Spelling;
use cowl_core::upper::whiteouts::{OPAQUE_FILE, Whiteouts};
use cowl_core::upper::{Upper, empty, remove_temporary};

use super::Overlay;
use super::dir::Under;
use super::event::Event;
use super::lookup::{Resolved, check_name, lower_side};
use super::node::{Home, UpperFile};
use super::types::{Attr, Errno, LowerIno, NodeId};
use crate::journal::Intent;

impl Overlay {
    /// Removes a name of a non-directory.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        check_name(name)?;
        loop {
            let resolved = self.resolve(parent, name)?.ok_or(Errno::NOENT)?;
            if resolved.file_type == FileType::Directory {
                return Err(Errno::ISDIR);
            }
            self.copy_up_dir(parent)?;
            self.count_links(resolved.id)?;
            let _guard = self.busy.lock(&[parent, resolved.id]);
            if self.resolve(parent, name)? != Some(resolved) {
                continue; // another thread changed the name; retry
            }
            let plan = self.plan_unlink(parent, name, resolved)?;
            return self.unlink_guarded(parent, name, resolved, plan);
        }
    }

    /// Copies a hard link up before its first name is removed, so that its remaining names share
    /// one inode.
    pub(super) fn count_links(&self, id: NodeId) -> Result<(), Errno> {
        let Some(node) = id.lower() else {
            return Ok(());
        };
        if self.in_upper(id) || self.lower.node(node)?.attr.nlink <= 1 {
            Ok(())
        } else {
            self.copy_up(id)
        }
    }

    fn unlink_guarded(
        &self,
        parent: NodeId,
        name: &[u8],
        resolved: Resolved,
        plan: UnlinkPlan,
    ) -> Result<(), Errno> {
        let upper = self.writable()?;
        let place = self.place_in(parent, name)?;
        let under = self.under(parent, name)?;
        let hides = under != Under::Nothing;
        if hides {
            crate::sys::identity::own()?;
        }
        self.intend(Intent::Remove {
            node: resolved.id.0,
        });
        match (&plan.action, self.has_node(parent, name)) {
            (_, false) => upper.make_whiteout(place.name_at())?,
            (Some(LinkAction::OrphanName(number)), true) => {
                let number = number.to_string();
                let orphan = NameAt::new(upper.orphans(), number.as_bytes());
                upper.move_away(place.name_at(), orphan, hides)?;
            }
            (_, true) if !hides => place.name_at().unlink()?,
            (_, true) => {
                let name = upper.new_name();
                let temporary = NameAt::new(upper.tmp(), &name);
                upper.move_away(place.name_at(), temporary, hides)?;
                discard(temporary.unlink());
            }
        }
        self.commit(|_| [Event::vacated(parent, name, under)]);
        self.finish_unlink(resolved, plan)
    }

    /// Plans an unlink, before the name is removed, so that an error changes nothing. The caller
    /// guards the file and its directory.
    pub(super) fn plan_unlink(
        &self,
        parent: NodeId,
        name: &[u8],
        resolved: Resolved,
    ) -> Result<UnlinkPlan, Errno> {
        let attr = self.attr_guarded(resolved.id)?;
        let Some((_, _, file)) = self.upper_node(resolved.id) else {
            return Ok(UnlinkPlan {
                attr: Attr { nlink: 0, ..attr },
                last: true,
                action: None,
                delta: None,
            });
        };
        let last = attr.nlink <= 1;
        let in_use = self.may_be_open(resolved.id);
        let number = self.writable()?.new_number();
        let action = match file.home {
            Home::Index(_) if last => Some(if in_use {
                LinkAction::OrphanIndexLink(number)
            } else {
                LinkAction::RemoveIndexLink
            }),
            Home::Named if last && in_use => Some(LinkAction::OrphanName(number)),
            // Its other names are in directories not read yet, so only this name leads to the
            // inode.
            Home::Named if !last && self.known_names(resolved.id) == 1 => {
                Some(LinkAction::OrphanName(number))
            }
            _ => None,
        };
        // The link delta counts names of the lower, the host's link count those of the upper.
        let delta = (matches!(file.home, Home::Index(_)) && !self.has_node(parent, name))
            .then(|| file.link_delta.saturating_sub(1));
        Ok(UnlinkPlan {
            attr: Attr {
                nlink: attr.nlink.saturating_sub(1),
                ..attr
            },
            last,
            action,
            delta,
        })
    }

    fn known_names(&self, id: NodeId) -> usize {
        self.state
            .read()
            .node(id)
            .map_or(0, super::node::Node::known_names)
    }

    /// Finishes an unlink after the name was removed. A crash in between leaves a link count that
    /// is one too high.
    pub(super) fn finish_unlink(&self, resolved: Resolved, plan: UnlinkPlan) -> Result<(), Errno> {
        let upper = self.writable()?;
        let mut events = Vec::new();
        if let Some(delta) = plan.delta {
            self.write_delta(resolved.id, delta)?;
            events.push(Event::Nlink {
                node: resolved.id,
                delta,
            });
        }
        match plan.action {
            None => {}
            Some(LinkAction::OrphanName(number)) => events.push(Event::Moved {
                node: resolved.id,
                home: Home::Orphan(number),
            }),
            Some(LinkAction::OrphanIndexLink(number)) => {
                let place = self.place_of(resolved.id)?;
                let to = number.to_string();
                place
                    .name_at()
                    .rename_new(NameAt::new(upper.orphans(), to.as_bytes()))?;
                events.push(Event::Moved {
                    node: resolved.id,
                    home: Home::Orphan(number),
                });
            }
            Some(LinkAction::RemoveIndexLink) => self.place_of(resolved.id)?.name_at().unlink()?,
        }
        let is_orphan = matches!(
            plan.action,
            Some(LinkAction::OrphanName(_) | LinkAction::OrphanIndexLink(_))
        );
        if plan.last && !is_orphan {
            self.drop_marks(self.host_of(resolved.id));
        }
        if plan.last {
            let (file_type, attr) = (resolved.file_type, plan.attr);
            let origin = self.origin_of(resolved.id);
            events.push(Event::Gone {
                node: resolved.id,
                file_type,
                origin,
                attr,
            });
        }
        self.commit(|_| events);
        if plan.last && plan.action.is_none() {
            self.files.forget(resolved.id);
        }
        Ok(())
    }

    /// The inode number of a node's file in the upper.
    pub(super) fn host_of(&self, id: NodeId) -> Option<u64> {
        self.upper_node(id).map(|(_, _, file)| file.host)
    }

    /// Drops the marks of a removed file, by its inode number, if they did not go with it.
    pub(super) fn drop_marks(&self, host: Option<u64>) {
        let (Some(upper), Some(host)) = (&self.upper, host) else {
            return;
        };
        if let Err(errno) = upper.drop_marks(host) {
            tracing::warn!(%errno, "cannot remove the marks of a removed file; the next mount will");
        }
    }

    pub(super) fn origin_of(&self, id: NodeId) -> Option<LowerIno> {
        self.state
            .read()
            .node(id)
            .map_or(id.lower(), |node| node.origin)
    }

    /// Writes the link delta, if the file can bear marks.
    pub(super) fn write_delta(&self, id: NodeId, delta: i32) -> Result<(), Errno> {
        let Some((file_type, origin, file)) = self.upper_node(id) else {
            return Err(Errno::STALE);
        };
        let stored = if file.device {
            FileType::Regular
        } else {
            file_type
        };
        let file = UpperFile {
            link_delta: delta,
            ..file
        };
        self.write_mark(self.place_of(id)?.name_at(), stored, &file, origin)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        check_name(name)?;
        loop {
            let resolved = self.resolve(parent, name)?.ok_or(Errno::NOENT)?;
            if resolved.file_type != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            self.copy_up_dir(parent)?;
            self.ensure_read(resolved.id)?;
            let _guard = self.busy.lock(&[parent, resolved.id]);
            if self.resolve(parent, name)? != Some(resolved) {
                continue;
            }
            if !self.is_empty(resolved.id)? {
                return Err(Errno::NOTEMPTY);
            }
            return self.rmdir_guarded(parent, name, resolved);
        }
    }

    /// Whether a directory shows no names.
    pub(super) fn is_empty(&self, dir: NodeId) -> Result<bool, Errno> {
        let lower = {
            let state = self.state.read();
            if let Some(table) = state.dir(dir) {
                return Ok(table.visible == 0);
            }
            lower_side(&state, dir)
        };
        lower.map_or(Ok(true), |lower| Ok(self.lower.child_count(lower)? == 0))
    }

    fn rmdir_guarded(&self, parent: NodeId, name: &[u8], resolved: Resolved) -> Result<(), Errno> {
        let upper = self.writable()?;
        let attr = Attr {
            nlink: 0,
            ..self.attr_guarded(resolved.id)?
        };
        let place = self.place_in(parent, name)?;
        let under = self.under(parent, name)?;
        self.intend(Intent::Remove {
            node: resolved.id.0,
        });
        let hides = under != Under::Nothing;
        if hides {
            crate::sys::identity::own()?;
        }
        if !self.has_node(parent, name) {
            upper.make_whiteout(place.name_at())?;
        } else if !hides && self.is_bare(resolved.id)? {
            place.name_at().rmdir()?;
        } else {
            let name = upper.new_name();
            let temporary = NameAt::new(upper.tmp(), &name);
            upper.move_away(place.name_at(), temporary, hides)?;
            discard(remove_temporary(temporary));
        }
        self.forget_directory(parent, name, resolved, attr, under);
        Ok(())
    }

    /// Whether the host's directory is known to be empty. Other programs leave marks in theirs,
    /// which are never shown: fuse-overlayfs one file, and any where whiteouts are files.
    fn is_bare(&self, dir: NodeId) -> Result<bool, Errno> {
        let upper = self.writable()?;
        let held = self.state.read().dir(dir).map_or(0, super::dir::Dir::held);
        if held != 0 || upper.whiteouts() == Whiteouts::Files {
            return Ok(false);
        }
        if upper.spelling() == Spelling::Tree {
            return Ok(true);
        }
        let fd = self.dir_fd(dir)?;
        Ok(!NameAt::new(fd.as_fd(), OPAQUE_FILE).exists()?)
    }

    fn forget_directory(
        &self,
        parent: NodeId,
        name: &[u8],
        resolved: Resolved,
        attr: Attr,
        under: Under,
    ) {
        let origin = self.origin_of(resolved.id);
        self.drop_marks(self.host_of(resolved.id));
        self.commit(|_| {
            [
                Event::vacated(parent, name, under),
                Event::Gone {
                    node: resolved.id,
                    file_type: FileType::Directory,
                    origin,
                    attr,
                },
            ]
        });
        self.places.forget(resolved.id);
    }

    /// Empties a directory that holds only whiteouts, so that the host accepts a rename over it. It
    /// is opaque before, so nothing is seen of that. The caller guards it and its parent.
    pub(super) fn clear_directory(&self, dir: NodeId) -> Result<(), Errno> {
        let upper = self.writable()?;
        if self.is_bare(dir)? {
            return Ok(());
        }
        let store = upper.mark_store();
        let fd = self.dir_fd(dir)?;
        let own = NameAt::new(fd.as_fd(), b".");
        self.preserving_times(dir, || {
            if let Some(origin) = self.origin_of(dir) {
                let origin = self.lower.origin_of(origin)?;
                upper.spelling().write_redirect(own, store, origin)?;
            }
            own.set_mark(store, Mark::Opaque, marks::YES)?;
            self.commit(|_| [Event::Opaque { node: dir }]);
            empty(fd.as_fd())
        })?;
        self.commit(|_| {
            [Event::DirRead {
                dir,
                subdirs: 0,
                visible: 0,
                impure: false,
                names: Vec::new(),
            }]
        });
        Ok(())
    }
}

/// The effects of an unlink on the file that loses a name.
#[derive(Copy, Clone, Debug)]
pub(super) struct UnlinkPlan {
    /// The attributes after it.
    pub(super) attr: Attr,
    /// This is the last name.
    pub(super) last: bool,
    pub(super) action: Option<LinkAction>,
    /// The new link delta, if the name is one of the lower.
    pub(super) delta: Option<i32>,
}

/// What happens to the inode's link in the upper.
#[derive(Copy, Clone, Debug)]
pub(super) enum LinkAction {
    /// The name moves to `work/orphans`, under this number.
    OrphanName(u64),
    /// The link in `work/index` moves to `work/orphans`, under this number.
    OrphanIndexLink(u64),
    /// The link in `work/index` is removed.
    RemoveIndexLink,
}

/// Removes the whiteout beside a file that has taken its name, if it is a file. The next mount
/// retries it.
pub(super) fn end_whiteout(upper: &Upper, name_at: NameAt<'_>) {
    if upper.whiteouts() == Whiteouts::Files
        && let Err(errno) = upper.drop_whiteout_file(name_at)
    {
        tracing::warn!(%errno, "cannot remove a needless whiteout; the next mount will");
    }
}

/// Logs a failed removal from the work directory; the next mount retries it.
pub(super) fn discard(removed: Result<(), Errno>) {
    if let Err(errno) = removed {
        tracing::warn!(%errno, "cannot empty work/tmp; the next mount will");
    }
}
