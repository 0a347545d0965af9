//! The kernel's lookup counts of lower nodes.
//!
//! Invariant: a count is never too low, or an open file would be taken for forgotten. A saturated
//! count stays saturated. Unchanged nodes have no other entry in memory, so a count is two bytes,
//! in blocks allocated at their first lookup.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use super::types::LowerIno;

/// Counts per block: a page of memory.
const BLOCK: usize = 2048;

/// The saturated count.
const MANY: u16 = u16::MAX;

/// Blocks per region.
const REGION: usize = 2048;

type Block = OnceLock<Box<[AtomicU16]>>;

/// The counts of one lower.
#[derive(Debug, Default)]
pub(super) struct LowerLookups {
    /// A dead worker has counted, too: every node may be known.
    unknown: bool,
    blocks: usize,
    regions: Box<[OnceLock<Box<[Block]>>]>,
}

impl LowerLookups {
    /// Counts for a lower of `nodes` nodes.
    pub(super) fn new(nodes: u32) -> Self {
        let nodes = usize::try_from(nodes).unwrap_or(usize::MAX);
        let blocks = nodes.div_ceil(BLOCK);
        Self {
            unknown: false,
            blocks,
            regions: (0..blocks.div_ceil(REGION))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// The same after a worker that died, whose counts are lost.
    pub(super) fn after_another(nodes: u32) -> Self {
        Self {
            unknown: true,
            ..Self::new(nodes)
        }
    }

    fn count(&self, node: LowerIno) -> Option<&AtomicU16> {
        let number = usize::try_from(node.0).ok()?;
        let first = number / BLOCK / REGION * REGION;
        let region = self.regions.get(first / REGION)?;
        let length = self.blocks.saturating_sub(first).min(REGION);
        let blocks = region.get_or_init(|| (0..length).map(|_| OnceLock::new()).collect());
        let block = blocks.get(number / BLOCK % REGION)?;
        let counts = block.get_or_init(|| (0..BLOCK).map(|_| AtomicU16::new(0)).collect());
        counts.get(number % BLOCK)
    }

    /// Counts a lookup.
    pub(super) fn add(&self, node: LowerIno) {
        if let Some(count) = self.count(node) {
            count.update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                count.saturating_add(1)
            });
        }
    }

    /// Subtracts forgotten lookups.
    pub(super) fn subtract(&self, node: LowerIno, lookups: u64) {
        if let Some(count) = self.count(node) {
            count.update(Ordering::Relaxed, Ordering::Relaxed, |count| match count {
                MANY => MANY,
                count => count.saturating_sub(u16::try_from(lookups).unwrap_or(MANY)),
            });
        }
    }

    /// Whether the kernel may know the node.
    pub(super) fn is_known(&self, node: LowerIno) -> bool {
        self.unknown
            || self
                .count(node)
                .is_some_and(|count| count.load(Ordering::Relaxed) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_are_counted_until_the_count_saturates() {
        let lookups = LowerLookups::new(5000);
        let (one, many) = (LowerIno(4999), LowerIno(7));
        lookups.add(one);
        lookups.add(one);
        lookups.subtract(one, 1);
        assert!(lookups.is_known(one) && !lookups.is_known(many));
        lookups.subtract(one, 1);
        assert!(!lookups.is_known(one));
        for _ in 0..70_000 {
            lookups.add(many);
        }
        lookups.subtract(many, 70_000);
        assert!(lookups.is_known(many), "a saturated count stays known");
        lookups.add(LowerIno(5_000_000));
        assert!(!lookups.is_known(LowerIno(5_000_000)));
    }
}
