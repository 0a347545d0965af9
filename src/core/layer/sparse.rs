//! Sparse files: a map of extents, checked once, and the walk over it that gives holes and data in
//! order.

use super::error::HeaderFault;
use super::header::Extent;

/// A map whose extents are in order, do not overlap, lie within the file and add up to what the
/// archive stores.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SparseMap {
    extents: Vec<Extent>,
    real_size: u64,
}

/// A stretch of the expanded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Zeros that the archive does not store.
    Hole(u64),
    /// So many bytes of the archive.
    Data(u64),
}

impl SparseMap {
    /// `stored`: the bytes of data that the archive has for this file.
    pub(super) fn new(
        extents: Vec<Extent>,
        real_size: u64,
        stored: u64,
    ) -> Result<Self, HeaderFault> {
        let mut end = 0_u64;
        let mut data = 0_u64;
        for extent in &extents {
            if extent.offset < end {
                return Err(HeaderFault::Sparse("extents overlap or are out of order"));
            }
            end = extent
                .offset
                .checked_add(extent.length)
                .ok_or(HeaderFault::Sparse("an extent beyond 2^64"))?;
            data = data.saturating_add(extent.length);
        }
        if end > real_size {
            return Err(HeaderFault::Sparse("an extent beyond the end of the file"));
        }
        if data != stored {
            return Err(HeaderFault::Sparse(
                "the extents do not add up to the stored data",
            ));
        }
        Ok(Self { extents, real_size })
    }

    /// Bytes of the expanded file.
    pub(super) fn real_size(&self) -> u64 {
        self.real_size
    }

    /// Holes and data from the beginning of the file to its end, none empty.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let mut stretches =
            Vec::with_capacity(self.extents.len().saturating_mul(2).saturating_add(1));
        let mut at = 0_u64;
        for extent in &self.extents {
            stretches.push(Stretch::Hole(extent.offset.saturating_sub(at)));
            stretches.push(Stretch::Data(extent.length));
            at = extent.offset.saturating_add(extent.length);
        }
        stretches.push(Stretch::Hole(self.real_size.saturating_sub(at)));
        stretches.retain(|stretch| !matches!(stretch, Stretch::Hole(0) | Stretch::Data(0)));
        stretches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(extents: &[(u64, u64)], real_size: u64, stored: u64) -> Result<SparseMap, HeaderFault> {
        SparseMap::new(
            extents
                .iter()
                .map(|&(offset, length)| Extent { offset, length })
                .collect(),
            real_size,
            stored,
        )
    }

    #[test]
    fn stretches_cover_the_whole_sparse_file() {
        use Stretch::{Data, Hole};
        let check = |extents: &[(u64, u64)], size, expected: &[Stretch]| {
            let stored = extents.iter().map(|extent| extent.1).sum();
            assert_eq!(map(extents, size, stored).unwrap().stretches(), expected);
        };
        check(&[], 0, &[]);
        check(&[], 10, &[Hole(10)]);
        check(&[(0, 10)], 10, &[Data(10)]);
        check(
            &[(0, 3), (3, 2), (8, 1)],
            10,
            &[Data(3), Data(2), Hole(3), Data(1), Hole(1)],
        );
        check(&[(4, 2), (10, 0)], 10, &[Hole(4), Data(2), Hole(4)]);
    }

    #[test]
    fn sparse_map_refuses_bad_extents() {
        for (extents, size, stored) in [
            (&[(5, 5), (0, 5)][..], 10, 10),
            (&[(0, 5), (4, 1)], 10, 6),
            (&[(0, 11)], 10, 11),
            (&[(u64::MAX, 2)], 10, 2),
            (&[(0, 5)], 10, 4),
            (&[], 10, 1),
        ] {
            assert!(
                map(extents, size, stored).is_err(),
                "{extents:?} {size} {stored}"
            );
        }
    }
}
