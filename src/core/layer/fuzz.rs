//! Entry points for fuzzers: the parsers of extended headers and of sparse maps, without an archive
//! around them. Errors are fine; panics and endless loops are bugs.

use super::header::{self, Extent};
use super::pax::Pax;
use super::sparse::{SparseMap, Stretch};

/// Reads bytes as the records of a PAX header. Returns whether they are accepted.
pub fn pax(bytes: &[u8]) -> bool {
    let Ok(pax) = Pax::parse(bytes) else {
        return false;
    };
    if let (Some(map), Some(real_size)) = (pax.sparse.map, pax.sparse.real_size) {
        let stored = total(map.iter().map(|extent| extent.length));
        walk(map, real_size, stored);
    }
    true
}

/// Reads bytes as a sparse map: the size of the file and of what is stored of it, then offset and
/// length of each extent, as little-endian numbers of 64 bits; and each block of 512 bytes as one
/// of GNU tar's. Returns whether the map is accepted.
pub fn sparse(bytes: &[u8]) -> bool {
    for block in bytes.as_chunks().0 {
        drop(header::gnu_sparse_block(block));
    }
    let mut numbers = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
    let (Some(real_size), Some(stored)) = (numbers.next(), numbers.next()) else {
        return false;
    };
    let mut extents = Vec::new();
    while let (Some(offset), Some(length)) = (numbers.next(), numbers.next()) {
        extents.push(Extent { offset, length });
    }
    walk(extents, real_size, stored)
}

/// Whether a map is accepted. If it is, its stretches are the whole file and all that is stored.
fn walk(extents: Vec<Extent>, real_size: u64, stored: u64) -> bool {
    let Ok(map) = SparseMap::new(extents, real_size, stored) else {
        return false;
    };
    let stretches = map.stretches();
    let data = |stretch: &Stretch| match stretch {
        Stretch::Data(length) => Some(*length),
        Stretch::Hole(_) => None,
    };
    let size = |stretch: &Stretch| match stretch {
        Stretch::Data(length) | Stretch::Hole(length) => *length,
    };
    debug_assert_eq!(total(stretches.iter().filter_map(data)), stored);
    debug_assert_eq!(total(stretches.iter().map(size)), map.real_size());
    true
}

fn total(lengths: impl Iterator<Item = u64>) -> u64 {
    lengths.fold(0, u64::saturating_add)
}
