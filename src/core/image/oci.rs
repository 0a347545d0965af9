//! OCI image layouts (image-spec v1.1, image-layout.md): finds their images by name and platform.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;

use super::absent::{Absent, AbsentImage, Found};
use super::archive::Archive;
use super::documents::{Descriptor, Document, Manifest, OciLayout, Platform, from_json};
use super::{
    CONFIG_LIMIT, Candidate, CandidateImage, DOCUMENT_LIMIT, ImageError, LayerPart, MAX_IMAGES,
    PlatformName, Reference, check_digest,
};
use crate::digest::Sha256Digest;
use crate::store;

pub(super) const LAYOUT: &str = "oci-layout";
pub(super) const INDEX: &str = "index.json";
/// An index may hold indexes; real ones hold one level.
const MAX_DEPTH: usize = 4;
/// Descriptors that are followed, in all indexes of an archive together.
const MAX_MENTIONS: usize = 50_000;

/// Set by containerd and Docker: the full name.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// image-spec, annotations.md: a name or a tag, as its writer likes.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Set by BuildKit on attestations, which are listed beside images.
const ATTESTATION: &str = "vnd.docker.reference.type";

const CONFIG_TYPES: [&str; 3] = [
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Prefixes of a layer's media type; the suffix is its compression, which is detected from the
/// bytes.
const LAYER_TYPES: [&str; 2] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
];

/// The images of a layout, tagged and untagged, and names whose images are all missing.
///
/// With `platforms` the caller chooses among them; without, they are those that Linux runs.
pub(super) fn candidates(
    archive: &Archive,
    base: &Path,
    platforms: &[PlatformName],
) -> Result<Found, ImageError> {
    let layout: OciLayout = from_json(
        LAYOUT,
        &archive.read_required(LAYOUT, DOCUMENT_LIMIT, "the format")?,
    )?;
    if !layout.image_layout_version.starts_with("1.") {
        let what = format!(
            "layout version {:?} is not supported, 1.x is",
            layout.image_layout_version
        );
        return Err(ImageError::Unsupported {
            name: LAYOUT.to_owned(),
            what,
        });
    }
    let Document::Index(index) = Document::parse(
        INDEX,
        &archive.read_required(INDEX, DOCUMENT_LIMIT, LAYOUT)?,
        "",
    )?
    else {
        return Err(ImageError::Confused {
            name: INDEX.to_owned(),
            what: "it is a manifest, not an index".to_owned(),
        });
    };
    let mut result = Found::default();
    let mut budget = Budget {
        mentions: MAX_MENTIONS,
        images: MAX_IMAGES,
    };
    for group in groups(index.manifests) {
        let name = group
            .first()
            .and_then(|descriptor| reference(descriptor, base).transpose())
            .transpose()?;
        let names = Vec::from_iter(name);
        let mut found = FoundImages::default();
        for descriptor in &group {
            found.add(archive, descriptor, MAX_DEPTH, &mut budget)?;
        }
        if found.images.is_empty() {
            result.artifact = result.artifact.or(found.artifacts.into_iter().next());
            let images = found.absent;
            if !images.is_empty() {
                result.absent.push(Absent { names, images });
            }
        } else {
            result
                .images
                .push(found.ordered(names, platforms.is_empty())?);
        }
    }
    Ok(result)
}

/// What may still be read of an archive. An index can be mentioned any number of times.
struct Budget {
    mentions: usize,
    images: usize,
}

/// Takes one from a part of the budget.
fn take(left: &mut usize, what: &str, limit: usize) -> Result<(), ImageError> {
    *left = left.checked_sub(1).ok_or_else(|| ImageError::Unsupported {
        name: INDEX.to_owned(),
        what: format!("its indexes lead to more than {limit} {what}"),
    })?;
    Ok(())
}

/// The images found behind the descriptors of one name.
#[derive(Default)]
struct FoundImages {
    /// What was read, so that nothing is read again for the same platform.
    seen: HashSet<(Sha256Digest, Option<Platform>)>,
    /// The nested index that lists them, if any.
    index: Option<Vec<u8>>,
    images: Vec<(Platform, CandidateImage)>,
    /// Manifests that are no images: signatures, attestations, other artifacts.
    artifacts: Vec<ImageError>,
    /// What is missing from the archive, as is usual for all platforms but one.
    absent: Vec<AbsentImage>,
}

