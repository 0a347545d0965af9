//! A set of extended attributes as bytes: a count, then each name and value with their lengths,
//! sorted by name.
//!
//! Sorted and without duplicates, so that equal sets have equal bytes and are stored once.

use std::collections::BTreeMap;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::format::{MAX_XATTR_NAME, MAX_XATTR_VALUE};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Lengths {
    name: U16,
    value: U32,
}

/// Why attributes make no set.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// Empty, longer than XATTR_NAME_MAX, or with a NUL.
    #[error("an extended attribute's name is empty, has a NUL or is longer than 255 bytes")]
    Name,
    /// Longer than XATTR_SIZE_MAX.
    #[error("an extended attribute's value is longer than 64 KiB")]
    Value,
    /// More than a list can count.
    #[error("more than 65535 extended attributes on one file")]
    Count,
}

pub(super) fn valid_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_XATTR_NAME && !name.contains(&0)
}

/// Encodes a set, None if it is empty. Of two attributes with one name the later holds.
pub(super) fn encode(xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Option<Vec<u8>>, XattrError> {
    if xattrs.is_empty() {
        return Ok(None);
    }
    let set: BTreeMap<_, _> = xattrs.into_iter().collect();
    let count = u16::try_from(set.len()).map_err(|_too_many| XattrError::Count)?;
    let mut bytes = count.to_le_bytes().to_vec();
    for (name, value) in set {
        if !valid_name(&name) {
            return Err(XattrError::Name);
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(XattrError::Value);
        }
        let lengths = Lengths {
            name: u16::try_from(name.len())
                .map_err(|_long| XattrError::Name)?
                .into(),
            value: u32::try_from(value.len())
                .map_err(|_long| XattrError::Value)?
                .into(),
        };
        bytes.extend_from_slice(lengths.as_bytes());
        bytes.extend_from_slice(&name);
        bytes.extend_from_slice(&value);
    }
    Ok(Some(bytes))
}

/// Reads a set. Gives None once and ends where the bytes are not one.
#[derive(Debug, Clone)]
pub(super) struct Set<'t> {
    rest: &'t [u8],
    left: u16,
}

impl<'t> Set<'t> {
    pub(super) const EMPTY: Self = Self { rest: &[], left: 0 };

    pub(super) fn parse(bytes: &'t [u8]) -> Option<Self> {
        let (count, rest) = U16::read_from_prefix(bytes).ok()?;
        Some(Self {
            rest,
            left: count.get(),
        })
    }

    /// All was read, and nothing lies behind the last attribute.
    pub(super) fn is_at_end(&self) -> bool {
        self.left == 0 && self.rest.is_empty()
    }

    fn take(&mut self) -> Option<(&'t [u8], &'t [u8])> {
        let (lengths, rest) = Lengths::read_from_prefix(self.rest).ok()?;
        let (name, rest) = rest.split_at_checked(usize::from(lengths.name.get()))?;
        let (value, rest) = rest.split_at_checked(lengths.value.get() as usize)?;
        self.rest = rest;
        Some((name, value))
    }
}

impl<'t> Iterator for Set<'t> {
    type Item = Option<(&'t [u8], &'t [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let attribute = self.take();
        if attribute.is_none() {
            self.left = 0;
        }
        Some(attribute)
    }
}
