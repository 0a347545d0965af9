//! A root file system's tar becomes an image of one layer.

use std::io::Read;

use jiff::Timestamp;
use serde_json::json;

use super::{ImageError, Reference, oci};
use crate::digest::ImageId;
use crate::layer::{self, ArchiveEnd, Limits};
use crate::store::{Platform, Store, Tag, TaggedImage, TaggedLayer};

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
        Some(&imported.recipe),
    )?;
    transaction.put_merged(&[imported.diff_id])?;
    let created = format!("{:.0}", Timestamp::now());
    let config = json!({
        "architecture": oci::host_architecture(),
        "os": "linux",
        "created": created,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [imported.diff_id] },
        "history": [{ "created": created, "created_by": "cowl import", "comment": "imported root file system" }],
    });
    let config = transaction.put_blob(config.to_string().as_bytes())?;
    let image = TaggedImage {
        platform: Platform {
            os: "linux".to_owned(),
            architecture: oci::host_architecture().to_owned(),
            variant: String::new(),
        },
        config: ImageId(config),
        manifest: None,
        layers: vec![TaggedLayer {
            diff_id: imported.diff_id,
            blob: None,
        }],
    };
    transaction.publish(&[Tag {
        reference: Some(reference.clone()),
        target: None,
        images: vec![image],
    }])?;
    Ok(ImageId(config))
}
