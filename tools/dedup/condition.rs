//! `--fail-if`: a figure, a comparison and a limit, such as `waste>5%`; for two images,
//! `packages>0`.

use std::str::FromStr;

use crate::compare::{Change, Comparison};
use crate::report::{ImageRow, Report};
use crate::show::{Sizes, image_name, percent};
use crate::walk::Cause;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Waste,
    Cause(Cause),
    Exclusive,
    Stored,
    Logical,
    /// Of two images.
    Count(Count),
}

/// A count of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    Files,
    Changes(Change),
    Packages,
}

/// The figures' names on the command line, those of single images first.
const FIGURES: [(&str, Figure); 13] = [
    ("waste", Figure::Waste),
    ("overwritten", Figure::Cause(Cause::Overwritten)),
    ("deleted", Figure::Cause(Cause::Deleted)),
    ("metadata", Figure::Cause(Cause::Metadata)),
    ("duplicate", Figure::Cause(Cause::Duplicate)),
    ("exclusive", Figure::Exclusive),
    ("stored", Figure::Stored),
    ("logical", Figure::Logical),
    ("files", Figure::Count(Count::Files)),
    ("added", Figure::Count(Count::Changes(Change::Added))),
    ("changed", Figure::Count(Count::Changes(Change::Changed))),
    ("removed", Figure::Count(Count::Changes(Change::Removed))),
    ("packages", Figure::Count(Count::Packages)),
];

/// The names of the figures of comparisons, or of single images.
fn names(of_two: bool) -> String {
    let is_wanted = |(_, figure): &&(&str, Figure)| matches!(figure, Figure::Count(_)) == of_two;
    let names: Vec<_> = FIGURES.iter().filter(is_wanted).collect();
    let names: Vec<_> = names.into_iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// Thousandths of a byte.
    Bytes(u128),
    Number(u128),
    /// Thousands of a percent of the image's logical bytes.
    Percent(u128),
}

/// A condition on an image, or on a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    text: String,
    name: &'static str,
    figure: Figure,
    or_equal: bool,
    above: bool,
    limit: Limit,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text
            .find(['<', '>'])
            .ok_or("use FIGURE>LIMIT, such as 'waste>5%'")?;
        let (name, rest) = text.split_at_checked(at).ok_or("no figure")?;
        let (above, rest) = match rest.strip_prefix('>') {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix('<').unwrap_or(rest)),
        };
        let (or_equal, limit) = match rest.strip_prefix('=') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let known = FIGURES.iter().find(|(known, _)| *known == name.trim());
        let (name, figure) = known.copied().ok_or_else(|| {
            let (images, two) = (names(false), names(true));
            let name = name.trim();
            format!("'{name}' is not a figure; use {images}, or for two images {two}")
        })?;
        let limit = limit.trim();
        Ok(Self {
            text: text.to_owned(),
            name,
            figure,
            or_equal,
            above,
            limit: match figure {
                Figure::Count(_) => parse_number(limit)?,
                _ => parse_limit(limit)?,
            },
        })
    }
}

fn parse_number(text: &str) -> Result<Limit, String> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_number);
    let number = number.ok_or_else(|| format!("'{text}' is not a limit; use a whole number"));
    number.map(Limit::Number)
}

