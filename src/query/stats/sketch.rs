//! Quantiles of numbers with a relative error of at most 1 %.
//!
//! The algorithm is DDSketch (Masson, Rim, Lee: *DDSketch: A fast and fully-mergeable quantile sketch with
//! relative-error guarantees*, VLDB 2019): a number is counted in bin `⌊log_γ |x|⌋`, with γ = 1.01 / 0.99. The crate
//! `sketches-ddsketch` does the same with 8 bytes for every bin between the smallest and the largest. Statistics by
//! group and minute need tens of thousands of sketches with few numbers each, so here they have 6 bytes for each bin
//! that is in use, or 4 bytes for every bin, whichever is less. The tests compare the results with that crate.

/// The relative error of a quantile.
pub(super) const RELATIVE_ERROR: f64 = 0.01;

/// The logarithm of γ. Computing it is not a constant function, so a test compares it.
const LN_GAMMA: f64 = 0.020_000_666_706_669_435;

/// The key of the bin of 1.0. Keys of all other numbers fit into 16 bits.
const KEY_OF_ONE: i32 = 30_000;

/// Smaller absolute values count as zero.
const MIN_ABSOLUTE: f64 = 1e-250;

/// A sketch of any number of finite numbers.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Sketch {
    positive: Bins,
    zeros: u64,
    negative: Option<Box<Bins>>,
}

impl Sketch {
    /// Adds a number and returns by how many bytes the sketch has grown. Without `may_grow`, the number is counted in
    /// the nearest bin that exists.
    pub(super) fn add(&mut self, number: f64, may_grow: bool) -> usize {
        if number >= MIN_ABSOLUTE {
            self.positive.add(key(number), 1, may_grow)
        } else if number <= -MIN_ABSOLUTE {
            self.negative.get_or_insert_default().add(key(-number), 1, may_grow)
        } else {
            self.zeros += 1;
            0
        }
    }

    /// Adds the numbers of `other`. The result is the same as if they had been added to `self`.
    pub(super) fn merge(&mut self, other: &Self, may_grow: bool) -> usize {
        self.zeros += other.zeros;
        let mut grown_bytes = self.positive.merge(&other.positive, may_grow);
        if let Some(negative) = &other.negative {
            grown_bytes += self.negative.get_or_insert_default().merge(negative, may_grow);
        }
        grown_bytes
    }

    /// The quantiles `quantiles`, which are between 0 and 1: interpolated between the two numbers next to each of them.
    /// `None` if the sketch is empty.
    pub(super) fn quantiles(&self, quantiles: &[f64]) -> Option<Vec<f64>> {
        let count = self.count();
        let last_rank = count.checked_sub(1)?;
        Some(
            quantiles
                .iter()
                .map(|quantile| {
                    let rank = quantile * last_rank as f64;
                    let below = self.at_rank(rank as u64);
                    match rank.fract() {
                        0.0 => below,
                        part => below + (self.at_rank(rank as u64 + 1) - below) * part,
                    }
                })
                .collect(),
        )
    }

    fn count(&self) -> u64 {
        self.positive.count() + self.zeros + self.negative.as_ref().map_or(0, |bins| bins.count())
    }

    /// The number at `rank` of the sorted numbers.
    fn at_rank(&self, rank: u64) -> f64 {
        let negatives = self.negative.as_ref().map_or(0, |bins| bins.count());
        match &self.negative {
            Some(negative) if rank < negatives => -value(negative.key_at_rank(negatives - 1 - rank)),
            _ if rank < negatives + self.zeros => 0.0,
            _ => value(self.positive.key_at_rank(rank - negatives - self.zeros)),
        }
    }
}

fn key(absolute: f64) -> u16 {
    let key = (absolute.ln() / LN_GAMMA).floor() as i32 + KEY_OF_ONE;
    key.clamp(0, i32::from(u16::MAX)) as u16
}

/// The number that is within the relative error of all numbers of the bin.
fn value(key: u16) -> f64 {
    let lower = (f64::from(i32::from(key) - KEY_OF_ONE) * LN_GAMMA).exp();
    (lower * (1.0 + RELATIVE_ERROR)).min(f64::MAX)
}

/// Counts by key. A count that reaches its maximum stays there.
#[derive(Debug, Clone)]
enum Bins {
    /// The bins that are in use, sorted by key.
    Sparse { keys: Vec<u16>, counts: Vec<u32> },
    /// All bins from `first` on.
    Dense { first: u16, counts: Vec<u32> },
}

/// Bytes of a bin in use, and of a bin between others.
const SPARSE_BYTES: usize = 6;
const DENSE_BYTES: usize = 4;

