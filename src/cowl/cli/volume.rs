//! `cowl volume`: volumes, printed as Docker does.

use super::args::{filter, label};
use super::container::args::Inspect;
use super::container::inspect;
use super::format::key_values;
use super::image::warn;
use super::prune::{self, Prune};
use super::refused;
use super::template::{LABELS, Type};
use super::{Access, Stdout, each, format};
use crate::engine::Engine;
use crate::engine::error::Result;
use crate::engine::volumes::{DRIVER, VolumeRequest, labels_of};
use crate::volume::Volume as Found;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum Volume {
    /// Create a volume
    Create(Create),
    /// Display detailed information on one or more volumes
    Inspect(Inspect),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Remove unused volumes: those with generated names, with --all the named ones too
    Prune {
        #[command(flatten)]
        prune: Prune,
        /// Remove all unused volumes, not just anonymous ones
        #[arg(short, long)]
        all: bool,
    },
    /// Remove one or more volumes
    #[command(visible_alias = "remove")]
    Rm {
        /// Names of volumes
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
        /// Don't fail if a volume doesn't exist
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the volume [default: generated]
    name: Option<String>,
    /// Volume driver; there is one, local
    #[arg(short, long, value_name = "NAME", default_value = DRIVER, hide_default_value = true)]
    driver: String,
    /// Options of the driver: type, device and o as of mount(8); o=bind for a directory of the host
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Metadata of the volume
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<String>,
    #[command(flatten)]
    refused: refused::OfVolume,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
    /// Only volumes that match: dangling, driver, label or name
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<String>,
    /// Format output: table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Volume {
    pub(super) fn access(&self) -> Access {
        match self {
            Self::Create(_) => Access::Add,
            Self::Rm { .. } | Self::Prune { .. } => Access::Change,
            Self::Ls(_) | Self::Inspect(_) => Access::Read,
        }
    }
}

pub(super) fn volume(engine: &Engine, command: Volume, out: &mut Stdout) -> Result<u8> {
    match command {
        Volume::Ls(args) => list(engine, &args, out),
        Volume::Create(args) => {
            let name = engine.create_volume(&VolumeRequest {
                name: args.name,
                driver: args.driver,
                labels: key_values(&args.label),
                options: key_values(&args.opt),
            })?;
            out.line(&name)?;
            Ok(0)
        }
        Volume::Inspect(args) => inspect::volume(engine, &args, out),
        Volume::Prune { prune, all } => prune::volumes(engine, &prune, all, out),
        Volume::Rm { names, force } => each(&names, out, |name, out| {
            engine.remove_volume(name, force)?;
            Ok(out.line(name)?)
        }),
    }
}

/// A volume's fields of `volume ls`.
pub(super) fn row(engine: &Engine, volume: &Found) -> Value {
    let labels = labels_of(volume);
    let labels = labels.iter().map(|(name, value)| format!("{name}={value}"));
    let shown = engine.volume_shown(volume);
    json!({
        LABELS: labels_of(volume),
        "Availability": "N/A",
        "Driver": DRIVER,
        "Group": "N/A",
        "Labels": labels.collect::<Vec<_>>().join(","),
        "Links": "N/A",
        "Mountpoint": shown.get("Mountpoint"),
        "Name": volume.name,
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    })
}

fn list(engine: &Engine, args: &Ls, out: &mut Stdout) -> Result<u8> {
    let volumes = engine.volumes()?;
    warn(&volumes.skipped);
    let mut volumes = volumes.items;
    engine.filter_volumes(&mut volumes, &format::filters(&args.filter)?)?;
    let rows: Vec<Value> = volumes.iter().map(|volume| row(engine, volume)).collect();
    let header = json!({
        "Driver": "DRIVER", "Name": "VOLUME NAME", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT",
        "Labels": "LABELS", "Links": "LINKS", "Size": "SIZE", "Availability": "AVAILABILITY",
        "Group": "GROUP", "Status": "STATUS",
    });
    let format = match (&args.format, args.quiet) {
        (Some(format), _) => format,
        (None, true) => "{{.Name}}",
        (None, false) => "table",
    };
    let of = &Type::Row("*formatter.volumeContext");
    format::print(format, "{{.Driver}}\t{{.Name}}", &header, &rows, of, out)?;
    Ok(0)
}
