//! `cowl system`: disk usage and how much of it can be reclaimed.

use super::args::Info;
use super::container::list::row as container_row;
use super::events::{self, Events};
use super::image::warn;
use super::prune::{self, SystemPrune};
use super::template::Type;
use super::units::{human_size, human_size_of};
use super::{Access, Stdout, format, image, volume};
use crate::engine::Engine;
use crate::engine::container::state::Status;
use crate::engine::error::{Error, Result};
use crate::engine::usage::DiskUsage;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Digits of the sizes that Docker's `HumanSize` shows.
const DIGITS: u32 = 4;

#[derive(Debug, Subcommand)]
pub(super) enum System {
    /// Show disk usage
    Df(Df),
    /// Get events of containers, images and volumes as they happen
    Events(Events),
    /// Display information about the store and the host
    Info(Info),
    /// Remove unused data
    Prune(SystemPrune),
}

#[derive(Debug, Args)]
pub(super) struct Df {
    /// Show each image, container and volume
    #[arg(short, long)]
    verbose: bool,
    /// Format output: table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

impl System {
    pub(super) fn access(&self) -> Access {
        match self {
            Self::Df(_) | Self::Events(_) | Self::Info(_) => Access::Read,
            Self::Prune(_) => Access::Change,
        }
    }
}

pub(super) fn system(engine: &Engine, command: System, out: &mut Stdout) -> Result<u8> {
    match command {
        System::Df(args) => disk_usage(engine, &args, out),
        System::Events(args) => events::events(engine, &args, out),
        System::Info(args) => image::info(engine, &args, out),
        System::Prune(args) => prune::system(engine, &args, out),
    }
}

fn disk_usage(engine: &Engine, args: &Df, out: &mut Stdout) -> Result<u8> {
    let usage = engine.disk_usage()?;
    warn(&usage.skipped);
    let format = args.format.as_deref().filter(|format| !format.is_empty());
    let format = format.unwrap_or("table");
    if args.verbose {
        let is_table = format.split_whitespace().next() == Some("table");
        let things = Things::of(engine, &usage, !is_table)?;
        let printed = if is_table {
            things.print_tables(out)
        } else {
            things.print_as(format, out)
        };
        return printed.map(|()| 0);
    }
    let rows = [
        images(&usage),
        containers(&usage),
        volumes(&usage),
        kind("Build Cache", 0, 0, 0, "0B"),
    ];
    let header = json!({
        "Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE",
        "Reclaimable": "RECLAIMABLE",
    });
    let table = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
    let of = &Type::Row("*formatter.diskUsageImagesContext");
    format::print(format, table, &header, &rows, of, out)?;
    Ok(0)
}

fn size_of(bytes: u64) -> String {
    human_size_of(bytes, DIGITS)
}

fn kind(name: &str, total: usize, active: usize, size: u64, reclaimable: &str) -> Value {
    json!({
        "Active": active.to_string(),
        "Reclaimable": reclaimable,
        "Size": size_of(size),
        "TotalCount": total.to_string(),
        "Type": name,
    })
}

/// A part, with its percentage of the whole.
fn share(part: u64, whole: u64) -> String {
    let percent = u128::from(part) * 100;
    match percent.checked_div(whole.into()) {
        Some(percent) => format!("{} ({percent}%)", size_of(part)),
        None => size_of(part),
    }
}

fn images(usage: &DiskUsage) -> Value {
    let ids: BTreeSet<_> = usage.images.iter().map(|image| image.id).collect();
    let active = ids.iter().filter(|id| usage.containers_of.contains_key(id));
    let used: u64 = active
        .clone()
        .map(|id| usage.unique.get(id).copied().unwrap_or_default())
        .sum();
    let reclaimable = share(usage.layers.saturating_sub(used), usage.layers);
    let (total, active) = (ids.len(), active.count());
    kind("Images", total, active, usage.layers, &reclaimable)
}

fn containers(usage: &DiskUsage) -> Value {
    let runs = |status: &Status| {
        matches!(
            status,
            Status::Running | Status::Paused | Status::Restarting(_)
        )
    };
    let of = |running: bool| {
        let containers = usage.containers.iter();
        containers.filter(move |(summary, _)| runs(&summary.state.status) == running)
    };
    let at_rest: u64 = of(false).map(|(_, bytes)| bytes).sum();
    let all = at_rest + of(true).map(|(_, bytes)| bytes).sum::<u64>();
    let reclaimable = share(at_rest, all);
    kind(
        "Containers",
        usage.containers.len(),
        of(true).count(),
        all,
        &reclaimable,
    )
}

fn volumes(usage: &DiskUsage) -> Value {
    let volumes = usage.volumes.iter();
    let all: u64 = volumes.clone().map(|(_, bytes, _)| bytes).sum();
    let unused = volumes.clone().filter(|(_, _, links)| *links == 0);
    let reclaimable = share(unused.clone().map(|(_, bytes, _)| bytes).sum(), all);
    let active = usage.volumes.len() - unused.count();
    kind(
        "Local Volumes",
        usage.volumes.len(),
        active,
        all,
        &reclaimable,
    )
}

/// The rows of Docker's `system df -v`: images, containers and volumes.
struct Things {
    images: Vec<Value>,
    containers: Vec<Value>,
    volumes: Vec<Value>,
}

impl Things {
    /// `whole`: ids and commands are not shortened.
    fn of(engine: &Engine, usage: &DiskUsage, whole: bool) -> Result<Self> {
        let now = Timestamp::now();
        let mut images = Vec::new();
        let mut seen = BTreeSet::new();
        for listed in usage.images.iter().filter(|image| seen.insert(image.id)) {
            let unique = usage.unique.get(&listed.id).copied().unwrap_or_default();
            let containers = usage.containers_of.get(&listed.id).copied();
            let mut row = image::as_json(listed, whole, now);
            for (field, value) in [
                ("SharedSize", size_of(listed.size.saturating_sub(unique))),
                ("UniqueSize", size_of(unique)),
                ("Containers", containers.unwrap_or_default().to_string()),
                // Docker leaves it empty here.
                ("Digest", String::new()),
            ] {
                set(&mut row, field, value)?;
            }
            images.push(row);
        }
        let mut containers = Vec::new();
        for (summary, bytes) in &usage.containers {
            let mut row = container_row(summary, whole, now);
            set(&mut row, "Size", human_size(*bytes))?;
            containers.push(row);
        }
        let mut volumes = Vec::new();
        for (volume, bytes, links) in &usage.volumes {
            let mut row = volume::row(engine, volume);
            set(&mut row, "Links", links.to_string())?;
            set(&mut row, "Size", size_of(*bytes))?;
            volumes.push(row);
        }
        Ok(Self {
            images,
            containers,
            volumes,
        })
    }

