//! The syntax of `-v`.
//!
//! Used by `cli` for each `-v` and by the engine for an image's `Volumes`. As in Docker:
//!
//! ```text
//! /dir              an anonymous volume at /dir
//! NAME:/dir[:mode]  a named volume, created on first use
//! /host:/dir[:mode] a host path (also ./rel and ../rel, relative to the current directory)
//! mode              ro | rw | nocopy | z | Z, comma separated; z and Z relabel under SELinux, which cowl doesn't use
//! ```

use std::path::{Component, Path, PathBuf};

/// The source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A volume of one container.
    Anonymous,
    /// A volume by name.
    Named(VolumeName),
    /// A path of the host.
    Host(PathBuf),
}

/// One `-v` option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Source of the mount.
    pub source: Source,
    /// Absolute path in the container without `.`, `..` and doubled slashes; never `/`.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// Do not fill a new volume with the image's content.
    pub no_copy: bool,
    /// Mount propagation of a host path: `rprivate`, `rslave`, `rshared`, or without the `r`; empty
    /// if not given.
    pub propagation: String,
    /// The mode as given.
    pub mode: String,
}

/// A name that is safe as one component of a path: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, at most 255
/// bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks a name; errors are worded as Docker's.
    pub fn parse(name: &str) -> Result<Self, String> {
        if name.chars().count() == 1 {
            return Err(format!(
                "create {name}: volume name is too short, names should be at least two alphanumeric characters"
            ));
        }
        if name.len() > 255 {
            return Err(format!(
                "create {name}: volume name is longer than 255 bytes"
            ));
        }
        if is_name(name) {
            return Ok(Self(name.to_owned()));
        }
        Err(format!(
            "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
             If you intended to pass a host directory, use absolute path"
        ))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VolumeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a name is valid for a container or volume, as in Docker: two characters or more, the
/// first a letter or digit.
pub fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = chars.as_str();
    first
        && !rest.is_empty()
        && rest
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

impl VolumeSpec {
    /// Parses a `-v` option; host paths are relative to `cwd`.
    pub fn parse(text: &str, cwd: &Path) -> Result<Self, String> {
        let invalid = |why: &str| format!("invalid volume specification: '{text}': {why}");
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, modes) = match parts.as_slice() {
            [destination] => (None, *destination, ""),
            // Two paths, or an anonymous volume with a mode ("/dir:ro").
            [destination, modes]
                if !modes.starts_with('/') && destination.starts_with('/') && is_modes(modes) =>
            {
                (None, *destination, *modes)
            }
            [source, destination] => (Some(*source), *destination, ""),
            [source, destination, modes] if !modes.is_empty() => {
                (Some(*source), *destination, *modes)
            }
            _ => return Err(invalid("expected SOURCE:DESTINATION[:ro]")),
        };
        let destination = clean_destination(destination).map_err(|why| invalid(&why))?;
        let source = match source {
            None => Source::Anonymous,
            Some("") => return Err(invalid("the source is empty")),
            Some(path) if path.starts_with('/') => Source::Host(PathBuf::from(path)),
            Some(path) if is_relative(path) => Source::Host(cwd.join(path)),
            Some(name) => Source::Named(VolumeName::parse(name)?),
        };
        let mut spec = Self {
            source,
            destination,
            read_only: false,
            no_copy: false,
            propagation: String::new(),
            mode: modes.to_owned(),
        };
        spec.modes(modes).map_err(|why| invalid(&why))?;
        Ok(spec)
    }

    /// An anonymous volume declared by an image.
    pub fn of_image(destination: &str) -> Result<Self, String> {
        let destination = clean_destination(destination)
            .map_err(|why| format!("volume '{destination}' of the image: {why}"))?;
        Ok(Self {
            source: Source::Anonymous,
            destination,
            read_only: false,
            no_copy: false,
            propagation: String::new(),
            mode: String::new(),
        })
    }

    fn modes(&mut self, modes: &str) -> Result<(), String> {
        let (mut ro, mut rw) = (false, false);
        let (mut shared, mut private) = (false, false);
        for mode in modes.split(',').filter(|m| !m.is_empty()) {
            match mode {
                "ro" => ro = true,
                "rw" => rw = true,
                "nocopy" if matches!(self.source, Source::Host(_)) => {
                    return Err("nocopy is for volumes, not for host paths".to_owned());
                }
                "nocopy" => self.no_copy = true,
                // No label is set, as in Docker on a host without SELinux.
                "z" => shared = true,
                "Z" => private = true,
                passed_on if PROPAGATIONS.contains(&passed_on) => {
                    if !matches!(self.source, Source::Host(_)) || !self.propagation.is_empty() {
                        return Err(format!("invalid mode: {passed_on}"));
                    }
                    passed_on.clone_into(&mut self.propagation);
                }
                other => {
                    return Err(format!(
                        "invalid mode: {other} (known: ro, rw, nocopy, z, Z, [r]private, [r]slave, [r]shared)"
                    ));
                }
            }
        }
        if ro && rw {
            return Err("invalid mode: ro and rw exclude each other".to_owned());
        }
        if shared && private {
            return Err("invalid mode: z and Z exclude each other".to_owned());
        }
        self.read_only = ro;
        Ok(())
    }
}

