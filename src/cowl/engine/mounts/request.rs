//! Validates a client's mounts (`-v`, `--mount`, `--tmpfs`) and converts them to a container's.

use super::tmpfs;
use crate::engine::container::config::{BindMode, Mount, MountSource};
use crate::engine::docker::{BindOptions, HostConfig, MountRequest, VolumeOptions};
use crate::engine::error::{Error, Result};
use crate::engine::names;
use crate::engine::volumes::check_driver;
use crate::volume::{NewVolume, PROPAGATIONS, Source, VolumeName, VolumeSpec, clean_destination};
use cowl_sys::mountinfo;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The requested mounts, without those of the image and of other containers.
pub(in crate::engine) fn wanted(host: &HostConfig) -> Result<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for bind in &host.binds {
        let spec = VolumeSpec::parse(bind, Path::new("/")).map_err(Error::invalid)?;
        mounts.push(specified(spec)?);
    }
    for asked in &host.mounts {
        mounts.push(requested(asked)?);
    }
    for (target, options) in &host.tmpfs {
        mounts.push(Mount {
            source: MountSource::Tmpfs {
                options: tmpfs::parse(options)?,
                listed: false,
            },
            destination: destination(target)?,
            read_only: false,
            mode: String::new(),
            bind: BindMode::default(),
        });
    }
    for (position, mount) in mounts.iter().enumerate() {
        let same = |other: &Mount| other.destination == mount.destination;
        if mounts.iter().take(position).any(same) {
            let destination = &mount.destination;
            return Err(Error::invalid(format!(
                "Duplicate mount point: {destination}"
            )));
        }
    }
    Ok(mounts)
}

/// The labels, driver and options for a volume that the container creates.
pub(in crate::engine) fn new_volume(
    host: &HostConfig,
    mount: &Mount,
    anonymous: bool,
) -> Result<NewVolume> {
    let asked = host.mounts.iter().find(|asked| {
        destination(&asked.target).is_ok_and(|destination| destination == mount.destination)
    });
    let options = asked.and_then(|asked| asked.volume_options.clone());
    let VolumeOptions {
        labels,
        driver_config,
        ..
    } = options.unwrap_or_default();
    let driver = driver_config.unwrap_or_default();
    check_driver(&driver.name)?;
    Ok(NewVolume {
        anonymous,
        labels,
        options: driver.options,
    })
}

fn destination(target: &str) -> Result<String, Error> {
    clean_destination(target).map_err(Error::invalid)
}

/// A volume or directory of `-v`, or of an image's `VOLUME`.
pub(in crate::engine) fn specified(spec: VolumeSpec) -> Result<Mount> {
    let no_copy = spec.no_copy;
    let mut bind = BindMode::default();
    let source = match spec.source {
        Source::Host(path) => {
            if path.try_exists().unwrap_or(false) {
                check_propagation(&path, &spec.propagation)?;
            }
            bind.propagation = spec.propagation;
            MountSource::Bind(path)
        }
        Source::Named(name) => volume(name.to_string(), no_copy, ""),
        Source::Anonymous => anonymous(no_copy, "")?,
    };
    Ok(Mount {
        source,
        destination: spec.destination,
        read_only: spec.read_only,
        mode: spec.mode,
        bind,
    })
}

fn volume(name: String, no_copy: bool, subpath: &str) -> MountSource {
    MountSource::Volume {
        name,
        anonymous: false,
        no_copy,
        subpath: subpath.to_owned(),
    }
}

fn anonymous(no_copy: bool, subpath: &str) -> Result<MountSource> {
    Ok(MountSource::Volume {
        name: names::new_id()?,
        anonymous: true,
        no_copy,
        subpath: subpath.to_owned(),
    })
}

