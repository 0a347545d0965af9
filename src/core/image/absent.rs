//! What an archive's indexes name and the archive does not have.
//!
//! `docker save --platform` and a partial pull write a whole index with some of its images, so this
//! is no error. Nothing tells it from a blob that was lost, so a warning names each.

use std::fmt;

use super::{PlatformName, Reference};
use crate::store::Platform;

/// Platforms that a line lists.
const LISTED: usize = 20;

/// An image, or those for some platforms of one, that an archive's index names and that were not
/// loaded since parts of them are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// What the archive calls it; it may have no name.
    pub names: Vec<Reference>,
    /// At least one.
    pub images: Vec<AbsentImage>,
}

/// The image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsentImage {
    /// None: neither the index nor a configuration says.
    pub platform: Option<Platform>,
    /// The first part of it that is missing, as the archive would call it.
    pub missing: String,
}

impl AbsentImage {
    /// Whether it would be loaded if it were there: these are wanted, or all that Linux runs.
    fn is_wanted(&self, platforms: &[PlatformName]) -> bool {
        let Some(platform) = &self.platform else {
            return true;
        };
        if platforms.is_empty() {
            return matches!(platform.os.as_str(), "" | "linux");
        }
        platforms.iter().any(|wanted| wanted.matches(platform))
    }
}

/// What is told of these images: nothing if none of them would be loaded.
pub(super) fn told(
    names: &[Reference],
    images: &[AbsentImage],
    platforms: &[PlatformName],
) -> Option<Absent> {
    let wanted = images.iter().filter(|image| image.is_wanted(platforms));
    let images: Vec<AbsentImage> = wanted.cloned().collect();
    let names = names.to_vec();
    (!images.is_empty()).then_some(Absent { names, images })
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        match names.join(", ") {
            names if names.is_empty() => f.write_str("an image without a name")?,
            names => write!(f, "image {names}")?,
        }
        let platforms = self
            .images
            .iter()
            .filter_map(|image| image.platform.as_ref());
        let mut platforms: Vec<String> = platforms.map(super::oci::show).collect();
        let more = platforms.len().saturating_sub(LISTED);
        platforms.truncate(LISTED);
        if more > 0 {
            platforms.push(format!("{more} more"));
        }
        if !platforms.is_empty() {
            write!(f, " for {}", platforms.join(", "))?;
        }
        let missing = self.images.first().map_or("", |image| &image.missing);
        write!(f, " is left out: the archive has no {missing}")?;
        match self.images.len().saturating_sub(1) {
            0 => Ok(()),
            more => write!(f, ", nor {more} more of the parts"),
        }
    }
}
