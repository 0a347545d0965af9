//! The index of names: `names/NAME` in the store is a symbolic link whose text is the id.
//!
//! A name is taken by making its link, which fails where there is one, so neither a creation nor a
//! look-up by name reads other containers. Invariant: a link counts only if the container of that
//! id has that name in its `config.json`. So a killed creation or renaming leaves a link that does
//! not count: the next that wants the name replaces it, or the next sweep removes it. A container
//! whose link was lost in a power cut is found by reading all.

use super::{Container, Containers, Guard};
use crate::engine::error::{Context, Error, Result};
use crate::engine::files;
use rustix::fs::{AtFlags, readlinkat, symlinkat, unlinkat};
use rustix::io::Errno;

/// Name of the directory, in the store.
pub(super) const DIRECTORY: &str = "names";

/// Whether a name could be taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The container has the name now.
    Made,
    /// The container with this id has it.
    Taken(String),
}

impl Containers {
    /// Takes a name for the container `id`, which gets it in its `config.json` before the guard is
    /// released; durably unless it is `volatile`.
    pub fn claim_name(
        &self,
        _guard: &Guard,
        name: &str,
        id: &str,
        volatile: bool,
    ) -> Result<Claim> {
        let what = || format!("making the name {name}");
        loop {
            match symlinkat(id, self.index.get()?, name) {
                Ok(()) if volatile => return Ok(Claim::Made),
                Ok(()) => {
                    rustix::fs::fsync(self.index.get()?).context(what)?;
                    return Ok(Claim::Made);
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::from(errno).context(what())),
            }
            if let Some(holder) = self.holder(name)? {
                return Ok(Claim::Taken(holder));
            }
            // Left by a killed command: a live one would hold the guard.
            self.drop_name(name)?;
        }
    }

    /// Frees a name. The caller knows that its link does not count any more.
    pub fn drop_name(&self, name: &str) -> Result<()> {
        match unlinkat(self.index.get()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::from(errno).context(format!("freeing the name {name}"))),
        }
    }

    /// Frees the names that killed creations, renamings and removals left.
    pub fn drop_stale_names(&self, _guard: &Guard) -> Result<()> {
        for name in files::names(self.index.get()?)? {
            if self.link(&name)?.is_some() && self.holder(&name)?.is_none() {
                self.drop_name(&name)?;
            }
        }
        Ok(())
    }

    /// Frees the name of a removed container, unless another one has it by now.
    pub(super) fn drop_name_of(&self, name: &str, id: &str) -> Result<()> {
        match self.link(name)? {
            Some(holder) if holder == id => self.drop_name(name),
            _ => Ok(()),
        }
    }

    /// The container with this name.
    pub(super) fn by_name(&self, name: &str) -> Result<Option<Container>> {
        let Some(id) = self.link(name)? else {
            return Ok(None);
        };
        let container = self.read(&id)?;
        Ok(container.filter(|container| container.config.name == name))
    }

    /// The id of the container that has a name. A damaged container keeps its name.
    fn holder(&self, name: &str) -> Result<Option<String>> {
        let Some(id) = self.link(name)? else {
            return Ok(None);
        };
        match self.read(&id) {
            Ok(Some(container)) if container.config.name == name => Ok(Some(id)),
            Ok(_) => Ok(None),
            Err(_damaged) => Ok(Some(id)),
        }
    }

    fn link(&self, name: &str) -> Result<Option<String>> {
        if !crate::volume::is_name(name) {
            return Ok(None);
        }
        match readlinkat(self.index.get()?, name, Vec::new()) {
            Ok(id) => Ok(Some(id.to_string_lossy().into_owned()).filter(|id| super::is_id(id))),
            // No link, or not one of ours.
            Err(Errno::NOENT | Errno::INVAL | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(Error::from(errno).context(format!("looking up the name {name}"))),
        }
    }
}
