//! The names of a layer in the making, those of all its directories in one table: some thirty
//! bytes each beside the name itself, since a layer may have millions.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::HashTable;

use super::builder::{DirId, Entry};
use super::writer::WriteError;

/// A name in a directory: what this layer has there, and whether it deletes what is below.
#[derive(Debug)]
pub(super) struct Name {
    dir: DirId,
    offset: u32,
    length: u16,
    pub(super) whiteout: bool,
    pub(super) entry: Option<Entry>,
}

#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    all: Vec<Name>,
    /// Places in `all` by the hash of directory and name.
    places: HashTable<u32>,
    hasher: RandomState,
}

impl Name {
    fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + usize::from(self.length)
    }
}

impl Names {
    fn bytes_of(&self, name: &Name) -> &[u8] {
        self.bytes.get(name.range()).unwrap_or_default()
    }

    fn find(&self, hash: u64, dir: DirId, name: &[u8]) -> Option<usize> {
        let is_it = |place: &u32| {
            let known = self.all.get(*place as usize);
            known.is_some_and(|known| known.dir == dir && self.bytes_of(known) == name)
        };
        self.places.find(hash, is_it).map(|place| *place as usize)
    }

    pub(super) fn get(&self, dir: DirId, name: &[u8]) -> Option<&Name> {
        let hash = self.hasher.hash_one((dir, name));
        self.all.get(self.find(hash, dir, name)?)
    }

    /// The name, added if it is new.
    pub(super) fn get_or_add(&mut self, dir: DirId, name: &[u8]) -> Result<&mut Name, WriteError> {
        let hash = self.hasher.hash_one((dir, name));
        let place = match self.find(hash, dir, name) {
            Some(place) => place,
            None => self.add(hash, dir, name)?,
        };
        self.all.get_mut(place).ok_or(WriteError::Limit("names"))
    }

    fn add(&mut self, hash: u64, dir: DirId, name: &[u8]) -> Result<usize, WriteError> {
        let limit = |what| move |_too_large| WriteError::Limit(what);
        let place = u32::try_from(self.all.len()).map_err(limit("names"))?;
        let offset = u32::try_from(self.bytes.len()).map_err(limit("bytes of names"))?;
        let length = u16::try_from(name.len()).map_err(limit("bytes in a name"))?;
        let Self {
            bytes,
            all,
            places,
            hasher,
        } = self;
        places.reserve(1, |place| {
            let known = all.get(*place as usize);
            let parts =
                known.map(|known| (known.dir, bytes.get(known.range()).unwrap_or_default()));
            parts.map_or(0, |parts| hasher.hash_one(parts))
        });
        // There is room: nothing is hashed again.
        places.insert_unique(hash, place, |_| hash);
        bytes.extend_from_slice(name);
        all.push(Name {
            dir,
            offset,
            length,
            whiteout: false,
            entry: None,
        });
        Ok(place as usize)
    }

    /// The names by directory, sorted bytewise.
    pub(super) fn sorted(self) -> SortedNames {
        let Self { bytes, mut all, .. } = self;
        let text = |name: &Name| bytes.get(name.range()).unwrap_or_default();
        all.sort_unstable_by(|a, b| a.dir.cmp(&b.dir).then_with(|| text(a).cmp(text(b))));
        SortedNames { bytes, all }
    }
}

pub(super) struct SortedNames {
    bytes: Vec<u8>,
    all: Vec<Name>,
}

impl SortedNames {
    /// The names of one directory.
    pub(super) fn of(&self, dir: DirId) -> impl Iterator<Item = (&[u8], &Name)> {
        let start = self.all.partition_point(|name| name.dir < dir);
        let names = self.all.get(start..).unwrap_or_default().iter();
        names
            .take_while(move |name| name.dir == dir)
            .map(|name| (self.bytes.get(name.range()).unwrap_or_default(), name))
    }
}
