//! The syntax of `--mount`: comma-separated `key=value` fields, as Docker's (docker/cli,
//! `opts/mount.go`); a field in double quotes may contain commas.

use crate::cli::units::parse_memory;
use crate::engine::docker::{BindOptions, DriverConfig, MountRequest, TmpfsOptions, VolumeOptions};
use crate::engine::error::{Error, Result};
use std::path::Path;

/// Reads one option; a relative source of a bind is below `cwd`.
pub(super) fn parse(text: &str, cwd: &Path) -> Result<MountRequest> {
    let invalid = |why: String| {
        Error::invalid(format!(
            "invalid argument \"{text}\" for \"--mount\" flag: {why}"
        ))
    };
    let mut mount = MountRequest {
        kind: "volume".to_owned(),
        ..MountRequest::default()
    };
    for field in fields(text).map_err(invalid)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let key = key.to_ascii_lowercase();
        set(&mut mount, &key, value, &field).map_err(invalid)?;
    }
    if mount.source.starts_with('.') {
        mount.source = cwd.join(&mount.source).display().to_string();
    }
    if mount.target.is_empty() {
        return Err(invalid("target is required".to_owned()));
    }
    Ok(mount)
}

/// The fields of a line as Go's encoding/csv reads them, with its texts.
fn fields(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("EOF".to_owned());
    }
    let refused = |why: &str, rest: &str| {
        let column = text.len() - rest.len() + 1;
        format!("parse error on line 1, column {column}: {why}")
    };
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = if let Some(quoted) = rest.strip_prefix('"') {
            unquoted(quoted).map_err(|(why, rest)| refused(why, rest))?
        } else {
            let end = rest.find([',', '"']).unwrap_or(rest.len());
            let (field, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
            if after.starts_with('"') {
                return Err(refused("bare \" in non-quoted-field", after));
            }
            (field.to_owned(), after)
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// The text up to the closing quote, and the rest; or why it is malformed, and from where on.
fn unquoted(text: &str) -> Result<(String, &str), (&'static str, &str)> {
    let mut field = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('"') {
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None if after.is_empty() || after.starts_with(',') => return Ok((field, after)),
            None => {
                let quote = rest.get(before.len()..).unwrap_or_default();
                return Err(("extraneous or missing \" in quoted-field", quote));
            }
        }
    }
    Err(("extraneous or missing \" in quoted-field", ""))
}

fn set(
    mount: &mut MountRequest,
    key: &str,
    value: Option<&str>,
    field: &str,
) -> Result<(), String> {
    match key {
        "readonly" | "ro" => {
            mount.read_only = parse_bool(key, value)?;
            return Ok(());
        }
        "volume-nocopy" => {
            let options = mount
                .volume_options
                .get_or_insert_with(VolumeOptions::default);
            options.no_copy = parse_bool(key, value)?;
            return Ok(());
        }
        "bind-nonrecursive" => {
            bind(mount).non_recursive = parse_bool(key, value)?;
            return Ok(());
        }
        _ => {}
    }
    let value = value
        .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?
        .to_owned();
    match key {
        "type" => mount.kind = value.to_ascii_lowercase(),
        "source" | "src" => mount.source = value,
        "target" | "dst" | "destination" => mount.target = value,
        "consistency" => drop(mount.other.insert("Consistency".to_owned(), value.into())),
        "bind-propagation" => bind(mount).propagation = value.to_ascii_lowercase(),
        "bind-recursive" => recursive(bind(mount), &value)?,
        "tmpfs-size" => {
            let size =
                parse_memory(&value).map_err(|_why| format!("invalid value for {key}: {value}"))?;
            tmpfs(mount).size_bytes = i64::try_from(size)
                .map_err(|_range| format!("invalid value for {key}: {value}"))?;
        }
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(&value, 8);
            tmpfs(mount).mode =
                mode.map_err(|_syntax| format!("invalid value for {key}: {value}"))?;
        }
        "volume-subpath" => {
            let options = mount
                .volume_options
                .get_or_insert_with(VolumeOptions::default);
            options.subpath = value;
        }
        "volume-driver" => driver(mount).name = value,
        "volume-opt" => {
            let (name, value) = value.split_once('=').unwrap_or((&value, ""));
            let options = &mut driver(mount).options;
            if !name.is_empty() {
                options.insert(name.to_owned(), value.to_owned());
            }
        }
        "volume-label" => {
            let (name, value) = value.split_once('=').unwrap_or((&value, ""));
            let options = mount
                .volume_options
                .get_or_insert_with(VolumeOptions::default);
            if !name.is_empty() {
                options.labels.insert(name.to_owned(), value.to_owned());
            }
        }
        _ => return Err(format!("unexpected key '{key}' in '{field}'")),
    }
    Ok(())
}

