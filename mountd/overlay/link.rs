//! Hard links, and the first name of an unnamed file.

use cowl_core::tree::FileType;
use cowl_core::upper::Upper;
use cowl_core::upper::name_at::NameAt;
use cowl_core::upper::whiteouts::Whiteouts;

use super::Overlay;
use super::event::Event;
use super::lookup::check_new_name;
use super::node::Home;
use super::remove::{discard, end_whiteout};
use super::types::{Entry, Errno, NodeId};

impl Overlay {
    /// Creates a hard link.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry, Errno> {
        let upper = self.writable()?;
        check_new_name(upper, name)?;
        let id = self.current(id);
        if self.resolve(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.copy_up(id)?;
        self.copy_up_dir(parent)?;
        let _guard = self.busy.lock(&[id, parent]);
        if self.is_gone(parent) || self.is_gone(id) {
            return Err(Errno::NOENT);
        }
        if self.resolve(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let Some((file_type, origin, file)) = self.upper_node(id) else {
            return Err(Errno::STALE);
        };
        if file_type == FileType::Directory {
            return Err(Errno::PERM);
        }
        if origin.is_some() || file.device {
            self.mark_impure(parent)?;
        }
        self.mark_moved_file(id)?;
        let under = self.under(parent, name)?;
        let from = self.place_of(id)?;
        let to = self.place_in(parent, name)?;
        link_spot(
            upper,
            from.name_at(),
            to.name_at(),
            file.home,
            self.dirent(parent, name).is_some(),
        )?;
        self.commit(|_| {
            let mut events = Vec::new();
            if let Home::Orphan(_) = file.home {
                events.push(Event::Moved {
                    node: id,
                    home: Home::Named,
                });
            }
            events.push(Event::Named {
                dir: parent,
                name: name.into(),
                node: id,
                file_type,
                under,
            });
            events.push(Event::Looked { node: id });
            events
        });
        self.entry_with(id, |id| self.attr_guarded(id))
    }
}

/// Puts a file's new name in its place.
fn link_spot(
    upper: &Upper,
    from: NameAt<'_>,
    to: NameAt<'_>,
    home: Home,
    whiteout: bool,
) -> Result<(), Errno> {
    match (home, upper.whiteouts()) {
        // An unnamed file gets its first name by moving out of the orphans.
        (Home::Orphan(_), _) => upper.move_in(from, to, false, whiteout)?,
        (_, Whiteouts::Devices) if whiteout => {
            let name = upper.new_name();
            let temporary = NameAt::new(upper.tmp(), &name);
            from.link(temporary)?;
            upper
                .move_in(temporary, to, false, whiteout)
                .inspect_err(|_| discard(temporary.unlink()))?;
        }
        _ => from.link(to)?,
    }
    if whiteout {
        end_whiteout(upper, to);
    }
    Ok(())
}
