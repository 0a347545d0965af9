//! What an archive has of the images that it names, and what it lacks.
//!
//! `docker save --platform` and a partial pull write a whole index with some of its images, so what
//! is missing is no error while an image is left. Nothing tells it from a blob that was lost, so a
//! warning names each.

use std::fmt;

use super::archive::Archive;
use super::{Candidate, CandidateImage, ImageConfig, ImageError, PlatformName, Reference};
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

/// The images of an archive.
#[derive(Default)]
pub(super) struct Found {
    pub(super) images: Vec<Candidate>,
    /// Names that have no image here.
    pub(super) absent: Vec<Absent>,
    /// The first thing that is no image: a signature, an attestation, another artifact.
    pub(super) artifact: Option<ImageError>,
}

impl Found {
    /// What is missing of what would be loaded. What another part of the archive has by that name
    /// is not missing.
    pub(super) fn wanted_absent(&self, platforms: &[PlatformName]) -> Vec<Absent> {
        let named = |name: &Reference| self.images.iter().any(|image| image.names.contains(name));
        let images = self.images.iter();
        let of_images = images.filter_map(|image| wanted(&image.names, &image.absent, platforms));
        let whole = self.absent.iter().filter_map(|absent| {
            let is_here = absent.names.iter().any(named);
            wanted(&absent.names, &absent.images, platforms).filter(|_| !is_here)
        });
        of_images.chain(whole).collect()
    }

    /// Leaves out the images that lack a layer's part; an error if no image is left.
    pub(super) fn only_whole(self, archive: &Archive) -> Result<Self, ImageError> {
        let mut whole = Self {
            images: Vec::new(),
            ..self
        };
        for candidate in self.images {
            match candidate.whole(archive)? {
                Ok(candidate) => whole.images.push(candidate),
                Err(absent) => whole.absent.push(absent),
            }
        }
        whole.or_nothing()
    }

    /// An error if there is no image, which says why.
    pub(super) fn or_nothing(mut self) -> Result<Self, ImageError> {
        if !self.images.is_empty() {
            return Ok(self);
        }
        let missing = self.absent.first().map(Absent::error);
        Err(missing
            .or(self.artifact.take())
            .unwrap_or(ImageError::Empty))
    }
}

impl Candidate {
    /// Moves the images of which the archive lacks a layer's part to those that are absent; the
    /// inner error if no image is left.
    pub(super) fn whole(mut self, archive: &Archive) -> Result<Result<Self, Absent>, ImageError> {
        for image in std::mem::take(&mut self.images) {
            match missing_layer(archive, &image)? {
                None => self.images.push(image),
                Some(missing) => self.absent.push(AbsentImage {
                    platform: platform_of(&image),
                    missing,
                }),
            }
        }
        if self.images.is_empty() {
            return Ok(Err(Absent {
                names: self.names,
                images: self.absent,
            }));
        }
        Ok(Ok(self))
    }
}

/// The first of its layers that the archive does not have. One without a name is left out on
/// purpose: the store may have it.
fn missing_layer(archive: &Archive, image: &CandidateImage) -> Result<Option<String>, ImageError> {
    for layer in image.layers.iter().filter(|layer| !layer.name.is_empty()) {
        if !archive.has(&layer.name)? {
            return Ok(Some(layer.name.clone()));
        }
    }
    Ok(None)
}

/// As an index or its configuration says, if one does.
fn platform_of(image: &CandidateImage) -> Option<Platform> {
    let of_config = || Some(ImageConfig::from_slice(&image.config).ok()?.platform());
    let platform = image.platform.clone().or_else(of_config)?;
    let is_named = !platform.os.is_empty() || !platform.architecture.is_empty();
    is_named.then_some(platform)
}

/// What is missing of these images: nothing if none of them would be loaded.
fn wanted(
    names: &[Reference],
    images: &[AbsentImage],
    platforms: &[PlatformName],
) -> Option<Absent> {
    let wanted = images.iter().filter(|image| image.is_wanted(platforms));
    let images: Vec<AbsentImage> = wanted.cloned().collect();
    let names = names.to_vec();
    (!images.is_empty()).then_some(Absent { names, images })
}

impl Absent {
    /// The error where this is all that was asked for.
    pub(super) fn error(&self) -> ImageError {
        ImageError::Missing {
            name: self.missing().to_owned(),
            needed_by: self.who(),
        }
    }

    fn missing(&self) -> &str {
        self.images.first().map_or("", |image| &image.missing)
    }

    /// The image by its names and platforms.
    fn who(&self) -> String {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let mut who = match names.join(", ") {
            names if names.is_empty() => "an image without a name".to_owned(),
            names => format!("image {names}"),
        };
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
            who = format!("{who} for {}", platforms.join(", "));
        }
        who
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, missing) = (self.who(), self.missing());
        write!(f, "{who} is left out: the archive has no {missing}")?;
        match self.images.len().saturating_sub(1) {
            0 => Ok(()),
            more => write!(f, ", nor {more} more of the parts"),
        }
    }
}
