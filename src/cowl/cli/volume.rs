//! `cowl volume`: volumes, printed as Docker does.

use super::args::Volume;
use super::container::inspect::pretty;
use super::image::warn;
use super::table::Table;
use super::{Stdout, each};
use crate::engine::Engine;
use crate::engine::error::Result;
use serde_json::{Value, json};

pub(super) fn volume(engine: &Engine, command: Volume, out: &mut Stdout) -> Result<u8> {
    match command {
        Volume::Ls { quiet } => list(engine, quiet, out),
        Volume::Create { name } => {
            let name = engine.create_volume(name.as_deref())?;
            out.line(&name)?;
            Ok(0)
        }
        Volume::Inspect { names } => inspect(engine, &names, out),
        Volume::Rm { names, force } => Ok(each(&names, |name| {
            engine.remove_volume(name, force)?;
            Ok(out.line(name)?)
        })),
    }
}

fn list(engine: &Engine, quiet: bool, out: &mut Stdout) -> Result<u8> {
    let mut table = Table::new(["DRIVER", "VOLUME NAME"]);
    let volumes = engine.volumes()?;
    warn(&volumes.skipped);
    for volume in volumes.items {
        if quiet {
            out.line(&volume.name)?;
        } else {
            table.row(["local".to_owned(), volume.name]);
        }
    }
    if !quiet {
        table.lines().iter().try_for_each(|line| out.line(line))?;
    }
    Ok(0)
}

fn inspect(engine: &Engine, names: &[String], out: &mut Stdout) -> Result<u8> {
    let mut found = Vec::new();
    let code = each(names, |name| {
        found.push(described(engine, name)?);
        Ok(())
    });
    out.line(&pretty(&found)?)?;
    Ok(code)
}

/// A volume in Docker's JSON.
pub(super) fn described(engine: &Engine, name: &str) -> Result<Value> {
    let (volume, mountpoint) = engine.volume_named(name)?;
    let labels = if volume.record.anonymous {
        json!({"com.docker.volume.anonymous": ""})
    } else {
        json!(null)
    };
    Ok(json!({
        "CreatedAt": volume.record.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "Driver": "local",
        "Labels": labels,
        "Mountpoint": mountpoint,
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    }))
}
