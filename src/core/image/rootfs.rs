//! `import`: turns the tar of a root file system into an image of one layer.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use cowl_sys::stack::on_own_stack;
use jiff::Timestamp;
use rustix::fs::FileType;
use serde_json::{Map, Value, json};

use super::watch::{Step, Watch};
use super::{ConfigChange, ImageError, NewImage, PlatformName, Reference, new_config, oci};
use crate::digest::{DiffId, ImageId};
use crate::layer::{self, HashOnly, ImportedLayer, Limits, ObjectSink, Stop, StoppableReader};
use crate::store::{Platform, Stage, Store, Tag, TaggedImage, TaggedLayer, Transaction, Trust};

/// How a root file system is imported.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions<'o> {
    /// The image's name; None leaves it without one.
    pub reference: Option<&'o Reference>,
    /// With [`Trust::Hash`] existing objects are hashed, and damaged ones replaced.
    pub trust: Trust,
    /// Applied to the configuration, which says no more than it must.
    pub changes: &'o [ConfigChange],
    /// For the image's history; if it is empty, the history says that this was an import.
    pub message: &'o str,
    /// What the image is for; None: this host.
    pub platform: Option<&'o PlatformName>,
    /// Is told how far it is.
    pub watch: Option<&'o dyn Watch>,
}

/// Imports a tar, plain or compressed, as the one layer of a new image. The tar is read from the
/// file's position on; a pipe will do.
///
/// The tag is published last. A tar may end without the two blocks of zeros, as for Docker and GNU
/// tar: some writers leave them out.
pub fn import_rootfs(
    store: &Store,
    tar: &File,
    options: &ImportOptions<'_>,
) -> Result<ImageId, ImageError> {
    on_own_stack(|| import_here(store, tar, options)).map_err(ImageError::Thread)?
}

fn import_here(
    store: &Store,
    tar: &File,
    options: &ImportOptions<'_>,
) -> Result<ImageId, ImageError> {
    let platform = platform(options.platform)?;
    let transaction = store.begin_with(options.trust)?;
    let diff_id = if let Some(diff_id) = present(store, &transaction, tar)? {
        diff_id
    } else {
        let add = |stage: &Stage<'_>| add(tar, stage, options.watch);
        transaction.stage(add).map_err(ImageError::Thread)??
    };
    transaction.put_merged(&[diff_id])?;
    let config = config(&platform, diff_id, options)?;
    let config = ImageId(transaction.put_blob(&config)?);
    let image = TaggedImage {
        platform,
        config,
        manifest: None,
        layers: vec![TaggedLayer {
            diff_id,
            blob: None,
        }],
    };
    transaction.publish(&[Tag {
        reference: options.reference.cloned(),
        target: None,
        images: vec![image],
    }])?;
    Ok(config)
}

fn add(tar: &File, stage: &Stage<'_>, watch: Option<&dyn Watch>) -> Result<DiffId, ImageError> {
    let imported = import(tar, stage, watch)?;
    stage.put_layer(
        imported.diff_id,
        imported.tree_bytes,
        imported.stats.stream_bytes,
        &imported.recipe,
    )?;
    Ok(imported.diff_id)
}

fn platform(wanted: Option<&PlatformName>) -> Result<Platform, ImageError> {
    let Some(wanted) = wanted else {
        return Ok(Platform {
            os: "linux".to_owned(),
            architecture: oci::host_architecture().to_owned(),
            variant: String::new(),
        });
    };
    let platform = wanted.to_platform();
    if platform.os != "linux" {
        return Err(ImageError::Unsupported {
            name: wanted.to_string(),
            what: "only Linux runs here".to_owned(),
        });
    }
    Ok(platform)
}

fn config(
    platform: &Platform,
    diff_id: DiffId,
    options: &ImportOptions<'_>,
) -> Result<Vec<u8>, ImageError> {
    let fields = [
        ("os", &platform.os),
        ("architecture", &platform.architecture),
        ("variant", &platform.variant),
    ];
    let below: Map<String, Value> = fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(field, value)| (field.to_owned(), json!(value)))
        .collect();
    let message = match options.message {
        "" => "imported root file system",
        message => message,
    };
    let new = NewImage {
        created: format!("{:.0}", Timestamp::now()),
        created_by: "cowl import".to_owned(),
        comment: message.to_owned(),
        layer: Some(diff_id),
        changes: options.changes,
        ..NewImage::default()
    };
    new_config(Value::Object(below).to_string().as_bytes(), &new)
}

fn import<S: ObjectSink>(
    tar: &File,
    sink: &S,
    watch: Option<&dyn Watch>,
) -> Result<ImportedLayer, ImageError> {
    let name = || "the tar".to_owned();
    let unreadable = |source| ImageError::Read {
        name: name(),
        source,
    };
    let stop = Stop::new().map_err(unreadable)?;
    let source = WatchedTar {
        tar: stop.reader(tar),
        read: 0,
        size: rest_of(tar).map_err(unreadable)?.map(|(_, size)| size),
        watch,
    };
    let stream = layer::decompress(source).map_err(|source| ImageError::Decompress {
        name: name(),
        source,
    })?;
    let imported =
        layer::import_until(stream, &stop, sink, &Limits::default()).map_err(ImageError::Import)?;
    if imported.stats.stream_bytes == 0 {
        // As GNU tar: it is what a pipe gives whose writer failed.
        let what = "it is empty".to_owned();
        return Err(ImageError::Truncated { name: name(), what });
    }
    Ok(imported)
}

/// Where the rest of a regular file begins, and its size.
fn rest_of(mut tar: &File) -> io::Result<Option<(u64, u64)>> {
    let meta = tar.metadata()?;
    if !FileType::from_raw_mode(meta.mode()).is_file() {
        return Ok(None);
    }
    let start = tar.stream_position()?;
    Ok(Some((start, meta.len().saturating_sub(start))))
}

/// The tar, which tells how far it is read.
struct WatchedTar<'w> {
    tar: StoppableReader<'w>,
    read: u64,
    size: Option<u64>,
    watch: Option<&'w dyn Watch>,
}

impl Read for WatchedTar<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.tar.read(out)?;
        self.read = self.read.saturating_add(count as u64);
        if let Some(watch) = self.watch {
            watch.step(Step::Root {
                read: self.read,
                size: self.size,
            });
        }
        Ok(count)
    }
}

/// Checks whether the store has the layer; if so, nothing is written. Only an uncompressed regular
/// file whose size is that of an existing layer is read twice; anything else is imported.
fn present(
    store: &Store,
    transaction: &Transaction<'_>,
    mut tar: &File,
) -> Result<Option<DiffId>, ImageError> {
    let unreadable = |source| ImageError::Read {
        name: "the tar".to_owned(),
        source,
    };
    let Some((start, length)) = rest_of(tar).map_err(unreadable)? else {
        return Ok(None);
    };
    let of_this_size = |layer: &TaggedLayer| {
        let info = store.layer_info(layer.diff_id).ok().flatten();
        info.is_some_and(|info| info.tar_size == length)
    };
    let tags = store.tags()?.tags;
    let layers = tags
        .iter()
        .flat_map(|tag| &tag.images)
        .flat_map(|image| &image.layers);
    if !layers.into_iter().any(of_this_size) {
        return Ok(None);
    }
    let imported = import(tar, &HashOnly, None)?;
    if transaction.has_layer(imported.diff_id)? {
        return Ok(Some(imported.diff_id));
    }
    tar.seek(SeekFrom::Start(start)).map_err(unreadable)?;
    Ok(None)
}
