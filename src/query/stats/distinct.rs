//! The number of distinct values: exact while there are few, then by HyperLogLog.

use foldhash::quality::FixedState;
use hyperloglockless::HyperLogLog;

/// 4096 registers of one byte. The standard error is 1.04 / √4096 = 1.6 %.
const PRECISION: u8 = 12;
const REGISTERS: usize = 1 << PRECISION;

/// Up to this number of values, their hashes are kept.
const MAX_FEW: usize = 256;

/// A set of values, of which only the size can be asked.
#[derive(Debug, Clone)]
pub(super) enum Distinct {
    /// The sorted hashes of all values.
    Few(Vec<u64>),
    /// The hasher is not used.
    Many(Box<HyperLogLog<FixedState>>),
}

impl Default for Distinct {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Distinct {
    /// Adds a value by its hash and returns by how many bytes the set has grown. Without `may_grow`, a set with few
    /// values ignores new values.
    pub(super) fn add(&mut self, hash: u64, may_grow: bool) -> usize {
        match self {
            Self::Many(registers) => {
                registers.insert_hash(hash);
                0
            }
            Self::Few(hashes) => match hashes.binary_search(&hash) {
                Ok(_) => 0,
                Err(_) if !may_grow => 0,
                Err(index) if hashes.len() < MAX_FEW => {
                    let capacity = hashes.capacity();
                    hashes.insert(index, hash);
                    (hashes.capacity() - capacity) * size_of::<u64>()
                }
                Err(_) => {
                    let mut registers = Box::new(HyperLogLog::with_hasher(PRECISION, FixedState::default()));
                    hashes.iter().for_each(|hash| registers.insert_hash(*hash));
                    registers.insert_hash(hash);
                    let grown =
                        (REGISTERS + size_of_val(&*registers)).saturating_sub(hashes.capacity() * size_of::<u64>());
                    *self = Self::Many(registers);
                    grown
                }
            },
        }
    }

    /// Adds the values of `other`.
    pub(super) fn merge(&mut self, other: &Self, may_grow: bool) -> usize {
        match other {
            Self::Few(hashes) => hashes.iter().map(|hash| self.add(*hash, may_grow)).sum(),
            Self::Many(registers) => match self {
                Self::Many(own) => {
                    own.union(registers).expect("all sets have the same number of registers");
                    0
                }
                Self::Few(hashes) if may_grow => {
                    let few = std::mem::take(hashes);
                    *self = other.clone();
                    for hash in few {
                        self.add(hash, true);
                    }
                    REGISTERS
                }
                Self::Few(_) => 0,
            },
        }
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Few(hashes) => hashes.len() as u64,
            Self::Many(registers) => registers.count() as u64,
        }
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::hash::BuildHasher;

    use proptest::prelude::*;

    use super::*;

    fn set(values: impl IntoIterator<Item = u32>) -> Distinct {
        let mut set = Distinct::default();
        for value in values {
            set.add(FixedState::default().hash_one(value), true);
        }
        set
    }

    #[test]
    fn few_values_are_counted_exactly() {
        for count in [0, 1, 2, 100, MAX_FEW as u32] {
            assert_eq!(set((0..count).chain(0..count)).count(), u64::from(count));
        }
    }

    #[test]
    fn many_values_are_counted_within_a_few_percent() {
        for count in [257, 1_000, 5_000, 20_000, 200_000, 1_000_000] {
            let actual = set((0..count).chain(0..count)).count() as f64;
            assert!((actual / f64::from(count) - 1.0).abs() < 0.05, "{count}: {actual}");
        }
    }

    #[test]
    fn a_set_without_memory_does_not_grow() {
        let mut full = set(0..10);
        assert_eq!((full.add(1, false), full.merge(&set(0..1_000), false), full.count()), (0, 0, 10));
    }

    proptest! {
        #[test]
        fn merged_sets_equal_one_set_of_all_values(one in 0..600_u32, start in 0..600_u32, another in 0..600_u32) {
            let mut merged = set(0..one);
            merged.merge(&set(start..start + another), true);
            prop_assert_eq!(merged.count(), set((0..one).chain(start..start + another)).count());
        }
    }
}
