//! Names of images as Docker reads and prints them: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.
//!
//! Grammar and normalisation are those of the reference package of `distribution`: a first
//! component with a dot, a colon or a capital, or `localhost`, is a host; without one it is
//! `docker.io`, where a path of one component gets `library/`; with neither tag nor digest the tag
//! is `latest`. Shown short: without `docker.io/` and `library/`.
//!
//! Here rather than in `image`, which re-exports it, since tags are files of the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::Sha256Digest;

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const OFFICIAL: &str = "library/";
/// Maximum length of host and path together, as in `distribution`.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// An invalid image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not an image name: {reason}", .text.escape_debug())]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

/// A full name: host, path, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Sha256Digest>,
}

impl Reference {
    /// The registry's host, with its port if it has one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository on that host.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if the name has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest's digest, if the name has one.
    pub fn digest(&self) -> Option<Sha256Digest> {
        self.digest
    }

    /// Host and path as Docker shows them: `debian`, `user/app`, `registry.example/app`.
    pub fn repository(&self) -> String {
        if self.host != DEFAULT_HOST {
            return format!("{}/{}", self.host, self.path);
        }
        let short = self
            .path
            .strip_prefix(OFFICIAL)
            .filter(|rest| !rest.contains('/'));
        short.unwrap_or(&self.path).to_owned()
    }

    /// The image with this digest in the same repository: `app@sha256:...`.
    #[must_use]
    pub fn at(&self, digest: Sha256Digest) -> Self {
        Self {
            host: self.host.clone(),
            path: self.path.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// What is looked up for this name: beside a digest a tag says nothing, as in Docker.
    #[must_use]
    pub fn looked_up(self) -> Self {
        match self.digest {
            Some(_) => Self { tag: None, ..self },
            None => self,
        }
    }

    /// The full form, as used in files and by registries.
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.host, self.path, Suffix(self))
    }
}

