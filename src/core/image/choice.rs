//! Which of an archive's images are loaded: by platform, or by name, tag or id.

use super::absent::{Absent, Found};
use super::load::parse_config;
use super::{Candidate, CandidateImage, ImageError, PlatformName, Reference, oci};
use crate::digest::{ImageId, Sha256Digest};

/// Images that an error lists.
const LISTED: usize = 20;

/// The images for these platforms.
pub(super) fn of_platforms(
    mut found: Found,
    platforms: &[PlatformName],
) -> Result<Found, ImageError> {
    let mut others = Vec::new();
    let absent = found.wanted_absent(platforms);
    for candidate in &mut found.images {
        let before = candidate.images.len();
        let mut kept = Vec::new();
        for image in candidate.images.drain(..) {
            let platform = match &image.platform {
                Some(platform) => platform.clone(),
                None => parse_config(&image.config, &candidate.names)?.platform(),
            };
            if platforms.iter().any(|wanted| wanted.matches(&platform)) {
                kept.push(image);
            } else {
                others.push(oci::show(&platform));
            }
        }
        candidate.images = kept;
        if candidate.images.len() < before {
            // The index speaks of the others too.
            candidate.index = None;
        }
    }
    found
        .images
        .retain(|candidate| !candidate.images.is_empty());
    if found.images.is_empty() && !others.is_empty() {
        let is_known =
            |absent: &&Absent| absent.images.iter().all(|image| image.platform.is_some());
        if let Some(absent) = absent.iter().find(is_known) {
            return Err(absent.error());
        }
        let wanted: Vec<String> = platforms.iter().map(ToString::to_string).collect();
        return Err(ImageError::Platform {
            wanted: wanted.join(", "),
            available: others.join(", "),
        });
    }
    Ok(found)
}

/// The images that a name or a digest behind one means, or a tag alone (skopeo's `oci:PATH:TAG`),
/// or the one image whose id begins so. Behind it may be a platform, as in `multi:1 (linux/arm64)`.
pub(super) fn named(found: Found, wanted: &str) -> Result<Found, ImageError> {
    let Some((wanted, platform)) = split_platform(wanted) else {
        return of_name(found, wanted);
    };
    let mut found = of_platforms(of_name(found, wanted)?, &[platform])?;
    for candidate in &mut found.images {
        // Not asked for.
        candidate.absent.clear();
    }
    Ok(found)
}

/// A name and the platform behind it: `multi:1 (linux/arm64)`.
pub fn split_platform(wanted: &str) -> Option<(&str, PlatformName)> {
    let (name, platform) = wanted.strip_suffix(')')?.rsplit_once(" (")?;
    Some((name, platform.parse().ok()?))
}

fn of_name(found: Found, wanted: &str) -> Result<Found, ImageError> {
    let Found { images, absent, .. } = found;
    let only = |images| Found {
        images,
        ..Found::default()
    };
    let all = names(&images);
    let refused = |found: &[Candidate]| ImageError::NoImage {
        wanted: wanted.to_owned(),
        several: !found.is_empty(),
        available: if found.is_empty() {
            all.clone()
        } else {
            names(found)
        },
    };
    let reference = wanted.parse().ok().map(Reference::looked_up);
    let reference = reference.as_ref();
    let is_tagged = |name: &Reference| name.tag() == Some(wanted);
    let (chosen, rest): (Vec<_>, Vec<_>) = images
        .into_iter()
        .partition(|candidate| reference.is_some_and(|name| is_named(candidate, name)));
    if !chosen.is_empty() {
        return Ok(only(chosen));
    }
    let (chosen, rest): (Vec<_>, Vec<_>) = rest
        .into_iter()
        .partition(|candidate| candidate.names.iter().any(is_tagged));
    match chosen.len() {
        0 => {}
        1 => return Ok(only(chosen)),
        _ => return Err(refused(&chosen)),
    }
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let is_id = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let mut chosen: Vec<Candidate> = Vec::new();
    for mut candidate in rest {
        let before = candidate.images.len();
        let names = &candidate.names;
        candidate.images.retain(|image| {
            let is_named = reference.is_some_and(|name| is_named_by_digest(names, image, name));
            is_named || is_id && id(&image.config).starts_with(digits)
        });
        if candidate.images.len() < before {
            // The index speaks of the others too.
            candidate.index = None;
        }
        if !candidate.images.is_empty() {
            // One image is asked for.
            candidate.absent.clear();
            chosen.push(candidate);
        }
    }
    let images = chosen.iter().flat_map(|candidate| &candidate.images);
    let mut ids: Vec<String> = images.map(|image| id(&image.config)).collect();
    ids.sort_unstable();
    ids.dedup();
    let is_it = |name: &Reference| Some(name) == reference || is_tagged(name);
    let missing = absent.iter().find(|absent| absent.names.iter().any(is_it));
    match (ids.len(), missing) {
        (1, _) => Ok(only(chosen)),
        (0, Some(missing)) => Err(missing.error()),
        _ => Err(refused(&chosen)),
    }
}

/// Whether a name is one of these images, or has the digest of the index that lists them.
fn is_named(candidate: &Candidate, wanted: &Reference) -> bool {
    let index = candidate.index.as_deref().map(Sha256Digest::of);
    let mut names = candidate.names.iter();
    names.any(|name| name == wanted || index.is_some_and(|digest| name.at(digest) == *wanted))
}

/// Whether a name has the digest of the image's manifest or configuration.
fn is_named_by_digest(names: &[Reference], image: &CandidateImage, wanted: &Reference) -> bool {
    let documents = image.manifest.iter().chain([&image.config]);
    let mut digests = documents.map(|document| Sha256Digest::of(document));
    digests.any(|digest| names.iter().any(|name| name.at(digest) == *wanted))
}

/// The digits of an image's id.
fn id(config: &[u8]) -> String {
    ImageId(Sha256Digest::of(config)).0.hex()
}

/// What the images can be asked for by: a name, else 12 digits of the id, as Docker lists them.
fn names(found: &[Candidate]) -> String {
    let mut all: Vec<String> = Vec::new();
    for candidate in found {
        if candidate.names.is_empty() {
            let ids = candidate.images.iter().map(|image| id(&image.config));
            all.extend(ids.map(|id| id.get(..12).unwrap_or(&id).to_owned()));
        }
        for name in candidate.names.iter().map(ToString::to_string) {
            // An archive of two forms has each twice.
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    let more = all.len().saturating_sub(LISTED);
    all.truncate(LISTED);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}
