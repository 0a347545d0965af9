//! Samples: tests that would take hours try some of their points, and other points with every
//! commit.
//!
//! * `COWL_TEST_SEED` is the seed of a run; `make test` derives it from the commit and prints it.
//! * `COWL_TEST_SCALE` multiplies the size of samples relative to `make test-mount`; the long tier
//!   sets 10.
//! * `COWL_TEST_REPEAT` is the only point to try; the command printed by a failing [`Point`] sets
//!   it.

use std::ops::Range;

use crate::profile::test_path;

/// The number that `name` is set to.
fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// The seed of this run's samples; 0 unless the runner sets it.
pub fn seed() -> u64 {
    variable("COWL_TEST_SEED").unwrap_or_default()
}

/// The factor for the size of samples, relative to `make test-mount`.
pub fn scale() -> u64 {
    variable("COWL_TEST_SCALE").unwrap_or(1).max(1)
}

/// The point with which to repeat a failure.
fn only() -> Option<u64> {
    variable("COWL_TEST_REPEAT")
}

/// Every `stride`-th point from `first` on, offset by the seed. A larger scale makes the stride
/// smaller.
pub fn strided(first: u64, stride: u64) -> impl Iterator<Item = Point> {
    let stride = (stride / scale()).max(1);
    let start = first + seed() % stride;
    let (one, rest) = match only() {
        Some(point) => (Some(point), None),
        None => (None, Some((start..).step_by(as_usize(stride)))),
    };
    one.into_iter()
        .chain(rest.into_iter().flatten())
        .map(Point::new)
}

/// `count` seeds of random programs, which depend on the seed of the run. A larger scale gives
/// more.
pub fn seeds(count: u64) -> impl Iterator<Item = Point> {
    let range: Range<u64> = if let Some(point) = only() {
        point..point + 1
    } else {
        let start = seed() * 1_000;
        start..start + count * scale()
    };
    range.map(Point::new)
}

/// The stride for about `count` of `all` points, before the scale.
pub fn stride_for(all: u64, count: u64) -> u64 {
    all.div_ceil(count).max(1)
}

/// Whether this run tries one point only, so that nothing follows for the whole sample.
pub fn is_repeated() -> bool {
    only().is_some()
}

/// The package of the running test, from a name like `cowl-mountd::reading`, which nextest sets.
fn package() -> String {
    let binary = std::env::var("NEXTEST_BINARY_ID").unwrap_or_else(|_| "cowl-tests".to_owned());
    binary.split("::").next().unwrap_or_default().to_owned()
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).expect("a 64-bit machine")
}

/// One point of a sample. Dropped in a failing test it prints the command that tries this point
/// alone.
#[derive(Debug)]
pub struct Point(u64);

impl Point {
    /// The point of this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.0
    }

    /// Its number, as an index.
    pub fn index(&self) -> usize {
        as_usize(self.0)
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "repeat with: COWL_TEST_REPEAT={} COWL_TEST_SEED={} cargo nextest run --workspace --run-ignored all -E 'package({}) & test(={})'",
                self.0,
                seed(),
                package(),
                test_path(),
            );
        }
    }
}
