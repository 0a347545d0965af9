//! rpm's ndb, `Packages.db` of SUSE: slots of 16 bytes that point to blobs in blocks of 16.
//!
//! Source: rpm's lib/backend/ndb/rpmpkg.c. Integers are little-endian. Every access is checked, and
//! the bytes of blobs are counted: each byte may belong to one package only.

use super::{header, le32};

pub(super) const MAGIC: &[u8] = b"RpmP";
const BLOCK: usize = 16;
/// Slots fill pages of this size; the first two slots are the file's header.
const PAGE: usize = 4096;

/// The packages of the database; None if it is damaged.
pub(super) fn packages(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let (version, pages) = (le32(bytes, 4)?, number(bytes, 12)?);
    if version != 0 {
        return None;
    }
    let slots = bytes.get(2 * BLOCK..pages.checked_mul(PAGE)?)?;
    let mut left = bytes.len();
    let mut packages = Vec::new();
    for slot in slots.chunks_exact(BLOCK) {
        let (package, start) = (le32(slot, 4)?, number(slot, 8)?);
        if slot.get(..4)? != b"Slot" {
            return None;
        }
        // 0: a free slot.
        if start > 0 {
            let blob = blob(bytes.get(start.checked_mul(BLOCK)?..)?, package)?;
            left = left.checked_sub(blob.len())?;
            packages.push(header(blob)?);
        }
    }
    Some(packages)
}

/// A package's header: after a magic, the package's number, a time and the length.
fn blob(bytes: &[u8], package: u32) -> Option<&[u8]> {
    let is_right = bytes.get(..4)? == b"BlbS" && le32(bytes, 4)? == package;
    let length = number(bytes, 12)?;
    bytes.get(16..)?.get(..length).filter(|_| is_right)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(le32(bytes, at)?).ok()
}
