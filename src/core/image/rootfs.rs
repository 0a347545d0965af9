//! A root file system's tar becomes an image of one layer.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{ImageError, Reference, oci};
use crate::digest::ImageId;
use crate::layer::{self, ArchiveEnd, Limits};
use crate::store::{RefRecord, Store};

/// Imports a tar, plain or gzip'ed, as the one layer of a new image, with a configuration that says no more than it must.
///
/// All or nothing. A tar without its end marker is refused: with no digest to compare, nothing else tells one that was cut
/// between two entries.
pub fn import_rootfs(
    store: &Store,
    tar: impl Read,
    reference: &Reference,
) -> Result<ImageId, ImageError> {
    let transaction = store.begin()?;
    let name = || "the tar".to_owned();
    let stream = layer::decompress(tar).map_err(|source| ImageError::Decompress {
        name: name(),
        source,
    })?;
    let imported =
        layer::import(stream, &transaction, &Limits::default()).map_err(ImageError::Import)?;
    if imported.end == ArchiveEnd::Unmarked {
        let what = match imported.stats.stream_bytes {
            0 => "it is empty",
            _ => "it ends without the two blocks of zeros that end a tar",
        }
        .to_owned();
        return Err(ImageError::Truncated { name: name(), what });
    }
    transaction.put_layer(
        imported.diff_id,
        imported.tree_bytes,
        imported.stats.stream_bytes,
    )?;
    transaction.put_merged(&[imported.diff_id])?;
    let created = rfc3339(SystemTime::now());
    let config = json!({
        "architecture": oci::host_architecture(),
        "os": "linux",
        "created": created,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [imported.diff_id] },
        "history": [{ "created": created, "created_by": "cowl import", "comment": "imported root file system" }],
    });
    let config = transaction.put_blob(config.to_string().as_bytes())?;
    let record = RefRecord {
        reference: Some(reference.clone()),
        image: ImageId(config),
        manifest: None,
        layers: vec![imported.diff_id],
        blobs: vec![config],
    };
    transaction.publish(&[record])?;
    Ok(ImageId(config))
}

/// UTC to the second: `2026-11-25T01:02:03Z`. A clock before 1970 says 1970.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a day since 1970, in the Gregorian calendar; counted in years that begin with March, so that the
/// leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01, and of 400 years, 100 years and 4 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 {
        (month + 3, year)
    } else {
        (month - 9, year + 1)
    };
    (year + 400 * era, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_as_date_prints_them() {
        // date -u -d @N +%FT%TZ
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_764_032_523, "2025-11-25T01:02:03Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
