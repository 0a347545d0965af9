//! Docker's options of a tmpfs.

use crate::engine::docker::MountRequest;
use crate::engine::error::{Error, Result};
use cowl_launch::sandbox::{self, Attributes, Filesystem};

/// Parameters of the file system (tmpfs(5)).
const PARAMETERS: [&str; 7] = [
    "size",
    "mode",
    "uid",
    "gid",
    "nr_inodes",
    "nr_blocks",
    "mpol",
];
/// Attributes of the mount; the prefix `no` unsets one.
const ATTRIBUTES: [&str; 8] = [
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec",
];

/// The options of `--tmpfs`, comma separated.
pub(super) fn parse(text: &str) -> Result<Vec<String>> {
    let options = text.split(',').filter(|option| !option.is_empty());
    options
        .map(|option| {
            let known = match option.split_once('=') {
                Some((key, value)) => {
                    PARAMETERS.contains(&key) && !value.is_empty() && !value.contains('\0')
                }
                None => ATTRIBUTES.contains(&option),
            };
            if known {
                Ok(option.to_owned())
            } else {
                Err(Error::invalid(format!("invalid tmpfs option \"{option}\"")))
            }
        })
        .collect()
}

/// The options of `--mount type=tmpfs`.
pub(super) fn of_request(asked: &MountRequest) -> Result<Vec<String>, String> {
    let Some(options) = &asked.tmpfs_options else {
        return Ok(Vec::new());
    };
    let mut list = Vec::new();
    match options.size_bytes {
        0 => {}
        size if size > 0 => list.push(format!("size={size}")),
        size => return Err(format!("invalid tmpfs size: {size}")),
    }
    // The permission bits, and the set-id and sticky bits.
    match options.mode {
        0 => {}
        mode if mode <= 0o7777 => list.push(format!("mode={mode:o}")),
        mode => return Err(format!("invalid tmpfs mode: {mode:o}")),
    }
    for option in &options.options {
        list.extend(parse(&option.join("=")).map_err(|error| error.to_string())?);
    }
    Ok(list)
}

/// The mount; by default nosuid, nodev and noexec, as in Docker.
pub(super) fn mount(destination: &str, options: &[String], read_only: bool) -> sandbox::Mount {
    let mut attributes = Attributes {
        read_only,
        no_suid: true,
        no_devices: true,
        no_exec: true,
        strict_atime: false,
    };
    let mut parameters = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => attributes.read_only = true,
            "rw" => attributes.read_only = read_only,
            "suid" => attributes.no_suid = false,
            "nosuid" => attributes.no_suid = true,
            "dev" => attributes.no_devices = false,
            "nodev" => attributes.no_devices = true,
            "exec" => attributes.no_exec = false,
            "noexec" => attributes.no_exec = true,
            parameter => parameters.push(parameter),
        }
    }
    sandbox::Mount::filesystem(destination, Filesystem::Tmpfs, &parameters, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parameters_and_attributes() {
        let options = parse("rw,size=64k,mode=1770,exec").unwrap();
        let mount = mount("/run", &options, false);
        assert!(mount.attributes.no_suid && !mount.attributes.no_exec);
        let refused = parse("size=64k,fly").unwrap_err().to_string();
        assert_eq!(refused, "invalid tmpfs option \"fly\"");
        for wrong in ["size", "size=", "fly=1"] {
            parse(wrong).unwrap_err();
        }
    }
}
