//! Sizes as Docker's CLI prints and parses them (docker/go-units).
//!
//! Used by tables and option parsers. Independent of clock and locale.

pub(super) use crate::engine::duration::human as human_duration;
use crate::engine::size::decimal;
pub(super) use crate::engine::size::{human as human_size, human_of as human_size_of};

const KIB: u64 = 1 << 10;

/// Bytes in powers of 1024 with four significant digits, as go-units' `BytesSize`: `23.54GiB`.
pub(super) fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (u128::from(bytes), 1_u128);
    let mut units = UNITS.iter();
    let mut name = units.next();
    while value >= u128::from(KIB) {
        value /= u128::from(KIB);
        unit *= u128::from(KIB);
        name = units.next();
    }
    let scale = match value {
        ..10 => 1000,
        10..100 => 100,
        100..1000 => 10,
        _ => 1,
    };
    let rounded = (u128::from(bytes) * scale + unit / 2) / unit;
    format!("{}{}", decimal(rounded, scale), name.unwrap_or(&"B"))
}

/// Parses a size in powers of 1024: a number, optionally with a fraction, and a unit of `b k m g t
/// p` in either case, optionally followed by `b` or `ib`.
pub(super) fn parse_memory(text: &str) -> Result<u64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let number_len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(number_len).ok_or_else(invalid)?;
    let suffix = suffix
        .strip_prefix(' ')
        .unwrap_or(suffix)
        .to_ascii_lowercase();
    let unit = suffix
        .strip_suffix("ib")
        .or_else(|| suffix.strip_suffix('b'))
        .unwrap_or(&suffix);
    let power: u32 = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(invalid()),
    };
    scaled(number, KIB.pow(power)).ok_or_else(invalid)
}

/// `number * unit` in whole bytes, for a decimal number with at most nine decimals.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().ok()?
    };
    let digits = u32::try_from(fraction.len()).ok()?;
    let part = part * u128::from(unit) / 10_u128.pow(digits);
    whole.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_sizes_have_four_digits() {
        // From the client of docker 28.
        for (bytes, shown) in [
            (0, "0B"),
            (1023, "1023B"),
            (136 << 10, "136KiB"),
            (1_234_567, "1.177MiB"),
            (64 << 20, "64MiB"),
            (25_275_801_600, "23.54GiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(binary_size(bytes), shown, "{bytes}");
        }
    }

    #[test]
    fn memory_sizes_are_powers_of_1024() {
        let table = [
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("512MiB", 512 << 20),
            ("6 m", 6 << 20),
            ("1g", 1 << 30),
            ("1.5g", 3 << 29),
            ("0.5k", 512),
            ("4096", 4096),
            ("4096b", 4096),
            ("0", 0),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn malformed_sizes_are_refused() {
        for text in [
            "",
            "m",
            "-1",
            "-5m",
            "1e3",
            "12x",
            "1..5g",
            ".5g",
            "1.2.3",
            "99999999999p",
            "1 2m",
            "5mm",
            "0x10",
            "１m",
        ] {
            assert_eq!(
                parse_memory(text),
                Err(format!("invalid size: '{text}'")),
                "{text}"
            );
        }
    }
}
