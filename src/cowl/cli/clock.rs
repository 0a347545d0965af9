//! Times as Docker's command line shows them: in the caller's time zone (`TZ`, else
//! /etc/localtime).

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

fn local(at: Timestamp) -> ZonedDateTime {
    at.to_zoned_datetime(TimeZone::system())
}

/// RFC 3339 with exactly nine fractional digits.
pub(super) fn rfc3339_nano(at: Timestamp) -> String {
    rfc3339(&local(at), "%Y-%m-%dT%H:%M:%S.%9f")
}

/// RFC 3339 in whole seconds.
pub(super) fn rfc3339_seconds(at: Timestamp) -> String {
    rfc3339(&local(at), "%Y-%m-%dT%H:%M:%S")
}

/// Go writes a zero offset as `Z`.
fn rfc3339(at: &ZonedDateTime, format: &str) -> String {
    let offset = if at.offset().is_zero() { "Z" } else { "%:z" };
    at.strftime(&format!("{format}{offset}")).to_string()
}

/// Go's `time.Time.String`, of whole seconds.
pub(super) fn go(at: Timestamp) -> String {
    local(at).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_ends_in_an_offset_or_z() {
        let at: Timestamp = "2026-01-02T03:04:05.06Z".parse().unwrap();
        let shown = |offset| {
            let zone = TimeZone::fixed(jiff::tz::Offset::constant(offset));
            rfc3339(&at.to_zoned_datetime(zone), "%Y-%m-%dT%H:%M:%S.%9f")
        };
        assert_eq!(shown(0), "2026-01-02T03:04:05.060000000Z");
        assert_eq!(shown(-5), "2026-01-01T22:04:05.060000000-05:00");
    }
}
