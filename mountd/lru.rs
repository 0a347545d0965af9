//! A cache of bounded size that drops what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// At most `capacity` values by key.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    capacity: usize,
    /// Each value, and its key in `order`.
    values: HashMap<K, (V, u64)>,
    /// Keys by their last use.
    order: BTreeMap<u64, K>,
    clock: u64,
    /// Calls of `pause` that no `resume` ended.
    paused: usize,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// Empty.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            values: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            paused: 0,
        }
    }

    /// Gives all values back, and keeps none until `resume` was called as often.
    pub(crate) fn pause(&mut self) -> impl Iterator<Item = V> + use<K, V> {
        self.paused += 1;
        self.order.clear();
        std::mem::take(&mut self.values)
            .into_values()
            .map(|(value, _)| value)
    }

    /// Ends one `pause`.
    pub(crate) fn resume(&mut self) {
        self.paused = self.paused.saturating_sub(1);
    }

    /// The value of `key`, which counts as used.
    pub(crate) fn get(&mut self, key: K) -> Option<&V> {
        let (value, used) = self.values.get_mut(&key)?;
        self.order.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.order.insert(self.clock, key);
        Some(value)
    }

    /// Stores a value, and returns the one of this key before, or else the one that was used
    /// longest ago if there was no room. While paused, it is given back itself.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.paused > 0 {
            return Some(value);
        }
        let replaced = self.remove(key);
        self.clock += 1;
        self.values.insert(key, (value, self.clock));
        self.order.insert(self.clock, key);
        if self.values.len() <= self.capacity {
            return replaced;
        }
        let (_, oldest) = self.order.pop_first()?;
        self.values.remove(&oldest).map(|(value, _)| value)
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let (value, used) = self.values.remove(&key)?;
        self.order.remove(&used);
        Some(value)
    }

    /// Values stored.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.values.len(), self.order.len());
        self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_evicts_the_least_recently_used() {
        let mut lru = Lru::new(2);
        assert_eq!(lru.insert('a', 1), None);
        assert_eq!(lru.insert('b', 2), None);
        assert_eq!(lru.get('a'), Some(&1));
        assert_eq!(lru.insert('c', 3), Some(2));
        assert_eq!(lru.get('a'), Some(&1));
        assert_eq!(lru.get('b'), None);
        assert_eq!(lru.insert('c', 4), Some(3));
        assert_eq!(lru.remove('a'), Some(1));
        assert_eq!(lru.insert('d', 5), None);
        assert_eq!(lru.len(), 2);
    }
    #[test]
    fn pause_keeps_nothing_until_resumed_as_often() {
        let mut lru = Lru::new(2);
        lru.insert('a', 1);
        assert_eq!(lru.pause().collect::<Vec<_>>(), [1]);
        assert_eq!(lru.pause().count(), 0);
        lru.resume();
        assert_eq!(lru.insert('b', 2), Some(2));
        assert_eq!(lru.len(), 0);
        lru.resume();
        assert_eq!(lru.insert('b', 2), None);
        assert_eq!(lru.get('b'), Some(&2));
    }
}
