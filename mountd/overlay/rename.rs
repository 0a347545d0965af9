//! Rename. One `renameat2` on the host is the commit; the steps before it are invisible.
//!
//! A lower directory is renamed as an upper directory with an origin, so its children need no
//! copy. If the lower has the old name, the same call leaves a whiteout (`RENAME_WHITEOUT`).

use cowl_core::tree::FileType;
use cowl_core::upper::marks::{self, Mark};
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::spelling::Spelling;
use cowl_core::upper::whiteouts::Renamed;
use rustix::fs::RenameFlags;

use super::Overlay;
use super::dir::{Target, Under};
use super::event::Event;
use super::lookup::{Resolved, check_name, check_new_name, lower_side};
use super::remove::{LinkAction, UnlinkPlan, discard, end_whiteout};
use super::types::{Attr, Errno, NodeId, RenameMode};
use crate::journal::Intent;

/// The old or the new name of a rename.
#[derive(Copy, Clone, Debug)]
struct RenameEnd<'n> {
    dir: NodeId,
    name: &'n [u8],
}

/// What a rename replaces at the new name.
enum Replaced {
    Nothing,
    File(Resolved, UnlinkPlan),
    Directory(Resolved, Attr),
}

impl Overlay {
    /// Renames a file, or exchanges two.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let upper = self.writable()?;
        check_name(name)?;
        check_new_name(upper, new_name)?;
        let (from, to) = (
            RenameEnd { dir: parent, name },
            RenameEnd {
                dir: new_parent,
                name: new_name,
            },
        );
        loop {
            let source = self.resolve(from.dir, from.name)?.ok_or(Errno::NOENT)?;
            let target = self.resolve(to.dir, to.name)?;
            self.check_rename(source, to, target, mode)?;
            if target.is_some_and(|target| target.id == source.id) {
                return Ok(()); // hard links to one file: both names stay (rename(2))
            }
            self.copy_up_dir(from.dir)?;
            self.copy_up_dir(to.dir)?;
            self.copy_up(source.id)?;
            if let Some(target) = target {
                self.prepare_target(target, mode)?;
            }
            let nodes: Vec<NodeId> = [from.dir, to.dir, source.id]
                .into_iter()
                .chain(target.map(|resolved| resolved.id))
                .collect();
            let _guard = self.busy.lock(&nodes);
            if self.resolve(from.dir, from.name)? != Some(source)
                || self.resolve(to.dir, to.name)? != target
            {
                continue; // another thread changed a name; retry
            }
            if self.is_gone(to.dir) {
                return Err(Errno::NOENT);
            }
            return match (mode, target) {
                (RenameMode::Exchange, Some(target)) => self.exchange(from, source, to, target),
                _ => self.move_over(from, source, to, target),
            };
        }
    }

    fn check_rename(
        &self,
        source: Resolved,
        to: RenameEnd<'_>,
        target: Option<Resolved>,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            (RenameMode::Replace, Some(target)) => {
                let is_dir = |resolved: Resolved| resolved.file_type == FileType::Directory;
                match (is_dir(source), is_dir(target)) {
                    (true, false) => return Err(Errno::NOTDIR),
                    (false, true) => return Err(Errno::ISDIR),
                    _ => {}
                }
            }
            _ => {}
        }
        if self.keeps_lower_directories() {
            // mv(1) then copies it, as on fuse-overlayfs and on overlayfs without redirect_dir.
            let state = self.state.read();
            let exchanged = target.filter(|_| mode == RenameMode::Exchange);
            let moved = [Some(source), exchanged].into_iter().flatten();
            if moved
                .filter(|resolved| resolved.file_type == FileType::Directory)
                .any(|resolved| lower_side(&state, resolved.id).is_some())
            {
                return Err(Errno::XDEV);
            }
        }
        if source.file_type == FileType::Directory && self.is_inside(to.dir, source.id)? {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    /// Whether `dir` is `other` or below it. The kernel checks this too; a rename into itself
    /// would make a loop.
    fn is_inside(&self, dir: NodeId, other: NodeId) -> Result<bool, Errno> {
        let mut at = dir;
        while at != NodeId::ROOT {
            if at == other {
                return Ok(true);
            }
            at = self.parent_of(at)?;
        }
        Ok(at == other)
    }

    fn prepare_target(&self, target: Resolved, mode: RenameMode) -> Result<(), Errno> {
        match mode {
            RenameMode::Exchange => self.copy_up(target.id),
            _ if target.file_type == FileType::Directory => self.ensure_read(target.id),
            _ => self.count_links(target.id),
        }
    }

    /// Links a name into the upper if only the lower has it: that of a hard link whose file is in
    /// the index.
    fn ensure_name(&self, end: RenameEnd<'_>, resolved: Resolved) -> Result<(), Errno> {
        if self.has_node(end.dir, end.name) {
            return Ok(());
        }
        let Some((file_type, _, file)) = self.upper_node(resolved.id) else {
            return Err(Errno::STALE);
        };
        let under = self.under(end.dir, end.name)?;
        self.mark_impure(end.dir)?;
        self.place_of(resolved.id)?
            .name_at()
            .link(self.place_in(end.dir, end.name)?.name_at())?;
        let name = end.name.into();
        self.commit(|_| {
            [Event::Named {
                dir: end.dir,
                name,
                node: resolved.id,
                file_type,
                under,
            }]
        });
        let delta = file.link_delta.saturating_sub(1);
        self.write_delta(resolved.id, delta)?;
        self.commit(|_| {
            [Event::Nlink {
                node: resolved.id,
                delta,
            }]
        });
        Ok(())
    }

    /// Writes the marks that a file needs at its new name: its origin; opaque over a directory of
    /// the lower.
    fn mark_for(&self, resolved: Resolved, to: RenameEnd<'_>) -> Result<(), Errno> {
        let Some((_, origin, file)) = self.upper_node(resolved.id) else {
            return Err(Errno::STALE);
        };
        if origin.is_some() || file.device {
            self.mark_impure(to.dir)?;
        }
        if resolved.file_type != FileType::Directory {
            return self.mark_moved_file(resolved.id);
        }
        let store = self.writable()?.mark_store();
        let place = self.place_of(resolved.id)?;
        match origin {
            // It merged by name until now, without an origin on disk.
            Some(origin) => {
                let origin = self.lower.origin_of(origin)?;
                let spelling = self.writable()?.spelling();
                spelling.write_redirect(place.name_at(), store, origin)
            }
            None if !file.opaque && self.under(to.dir, to.name)? == Under::Directory => {
                place.name_at().set_mark(store, Mark::Opaque, marks::YES)?;
                self.commit(|_| [Event::Opaque { node: resolved.id }]);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Writes where a file that gets another name has its content, for the kernel's overlayfs. The
    /// caller guards it.
    pub(super) fn mark_moved_file(&self, id: NodeId) -> Result<(), Errno> {
        let upper = self.writable()?;
        match self.upper_node(id) {
            Some((_, Some(origin), file))
                if file.metadata_only && upper.spelling() == Spelling::Plain =>
            {
                let origin = self.lower.origin_of(origin)?;
                let place = self.place_of(id)?;
                upper
                    .spelling()
                    .write_redirect(place.name_at(), upper.mark_store(), origin)
            }
            _ => Ok(()),
        }
    }

    fn move_over(
        &self,
        from: RenameEnd<'_>,
        source: Resolved,
        to: RenameEnd<'_>,
        target: Option<Resolved>,
    ) -> Result<(), Errno> {
        self.ensure_name(from, source)?;
        let replaced = self.prepare_replaced(to, target)?;
        self.mark_for(source, to)?;
        let under = self.under(from.dir, from.name)?;
        let whiteout = matches!(
            self.dirent(to.dir, to.name).map(|dirent| dirent.target),
            Some(Target::Whiteout)
        );
        let upper = self.writable()?;
        let renamed = Renamed {
            directory: source.file_type == FileType::Directory,
            hides: under != Under::Nothing,
            over_whiteout: whiteout,
        };
        if renamed.hides {
            crate::sys::identity::own()?;
        }
        let place = self.place_in(from.dir, from.name)?;
        let new_place = self.place_in(to.dir, to.name)?;
        let new_under = self.under(to.dir, to.name)?;
        if let Some(target) = target {
            self.intend(Intent::Remove { node: target.id.0 });
        }
        {
            let _alone = renamed.directory.then(|| self.places.moves.write());
            upper
                .rename(place.name_at(), new_place.name_at(), renamed)
                .inspect_err(|_| self.undo_replaced(&replaced))?;
            self.commit(|_| {
                let (node, file_type, name) = (source.id, source.file_type, to.name.into());
                [
                    Event::vacated(from.dir, from.name, under),
                    Event::Named {
                        dir: to.dir,
                        name,
                        node,
                        file_type,
                        under: new_under,
                    },
                ]
            });
        }
        if upper.swaps(renamed) && !renamed.hides {
            self.drop_whiteout(from, place.name_at());
        } else if whiteout {
            end_whiteout(upper, new_place.name_at());
        }
        match replaced {
            Replaced::Nothing => Ok(()),
            Replaced::File(resolved, plan) => self.finish_unlink(resolved, plan),
            Replaced::Directory(resolved, attr) => {
                let origin = self.origin_of(resolved.id);
                self.drop_marks(self.host_of(resolved.id));
                let file_type = FileType::Directory;
                self.commit(|_| {
                    [Event::Gone {
                        node: resolved.id,
                        file_type,
                        origin,
                        attr,
                    }]
                });
                self.places.forget(resolved.id);
                Ok(())
            }
        }
    }

    /// Removes a whiteout over a name that the lower does not have. One that remains is harmless,
    /// but the state must list it.
    fn drop_whiteout(&self, end: RenameEnd<'_>, name_at: NameAt<'_>) {
        if let Err(errno) = name_at.unlink() {
            tracing::warn!(%errno, "cannot remove a needless whiteout");
            let (dir, name, under) = (end.dir, end.name.into(), Under::Nothing);
            self.commit(|_| [Event::Hidden { dir, name, under }]);
        }
    }

    /// Prepares the file at the new name for its replacement, without a visible change.
    fn prepare_replaced(
        &self,
        to: RenameEnd<'_>,
        target: Option<Resolved>,
    ) -> Result<Replaced, Errno> {
        let Some(resolved) = target else {
            return Ok(Replaced::Nothing);
        };
        if resolved.file_type == FileType::Directory {
            if !self.is_empty(resolved.id)? {
                return Err(Errno::NOTEMPTY);
            }
            let attr = Attr {
                nlink: 0,
                ..self.attr_guarded(resolved.id)?
            };
            if self.has_node(to.dir, to.name) {
                self.clear_directory(resolved.id)?;
            }
            return Ok(Replaced::Directory(resolved, attr));
        }
        let plan = self.plan_unlink(to.dir, to.name, resolved)?;
        if let Some(LinkAction::OrphanName(number)) = plan.action {
            let orphans = self.writable()?.orphans();
            self.place_in(to.dir, to.name)?
                .name_at()
                .link(NameAt::new(orphans, number.to_string().as_bytes()))?;
        }
        Ok(Replaced::File(resolved, plan))
    }

    fn undo_replaced(&self, replaced: &Replaced) {
        if let (
            Replaced::File(
                _,
                UnlinkPlan {
                    action: Some(LinkAction::OrphanName(number)),
                    ..
                },
            ),
            Some(upper),
        ) = (replaced, &self.upper)
        {
            discard(NameAt::new(upper.orphans(), number.to_string().as_bytes()).unlink());
        }
    }

    fn exchange(
        &self,
        from: RenameEnd<'_>,
        source: Resolved,
        to: RenameEnd<'_>,
        target: Resolved,
    ) -> Result<(), Errno> {
        if target.file_type == FileType::Directory && self.is_inside(from.dir, target.id)? {
            return Err(Errno::INVAL);
        }
        self.ensure_name(from, source)?;
        self.ensure_name(to, target)?;
        self.mark_for(source, to)?;
        self.mark_for(target, from)?;
        let place = self.place_in(from.dir, from.name)?;
        let new_place = self.place_in(to.dir, to.name)?;
        let (under, new_under) = (
            self.under(from.dir, from.name)?,
            self.under(to.dir, to.name)?,
        );
        let directories = [source, target]
            .iter()
            .any(|resolved| resolved.file_type == FileType::Directory);
        let _alone = directories.then(|| self.places.moves.write());
        let host = |resolved: Resolved| {
            self.upper_node(resolved.id)
                .map_or(0, |(.., file)| file.host)
        };
        self.intend(Intent::Exchange {
            from: host(source),
            to: host(target),
        });
        place
            .name_at()
            .rename(new_place.name_at(), RenameFlags::EXCHANGE)?;
        let named = |end: RenameEnd<'_>, resolved: Resolved, under| Event::Named {
            dir: end.dir,
            name: end.name.into(),
            node: resolved.id,
            file_type: resolved.file_type,
            under,
        };
        self.commit(|_| [named(from, target, under), named(to, source, new_under)]);
        Ok(())
    }
}
