//! Many ids in few bytes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::ObjectId;

/// Distinct ids, numbered from 0 in the order in which they came: 32 bytes each, and 5 to 10 to
/// find them by.
#[derive(Debug, Default)]
pub struct ObjectIds {
    ids: Vec<ObjectId>,
    /// Places in `ids`.
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl ObjectIds {
    /// The id's number, and whether it is new. None: it is new, and there are 2^32 - 1 of them.
    pub fn insert(&mut self, id: ObjectId) -> Option<(u32, bool)> {
        let Self {
            ids,
            numbers,
            hasher,
        } = self;
        let known = numbers.entry(
            hasher.hash_one(id),
            |number| ids.get(*number as usize) == Some(&id),
            |number| {
                ids.get(*number as usize)
                    .map_or(0, |id| hasher.hash_one(id))
            },
        );
        match known {
            Entry::Occupied(known) => Some((*known.get(), false)),
            Entry::Vacant(new) => {
                let next = u32::try_from(ids.len())
                    .ok()
                    .filter(|next| *next < u32::MAX)?;
                new.insert(next);
                ids.push(id);
                Some((next, true))
            }
        }
    }

    /// The number of an id.
    pub fn number(&self, id: ObjectId) -> Option<u32> {
        let is_it = |number: &u32| self.ids.get(*number as usize) == Some(&id);
        self.numbers.find(self.hasher.hash_one(id), is_it).copied()
    }

    /// The ids by number.
    pub fn iter(&self) -> impl Iterator<Item = ObjectId> {
        self.ids.iter().copied()
    }

    /// The ids by number. What found them is freed.
    pub fn into_ids(self) -> Vec<ObjectId> {
        self.ids
    }
}
