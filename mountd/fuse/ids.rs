//! User and group ids between the files of the host and what the kernel is told: `uidmapping`,
//! `gidmapping` and `squash_to_*` of fuse-overlayfs.
//!
//! Invariant: ids are translated here and nowhere else. The overlay knows those of the files, the
//! kernel those that are shown, so a mapping costs no copy and no change of a file.

use std::borrow::Cow;
use std::fs;
use std::io;

use crate::overlay::{Attr, Caller, SetAttr};

/// The overflow ids of a system that does not say (`DEFAULT_OVERFLOWUID` in linux/highuid.h).
const OVERFLOW: u32 = 65534;

/// Ids of files, and how they are shown. The default shows them as they are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IdMap {
    users: Ids,
    groups: Ids,
    /// `squash_to_root`.
    to_root: bool,
}

/// Ids of one kind.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Ids {
    /// Empty: all are shown as they are.
    ranges: Vec<Range>,
    /// What all are shown as.
    squashed: Option<u32>,
    /// Stands for an id in no range.
    overflow: u32,
}

/// `length` ids, from `file` on in files, shown from `shown` on.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Range {
    file: u32,
    shown: u32,
    length: u32,
}

/// The kind of an id.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Of users.
    User,
    /// Of groups.
    Group,
}

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

    fn shown(&self, id: u32) -> u32 {
        self.map(id, |range| range.file, |range| range.shown)
    }

    fn of_file(&self, id: u32) -> u32 {
        self.map(id, |range| range.shown, |range| range.file)
    }
}

impl IdMap {
    /// Shows ids by `text`, fuse-overlayfs's `FILE:SHOWN:LENGTH[:FILE:SHOWN:LENGTH]...`; empty
    /// parts count for nothing. None if it is something else, or ranges exceed the ids.
    pub fn map(&mut self, kind: Kind, text: &str) -> Option<()> {
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
        self.ids(kind).ranges = ranges.collect::<Option<_>>()?;
        Some(())
    }

    /// Shows every file as of one user or group.
    pub fn squash(&mut self, kind: Kind, id: u32) {
        self.ids(kind).squashed = Some(id);
    }

    /// Shows every file as root's, where [`squash`](Self::squash) says nothing else.
    pub fn squash_to_root(&mut self) {
        self.to_root = true;
    }

    fn ids(&mut self, kind: Kind) -> &mut Ids {
        match kind {
            Kind::User => &mut self.users,
            Kind::Group => &mut self.groups,
        }
    }

    /// Takes the system's overflow ids.
    pub fn read_overflow_ids(&mut self) -> io::Result<()> {
        let read = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}"))?;
            text.trim().parse().map_err(io::Error::other)
        };
        self.users.overflow = read("overflowuid")?;
        self.groups.overflow = read("overflowgid")?;
        Ok(())
    }

    /// Whether files are shown as of others than their owners, whose change may then fail unseen.
    pub(super) fn squashes(&self) -> bool {
        self.to_root || self.users.squashed.is_some() || self.groups.squashed.is_some()
    }

    /// What the kernel is told of a file.
    pub(super) fn shown(&self, attr: &Attr) -> Attr {
        let show = |ids: &Ids, id| {
            let squashed = ids.squashed.or(self.to_root.then_some(0));
            squashed.unwrap_or_else(|| ids.shown(id))
        };
        Attr {
            uid: show(&self.users, attr.uid),
            gid: show(&self.groups, attr.gid),
            ..*attr
        }
    }

    /// The ids that a caller's new files get.
    pub(super) fn of_files(&self, caller: Caller) -> Caller {
        Caller {
            uid: self.users.of_file(caller.uid),
            gid: self.groups.of_file(caller.gid),
        }
    }

    /// The change of owners that is to be made of a file.
    pub(super) fn change_of_file(&self, set: &SetAttr) -> SetAttr {
        SetAttr {
            uid: set.uid.map(|id| self.users.of_file(id)),
            gid: set.gid.map(|id| self.groups.of_file(id)),
            ..*set
        }
    }

    /// The value of an attribute as the kernel is told it: the ids in an ACL are mapped.
    pub(super) fn shown_value(&self, name: &[u8], value: &mut [u8]) {
        self.map_acl(name, value, Ids::shown);
    }

    /// The value of an attribute as a file gets it.
    pub(super) fn value_of_file<'v>(&self, name: &[u8], value: &'v [u8]) -> Cow<'v, [u8]> {
        let mut value = Cow::Borrowed(value);
        if self.maps_values(name) {
            self.map_acl(name, value.to_mut(), Ids::of_file);
        }
        value
    }

    fn maps_values(&self, name: &[u8]) -> bool {
        name.starts_with(b"system.posix_acl_")
            && !(self.users.ranges.is_empty() && self.groups.ranges.is_empty())
    }

    /// Maps the ids of a POSIX ACL: after a version of 4 bytes, entries of a tag (16 bits),
    /// permissions (16 bits) and an id (32 bits), little-endian (linux/posix_acl_xattr.h). What is
    /// none is left to the host, which refuses it.
    fn map_acl(&self, name: &[u8], value: &mut [u8], map: fn(&Ids, u32) -> u32) {
        const VERSION: usize = size_of::<u32>();
        if !self.maps_values(name) {
            return;
        }
        let (entries, _) = value
            .get_mut(VERSION..)
            .unwrap_or_default()
            .as_chunks_mut::<8>();
        for entry in entries {
            let [tag_low, tag_high, _, _, id @ ..] = entry;
            let ids = match u16::from_le_bytes([*tag_low, *tag_high]) {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => continue,
            };
            *id = map(ids, u32::from_le_bytes(*id)).to_le_bytes();
        }
    }
}

/// Tags of entries that name a user or a group (linux/posix_acl.h).
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(text: &str) -> Option<IdMap> {
        let mut ids = IdMap::default();
        ids.map(Kind::User, text).map(|()| ids)
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
            assert_eq!(ids.users.shown(file), shown);
            assert_eq!(ids.users.of_file(shown), file);
            assert_eq!(ids.groups.shown(file), file, "groups have no mapping");
        }
        assert_eq!(ids.users.shown(65537), OVERFLOW);
        assert_eq!(ids.users.of_file(0), OVERFLOW);
    }

    #[test]
    fn named_ids_of_an_acl_are_mapped_and_the_others_are_not() {
        let entry = |tag: u16, id: u32| {
            let halves = [tag.to_le_bytes(), 7_u16.to_le_bytes()].concat();
            [halves, id.to_le_bytes().to_vec()].concat()
        };
        let acl = |user: u32, group: u32| {
            [
                2_u32.to_le_bytes().to_vec(),
                entry(0x01, u32::MAX),
                entry(ACL_USER, user),
                entry(0x04, u32::MAX),
                entry(ACL_GROUP, group),
            ]
            .concat()
        };
        let mut ids = mapped("0:1000:10").unwrap();
        ids.map(Kind::Group, "0:2000:10").unwrap();
        let mut value = acl(5, 6);
        ids.shown_value(b"system.posix_acl_access", &mut value);
        assert_eq!(value, acl(1005, 2006));
        assert_eq!(
            *ids.value_of_file(b"system.posix_acl_default", &value),
            acl(5, 6)
        );
        assert_eq!(*ids.value_of_file(b"user.other", &value), acl(1005, 2006));
        // Cut short, as from a damaged file.
        for length in 0..value.len() {
            let mut cut = value.get(..length).unwrap().to_vec();
            ids.shown_value(b"system.posix_acl_access", &mut cut);
            assert_eq!(cut.len(), length);
        }
    }
}