/// A percentage, or bytes with Docker's units.
fn parse_limit(text: &str) -> Result<Limit, String> {
    const UNITS: [(&str, u128); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    if let Some(number) = text.strip_suffix('%') {
        return thousandths(number)
            .map(Limit::Percent)
            .ok_or_else(|| bad_limit(text));
    }
    let unit = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = unit.ok_or_else(|| bad_limit(text))?;
    let thousandths = thousandths(number).ok_or_else(|| bad_limit(text))?;
    Ok(Limit::Bytes(thousandths * factor))
}

fn bad_limit(text: &str) -> String {
    format!("'{text}' is not a limit; use a percentage (5%) or a size (10MB), to three decimals")
}

/// A decimal number with at most three decimals, times 1000.
fn thousandths(text: &str) -> Option<u128> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    // Accept ".5".
    let whole = if whole.is_empty() && !fraction.is_empty() {
        "0"
    } else {
        whole
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || whole.len() > 15
        || fraction.len() > 3
        || !digits(whole)
        || !digits(fraction)
    {
        return None;
    }
    Some(whole.parse::<u128>().ok()? * 1000 + format!("{fraction:0<3}").parse::<u128>().ok()?)
}

impl Condition {
    /// Checks that it fits a comparison or single images; the error says what would.
    pub(crate) fn suits(&self, of_two: bool) -> Result<(), String> {
        if matches!(self.figure, Figure::Count(_)) == of_two {
            return Ok(());
        }
        let of = if of_two { "one image" } else { "two images" };
        let use_instead = names(of_two);
        Err(format!(
            "--fail-if: '{}' is a figure of {of}; use {use_instead}",
            self.name
        ))
    }

    /// A line, if the condition holds for a comparison.
    pub(crate) fn failure(&self, comparison: &Comparison) -> Option<String> {
        let Figure::Count(count) = self.figure else {
            return None;
        };
        let files = comparison.files.iter();
        let found = match count {
            Count::Files => files.len(),
            Count::Changes(change) => files.filter(|file| file.change == change).count(),
            Count::Packages => comparison.packages.len(),
        };
        let (a, b) = (image_name(&comparison.a), image_name(&comparison.b));
        let line = || format!("{a}, {b}: {} is {found}: {}", self.name, self.text);
        self.holds(found as u64, 0).then(line)
    }

    /// A line for each image that the condition holds for.
    pub(crate) fn failures(&self, report: &Report) -> Vec<String> {
        let of = |image: &ImageRow| {
            let bytes = self.bytes(image);
            self.holds(bytes, image.logical_bytes).then(|| {
                let (name, size) = (image_name(&image.name), Sizes::Human.show(bytes));
                let of_layers = match image.logical_bytes {
                    0 => "of layers without contents".to_owned(),
                    all => format!("{} of its layers", percent(bytes, all)),
                };
                format!(
                    "{name}: {} is {size}, {of_layers}: {}",
                    self.name, self.text
                )
            })
        };
        report.images.iter().filter_map(of).collect()
    }

    fn bytes(&self, image: &ImageRow) -> u64 {
        match self.figure {
            Figure::Waste => image.waste_bytes,
            Figure::Exclusive => image.exclusive.bytes,
            Figure::Stored => image.stored.bytes,
            Figure::Logical => image.logical_bytes,
            Figure::Cause(cause) => image.waste(cause),
            // [`Condition::suits`] has refused it.
            Figure::Count(_) => 0,
        }
    }

    fn holds(&self, bytes: u64, logical: u64) -> bool {
        // Both sides are scaled, so that nothing is rounded.
        let (left, right) = match self.limit {
            Limit::Number(limit) => (u128::from(bytes), limit),
            Limit::Bytes(limit) => (u128::from(bytes) * 1000, limit),
            Limit::Percent(limit) => (u128::from(bytes) * 100_000, limit * u128::from(logical)),
        };
        (self.or_equal && left == right)
            || if self.above {
                left > right
            } else {
                left < right
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_compare_without_rounding() {
        let holds =
            |text: &str, bytes, logical| text.parse::<Condition>().unwrap().holds(bytes, logical);
        assert!(!holds("waste>5%", 50, 1000));
        assert!(holds("waste>5%", 51, 1000));
        assert!(holds("waste >= 5%", 50, 1000));
        assert!(holds("waste>0.125%", 2, 1000));
        assert!(!holds("waste>0.2%", 2, 1000));
        assert!(holds("duplicate>1.5kB", 1501, 1));
        assert!(!holds("duplicate>1.5kB", 1500, 1));
        assert!(holds("stored<1MiB", (1 << 20) - 1, 1));
        assert!(holds("waste<0.5B", 0, 1));
        assert!(!holds("waste>=0.5B", 0, 1));
        assert!(holds("waste<1000.5B", 1000, 1));
        assert!(!holds("waste>5%", 0, 0));
    }

    #[test]
    fn unknown_conditions_are_refused_by_name() {
        for text in [
            "",
            "waste",
            "waste=5%",
            "wast>5%",
            "waste>",
            "waste>x%",
            "waste>5.1234%",
            "waste>-1",
            "files>1kB",
            "packages>5%",
            "files>+1",
            "removed>",
        ] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
        let error = "wast>5%".parse::<Condition>().unwrap_err();
        assert!(error.contains("'wast' is not a figure"), "{error}");
    }
}
