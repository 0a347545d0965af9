//! A new volume's labels, and the options of Docker's driver `local`.
//!
//! With options, a volume is a directory of the host (`o=bind`) or a file system that is mounted
//! while containers use it: `type`, `device` and `o` are those of mount(8).

use crate::engine::error::{Error, Result};
use cowl_launch::sandbox::Attributes;
use rustix::mount::MountAttrFlags;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The parameters of a new volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Created for one container, with a generated name.
    pub anonymous: bool,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Docker's `type`, `o` and `device`; may be empty.
    pub options: BTreeMap<String, String>,
}

const TYPE: &str = "type";
const FLAGS: &str = "o";
const DEVICE: &str = "device";

impl NewVolume {
    /// Checks the options.
    ///
    /// # Errors
    /// dockerd's texts (moby, `volume/local/local_unix.go`, `validateOpts`), and one for each of
    /// Docker's options that is not supported.
    pub(super) fn check(&self) -> Result<()> {
        let options = &self.options;
        let known = |name: &str| matches!(name, TYPE | FLAGS | DEVICE | "size");
        if let Some(unknown) = options.keys().find(|name| !known(name)) {
            return Err(Error::invalid(format!("invalid option: \"{unknown}\"")));
        }
        let required: [(&str, &[&str]); 3] = [
            (DEVICE, &[TYPE]),
            (TYPE, &[DEVICE]),
            (FLAGS, &[DEVICE, TYPE]),
        ];
        for (name, others) in required {
            let missing = others.iter().find(|other| !options.contains_key(**other));
            if let (true, Some(missing)) = (options.contains_key(name), missing) {
                return Err(Error::invalid(format!(
                    "missing required option: \"{missing}\""
                )));
            }
        }
        if options.contains_key("size") {
            return Err(Error::invalid("quota size requested but no quota support"));
        }
        Driven::of(options).map(drop)
    }
}

/// The backing of a volume with options, and its mount attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driven {
    /// What is mounted.
    pub source: Backing,
    /// How it is mounted.
    pub attributes: Attributes,
}

/// See [`Driven::source`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A directory of the host.
    Directory {
        /// Absolute.
        path: PathBuf,
        /// Includes the mounts below it.
        recursive: bool,
    },
    /// A file system.
    Filesystem(FilesystemMount),
}

/// A file system to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemMount {
    /// Its type: `tmpfs`, `nfs`.
    pub kind: String,
    /// Its source.
    pub device: String,
    /// Parameters with their values; None for flags.
    pub parameters: Vec<(String, Option<String>)>,
    /// Access time flags of the mount.
    pub times: MountAttrFlags,
}

impl Driven {
    /// Parses a volume's options; None if there are none.
    pub(super) fn of(options: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let Some(device) = options.get(DEVICE) else {
            return Ok(None);
        };
        let option = |name| options.get(name).map_or("", String::as_str);
        let words = Words::parse(option(FLAGS))?;
        let source = match (words.bind, option(TYPE)) {
            (Some(recursive), _) => directory(device, recursive, &words.parameters)?,
            (None, kind @ ("none" | "bind")) => {
                return Err(Error::invalid(format!(
                    "option type={kind} is not supported without o=bind"
                )));
            }
            (None, kind) => {
                let mut parameters = words.parameters;
                if words.attributes.read_only {
                    // As with mount(2), the file system becomes read-only too.
                    parameters.push(("ro".to_owned(), None));
                }
                Backing::Filesystem(FilesystemMount {
                    kind: kind.to_owned(),
                    device: device.clone(),
                    parameters,
                    times: words.times,
                })
            }
        };
        Ok(Some(Self {
            source,
            attributes: words.attributes,
        }))
    }
}

fn directory(
    device: &str,
    recursive: bool,
    parameters: &[(String, Option<String>)],
) -> Result<Backing> {
    if let Some((other, _)) = parameters.first() {
        return Err(Error::invalid(format!(
            "option o={other} is not supported beside o=bind"
        )));
    }
    let path = PathBuf::from(device);
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "option device={device}: it must be an absolute path"
        )));
    }
    Ok(Backing::Directory { path, recursive })
}

/// The option `o`, parsed as by moby (moby/sys, `mount/flags_linux.go`): generic mount attributes
/// of mount(8), and parameters of the file system.
#[derive(Debug)]
struct Words {
    /// A bind mount, recursive or not.
    bind: Option<bool>,
    attributes: Attributes,
    times: MountAttrFlags,
    parameters: Vec<(String, Option<String>)>,
}