/// A mount of `--mount`; errors have the texts of moby's `volume/mounts/linux_parser.go`.
fn requested(asked: &MountRequest) -> Result<Mount> {
    let invalid = |why: String| {
        let kind = &asked.kind;
        Error::invalid(format!("invalid mount config for type \"{kind}\": {why}"))
    };
    if asked.target.is_empty() {
        return Err(invalid("field Target must not be empty".to_owned()));
    }
    let foreign = [
        ("BindOptions", "bind", asked.bind_options.is_some()),
        ("VolumeOptions", "volume", asked.volume_options.is_some()),
        ("TmpfsOptions", "tmpfs", asked.tmpfs_options.is_some()),
    ];
    let known = ["bind", "volume", "tmpfs"].contains(&asked.kind.as_str());
    for (field, kind, given) in foreign {
        if known && given && asked.kind != kind {
            return Err(invalid(format!("field {field} must not be specified")));
        }
    }
    let mut bind = BindMode::default();
    let source = match asked.kind.as_str() {
        "volume" => of_volume(asked).map_err(invalid)?,
        "bind" => {
            let (path, mode) = of_bind(asked).map_err(invalid)?;
            bind = mode;
            MountSource::Bind(path)
        }
        "tmpfs" if !asked.source.is_empty() => {
            return Err(invalid("field Source must not be specified".to_owned()));
        }
        "tmpfs" => MountSource::Tmpfs {
            options: tmpfs::of_request(asked).map_err(invalid)?,
            listed: true,
        },
        kind => return Err(invalid(format!("mount type unknown: \"{kind}\""))),
    };
    Ok(Mount {
        source,
        destination: destination(&asked.target).map_err(|error| invalid(error.to_string()))?,
        read_only: asked.read_only,
        mode: String::new(),
        bind,
    })
}

fn of_volume(asked: &MountRequest) -> Result<MountSource, String> {
    let default = VolumeOptions::default();
    let options = asked.volume_options.as_ref().unwrap_or(&default);
    let subpath = options.subpath.as_str();
    let climbs = Path::new(subpath).components().any(|part| {
        !matches!(
            part,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    if climbs || subpath.contains('\0') {
        return Err("subpath must be a relative path within the volume".to_owned());
    }
    if asked.source.is_empty() {
        if !subpath.is_empty() {
            return Err("must not set Subpath when using anonymous volumes".to_owned());
        }
        return anonymous(options.no_copy, "").map_err(|error| error.to_string());
    }
    let name = VolumeName::parse(&asked.source)?;
    Ok(volume(name.to_string(), options.no_copy, subpath))
}

fn of_bind(asked: &MountRequest) -> Result<(PathBuf, BindMode), String> {
    let default = BindOptions::default();
    let options = asked.bind_options.as_ref().unwrap_or(&default);
    if asked.source.is_empty() {
        return Err("field Source must not be empty".to_owned());
    }
    if !asked.source.starts_with('/') {
        let source = &asked.source;
        return Err(format!(
            "invalid mount path: '{source}' mount path must be absolute"
        ));
    }
    let propagation = options.propagation.as_str();
    if !propagation.is_empty() && !PROPAGATIONS.contains(&propagation) {
        return Err(format!("invalid propagation mode: {propagation}"));
    }
    if options.read_only_force_recursive {
        if !asked.read_only {
            return Err("mount must be read-only to use ReadOnlyForceRecursive".to_owned());
        }
        if options.non_recursive || options.read_only_non_recursive {
            return Err(
                "ReadOnlyForceRecursive conflicts with NonRecursive and ReadOnlyNonRecursive"
                    .to_owned(),
            );
        }
    }
    let path = PathBuf::from(&asked.source);
    let is_missing = matches!(rustix::fs::stat(&path), Err(Errno::NOENT));
    if is_missing && !options.create_mountpoint {
        return Err(format!("bind source path does not exist: {}", asked.source));
    }
    if !is_missing {
        check_propagation(&path, propagation).map_err(|error| error.to_string())?;
    }
    Ok((
        path,
        BindMode {
            propagation: propagation.to_owned(),
            non_recursive: options.non_recursive,
            writable_below: options.read_only_non_recursive,
        },
    ))
}

/// Refuses a propagation that the host's mount does not support (moby, `daemon/oci_linux.go`,
/// `ensureShared`).
fn check_propagation(path: &Path, propagation: &str) -> Result<()> {
    let wants_shared = propagation.ends_with("shared");
    if !wants_shared && !propagation.ends_with("slave") {
        return Ok(());
    }
    let path = crate::engine::mountpoint::canonical(&super::open(path)?)?;
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mounts = mountinfo::parse(&table);
    // The last one with the longest path is on top.
    let around = mounts
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count());
    let Some(mount) = around else { return Ok(()) };
    let (path, point) = (path.display(), mount.point.display());
    if wants_shared && !mount.shared {
        return Err(Error::invalid(format!(
            "path {path} is mounted on {point} but it is not a shared mount"
        )));
    }
    if !mount.shared && !mount.slave {
        return Err(Error::invalid(format!(
            "path {path} is mounted on {point} but it is not a shared or slave mount"
        )));
    }
    Ok(())
}
