//! docker-archives, as written by old and new `docker save` and by `docker-archive:` of skopeo and
//! buildah.

use std::collections::BTreeSet;

use super::absent::{Absent, AbsentImage, Found};
use super::archive::Archive;
use super::documents::{DockerImage, from_json};
use super::{
    CONFIG_LIMIT, Candidate, CandidateImage, DOCUMENT_LIMIT, ImageError, LayerPart, MAX_IMAGES,
    check_digest,
};
use crate::digest::Sha256Digest;

pub(super) const MANIFEST: &str = "manifest.json";

/// The images of an archive, and those whose configurations are missing. A name given to several
/// is the last one's, as if they were tagged one after the other.
pub(super) fn candidates(archive: &Archive) -> Result<Found, ImageError> {
    let bytes = archive.read_required(MANIFEST, DOCUMENT_LIMIT, "the format")?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        return Err(ImageError::NotAnArchive {
            name: archive.name.clone(),
            what: "it is what skopeo writes as dir:, which holds one manifest and no layout"
                .to_owned(),
        });
    }
    let images: Vec<DockerImage> = from_json(MANIFEST, &bytes)?;
    if images.len() > MAX_IMAGES {
        return Err(ImageError::Unsupported {
            name: MANIFEST.to_owned(),
            what: format!("it lists more than {MAX_IMAGES} images"),
        });
    }
    let mut found = Found::default();
    for image in images {
        match candidate(archive, image)? {
            Ok(candidate) => found.images.push(candidate),
            Err(absent) => found.absent.push(absent),
        }
    }
    let mut taken = BTreeSet::new();
    for candidate in found.images.iter_mut().rev() {
        candidate.names.retain(|name| taken.insert(name.clone()));
    }
    Ok(found)
}

fn candidate(
    archive: &Archive,
    image: DockerImage,
) -> Result<Result<Candidate, Absent>, ImageError> {
    let names = image
        .repo_tags
        .iter()
        .map(|tag| tag.parse())
        .collect::<Result<_, _>>()?;
    let Some(config) = archive.read(&image.config, CONFIG_LIMIT)? else {
        let missing = AbsentImage {
            platform: None,
            missing: image.config,
        };
        return Ok(Err(Absent {
            names,
            images: vec![missing],
        }));
    };
    if let Some(digest) = expected_digest(&image.config) {
        check_digest(&image.config, &config, digest)?;
    }
    let layers = image
        .layers
        .into_iter()
        .map(|name| LayerPart {
            digest: blob_digest(&name),
            name,
            size: None,
        })
        .collect();
    Ok(Ok(Candidate {
        names,
        index: None,
        images: vec![CandidateImage {
            platform: None,
            config,
            manifest: None,
            layers,
        }],
        absent: Vec::new(),
    }))
}

/// The digest in a configuration's name: `<hex>.json`, `blobs/sha256/<hex>`, or `sha256:<hex>`
/// (go-containerregistry: crane, ko, kaniko). Other names have none.
fn expected_digest(name: &str) -> Option<Sha256Digest> {
    let plain = || name.strip_suffix(".json").and_then(Sha256Digest::from_hex);
    blob_digest(name)
        .or_else(plain)
        .or_else(|| name.parse().ok())
}

/// The digest in a layer's name. Only names under `blobs/sha256/` have one: in `<hex>.tar` it need
/// not be that of the file.
fn blob_digest(name: &str) -> Option<Sha256Digest> {
    let plain = name.trim_start_matches("./");
    Sha256Digest::from_hex(plain.strip_prefix("blobs/sha256/")?)
}
