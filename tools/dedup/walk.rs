//! What each layer of an image adds, changes, deletes and wastes.

use anyhow::{Context, Result};

use crate::model::{Collection, Image};
use crate::state::State;

/// Why bytes of a layer are waste.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cause {
    /// A whiteout or an opaque directory of a later layer.
    Deleted,
    /// A later layer has something else at its path.
    Overwritten,
    /// A later layer repeats the file with the same content.
    Metadata,
    /// Another visible path has the same content.
    Duplicate,
}

/// A file of one layer; layers count from the bottom of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) layer: u32,
    pub(crate) ino: u32,
}

/// Numbers of names, other than directories, that a layer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub(crate) struct Changes {
    pub(crate) added: u64,
    pub(crate) changed: u64,
    pub(crate) deleted: u64,
}

/// Wasted bytes of an image's layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waste {
    pub(crate) cause: Cause,
    /// The layer that holds the bytes.
    pub(crate) layer: usize,
    /// The layer that caused it.
    pub(crate) by: usize,
    pub(crate) bytes: u64,
    pub(crate) paths: Vec<Vec<u8>>,
}

/// The result of walking an image's layers.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// For each layer.
    pub(crate) changes: Vec<Changes>,
    pub(crate) waste: Vec<Waste>,
    /// Bytes of the visible files, hard links once.
    pub(crate) visible: u64,
}

/// Walks one image.
pub(crate) fn walk(collection: &Collection, image: &Image) -> Result<Walked> {
    let mut state = State::new(collection, image);
    for number in 0..image.layers.len() {
        state
            .apply(number)
            .with_context(|| format!("image {}: layer {}", image.name, number + 1))?;
    }
    let (visible, duplicates) = state.duplicates();
    let (changes, mut waste) = state.into_findings();
    waste.extend(duplicates);
    Ok(Walked {
        changes,
        waste,
        visible,
    })
}
