//! Sizes as Docker prints them (docker/go-units).

/// Bytes in powers of 1000 with three significant digits: `1.98MB`, `241B`, `0B`.
pub(crate) fn human(bytes: u64) -> String {
    human_of(bytes, 3)
}

/// Bytes in powers of 1000 with `digits` significant digits, at least three.
pub(crate) fn human_of(bytes: u64, digits: u32) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut divisor = 1_u128;
    let value = u128::from(bytes);
    for unit in UNITS {
        let decimals: u32 = match value / divisor {
            ..10 => 2,
            10..100 => 1,
            _ => 0,
        };
        let scale = 10_u128.pow(decimals + digits.saturating_sub(3));
        let rounded = (value * scale + divisor / 2) / divisor;
        if rounded < 1000 * scale {
            return format!("{}{unit}", decimal(rounded, scale));
        }
        divisor *= 1000;
    }
    format!("{bytes}B")
}

/// `value / scale` without trailing zeros.
pub(crate) fn decimal(value: u128, scale: u128) -> String {
    let (whole, fraction) = (value / scale, value % scale);
    if fraction == 0 {
        return whole.to_string();
    }
    let digits = (scale + fraction).to_string();
    format!(
        "{whole}.{}",
        digits.get(1..).unwrap_or_default().trim_end_matches('0')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_can_have_four_significant_digits() {
        let table = [
            (0, "0B"),
            (241, "241B"),
            (5_596_640, "5.597MB"),
            (12_345_678, "12.35MB"),
            (196_712, "196.7kB"),
            (999_999, "1MB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human_of(bytes, 4), text);
        }
    }

    #[test]
    fn sizes_have_three_significant_digits() {
        let table = [
            (0, "0B"),
            (241, "241B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_980_000, "1.98MB"),
            (3_614_999, "3.61MB"),
            (5_600_000, "5.6MB"),
            (12_345_678, "12.3MB"),
            (999_999, "1MB"),
            (123_456_789_012, "123GB"),
            (u64::MAX, "18.4EB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human(bytes), text);
        }
    }
}