impl Words {
    fn parse(text: &str) -> Result<Self> {
        let mut words = Self {
            bind: None,
            attributes: Attributes::default(),
            times: MountAttrFlags::empty(),
            parameters: Vec::new(),
        };
        for word in text.split(',').filter(|word| !word.is_empty()) {
            words.add(word)?;
        }
        Ok(words)
    }

    fn add(&mut self, word: &str) -> Result<()> {
        let Self {
            attributes, times, ..
        } = self;
        match word {
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "ro" => attributes.read_only = true,
            "rw" => attributes.read_only = false,
            "nosuid" => attributes.no_suid = true,
            "suid" => attributes.no_suid = false,
            "nodev" => attributes.no_devices = true,
            "dev" => attributes.no_devices = false,
            "noexec" => attributes.no_exec = true,
            "exec" => attributes.no_exec = false,
            "noatime" => times.insert(MountAttrFlags::MOUNT_ATTR_NOATIME),
            "nodiratime" => times.insert(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
            "strictatime" => times.insert(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
            // Defaults.
            "defaults" | "async" | "nomand" | "atime" | "diratime" | "relatime" | "norelatime"
            | "nostrictatime" => {}
            "remount" | "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
            | "unbindable" | "runbindable" => {
                return Err(Error::invalid(format!("option o={word} is not supported")));
            }
            parameter => self.parameters.push(match parameter.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (parameter.to_owned(), None),
            }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(options: &[(&str, &str)]) -> Result<(), String> {
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let new = NewVolume {
            options,
            ..NewVolume::default()
        };
        new.check().map_err(|error| error.to_string())
    }

    #[test]
    fn options_of_the_local_driver_are_honoured_or_refused_by_name() {
        let bind = [("type", "none"), ("o", "bind"), ("device", "/srv")];
        checked(&[]).unwrap();
        checked(&bind).unwrap();
        checked(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")]).unwrap();
        checked(&[
            ("type", "nfs"),
            ("device", ":/srv"),
            ("o", "addr=10.0.0.1,ro"),
        ])
        .unwrap();
        let table: [(&[(&str, &str)], &str); 9] = [
            (&[("colour", "red")], "invalid option: \"colour\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
            (&[("device", "/srv")], "missing required option: \"type\""),
            (&[("o", "bind")], "missing required option: \"device\""),
            (
                &[("size", "1g")],
                "quota size requested but no quota support",
            ),
            (
                &[("type", "none"), ("o", "bind,size=1m"), ("device", "/srv")],
                "option o=size is not supported beside o=bind",
            ),
            (
                &[("type", "none"), ("device", "/srv")],
                "option type=none is not supported without o=bind",
            ),
            (
                &[("type", "tmpfs"), ("o", "rshared"), ("device", "tmpfs")],
                "option o=rshared is not supported",
            ),
            (
                &[("type", "none"), ("o", "bind"), ("device", "srv")],
                "option device=srv: it must be an absolute path",
            ),
        ];
        for (options, text) in table {
            assert_eq!(checked(options), Err(text.to_owned()), "{options:?}");
        }
    }

    #[test]
    fn parse_splits_mount_attributes_from_parameters() {
        let of = |words: &str| {
            let options = [("type", "tmpfs"), ("device", "none"), ("o", words)];
            let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Driven::of(&options.into()).unwrap().unwrap()
        };
        let driven = of("ro,size=1m,nosuid,noatime,huge");
        assert!(driven.attributes.read_only && driven.attributes.no_suid);
        assert!(!driven.attributes.no_devices && !driven.attributes.no_exec);
        let Backing::Filesystem(mount) = driven.source else {
            panic!("{driven:?}");
        };
        assert_eq!(
            mount.parameters,
            [
                ("size".to_owned(), Some("1m".to_owned())),
                ("huge".to_owned(), None),
                ("ro".to_owned(), None)
            ]
        );
        assert_eq!(mount.times, MountAttrFlags::MOUNT_ATTR_NOATIME);
        // The last of two wins, and a bind ignores the type.
        assert!(!of("ro,rw").attributes.read_only);
        let options = [("type", "tmpfs"), ("device", "/srv"), ("o", "rbind,ro")];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let driven = Driven::of(&options.into()).unwrap().unwrap();
        assert!(driven.attributes.read_only);
        assert_eq!(
            driven.source,
            Backing::Directory {
                path: PathBuf::from("/srv"),
                recursive: true
            }
        );
    }
}
