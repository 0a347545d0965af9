//! User and group ids between the files of the host and what a mount shows: `uidmapping`,
//! `gidmapping` and `squash_to_*` of fuse-overlayfs.

use std::fs;
use std::io;

use bincode::{Decode, Encode};

/// The overflow ids of a system that does not say (`DEFAULT_OVERFLOWUID` in linux/highuid.h).
const OVERFLOW: u32 = 65534;

/// Ids of files, and how they are shown. The default shows them as they are.
#[derive(Clone, Debug, Default, Eq, PartialEq, Encode, Decode)]
pub struct IdMap {
    users: Ids,
    groups: Ids,
    /// `squash_to_root`.
    to_root: bool,
}

/// Ids of one kind.
#[derive(Clone, Debug, Eq, PartialEq, Encode, Decode)]
struct Ids {
    /// Empty: all are shown as they are.
    ranges: Vec<Range>,
    /// What all are shown as.
    squashed: Option<u32>,
    /// Stands for an id in no range.
    overflow: u32,
}

/// `length` ids, from `file` on in files, shown from `shown` on.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Encode, Decode)]
struct Range {
    file: u32,
    shown: u32,
    length: u32,
}

/// The kind of an id.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum IdKind {
    /// Of users.
    User,
    /// Of groups.
    Group,
}

/// An option's value that says no mapping.
#[derive(Copy, Clone, Debug, thiserror::Error, Eq, PartialEq)]
#[error("FILE:SHOWN:LENGTH[:FILE:SHOWN:LENGTH]... is expected, of ids below 4294967295")]
pub struct NoIdMapping;

impl Default for Ids {
    fn default() -> Self {
        Self {
            ranges: Vec::new(),
            squashed: None,
            overflow: OVERFLOW,
        }
    }
}

impl Ids {
    fn map(&self, id: u32, from: fn(&Range) -> u32, to: fn(&Range) -> u32) -> u32 {
        if self.ranges.is_empty() {
            return id;
        }
        // The first one that has it counts, as in fuse-overlayfs.
        let found = self.ranges.iter().find_map(|range| {
            let offset = id.checked_sub(from(range))?;
            (offset < range.length).then(|| to(range) + offset)
        });
        found.unwrap_or(self.overflow)
    }
}

impl IdMap {
    /// Shows ids by `text`, fuse-overlayfs's `FILE:SHOWN:LENGTH[:FILE:SHOWN:LENGTH]...`; empty
    /// parts count for nothing. An error if it is something else, or ranges exceed the ids.
    pub fn map(&mut self, kind: IdKind, text: &str) -> Result<(), NoIdMapping> {
        let ranges = ranges(text).ok_or(NoIdMapping)?;
        self.ids_mut(kind).ranges = ranges;
        Ok(())
    }

    /// Shows every file as of one user or group.
    pub fn squash(&mut self, kind: IdKind, id: u32) {
        self.ids_mut(kind).squashed = Some(id);
    }

    /// Shows every file as root's, where [`squash`](Self::squash) says nothing else.
    pub fn squash_to_root(&mut self) {
        self.to_root = true;
    }

    /// Takes the system's overflow ids, which stand for ids in no range.
    pub fn read_overflow_ids(&mut self) -> io::Result<()> {
        let read = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}"))?;
            text.trim().parse().map_err(io::Error::other)
        };
        self.users.overflow = read("overflowuid")?;
        self.groups.overflow = read("overflowgid")?;
        Ok(())
    }

    /// What an owner of a file is shown as.
    pub fn shown_owner(&self, kind: IdKind, id: u32) -> u32 {
        let squashed = self.ids(kind).squashed.or(self.to_root.then_some(0));
        squashed.unwrap_or_else(|| self.shown(kind, id))
    }

    /// What an id of a file is shown as where owners do not count: in an ACL.
    pub fn shown(&self, kind: IdKind, id: u32) -> u32 {
        self.ids(kind)
            .map(id, |range| range.file, |range| range.shown)
    }

    /// The id of files that is shown as `id`.
    pub fn of_file(&self, kind: IdKind, id: u32) -> u32 {
        self.ids(kind)
            .map(id, |range| range.shown, |range| range.file)
    }

    /// Whether files are shown as of others than their owners, whose change may then fail unseen.
    pub const fn squashes(&self) -> bool {
        self.to_root || self.users.squashed.is_some() || self.groups.squashed.is_some()
    }

    /// Whether any id in an ACL is shown as another.
    pub const fn maps(&self) -> bool {
        !(self.users.ranges.is_empty() && self.groups.ranges.is_empty())
    }

    const fn ids(&self, kind: IdKind) -> &Ids {
        match kind {
            IdKind::User => &self.users,
            IdKind::Group => &self.groups,
        }
    }

    const fn ids_mut(&mut self, kind: IdKind) -> &mut Ids {
        match kind {
            IdKind::User => &mut self.users,
            IdKind::Group => &mut self.groups,
        }
    }
}

fn ranges(text: &str) -> Option<Vec<Range>> {
    let numbers: Vec<u32> = text
        .split(':')
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let (triples, rest) = numbers.as_chunks();
    if triples.is_empty() || !rest.is_empty() {
        return None;
    }
    let ranges = triples.iter().map(|&[file, shown, length]| {
        // The last id is -1, which stands for none (chown(2)).
        file.checked_add(length)?;
        shown.checked_add(length)?;
        Some(Range {
            file,
            shown,
            length,
        })
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(text: &str) -> Option<IdMap> {
        let mut ids = IdMap::default();
        ids.map(IdKind::User, text).ok().map(|()| ids)
    }

    #[test]
    fn map_takes_triples_and_nothing_else() {
        let one = mapped("0:1000:1").unwrap();
        assert_eq!(mapped(":0:1000:1"), Some(one));
        for bad in [
            "",
            ":",
            "0:1000",
            "0:1:2:3",
            "a:1:2",
            "-1:0:1",
            "4294967295:0:1",
            "0:2:4294967295",
        ] {
            assert_eq!(mapped(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_outside_all_ranges_are_the_overflow_id_both_ways() {
        let ids = mapped("0:1000:1:1:110000:65536").unwrap();
        for (file, shown) in [(0, 1000), (1, 110_000), (65536, 175_535)] {
            assert_eq!(ids.shown_owner(IdKind::User, file), shown);
            assert_eq!(ids.of_file(IdKind::User, shown), file);
            let group = ids.shown_owner(IdKind::Group, file);
            assert_eq!(group, file, "groups have no mapping");
        }
        assert_eq!(ids.shown_owner(IdKind::User, 65537), OVERFLOW);
        assert_eq!(ids.of_file(IdKind::User, 0), OVERFLOW);
    }

    #[test]
    fn squash_shows_owners_alone_and_its_own_id_before_root() {
        let mut ids = mapped("0:1000:10").unwrap();
        ids.squash_to_root();
        ids.squash(IdKind::User, 7);
        assert!(ids.squashes());
        assert_eq!(ids.shown_owner(IdKind::User, 5), 7);
        assert_eq!(ids.shown_owner(IdKind::Group, 5), 0);
        assert_eq!(ids.shown(IdKind::User, 5), 1005);
    }
}