    fn print_tables(&self, out: &mut Stdout) -> Result<()> {
        out.line("Images space usage:\n")?;
        let header = json!({
            "Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED",
            "Size": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
            "Containers": "CONTAINERS",
        });
        let table = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";
        format::print("table", table, &header, &self.images, &Type::Json, out)?;

        out.line("\nContainers space usage:\n")?;
        let header = json!({
            "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND",
            "LocalVolumes": "LOCAL VOLUMES", "Size": "SIZE", "RunningFor": "CREATED",
            "Status": "STATUS", "Names": "NAMES",
        });
        let table = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}";
        format::print("table", table, &header, &self.containers, &Type::Json, out)?;

        out.line("\nLocal Volumes space usage:\n")?;
        let header = json!({"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"});
        let table = "{{.Name}}\t{{.Links}}\t{{.Size}}";
        format::print("table", table, &header, &self.volumes, &Type::Json, out)?;
        out.line("\nBuild cache usage: 0B\n")?;
        Ok(out.line("CACHE ID   CACHE TYPE   SIZE      CREATED   LAST USED   USAGE     SHARED")?)
    }

    /// Prints all rows as one value, as Docker passes them to `json` and templates.
    fn print_as(&self, format: &str, out: &mut Stdout) -> Result<()> {
        let of = |rows: &[Value]| rows.iter().map(format::without_labels).collect::<Vec<_>>();
        let all = json!({
            "Images": of(&self.images), "Containers": of(&self.containers), "Volumes": of(&self.volumes),
            "BuildCache": [],
        });
        format::print(format, "", &Value::Null, &[all], &Type::Json, out)
    }
}

fn set(row: &mut Value, field: &str, value: impl Into<Value>) -> Result<()> {
    let fields = row
        .as_object_mut()
        .ok_or_else(|| Error::failed("a row is not an object"))?;
    fields.insert(field.to_owned(), value.into());
    // In Docker's order.
    fields.sort_keys();
    Ok(())
}
