//! Medians, and ratios of paired times: systems are compared within a round, under the same load,
//! never across rounds.

use std::time::Duration;

/// Lowest, median and highest of some numbers.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of numbers in any order; None if there are none.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper)
        } else {
            upper
        };
        Some(Self {
            low: *sorted.first()?,
            median,
            high: *sorted.last()?,
        })
    }
}

/// Ratios of times to those of another system in the same rounds.
pub(crate) fn ratios(own: &[Duration], base: &[Duration]) -> Option<Spread> {
    let pairs = own.iter().zip(base);
    Spread::of(pairs.map(|(own, base)| own.as_secs_f64() / base.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Spread, ratios};

    fn spread(low: f64, median: f64, high: f64) -> Spread {
        Spread { low, median, high }
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0]), Some(spread(3.0, 3.0, 3.0)));
        assert_eq!(Spread::of([9.0, 1.0, 4.0]), Some(spread(1.0, 4.0, 9.0)));
        assert_eq!(
            Spread::of([8.0, 1.0, 2.0, 4.0]),
            Some(spread(1.0, 3.0, 8.0))
        );
    }

    /// The second round was ten times slower for both, which does not change the ratio.
    #[test]
    fn ratios_pair_the_rounds() {
        let of = |times: [u64; 3]| times.map(Duration::from_secs);
        let found = ratios(&of([20, 300, 40]), &of([10, 100, 10]));
        assert_eq!(found, Some(spread(2.0, 3.0, 4.0)));
    }
}
