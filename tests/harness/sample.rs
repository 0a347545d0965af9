//! Samples: tests that would take hours try some of their points, and other points with every
//! commit.
//!
//! * `COWL_TEST_SEED` is where a run starts from; `make test` takes it from the commit and prints
//!   it.
//! * `COWL_TEST_SCALE` is how many times as large a sample is as in `make test-mount`; the long
//!   tier sets 10.
//! * `COWL_TEST_REPEAT` is the one point to try: the command that a failing [`Point`] prints sets
//!   it.

use std::ops::Range;

use crate::profile::test_path;

/// The number that `name` is set to.
fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Where this run's samples start from; 0 unless the runner sets it.
pub fn seed() -> u64 {
    variable("COWL_TEST_SEED").unwrap_or_default()
}

/// How many times as large samples are as in `make test-mount`.
pub fn scale() -> u64 {
    variable("COWL_TEST_SCALE").unwrap_or(1).max(1)
}

/// The point that a failure is repeated with.
fn only() -> Option<u64> {
    variable("COWL_TEST_REPEAT")
}

/// Every `stride`-th point from `first` on, the start of them moved by the seed. A larger scale
/// makes the stride smaller.
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

/// `count` seeds of random programs, others for each seed of the run. A larger scale makes them
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

/// What a stride must be for about `count` of `all` points, before the scale.
pub fn stride_for(all: u64, count: u64) -> u64 {
    all.div_ceil(count).max(1)
}

/// Whether this run tries one point alone, and can say nothing about a sample as a whole.
pub fn is_repeated() -> bool {
    only().is_some()
}

/// The package that the running test is of: of a name like `cowl-mountd::reading`, which nextest
/// sets.
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