impl FoundImages {
    /// Reads a descriptor's manifest, or its index recursively.
    fn add(
        &mut self,
        archive: &Archive,
        descriptor: &Descriptor,
        depth: usize,
        budget: &mut Budget,
    ) -> Result<(), ImageError> {
        take(&mut budget.mentions, "manifests", MAX_MENTIONS)?;
        let digest = descriptor.sha256()?;
        if !self.seen.insert((digest, descriptor.platform.clone())) {
            return Ok(());
        }
        let name = blob_name(digest);
        if !archive.has(&name)? {
            self.lacks(descriptor, name);
            return Ok(());
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(ImageError::Unsupported {
                name: INDEX.to_owned(),
                what: format!("indexes are nested deeper than {MAX_DEPTH}"),
            });
        };
        let bytes = blob(archive, descriptor, DOCUMENT_LIMIT, INDEX)?;
        match Document::parse(&name, &bytes, &descriptor.media_type)? {
            Document::Manifest(manifest) => {
                if let Some(artifact) = not_an_image(&name, &manifest) {
                    self.artifacts.push(artifact);
                } else {
                    take(&mut budget.images, "images", MAX_IMAGES)?;
                    self.image(archive, descriptor, bytes, &manifest)?;
                }
            }
            Document::Index(index) => {
                self.index.get_or_insert(bytes);
                for descriptor in index.manifests.iter().filter(|inner| is_image(inner)) {
                    self.add(archive, descriptor, depth, budget)?;
                }
            }
        }
        Ok(())
    }

    fn image(
        &mut self,
        archive: &Archive,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
        manifest: &Manifest,
    ) -> Result<(), ImageError> {
        let name = blob_name(manifest.config.sha256()?);
        if !archive.has(&name)? {
            self.lacks(descriptor, name);
            return Ok(());
        }
        let config = blob(archive, &manifest.config, CONFIG_LIMIT, "the manifest")?;
        let platform = match &descriptor.platform {
            Some(platform) => platform.clone(),
            None => from_json(&name, &config)?,
        };
        let part = |layer: &Descriptor| {
            let digest = layer.sha256()?;
            Ok(LayerPart {
                name: blob_name(digest),
                digest: Some(digest),
                size: Some(layer.size),
            })
        };
        let layers = manifest
            .layers
            .iter()
            .map(part)
            .collect::<Result<_, ImageError>>()?;
        let image = CandidateImage {
            platform: descriptor.platform.as_ref().map(Into::into),
            config,
            manifest: Some(bytes),
            layers,
        };
        self.images.push((platform, image));
        Ok(())
    }

    /// Notes that a part of an image is missing.
    fn lacks(&mut self, descriptor: &Descriptor, missing: String) {
        self.absent.push(AbsentImage {
            platform: descriptor.platform.as_ref().map(Into::into),
            missing,
        });
    }

    /// The images, those for this host first. A single one may be for any platform; of several,
    /// with `for_linux`, those that Linux runs.
    fn ordered(mut self, names: Vec<Reference>, for_linux: bool) -> Result<Candidate, ImageError> {
        if self.images.len() > 1 && for_linux {
            let platforms = self
                .images
                .iter()
                .map(|(platform, _)| show(&platform.into()));
            let available: Vec<String> = platforms.collect();
            let is_linux = |platform: &Platform| matches!(platform.os.as_str(), "" | "linux");
            self.images.retain(|(platform, _)| is_linux(platform));
            if self.images.is_empty() {
                return Err(ImageError::Platform {
                    wanted: "linux".to_owned(),
                    available: available.join(", "),
                });
            }
        }
        let host = host_platform();
        self.images
            .sort_by_key(|(platform, _)| rank(platform, &host).unwrap_or(usize::MAX));
        Ok(Candidate {
            names,
            index: self.index,
            images: self.images.into_iter().map(|(_, image)| image).collect(),
            absent: self.absent,
        })
    }
}

/// The error for a manifest that is no image, judged by its type, configuration and layers.
fn not_an_image(name: &str, manifest: &Manifest) -> Option<ImageError> {
    let kind = if !manifest.artifact_type.is_empty() {
        &manifest.artifact_type
    } else if !CONFIG_TYPES.contains(&manifest.config.media_type.as_str()) {
        &manifest.config.media_type
    } else {
        &manifest
            .layers
            .iter()
            .find(|layer| !is_layer(&layer.media_type))?
            .media_type
    };
    Some(ImageError::Unsupported {
        name: name.to_owned(),
        what: format!("it is an artifact of type {kind}, no image"),
    })
}

fn is_layer(media_type: &str) -> bool {
    media_type.is_empty() || LAYER_TYPES.iter().any(|kind| media_type.starts_with(kind))
}