/// Docker's names of mount propagations.
pub const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "slave", "rslave", "shared", "rshared",
];

fn is_modes(text: &str) -> bool {
    text.split(',')
        .all(|mode| matches!(mode, "ro" | "rw" | "nocopy" | "z" | "Z"))
}

fn is_relative(path: &str) -> bool {
    matches!(path, "." | "..") || path.starts_with("./") || path.starts_with("../")
}

/// An absolute path without `.`, `..` and empty components; `..` at the root stays at the root.
pub fn clean_destination(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!(
            "invalid mount path: '{path}' mount path must be absolute"
        ));
    }
    if path.contains('\0') {
        return Err("a path can't hold a zero byte".to_owned());
    }
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => {
                parts.push(name.to_str().ok_or_else(|| "not UTF-8".to_owned())?);
            }
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if parts.is_empty() {
        return Err("invalid specification: destination can't be '/'".to_owned());
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VolumeSpec, String> {
        VolumeSpec::parse(text, Path::new("/here"))
    }

    fn spec(source: Source, destination: &str, read_only: bool, no_copy: bool) -> VolumeSpec {
        VolumeSpec {
            source,
            destination: destination.to_owned(),
            read_only,
            no_copy,
            propagation: String::new(),
            mode: String::new(),
        }
    }

    #[test]
    fn parse_accepts_what_docker_accepts() {
        let named = || Source::Named(VolumeName("vol1".to_owned()));
        let host = |path: &str| Source::Host(PathBuf::from(path));
        let table = [
            ("/data", spec(Source::Anonymous, "/data", false, false)),
            ("/data:ro", spec(Source::Anonymous, "/data", true, false)),
            ("vol1:/data", spec(named(), "/data", false, false)),
            ("vol1:/data:ro", spec(named(), "/data", true, false)),
            ("vol1:/data:rw,nocopy", spec(named(), "/data", false, true)),
            ("vol1://a/./b/../c/", spec(named(), "/a/c", false, false)),
            ("/host:/data", spec(host("/host"), "/data", false, false)),
            ("/host:/ro", spec(host("/host"), "/ro", false, false)),
            ("/host:/data:ro", spec(host("/host"), "/data", true, false)),
            ("/host:/data:z", spec(host("/host"), "/data", false, false)),
            (
                "/host:/data:ro,Z",
                spec(host("/host"), "/data", true, false),
            ),
            (
                "/host:/data:rslave,ro",
                VolumeSpec {
                    propagation: "rslave".to_owned(),
                    ..spec(host("/host"), "/data", true, false)
                },
            ),
            ("vol1:/data:Z,ro", spec(named(), "/data", true, false)),
            ("/data:z", spec(Source::Anonymous, "/data", false, false)),
            (
                "./sub:/data",
                spec(host("/here/./sub"), "/data", false, false),
            ),
            (".:/data", spec(host("/here/."), "/data", false, false)),
        ];
        for (text, expected) in table {
            let parsed = parse(text).unwrap();
            let mode = parsed.mode.clone();
            let written = text.rsplit_once(':').map_or("", |(_, last)| last);
            assert!(mode.is_empty() || mode == written, "{text}");
            assert_eq!(parsed, VolumeSpec { mode, ..expected }, "{text}");
        }
    }

    #[test]
    fn parse_refuses_what_docker_refuses() {
        let table = [
            ("", "mount path must be absolute"),
            ("data", "mount path must be absolute"),
            ("vol1:data", "mount path must be absolute"),
            ("vol1:/", "invalid specification: destination can't be '/'"),
            (
                "vol1:/a/..",
                "invalid specification: destination can't be '/'",
            ),
            (":/data", "empty"),
            ("vol1:/data:", "SOURCE:DESTINATION"),
            ("vol1:/data:ro:x", "SOURCE:DESTINATION"),
            ("vol1:/data:rx", "invalid mode: rx"),
            ("vol1:/data:ro,rw", "exclude each other"),
            ("vol1:/data:z,Z", "exclude each other"),
            ("/h:/data:nocopy", "not for host paths"),
            ("vol1:/data:rshared", "invalid mode: rshared"),
            ("/h:/data:shared,slave", "invalid mode: slave"),
            (
                "a/b:/data",
                "includes invalid characters for a local volume name",
            ),
            ("v:/data", "volume name is too short"),
            (&format!("{}:/data", "v".repeat(256)), "longer than 255"),
            (
                "-v1:/data",
                "includes invalid characters for a local volume name",
            ),
            ("vol1:/a\0b", "zero byte"),
        ];
        for (text, why) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