/// With fewer bins, a search is as fast.
const MIN_DENSE: usize = 32;

impl Default for Bins {
    fn default() -> Self {
        Self::Sparse { keys: Vec::new(), counts: Vec::new() }
    }
}

/// Equal counts, in whichever form.
impl PartialEq for Bins {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Bins {
    fn add(&mut self, key: u16, count: u32, may_grow: bool) -> usize {
        match self {
            Self::Dense { first, counts } => {
                if let Some(bin) = counts.get_mut(usize::from(key.wrapping_sub(*first))) {
                    *bin = bin.saturating_add(count);
                    return 0;
                }
            }
            Self::Sparse { keys, counts } => {
                if let Ok(index) = keys.binary_search(&key) {
                    counts[index] = counts[index].saturating_add(count);
                    return 0;
                }
            }
        }
        self.add_new(key, count, may_grow)
    }

    /// Counts in a bin that does not exist yet.
    #[cold]
    fn add_new(&mut self, key: u16, count: u32, may_grow: bool) -> usize {
        if !may_grow && let Some(nearest) = self.nearest(key) {
            return self.add(nearest, count, false);
        }
        let bytes = self.heap_bytes();
        if let Self::Dense { first, counts } = self {
            let in_use = counts.iter().filter(|count| **count > 0).count();
            let lowest = key.min(*first);
            let highest = usize::from(key).max(usize::from(*first) + counts.len() - 1);
            let span = highest - usize::from(lowest) + 1;
            if span * DENSE_BYTES <= in_use * SPARSE_BYTES * 2 {
                counts.splice(0..0, std::iter::repeat_n(0, usize::from(*first - lowest)));
                counts.resize(span, 0);
                counts[usize::from(key - lowest)] = count;
                *first = lowest;
                return self.heap_bytes().saturating_sub(bytes);
            }
            let (keys, counts) = self.iter().unzip();
            *self = Self::Sparse { keys, counts };
        }
        if let Self::Sparse { keys, counts } = self {
            let index = keys.partition_point(|known| *known < key);
            keys.insert(index, key);
            counts.insert(index, count);
            let span = usize::from(keys[keys.len() - 1] - keys[0]) + 1;
            if keys.len() >= MIN_DENSE && span * DENSE_BYTES <= keys.len() * SPARSE_BYTES {
                let first = keys[0];
                let mut dense = vec![0; span];
                keys.iter().zip(counts).for_each(|(key, count)| dense[usize::from(*key - first)] = *count);
                *self = Self::Dense { first, counts: dense };
            }
        }
        self.heap_bytes().saturating_sub(bytes)
    }

    fn nearest(&self, key: u16) -> Option<u16> {
        match self {
            Self::Dense { first, counts } => Some(key.clamp(*first, *first + (counts.len() - 1) as u16)),
            Self::Sparse { keys, .. } => {
                let index = keys.partition_point(|known| *known < key);
                let (below, above) = (index.checked_sub(1).map(|index| keys[index]), keys.get(index).copied());
                below.into_iter().chain(above).min_by_key(|known| known.abs_diff(key))
            }
        }
    }

    fn merge(&mut self, other: &Self, may_grow: bool) -> usize {
        other.iter().map(|(key, count)| self.add(key, count, may_grow)).sum()
    }

    /// The bins that are in use.
    fn iter(&self) -> impl Iterator<Item = (u16, u32)> {
        let (keys, first, counts) = match self {
            Self::Sparse { keys, counts } => (Some(keys), 0, counts),
            Self::Dense { first, counts } => (None, *first, counts),
        };
        let key = move |index: usize| keys.map_or(first.wrapping_add(index as u16), |keys| keys[index]);
        counts.iter().enumerate().filter(|(_, count)| **count > 0).map(move |(index, count)| (key(index), *count))
    }

    fn count(&self) -> u64 {
        self.iter().map(|(_, count)| u64::from(count)).sum()
    }

    /// The key of the number at `rank` of the sorted numbers, or the last key.
    fn key_at_rank(&self, rank: u64) -> u16 {
        let (mut seen, mut last) = (0, 0);
        for (key, count) in self.iter() {
            seen += u64::from(count);
            last = key;
            if seen > rank {
                break;
            }
        }
        last
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Sparse { keys, counts } => keys.capacity() * 2 + counts.capacity() * 4,
            Self::Dense { counts, .. } => counts.capacity() * 4,
        }
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use proptest::prelude::*;
    use sketches_ddsketch::{Config, DDSketch};

    use super::*;

    fn sketch(numbers: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        for number in numbers {
            sketch.add(*number, true);
        }
        sketch
    }

