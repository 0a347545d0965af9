//! The JSON documents of OCI and Docker, parsed as leniently as real writers require: unused
//! fields are ignored, `null` and missing fields are empty. Documents are never re-encoded:
//! digests are of bytes as received, so the bytes are kept.
//!
//! Sources: OCI image-spec v1.1 config.md, manifest.md, image-index.md, descriptor.md; Docker
//! image-spec v1.2 (`manifest.json`).

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::ImageError;
use crate::digest::{DiffId, Sha256Digest};
use crate::store;

/// An image's configuration: process, layers and history.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ImageConfig {
    /// As Go names it: `amd64`, `arm64`, ...
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// `linux`.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// `v7`, `v8`, ...; mostly empty.
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
    /// RFC 3339.
    pub created: Option<String>,
    /// How to run it.
    pub config: Option<ProcessConfig>,
    /// Its layers.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// Its build steps, first step first.
    #[serde(default, deserialize_with = "or_default")]
    pub history: Vec<HistoryEntry>,
}

/// `config` of a configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessConfig {
    /// `USER[:GROUP]`, names or numbers; empty means root.
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=VALUE` each.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program when there is no entrypoint; replaced by the command line.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Empty: `/`.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    /// Paths that get an anonymous volume.
    #[serde(default, deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Names and values.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// `rootfs` of a configuration.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    /// Lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<DiffId>,
}

/// One build step of an image.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct HistoryEntry {
    /// RFC 3339.
    pub created: Option<String>,
    /// The command.
    #[serde(default, deserialize_with = "or_default")]
    pub created_by: String,
    /// A comment of the builder.
    #[serde(default, deserialize_with = "or_default")]
    pub comment: String,
    /// The step created no layer.
    #[serde(default, deserialize_with = "or_default")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a configuration.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// What the image is for.
    pub fn platform(&self) -> store::Platform {
        store::Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// A blob's descriptor in an index or a manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) artifact_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// The platform of an image in an index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
pub(super) struct Platform {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) variant: String,
}

impl Descriptor {
    pub(super) fn sha256(&self) -> Result<Sha256Digest, ImageError> {
        self.digest.parse().map_err(|source| ImageError::BadDigest {
            digest: self.digest.clone(),
            source,
        })
    }
}

/// A manifest: one image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) artifact_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) layers: Vec<Descriptor>,
}

/// An index: images by name or platform.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) manifests: Vec<Descriptor>,
}

/// The fields that tell a manifest from an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kinds {
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

/// A manifest or an index.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

impl Document {
    /// Reads a document that was announced as `media_type` (empty: not announced).
    ///
    /// The announced type, the document's `mediaType` and its fields must agree; otherwise two
    /// readers could see two images in one digest (CVE-2021-41190).
    pub(super) fn parse(name: &str, bytes: &[u8], media_type: &str) -> Result<Self, ImageError> {
        let kinds: Kinds = from_json(name, bytes)?;
        let has_manifest = kinds.config.is_some() || kinds.layers.is_some();
        let confused = |what: String| {
            Err(ImageError::Confused {
                name: name.to_owned(),
                what,
            })
        };
        let own = kinds.media_type.as_deref().unwrap_or_default();
        if !own.is_empty() && !media_type.is_empty() && own != media_type {
            return confused(format!(
                "it is announced as {media_type} and calls itself {own}"
            ));
        }
        if has_manifest && kinds.manifests.is_some() {
            return confused("it has the fields of a manifest and of an index".to_owned());
        }
        match if own.is_empty() { media_type } else { own } {
            OCI_MANIFEST | DOCKER_MANIFEST if kinds.manifests.is_some() => {
                confused("it is called a manifest and is an index".to_owned())
            }
            OCI_INDEX | DOCKER_LIST if has_manifest => {
                confused("it is called an index and is a manifest".to_owned())
            }
            OCI_MANIFEST | DOCKER_MANIFEST => Ok(Self::Manifest(from_json(name, bytes)?)),
            OCI_INDEX | DOCKER_LIST => Ok(Self::Index(from_json(name, bytes)?)),
            "" if has_manifest => Ok(Self::Manifest(from_json(name, bytes)?)),
            "" if kinds.manifests.is_some() => Ok(Self::Index(from_json(name, bytes)?)),
            other => Err(ImageError::Unsupported {
                name: name.to_owned(),
                what: format!("its media type {other:?} is no image"),
            }),
        }
    }
}

/// One image of a docker-archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) layers: Vec<String>,
}

/// `oci-layout`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OciLayout {
    pub(super) image_layout_version: String,
}

/// Reads a document of an archive.
pub(super) fn from_json<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Json {
        name: name.to_owned(),
        source,
    })
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A set as Go's encoder writes it: an object of empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde_json::Value>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_reads_null_as_empty() {
        let config = ImageConfig::from_slice(
            br#"{"architecture": "amd64", "os": "linux", "config": {"Env": null, "Cmd": ["sh"], "Volumes": {"/b": {}, "/a": {}},
                "Healthcheck": {"Test": []}}, "history": null, "rootfs": {"type": "layers", "diff_ids": null}}"#,
        )
        .unwrap();
        let process = config.config.unwrap();
        assert_eq!(
            (process.cmd, process.volumes),
            (
                vec!["sh".to_owned()],
                vec!["/a".to_owned(), "/b".to_owned()]
            )
        );
        assert!(
            process.env.is_empty()
                && config.history.is_empty()
                && config.rootfs.diff_ids.is_empty()
        );
        assert!(ImageConfig::from_slice(b"{}").unwrap().config.is_none());
    }

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn manifest(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion": 2, "config": {{"digest": "{DIGEST}", "size": 1}}, "layers": []{extra}}}"#
        )
    }

    #[test]
    fn parse_refuses_a_manifest_that_is_also_an_index() {
        let parse =
            |text: &str, media_type: &str| Document::parse("x", text.as_bytes(), media_type);
        let index = format!(
            r#"{{"manifests": [{{"mediaType": "{OCI_MANIFEST}", "digest": "{DIGEST}", "size": 1}}]}}"#
        );
        assert!(matches!(
            parse(&manifest(""), OCI_MANIFEST),
            Ok(Document::Manifest(_))
        ));
        assert!(matches!(
            parse(&manifest(""), ""),
            Ok(Document::Manifest(_))
        ));
        assert!(matches!(parse(&index, OCI_INDEX), Ok(Document::Index(_))));
        assert!(matches!(parse(&index, ""), Ok(Document::Index(_))));
        let own = |media_type: &str| manifest(&format!(r#", "mediaType": "{media_type}""#));
        for (text, media_type) in [
            (manifest(r#", "manifests": []"#), OCI_MANIFEST),
            (manifest(r#", "manifests": []"#), ""),
            (manifest(""), OCI_INDEX),
            (index, OCI_MANIFEST),
            (own(OCI_INDEX), OCI_MANIFEST),
            (own(DOCKER_MANIFEST), OCI_MANIFEST),
            (own(OCI_INDEX), ""),
        ] {
            assert!(
                matches!(parse(&text, media_type), Err(ImageError::Confused { .. })),
                "{text} as {media_type}"
            );
        }
        assert!(matches!(
            parse(&own("application/x"), ""),
            Err(ImageError::Unsupported { .. })
        ));
        assert!(matches!(parse("{", ""), Err(ImageError::Json { .. })));
    }
}