fn blob_name(digest: Sha256Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a small blob and checks its size and digest.
fn blob(
    archive: &Archive,
    descriptor: &Descriptor,
    limit: u64,
    needed_by: &str,
) -> Result<Vec<u8>, ImageError> {
    let digest = descriptor.sha256()?;
    let name = blob_name(digest);
    let bytes = archive.read_required(&name, limit, needed_by)?;
    let found = bytes.len() as u64;
    if found != descriptor.size {
        return Err(ImageError::Size {
            name,
            expected: descriptor.size,
            found,
        });
    }
    check_digest(&name, &bytes, digest)?;
    Ok(bytes)
}

fn is_image(descriptor: &Descriptor) -> bool {
    let nowhere = descriptor
        .platform
        .as_ref()
        .is_some_and(|platform| platform.os == "unknown");
    descriptor.artifact_type.is_empty()
        && !descriptor.annotations.contains_key(ATTESTATION)
        && !nowhere
}

/// Groups descriptors into images: those of one name are one image for several platforms. Among
/// unnamed ones, a descriptor without a platform, or a second one for the same platform, is an
/// image of its own.
fn groups(descriptors: Vec<Descriptor>) -> Vec<Vec<Descriptor>> {
    let mut groups: Vec<Vec<Descriptor>> = Vec::new();
    // The group of each name, and the groups of unnamed descriptors with a platform.
    let mut named: HashMap<(String, bool), usize> = HashMap::new();
    let mut unnamed: Vec<usize> = Vec::new();
    let mut occurrences: HashMap<Platform, usize> = HashMap::new();
    for descriptor in descriptors.into_iter().filter(is_image) {
        let new = groups.len();
        let number = match (name_of(&descriptor), &descriptor.platform) {
            (Some(name), platform) => {
                let key = (name.to_owned(), platform.is_some());
                *named.entry(key).or_insert(new)
            }
            (None, None) => new,
            (None, Some(platform)) => {
                let before = occurrences.entry(platform.clone()).or_default();
                let number = unnamed.get(*before).copied().unwrap_or(new);
                *before += 1;
                if number == new {
                    unnamed.push(new);
                }
                number
            }
        };
        match groups.get_mut(number) {
            Some(group) => group.push(descriptor),
            None => groups.push(vec![descriptor]),
        }
    }
    groups
}

fn name_of(descriptor: &Descriptor) -> Option<&str> {
    [FULL_NAME, REF_NAME]
        .iter()
        .find_map(|key| descriptor.annotations.get(*key))
        .map(String::as_str)
}

/// The name of an image. A bare word in `ref.name` is a tag, as skopeo and umoci write it
/// (`oci:NAME:TAG`); the repository is the archive's file name. If that is not a valid name, the
/// image stays untagged.
fn reference(descriptor: &Descriptor, base: &Path) -> Result<Option<Reference>, ImageError> {
    if let Some(name) = descriptor.annotations.get(FULL_NAME) {
        return Ok(Some(name.parse()?));
    }
    let Some(name) = descriptor.annotations.get(REF_NAME) else {
        return Ok(None);
    };
    if name.contains([':', '/']) {
        return Ok(name.parse().ok());
    }
    let file = base.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let repository = [".tar.gz", ".tgz", ".tar", ".oci"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))
        .unwrap_or(file);
    Ok(format!("{repository}:{name}").parse().ok())
}

/// Ranks an image's platform for this host, 0 is best. None if it cannot run.
fn rank(platform: &Platform, host: &Platform) -> Option<usize> {
    match platform {
        platform if platform.os.is_empty() && platform.architecture.is_empty() => Some(2),
        platform if platform.os != host.os || platform.architecture != host.architecture => None,
        // v8 is what arm64 is by itself; v2 to v4 of amd64 may need more than this machine has.
        platform if matches!(platform.variant.as_str(), "" | "v8") => Some(0),
        _ => Some(1),
    }
}

impl From<&Platform> for store::Platform {
    fn from(platform: &Platform) -> Self {
        Self {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
        }
    }
}

pub(super) fn show(platform: &store::Platform) -> String {
    let store::Platform {
        os,
        architecture,
        variant,
    } = platform;
    if variant.is_empty() {
        format!("{os}/{architecture}")
    } else {
        format!("{os}/{architecture}/{variant}")
    }
}

/// This host's platform, as GOOS and GOARCH.
fn host_platform() -> Platform {
    Platform {
        os: "linux".to_owned(),
        architecture: host_architecture().to_owned(),
        variant: String::new(),
    }
}

/// Docker's warning about an image that is not for this host. None for one that runs here, also by
/// compatibility of the processor, or that names no platform.
pub fn foreign_platform(image: &store::Platform) -> Option<String> {
    let host = host_platform();
    let of_this_host = match image.architecture.as_str() {
        "" => true,
        "386" => matches!(&*host.architecture, "386" | "amd64"),
        "arm" => matches!(&*host.architecture, "arm" | "arm64"),
        other => other == host.architecture,
    };
    (!of_this_host).then(|| {
        let (image, host) = (show(image), show(&(&host).into()));
        format!("The requested image's platform ({image}) does not match the detected host platform ({host})")
    })
}

/// This host's architecture, as GOARCH.
pub(super) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
