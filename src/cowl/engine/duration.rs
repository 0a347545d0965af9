//! Ages in Docker's words (docker/go-units), and durations and times as clients write them.

use super::error::{Error, Result};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// An age in seconds in Docker's words: "3 minutes".
///
/// Hours are rounded to the nearest, longer units are rounded down.
pub fn human(seconds: u64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match seconds {
        0 => return "Less than a second".to_owned(),
        1 => return "1 second".to_owned(),
        2..60 => return format!("{seconds} seconds"),
        _ => {}
    }
    match (minutes, hours) {
        (1, _) => "About a minute".to_owned(),
        (2..60, _) => format!("{minutes} minutes"),
        (_, 1) => "About an hour".to_owned(),
        (_, ..48) => format!("{hours} hours"),
        (_, 48..336) => format!("{} days", hours / 24),
        (_, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A duration as Go's `time.ParseDuration` reads it, in nanoseconds: `1m30s`, `1.5h`, `-2ms`.
///
/// # Errors
/// Go's texts.
pub fn parse(text: &str) -> std::result::Result<i64, String> {
    let invalid = || format!("time: invalid duration \"{text}\"");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = |text: &str, numeric: bool| {
            let is_numeric = |c: char| c.is_ascii_digit() || c == '.';
            text.find(|c| is_numeric(c) != numeric)
                .unwrap_or(text.len())
        };
        let (number, after) = rest.split_at_checked(end(rest, true)).ok_or_else(invalid)?;
        let (unit, after) = after
            .split_at_checked(end(after, false))
            .ok_or_else(invalid)?;
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("time: missing unit in duration \"{text}\"")),
            _ => {
                return Err(format!(
                    "time: unknown unit \"{unit}\" in duration \"{text}\""
                ));
            }
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = format!("{whole}{fraction}");
        let divisor = u32::try_from(fraction.len())
            .ok()
            .and_then(|places| 10_i128.checked_pow(places));
        let value = digits.parse::<u64>().ok().map(i128::from);
        let (Some(value), Some(divisor)) = (value, divisor) else {
            return Err(invalid());
        };
        total = total.saturating_add(value.saturating_mul(scale) / divisor);
        rest = after;
    }
    i64::try_from(total.saturating_mul(sign)).map_err(|_range| invalid())
}

/// A time: RFC 3339, seconds since 1970, or an age such as `10m`. A date or time without an offset
/// is in the caller's time zone.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp> {
    let invalid = || Error::invalid(format!("invalid value for a time: \"{text}\""));
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Timestamp::from_second(seconds).map_err(|_range| invalid());
    }
    if let Some((seconds, nanoseconds)) = text.split_once('.')
        && let (Ok(seconds), Ok(nanoseconds)) =
            (seconds.parse(), format!("{nanoseconds:0<9}").parse())
    {
        return Timestamp::new(seconds, nanoseconds).map_err(|_range| invalid());
    }
    if let Ok(at) = text.parse::<DateTime>() {
        return TimeZone::system()
            .to_timestamp(at)
            .map_err(|_range| invalid());
    }
    let age: Span = text.parse().map_err(|_syntax| invalid())?;
    now.checked_sub(age).map_err(|_range| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let table = [
            ("2026-11-24T11:59:00Z", "2026-11-24T11:59:00Z"),
            ("10m", "2026-11-24T11:50:00Z"),
            ("1h30m", "2026-11-24T10:30:00Z"),
            ("0", "1970-01-01T00:00:00Z"),
            ("1.5", "1970-01-01T00:00:01.5Z"),
        ];
        for (text, expected) in table {
            assert_eq!(moment(text, now).unwrap().to_string(), expected, "{text}");
        }
        moment("soon", now).unwrap_err();
    }

    #[test]
    fn parse_reads_what_go_reads() {
        let table = [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("-2ms", -2_000_000),
            ("+1us", 1000),
            ("1µs1ns", 1001),
            (".5s", 500_000_000),
        ];
        for (text, nanoseconds) in table {
            assert_eq!(parse(text), Ok(nanoseconds), "{text}");
        }
        assert_eq!(
            parse("5"),
            Err("time: missing unit in duration \"5\"".to_owned())
        );
        assert_eq!(
            parse("5x"),
            Err("time: unknown unit \"x\" in duration \"5x\"".to_owned())
        );
        for text in ["", "-", "s", "1.2.3s", "99999999999h"] {
            assert_eq!(
                parse(text),
                Err(format!("time: invalid duration \"{text}\""))
            );
        }
    }

    #[test]
    fn human_formats_ages_as_docker() {
        let day = 24 * 3600;
        let table = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (2 * day, "2 days"),
            (14 * day, "2 weeks"),
            (60 * day, "2 months"),
            (730 * day, "2 years"),
            (3 * 365 * day + 100, "3 years"),
        ];
        for (seconds, text) in table {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
