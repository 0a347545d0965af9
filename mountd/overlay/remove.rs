//! Removal. Nothing is copied up: a whiteout hides the lower's file. A file that may still be open
//! moves to `work/orphans`, until its last release and forget.

use cowl_core::tree::FileType;
use cowl_core::upper::marks::{self, Mark};
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::remove_temporary;
use rustix::fs::RenameFlags;

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
        let flags = if under == Under::Nothing {
            RenameFlags::empty()
        } else {
            RenameFlags::WHITEOUT
        };
        self.intend(Intent::Remove {
            node: resolved.id.0,
        });
        match (&plan.action, self.has_node(parent, name)) {
            (_, false) => upper.make_whiteout(place.name_at())?,
            (Some(LinkAction::OrphanName(number)), true) => {
                place.name_at().rename(
                    NameAt::new(upper.orphans(), number.to_string().as_bytes()),
                    flags,
                )?;
            }
            (_, true) if under == Under::Nothing => place.name_at().unlink()?,
            (_, true) => {
                let name = upper.new_name();
                let temporary = NameAt::new(upper.tmp(), &name);
                place.name_at().rename(temporary, flags)?;
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
                place.name_at().rename(
                    NameAt::new(upper.orphans(), to.as_bytes()),
                    RenameFlags::NOREPLACE,
                )?;
                events.push(Event::Moved {
                    node: resolved.id,
                    home: Home::Orphan(number),
                });
            }
            Some(LinkAction::RemoveIndexLink) => self.place_of(resolved.id)?.name_at().unlink()?,
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
        let held = self
            .state
            .read()
            .dir(resolved.id)
            .map_or(0, super::dir::Dir::held);
        self.intend(Intent::Remove {
            node: resolved.id.0,
        });
        if !self.has_node(parent, name) {
            upper.make_whiteout(place.name_at())?;
        } else if under == Under::Nothing && held == 0 {
            place.name_at().rmdir()?;
        } else {
            let name = upper.new_name();
            let temporary = NameAt::new(upper.tmp(), &name);
            let flags = if under == Under::Nothing {
                RenameFlags::NOREPLACE
            } else {
                RenameFlags::WHITEOUT
            };
            place.name_at().rename(temporary, flags)?;
            discard(remove_temporary(temporary));
        }
        self.forget_directory(parent, name, resolved, attr, under);
        Ok(())
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

    /// Replaces a directory that holds only whiteouts by an empty opaque one, so that the host
    /// accepts a rename over it. The caller guards it and its parent.
    pub(super) fn clear_directory(
        &self,
        parent: NodeId,
        name: &[u8],
        dir: NodeId,
    ) -> Result<(), Errno> {
        if self
            .state
            .read()
            .dir(dir)
            .is_none_or(|table| table.held() == 0)
        {
            return Ok(());
        }
        let upper = self.writable()?;
        let space = upper.namespace();
        let place = self.place_in(parent, name)?;
        let stat = place.name_at().stat()?;
        let temporary = upper.new_name();
        let clean = NameAt::new(upper.tmp(), &temporary);
        crate::sys::identity::own()?;
        rustix::fs::mkdirat(clean.dir, clean.name, rustix::fs::Mode::RWXU)?;
        let prepared = (|| {
            clean.chown(Some(stat.stx_uid), Some(stat.stx_gid))?;
            clean.chmod(u32::from(stat.stx_mode))?;
            clean.set_mark(space, Mark::Opaque, marks::YES)?;
            if let Some(origin) = self.origin_of(dir) {
                let origin = self.lower.origin_of(origin)?;
                upper.spelling().write_redirect(clean, space, origin)?;
            }
            clean.rename(place.name_at(), RenameFlags::EXCHANGE)
        })();
        discard(remove_temporary(clean));
        prepared?;
        self.places.forget(dir);
        let found = place.name_at().stat()?;
        let file = UpperFile {
            opaque: true,
            ..super::new_file(found.stx_ino)
        };
        let (origin, file_type) = (self.origin_of(dir), FileType::Directory);
        self.commit(|_| {
            [
                Event::Copied {
                    node: dir,
                    file_type,
                    origin,
                    file,
                },
                Event::DirRead {
                    dir,
                    subdirs: 0,
                    visible: 0,
                    impure: false,
                    names: Vec::new(),
                },
            ]
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

/// Logs a failed removal from the work directory; the next mount retries it.
pub(super) fn discard(removed: Result<(), Errno>) {
    if let Err(errno) = removed {
        tracing::warn!(%errno, "cannot empty work/tmp; the next mount will");
    }
}