fn driver(mount: &mut MountRequest) -> &mut DriverConfig {
    let options = mount
        .volume_options
        .get_or_insert_with(VolumeOptions::default);
    options
        .driver_config
        .get_or_insert_with(DriverConfig::default)
}

fn bind(mount: &mut MountRequest) -> &mut BindOptions {
    mount.bind_options.get_or_insert_with(BindOptions::default)
}

fn tmpfs(mount: &mut MountRequest) -> &mut TmpfsOptions {
    mount
        .tmpfs_options
        .get_or_insert_with(TmpfsOptions::default)
}

/// docker/cli, `opts/mount.go`.
fn recursive(options: &mut BindOptions, value: &str) -> Result<(), String> {
    match value {
        // The default: includes the mounts below, read-only if the mount is.
        "enabled" => {}
        "disabled" => options.non_recursive = true,
        "writable" => options.read_only_non_recursive = true,
        "readonly" => options.read_only_force_recursive = true,
        _ => {
            return Err(format!(
                "invalid value for bind-recursive: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
            ));
        }
    }
    Ok(())
}

fn parse_bool(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("invalid value for {key}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_dockers_keys_and_their_short_forms() {
        let here = Path::new("/here");
        let mount = parse("source=vol,target=/data", here).unwrap();
        assert_eq!(
            (
                mount.kind.as_str(),
                mount.source.as_str(),
                mount.target.as_str()
            ),
            ("volume", "vol", "/data")
        );
        let mount = parse("type=bind,src=./x,dst=/data,ro", here).unwrap();
        assert!(mount.read_only);
        assert_eq!(mount.source, "/here/./x");
        let mount = parse("dst=/data,volume-nocopy,readonly=false", here).unwrap();
        assert!(mount.volume_options.unwrap().no_copy && !mount.read_only);
        let mount = parse("type=bind,src=../x,dst=/data", here).unwrap();
        assert_eq!(mount.source, "/here/../x");
        let quoted = "dst=/d,volume-driver=local,volume-opt=type=tmpfs,\"volume-opt=o=size=1m,mode=7\",\"volume-label=a=\"\"b\"\"\"";
        let options = parse(quoted, here).unwrap().volume_options.unwrap();
        assert_eq!(options.labels["a"], "\"b\"");
        let driver = options.driver_config.unwrap();
        assert_eq!(driver.name, "local");
        let options: Vec<_> = driver.options.into_iter().collect();
        let expected = [("o", "size=1m,mode=7"), ("type", "tmpfs")];
        assert_eq!(options, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let table = [
            ("", "EOF"),
            ("dst=/a,src=\"x", "column 12: bare \" in non-quoted-field"),
            (
                "dst=/a,\"src=x",
                "line 1, column 14: extraneous or missing \" in quoted-field",
            ),
            (
                "dst=/a,\"src=x\"y",
                "line 1, column 14: extraneous or missing \" in quoted-field",
            ),
            ("type=volume", "target is required"),
            ("dst=/a,what=1", "unexpected key 'what' in 'what=1'"),
            ("dst=/a,src", "invalid field 'src' must be a key=value pair"),
            ("dst=/a,ro=maybe", "invalid value for ro: maybe"),
        ];
        for (text, why) in table {
            let refused = parse(text, here).unwrap_err().to_string();
            assert!(refused.ends_with(why), "{text}: {refused}");
        }
    }
}
