//! The kernel's lookup counts of lower nodes.
//!
//! Invariant: a count is never too low, or an open file would be taken for forgotten. A saturated
//! count stays saturated. Unchanged nodes have no other entry in memory, so a count is two bytes,
//! in blocks allocated at their first lookup.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use super::types::LowerIno;
use crate::journal::Journal;

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
    /// Where they are counted instead of here, for a worker's successor.
    journal: Option<Arc<Journal>>,
    blocks: usize,
    regions: Box<[OnceLock<Box<[Block]>>]>,
}

impl LowerLookups {
    /// Counts for a lower of `nodes` nodes.
    pub(super) fn new(nodes: u32) -> Self {
        let nodes = usize::try_from(nodes).unwrap_or(usize::MAX);
        let blocks = nodes.div_ceil(BLOCK);
        Self {
            journal: None,
            blocks,
            regions: (0..blocks.div_ceil(REGION))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// Counts that outlive the worker.
    pub(super) fn journaled(journal: Arc<Journal>) -> Self {
        Self {
            journal: Some(journal),
            ..Self::default()
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
        self.update(node, |count| count.saturating_add(1));
    }

    /// Subtracts forgotten lookups.
    pub(super) fn subtract(&self, node: LowerIno, lookups: u64) {
        self.update(node, |count| match count {
            MANY => MANY,
            count => count.saturating_sub(u16::try_from(lookups).unwrap_or(MANY)),
        });
    }

    fn update(&self, node: LowerIno, change: impl Fn(u16) -> u16) {
        if let Some(journal) = &self.journal {
            journal.update_lookups(node.0, change);
        } else if let Some(count) = self.count(node) {
            count.update(Ordering::Relaxed, Ordering::Relaxed, change);
        }
    }

    /// Whether the kernel may know the node.
    pub(super) fn is_known(&self, node: LowerIno) -> bool {
        if let Some(journal) = &self.journal {
            // A node that is not counted may be known.
            return journal.lookups(node.0) != Some(0);
        }
        self.count(node)
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