/// `:TAG` and `@DIGEST`.
struct Suffix<'r>(&'r Reference);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.0.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.0.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Short, as Docker prints it: `app:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.repository(), Suffix(self))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |reason| ReferenceError {
            text: text.chars().take(2 * MAX_NAME).collect(),
            reason,
        };
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse()
                        .map_err(|_error| refuse("behind the @ stands no sha256 digest"))?,
                ),
            ),
            None => (text, None),
        };
        // A colon behind the last slash is the tag's, one before it the port's.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(reason) = tag.and_then(bad_tag) {
            return Err(refuse(reason));
        }
        if is_hex_id(name) {
            return Err(refuse("64 hex digits are an id, not a name"));
        }
        let (host, path) = split_host(name);
        if let Some(reason) = bad_host(&host).or_else(|| bad_path(&path)) {
            return Err(refuse(reason));
        }
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(refuse("it is longer than 255 characters"));
        }
        let tag = tag
            .or((digest.is_none()).then_some(DEFAULT_TAG))
            .map(str::to_owned);
        Ok(Self {
            host,
            path,
            tag,
            digest,
        })
    }
}

fn split_host(name: &str) -> (String, String) {
    let is_host = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.chars().any(|c| c.is_ascii_uppercase())
    };
    let (host, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" {
        DEFAULT_HOST
    } else {
        host
    };
    if host == DEFAULT_HOST && !path.contains('/') {
        return (host.to_owned(), format!("{OFFICIAL}{path}"));
    }
    (host.to_owned(), path.to_owned())
}

fn bad_host(host: &str) -> Option<&'static str> {
    let (name, port) = host
        .split_once(':')
        .map_or((host, None), |(name, port)| (name, Some(port)));
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Some("the host's port is not a number");
    }
    let good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (!name.split('.').all(good)).then_some("its host is not a host name")
}

fn bad_path(path: &str) -> Option<&'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some("capitals are allowed in tags only");
    }
    (!path.split('/').all(good_component)).then_some(
        "use lower-case letters, digits and single . _ - between them, parts divided by /",
    )
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn good_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let runs = component
        .as_bytes()
        .chunk_by(|a, b| is_word(*a) == is_word(*b))
        .collect::<Vec<_>>();
    let good_run = |run: &&[u8]| match run {
        [b'.' | b'_'] | [b'_', b'_'] => true,
        run => run.iter().all(|b| is_word(*b)) || run.iter().all(|b| *b == b'-'),
    };
    let at_edge =
        |run: Option<&&[u8]>| run.and_then(|run| run.first()).is_some_and(|b| is_word(*b));
    runs.iter().all(good_run) && at_edge(runs.first()) && at_edge(runs.last())
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn bad_tag(tag: &str) -> Option<&'static str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if tag.is_empty() || tag.starts_with(['.', '-']) || !tag.bytes().all(good) {
        return Some("a tag is letters, digits, _ . - and does not begin with . or -");
    }
    (tag.len() > MAX_TAG).then_some("its tag is longer than 128 characters")
}

fn is_hex_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The canonical text.
impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.canonical())
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, short form, canonical form; from the tables of `distribution`'s own tests and the
    /// docker CLI's.
    const GOOD: &[(&str, &str, &str)] = &[
        ("app", "app:latest", "docker.io/library/app:latest"),
        ("debian:12", "debian:12", "docker.io/library/debian:12"),
        ("user/app", "user/app:latest", "docker.io/user/app:latest"),
        (
            "docker.io/library/app:1",
            "app:1",
            "docker.io/library/app:1",
        ),
        (
            "docker.io/app",
            "app:latest",
            "docker.io/library/app:latest",
        ),
        (
            "index.docker.io/app",
            "app:latest",
            "docker.io/library/app:latest",
        ),
        (
            "library/foo/bar",
            "library/foo/bar:latest",
            "docker.io/library/foo/bar:latest",
        ),
        (
            "localhost/app",
            "localhost/app:latest",
            "localhost/app:latest",
        ),
        (
            "localhost:5000/a/b:v1.2-x_y",
            "localhost:5000/a/b:v1.2-x_y",
            "localhost:5000/a/b:v1.2-x_y",
        ),
        ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
        (
            "a.b_c__d---e",
            "a.b_c__d---e:latest",
            "docker.io/library/a.b_c__d---e:latest",
        ),
        ("app:5000", "app:5000", "docker.io/library/app:5000"),
    ];

    #[test]
    fn parse_reads_docker_names() {
        for (text, short, canonical) in GOOD {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.to_string(), reference.canonical()),
                ((*short).to_owned(), (*canonical).to_owned()),
                "{text}"
            );
            assert_eq!(canonical.parse::<Reference>().unwrap(), reference);
            assert_eq!(short.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn parse_takes_a_digest_with_or_without_a_tag() {
        let digest = Sha256Digest::of(b"m");
        let both: Reference = format!("app:1@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("1"), Some(digest)));
        let alone: Reference = format!("app@{digest}").parse().unwrap();
        assert_eq!(
            (alone.tag(), alone.to_string()),
            (None, format!("app@{digest}"))
        );
        assert_eq!(both.looked_up(), alone);
        let tagged: Reference = "app:1".parse().unwrap();
        assert_eq!(
            (tagged.at(digest), tagged.clone().looked_up()),
            (alone, tagged)
        );
    }

    #[test]
    fn refused() {
        let id = "a".repeat(64);
        let long = "a".repeat(256);
        let tag = format!("app:{}", "t".repeat(129));
        let texts = [
            "",
            ":tag",
            "app:",
            "App",
            "user/App",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a:b:c",
            "app:.x",
            "app:-x",
            "app: ",
            "a b",
            "../../etc",
            "host:port/app",
            "-host.x/app",
            "app@sha256:12",
            "app@md5:x",
            "é",
            &id,
            &long,
            &tag,
        ];
        for text in texts {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
