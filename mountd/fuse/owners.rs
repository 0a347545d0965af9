//! Maps owners between host files and the kernel, by an [`IdMap`].
//!
//! Invariant: ids are translated here and nowhere else. The overlay knows those of the files, the
//! kernel those that are shown, so a mapping costs no copy and no change of a file.

use std::borrow::Cow;

use cowl_core::handover::{IdKind, IdMap};

use crate::overlay::{Attr, Caller, SetAttr};

/// Owners as a mapping shows them.
#[derive(Clone, Debug)]
pub(crate) struct Owners(pub(crate) IdMap);

impl Owners {
    /// Whether a change of a file's owner may fail unseen: another one is shown.
    pub(super) const fn are_squashed(&self) -> bool {
        self.0.squashes()
    }

    /// What the kernel is told of a file.
    pub(super) fn shown(&self, attr: &Attr) -> Attr {
        Attr {
            uid: self.0.shown_owner(IdKind::User, attr.uid),
            gid: self.0.shown_owner(IdKind::Group, attr.gid),
            ..*attr
        }
    }

    /// The ids that a caller's new files get.
    pub(super) fn of_files(&self, caller: Caller) -> Caller {
        Caller {
            uid: self.0.of_file(IdKind::User, caller.uid),
            gid: self.0.of_file(IdKind::Group, caller.gid),
        }
    }

    /// The change of owners that is to be made of a file.
    pub(super) fn change_of_file(&self, set: &SetAttr) -> SetAttr {
        SetAttr {
            uid: set.uid.map(|id| self.0.of_file(IdKind::User, id)),
            gid: set.gid.map(|id| self.0.of_file(IdKind::Group, id)),
            ..*set
        }
    }

    /// The value of an attribute as the kernel is told it: the ids in an ACL are mapped.
    pub(super) fn shown_value(&self, name: &[u8], value: &mut [u8]) {
        self.map_acl(name, value, IdMap::shown);
    }

    /// The value of an attribute as a file gets it.
    pub(super) fn value_of_file<'v>(&self, name: &[u8], value: &'v [u8]) -> Cow<'v, [u8]> {
        let mut value = Cow::Borrowed(value);
        if self.maps_values(name) {
            self.map_acl(name, value.to_mut(), IdMap::of_file);
        }
        value
    }

    fn maps_values(&self, name: &[u8]) -> bool {
        name.starts_with(b"system.posix_acl_") && self.0.maps()
    }

    /// Maps the ids of a POSIX ACL: after a version of 4 bytes, entries of a tag (16 bits),
    /// permissions (16 bits) and an id (32 bits), little-endian (linux/posix_acl_xattr.h). What is
    /// none is left to the host, which refuses it.
    fn map_acl(&self, name: &[u8], value: &mut [u8], map: fn(&IdMap, IdKind, u32) -> u32) {
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
            let kind = match u16::from_le_bytes([*tag_low, *tag_high]) {
                ACL_USER => IdKind::User,
                ACL_GROUP => IdKind::Group,
                _ => continue,
            };
            *id = map(&self.0, kind, u32::from_le_bytes(*id)).to_le_bytes();
        }
    }
}

/// Tags of entries that name a user or a group (linux/posix_acl.h).
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut ids = IdMap::default();
        ids.map(IdKind::User, "0:1000:10").unwrap();
        ids.map(IdKind::Group, "0:2000:10").unwrap();
        let owners = Owners(ids);
        let mut value = acl(5, 6);
        owners.shown_value(b"system.posix_acl_access", &mut value);
        assert_eq!(value, acl(1005, 2006));
        assert_eq!(
            *owners.value_of_file(b"system.posix_acl_default", &value),
            acl(5, 6)
        );
        assert_eq!(
            *owners.value_of_file(b"user.other", &value),
            acl(1005, 2006)
        );
        // Cut short, as from a damaged file.
        for length in 0..value.len() {
            let mut cut = value.get(..length).unwrap().to_vec();
            owners.shown_value(b"system.posix_acl_access", &mut cut);
            assert_eq!(cut.len(), length);
        }
    }
}