    fn numbers() -> impl Strategy<Value = Vec<f64>> {
        let wide = prop_oneof![
            4 => 0.1_f64..10_000.0,
            1 => prop::num::f64::NORMAL,
            1 => Just(0.0),
            1 => -100.0_f64..100.0,
        ];
        // Bins become dense, and grow in both directions.
        let narrow = prop_oneof![20 => 10.0_f64..30.0, 1 => 3.0_f64..60.0, 1 => -3.0_f64..-1.0];
        prop_oneof![prop::collection::vec(wide, 1..400), prop::collection::vec(narrow, 1..400)]
    }

    #[test]
    fn the_constant_is_the_logarithm() {
        assert_eq!(LN_GAMMA, ((1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR)).ln());
    }

    #[test]
    fn the_largest_and_smallest_numbers_have_a_bin() {
        for number in [f64::MAX, 1e300, 1.0, 1e-249, MIN_ABSOLUTE, -f64::MAX, -1e-249] {
            let quantile = sketch(&[number]).quantiles(&[0.5]).expect("a number")[0];
            assert!(((quantile - number) / number).abs() <= RELATIVE_ERROR + 1e-9, "{number}: {quantile}");
        }
        assert_eq!(sketch(&[f64::MIN_POSITIVE, -1e-251, 0.0, -0.0]).quantiles(&[0.0, 1.0]), Some(vec![0.0, 0.0]));
        assert_eq!(sketch(&[]).quantiles(&[0.5]), None);
    }

    #[test]
    fn a_sketch_without_memory_counts_in_the_nearest_bin() {
        let mut sketch = sketch(&[10.0, 1_000.0]);
        for (number, expected) in [(11.0, 10.0), (900.0, 1_000.0), (1e9, 1_000.0), (1e-9, 10.0)] {
            assert_eq!(sketch.add(number, false), 0);
            let nearest = sketch.quantiles(&[if expected == 10.0 { 0.0 } else { 1.0 }]).expect("numbers")[0];
            assert!((nearest / expected - 1.0).abs() <= 0.011, "{number}");
        }
        assert_eq!(sketch.count(), 6);
    }

    #[test]
    fn a_sketch_of_a_wide_range_stays_small() {
        let mut sketch = Sketch::default();
        let mut bytes = 0;
        for exponent in -240..300 {
            bytes += sketch.add(10_f64.powi(exponent), true);
        }
        assert!(bytes < 2 * 540 * SPARSE_BYTES, "{bytes}");
        // Many bins side by side become dense.
        for tenth in 1..100_000 {
            sketch.add(f64::from(tenth) / 10.0, true);
        }
        assert!(sketch.positive.heap_bytes() < 2 * 1_200 * SPARSE_BYTES, "{}", sketch.positive.heap_bytes());
    }

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(mut numbers in numbers(), quantile in 0.0_f64..=1.0) {
            let actual = sketch(&numbers).quantiles(&[quantile]).expect("there are numbers")[0];
            numbers.sort_by(f64::total_cmp);
            let rank = quantile * (numbers.len() - 1) as f64;
            let (below, above) = (numbers[rank as usize], numbers[rank.ceil() as usize]);
            let expected = below + (above - below) * rank.fract();
            let error = below.abs().max(above.abs()) * (RELATIVE_ERROR + 1e-9);
            prop_assert!((actual - expected).abs() <= error + MIN_ABSOLUTE, "{actual} instead of {expected}");
        }

        #[test]
        fn merged_sketches_equal_one_sketch_of_all_numbers(one in numbers(), another in numbers()) {
            let mut merged = sketch(&one);
            merged.merge(&sketch(&another), true);
            prop_assert_eq!(merged, sketch(&[one, another].concat()));
        }

        #[test]
        fn quantiles_are_those_of_another_implementation(numbers in numbers()) {
            let numbers: Vec<f64> = numbers.into_iter().map(|number| number.abs().clamp(1e-3, 1e6)).collect();
            let mut other = DDSketch::new(Config::new(RELATIVE_ERROR, 2048, 1e-9));
            numbers.iter().for_each(|number| other.add(*number));
            let last_rank = numbers.len() - 1;
            // At whole ranks, so that there is nothing to interpolate, and not at the ends, where the other one is exact.
            for rank in 1..last_rank {
                let quantile = rank as f64 / last_rank as f64;
                let expected = other.quantile(quantile).expect("a quantile").expect("numbers");
                let rank = (quantile * last_rank as f64) as u64;
                let actual = sketch(&numbers).at_rank(rank);
                prop_assert!((actual / expected - 1.0).abs() < 1e-9, "rank {rank}: {actual}, not {expected}");
            }
        }
    }
}
